"""Parity with transformers (laws 4 and 5) over random GPT-2 folders: logits, greedy ids, sampled ids."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import reference
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference import Recipe, Reference, assert_close, assert_same_ids, config

EXAMPLES = int(os.environ.get("FASTDECODE_EXAMPLES", "1"))
# Shrinking an example asks the reference for hundreds of answers; a recipe is small enough to read as it is drawn.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def prompts(recipe: Recipe, count: int, length: int) -> list[list[int]]:
    """Returns `count` prompts of one length, drawn from the recipe's seed."""
    drawn = np.random.default_rng(recipe.seed).integers(0, recipe.config["vocab_size"], (count, length))
    rows: list[list[int]] = drawn.tolist()
    return rows


@st.composite
def sampling(draw: st.DrawFn) -> dict[str, Any]:
    """Draws the options of a sampled run, in the words that transformers and fastdecode share."""
    options: dict[str, Any] = {"do_sample": True, "seed": draw(st.integers(0, 2**32 - 1))}
    choices: dict[str, list[Any]] = {
        "temperature": [0.3, 0.8, 1.7],
        "top_k": [1, 2, 20, 50, 5000],
        "top_p": [0.1, 0.6, 0.95, 1.0],
        "min_p": [0.0, 0.02, 0.3],
        "repetition_penalty": [0.8, 1.3],
        "num_return_sequences": [2, 3],
    }
    for name, values in choices.items():
        if draw(st.booleans()):
            options[name] = draw(st.sampled_from(values))
    return options


@st.composite
def ends(draw: st.DrawFn) -> dict[str, Any]:
    """Draws where a run ends: an end token of small vocabularies comes soon, and may be held back."""
    options: dict[str, Any] = {"max_new_tokens": draw(st.integers(1, 10))}
    if draw(st.booleans()):
        options["eos_token_id"] = draw(st.integers(0, 2))
        if draw(st.booleans()):
            options["min_new_tokens"] = draw(st.integers(1, options["max_new_tokens"]))
    return options


def ids(outputs: Any) -> list[list[int]]:
    return [list(output.token_ids) for output in outputs]


def load(folder: Path, recipe: Recipe, **options: Any) -> Any:
    """Loads a folder, and sees to it that nothing but a head of its own is warned about."""
    with warnings.catch_warnings():
        if recipe.head == "tied, different":
            warnings.simplefilter("ignore", fastdecode.errors.FastdecodeWarning)
        return fastdecode.load(folder, **options)


@settings(max_examples=120 * EXAMPLES, phases=PHASES)
@given(recipe=reference.recipes(), length=st.integers(1, 14), options=sampling(), end=ends())
def test_any_folder_gives_what_transformers_gives(
    recipe: Recipe, length: int, options: dict[str, Any], end: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        folder = reference.write(recipe, Path(tmp))
        theirs, ours = Reference(folder), load(folder, recipe)
    whole = prompts(recipe, 1, recipe.config["n_positions"])[0]
    assert_close(ours.logits(whole), theirs, whole)
    batch = prompts(recipe, 3, length)
    greedy = theirs.generate(batch, do_sample=False, **end)
    assert_same_ids(greedy, ids(ours.run(batch, do_sample=False, **end)), f"greedy, {recipe}")
    sampled = theirs.generate(batch, **options, **end)
    assert_same_ids(sampled, ids(ours.run(batch, **options, **end)), f"sampled with {options}, {recipe}")


@settings(max_examples=25 * EXAMPLES, phases=PHASES)
@given(recipe=reference.recipes(), dtype=st.sampled_from(["float16", "bfloat16", "float32"]))
def test_a_chosen_type_rounds_as_transformers_does(recipe: Recipe, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        folder = reference.write(recipe, Path(tmp))
        theirs, ours = Reference(folder, dtype), load(folder, recipe, dtype=dtype)
    batch = prompts(recipe, 2, 7)
    assert_close(ours.logits(batch[0]), theirs, batch[0])
    run = theirs.generate(batch, do_sample=False, max_new_tokens=5)
    assert_same_ids(run, ids(ours.run(batch, max_new_tokens=5)), f"stored as {dtype}, {recipe}")


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_every_activation(activation: str, tmp_path: Path) -> None:
    recipe = Recipe(config(activation_function=activation), spread=1.5, seed=7)
    folder = reference.write(recipe, tmp_path)
    whole = prompts(recipe, 1, 64)[0]
    assert_close(load(folder, recipe).logits(whole), Reference(folder), whole)


@pytest.mark.parametrize("vocab", [50257, 5003])
@pytest.mark.parametrize("shape", [(3, 16), (12, 32), (1, 1), (4, 17)], ids=str)
def test_real_vocabulary_and_long_context(shape: tuple[int, int], vocab: int, tmp_path: Path) -> None:
    recipe = Recipe(config(heads=shape[0], head_dim=shape[1], layers=1, vocab=vocab, positions=320), seed=11)
    folder = reference.write(recipe, tmp_path)
    theirs, ours = Reference(folder), load(folder, recipe)
    whole = prompts(recipe, 1, 300)[0]
    assert_close(ours.logits(whole), theirs, whole)
    run = theirs.generate([whole, whole[::-1]], do_sample=True, seed=5, max_new_tokens=6)
    assert_same_ids(
        run, ids(ours.run([whole, whole[::-1]], do_sample=True, seed=5, max_new_tokens=6)), str(shape)
    )


def test_a_different_head_in_the_file_is_kept(tmp_path: Path) -> None:
    tied = reference.write(Recipe(config(), seed=3), tmp_path / "tied")
    recipe = Recipe(config(), head="tied, different", seed=3)
    folder = reference.write(recipe, tmp_path / "different")
    prompt = prompts(recipe, 1, 5)[0]
    got = load(folder, recipe).logits(prompt)
    assert_close(got, Reference(folder), prompt)
    assert np.abs(got - load(tied, recipe).logits(prompt)).max() > 0.1


def test_an_untied_head_that_is_absent_is_an_error(tmp_path: Path) -> None:
    recipe = Recipe(config(tie_word_embeddings=False), head="tied, absent")
    folder = reference.write(recipe, tmp_path)
    with pytest.raises(fastdecode.errors.CheckpointError, match=r"lm_head\.weight"):
        fastdecode.load(folder)


@pytest.mark.parametrize("activation", [*sorted(reference.PARAMETRIC), "no_such_function"])
def test_other_activations_are_an_error(activation: str, tmp_path: Path) -> None:
    folder = reference.write(Recipe(config()), tmp_path)
    text = (folder / "config.json").read_text().replace('"gelu_new"', f'"{activation}"')
    (folder / "config.json").write_text(text)
    with pytest.raises(fastdecode.errors.ConfigError, match="activation_function"):
        fastdecode.load(folder)
