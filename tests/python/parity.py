"""What the tests of parity share: random folders loaded on both sides, and options of calls, drawn by hypothesis."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import fastdecode
from families import Family, Input, Recipe
from hypothesis import Phase
from hypothesis import strategies as st
from reference import Reference
from reference_beams import Found
from reference_seq2seq import Seq2SeqReference

EXAMPLES = int(os.environ.get("FASTDECODE_EXAMPLES", "1"))
# Shrinking an example asks the reference for hundreds of answers; a recipe is small enough to read as it is drawn.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def load(folder: Path, recipe: Recipe, **options: Any) -> Any:
    """Loads a folder, and sees to it that nothing is warned about but what the recipe says."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if recipe.is_warned_about:
            warnings.simplefilter("ignore", fastdecode.errors.FastdecodeWarning)
        return fastdecode.load(folder, **options)


def both(family: Family, recipe: Recipe, dtype: Any = None) -> tuple[Any, Any]:
    """Writes a folder, and returns the reference's model of it and ours, rounded to `dtype` where it is given."""
    chosen = {} if dtype is None else {"dtype": dtype}
    with tempfile.TemporaryDirectory() as tmp:
        folder = family.write(recipe, Path(tmp))
        return reference_of(family, folder, dtype), load(folder, recipe, **chosen)


def reference_of(family: Family, folder: Path, dtype: str | None = None) -> Reference:
    """The reference's model of a folder, rounded to `dtype` where it is given."""
    return (Seq2SeqReference if family.has_encoder else Reference)(folder, dtype)


def whole(family: Family, recipe: Recipe, source: list[int], length: int) -> Input:
    """An input for logits: a whole context, or with an encoder a source and `length` tokens behind the start token."""
    positions = family.positions(recipe.config)
    drawn = recipe.ids(1, positions or length, salt=1)[0]
    return Input([*recipe.start, *drawn], source) if family.has_encoder else Input(drawn)


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


@st.composite
def searches(draw: st.DrawFn) -> dict[str, Any]:
    """Draws the options of a search, in the words that transformers and fastdecode share."""
    beams = draw(st.sampled_from([2, 3, 4, 7]))
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": draw(st.integers(1, 10))}
    choices: dict[str, list[Any]] = {
        "length_penalty": [-1.0, 0.0, 0.5, 2.0, 3],
        "early_stopping": [True, False, "never"],
        "num_return_sequences": list(range(1, beams + 1)),
        "no_repeat_ngram_size": [1, 2, 3],
        "encoder_no_repeat_ngram_size": [2, 3],
        "repetition_penalty": [0.8, 1.3],
        "encoder_repetition_penalty": [0.7, 1.5],
        "eos_token_id": [0, 1, [0, 2]],
        "min_new_tokens": [1, min(3, options["max_new_tokens"])],
    }
    for name, values in choices.items():
        if draw(st.booleans()):
            options[name] = draw(st.sampled_from(values))
    if draw(st.sampled_from([False, False, True])):
        options |= {"do_sample": True, "seed": draw(st.integers(0, 2**32 - 1))}
        choices = {"temperature": [0.5, 1.5], "top_k": [3, 0], "top_p": [0.7]}
        options |= {
            name: draw(st.sampled_from(values)) for name, values in choices.items() if draw(st.booleans())
        }
    return options


def found(outputs: Any) -> Found:
    outputs = outputs if isinstance(outputs, list) else [outputs]
    assert all(type(output.score) is float for output in outputs)
    return Found([list(output.token_ids) for output in outputs], [output.score for output in outputs])


def ids(outputs: Any) -> list[list[int]]:
    return [list(output.token_ids) for output in outputs]
