"""Parity with transformers (laws 4 and 5) over random folders of the T5 family: hidden states, logits, losses, ids."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import reference_t5
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_near, assert_same_ids
from reference_beams import BeamReference
from reference_t5 import START, Recipe, Seq2SeqReference, config
from test_parity_beams import found, searches
from test_parity_gpt2 import EXAMPLES, PHASES, ends, ids, sampling


def load(folder: Path, **options: Any) -> Any:
    """Loads a folder whose tensors are all known."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fastdecode.load(folder, **options)


def drawn(recipe: Recipe, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Returns `count` rows of ids of one length."""
    rows: list[list[int]] = (
        np.random.default_rng([recipe.seed, seed]).integers(0, recipe.vocab, (count, length)).tolist()
    )
    return rows


def hold(
    recipe: Recipe, ours: Any, theirs: Seq2SeqReference, source: list[int], decoder_ids: list[int]
) -> None:
    """Holds hidden states and logits of one source against the reference's."""
    hidden, logits = theirs.answers(source, decoder_ids)
    memory = ours.encode(source)
    what = f"of {recipe}"
    assert_near(
        memory.hidden, hidden, lambda: theirs.own_errors(source, decoder_ids)[0], f"hidden states {what}"
    )
    got = ours.logits(memory, decoder_ids)
    assert_near(got, logits, lambda: theirs.own_errors(source, decoder_ids)[1], f"logits {what}")


@settings(max_examples=120 * EXAMPLES, phases=PHASES)
@given(
    recipe=reference_t5.recipes(),
    lengths=st.tuples(st.integers(1, 70), st.integers(1, 30)),
    options=sampling(),
    end=ends(),
)
def test_any_folder_gives_what_transformers_gives(
    recipe: Recipe, lengths: tuple[int, int], options: dict[str, Any], end: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        folder = reference_t5.write(recipe, Path(tmp))
        theirs, ours = Seq2SeqReference(folder), load(folder)
    sources = drawn(recipe, 3, lengths[0])
    hold(recipe, ours, theirs, sources[0], [START, *drawn(recipe, 1, lengths[1], 1)[0]])
    pad = {"pad_token_id": 0} | recipe.uncached
    greedy = theirs.generate(sources, do_sample=False, **end, **pad)
    assert_same_ids(greedy, ids(ours.run(sources, **end)), f"greedy with {end}, {recipe}")
    both = {**options, **end}
    if both.get("num_return_sequences"):
        sources = sources[:2]
    run = theirs.generate(sources, **both, **pad)
    assert_same_ids(run, ids(ours.run(sources, **both)), f"sampled with {both}, {recipe}")


@settings(max_examples=60 * EXAMPLES, phases=PHASES)
@given(recipe=reference_t5.recipes(), length=st.integers(1, 20), options=searches())
def test_any_search_gives_what_transformers_gives(
    recipe: Recipe, length: int, options: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        folder = reference_t5.write(recipe, Path(tmp))
        theirs, ours = Seq2SeqReference(folder), load(folder)
    if recipe.vocab < 97:  # n-grams of a few tokens soon leave none that is allowed
        options = {name: value for name, value in options.items() if "ngram" not in name}
    sources = drawn(recipe, 3, length)
    what = f"beams with {options}, {recipe}"
    BeamReference(theirs.model, sources).hold(
        found(ours.run(sources, **options)), what, **options, **recipe.uncached
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_chosen_type_rounds_as_transformers_does(dtype: Any, stored: str, tmp_path: Path) -> None:
    # Under float16 transformers keeps `wo` as it is in the file, under bfloat16 it does not.
    recipe = Recipe(config(d_ff=150, feed_forward_proj="gated-gelu"), dtype=stored, seed=31)
    folder = reference_t5.write(recipe, tmp_path)
    ours = load(folder, dtype=dtype)
    source, prompt = drawn(recipe, 2, 40)
    hold(recipe, ours, Seq2SeqReference(folder, dtype), source, [START, *prompt[:20]])
    if (stored, dtype) == ("float32", "float16"):
        assert ours.info()["dtype"] == "float16, float32"


@pytest.mark.parametrize("model_type", ["t5", "umt5"])
def test_long_sources_and_outputs(model_type: str, tmp_path: Path) -> None:
    # Past the largest distance of the bias, the chunks of 256 keys and the chunks of 512 rows.
    recipe = Recipe(config(model_type, layers=1, num_decoder_layers=1), seed=32)
    folder = reference_t5.write(recipe, tmp_path)
    source, decoder_ids = drawn(recipe, 2, 700)
    hold(recipe, load(folder), Seq2SeqReference(folder), source, [START, *decoder_ids])


@pytest.mark.parametrize("prompts", [[[START, 5, 6], [START, 7, 8]], [[0, 0], [0, 9]]])
def test_decoder_prompts(prompts: list[list[int]], tmp_path: Path) -> None:
    recipe = Recipe(config(), seed=33)
    folder = reference_t5.write(recipe, tmp_path)
    ours, sources = load(folder), drawn(recipe, 2, 12)
    run = Seq2SeqReference(folder).generate(
        sources, prompts=prompts, do_sample=False, max_length=11, pad_token_id=0
    )
    assert_same_ids(run, ids(ours.run(sources, prompts, max_length=11)), "with a start token")
    # Without the start token it is added, row by row: the same outputs, and as many new tokens.
    bare = [prompt[1:] for prompt in prompts]
    if bare[0][0] != START:
        assert ids(ours.run(sources, bare, max_length=11)) == run.ids


@pytest.mark.parametrize("target", [[5], [5, 6, 7, 1], [5, -100, 7, -100, 1], [-100, -100, 3]])
def test_the_loss_is_that_of_transformers(target: list[int], tmp_path: Path) -> None:
    recipe = Recipe(config(tie_word_embeddings=False, pad_token_id=2), seed=34)
    folder = reference_t5.write(recipe, tmp_path)
    theirs, source = Seq2SeqReference(folder).model, drawn(recipe, 1, 15)[0]
    mask = torch.ones(1, len(source), dtype=torch.long)
    with torch.no_grad():
        want = theirs(torch.tensor([source]), attention_mask=mask, labels=torch.tensor([target])).loss.item()
    assert load(folder).loss(source, target) == pytest.approx(want, rel=1e-5)
