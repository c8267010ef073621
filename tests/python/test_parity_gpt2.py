"""Parity with transformers (law 4) in what only GPT-2 has: activations by name, heads beside a tied embedding."""

from __future__ import annotations

from pathlib import Path

import fastdecode
import numpy as np
import pytest
import reference
from families import FAMILIES, Input
from families.gpt2 import GPT2Recipe, config
from parity import both, load
from reference import assert_close
from subject import Subject

GPT2 = FAMILIES["gpt2"]


def hold(recipe: GPT2Recipe, length: int) -> None:
    """Holds logits of one prompt against the reference's."""
    theirs, ours = both(GPT2, recipe)
    item = Input(recipe.ids(1, length)[0])
    assert_close(Subject(ours).answers(item), theirs, item)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    hold(GPT2Recipe(config(activation_function=activation), spread=1.5, seed=7), 64)


def test_a_different_head_in_the_file_is_kept(tmp_path: Path) -> None:
    tied, recipe = GPT2Recipe(config(), seed=3), GPT2Recipe(config(), head="tied, different", seed=3)
    hold(recipe, 5)
    [prompt] = recipe.ids(1, 5)
    other, own = (
        load(GPT2.write(drawn, tmp_path / name), drawn) for name, drawn in (("a", tied), ("b", recipe))
    )
    assert np.abs(own.logits(prompt) - other.logits(prompt)).max() > 0.1


def test_an_untied_head_that_is_absent_is_an_error(tmp_path: Path) -> None:
    folder = GPT2.write(GPT2Recipe(config(tie_word_embeddings=False), head="tied, absent"), tmp_path)
    with pytest.raises(fastdecode.errors.CheckpointError, match=r"lm_head\.weight"):
        fastdecode.load(folder)


@pytest.mark.parametrize("activation", [*sorted(reference.PARAMETRIC), "no_such_function"])
def test_other_activations_are_an_error(activation: str, tmp_path: Path) -> None:
    folder = GPT2.write(GPT2Recipe(config(activation_function=activation)), tmp_path)
    with pytest.raises(fastdecode.errors.ConfigError, match="activation_function"):
        fastdecode.load(folder)
