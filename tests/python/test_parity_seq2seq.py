"""Parity with transformers (laws 4 and 5) in what only encoder-decoders have: decoder prompts, losses, mixed types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from families import FAMILIES, Family, Input, Recipe
from families.t5 import START, T5Recipe, config
from parity import both, ids
from reference import assert_close, assert_same_ids
from subject import Subject

T5 = FAMILIES["t5"]
FAMILIES_WITH_ENCODER = [family for family in FAMILIES.values() if family.has_encoder]
SEQ2SEQ = pytest.mark.parametrize("family", FAMILIES_WITH_ENCODER, ids=lambda family: family.name)
LOSSES = [
    pytest.param(T5, T5Recipe(config(tie_word_embeddings=False), seed=34), id="t5: untied"),
    *(
        pytest.param(family, recipe, id=f"{family.name}: {name}")
        for family in FAMILIES_WITH_ENCODER
        for name, recipe in family.laws.items()
    ),
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_t5_keeps_wo_as_transformers_does(dtype: Any, stored: str) -> None:
    # Under float16 transformers keeps `wo` as it is in the file, under bfloat16 it does not.
    recipe = T5Recipe(config(d_ff=150, feed_forward_proj="gated-gelu"), dtype=stored, seed=31)
    theirs, ours = both(T5, recipe, dtype)
    source, prompt = recipe.ids(2, 40)
    item = Input([START, *prompt[:20]], source)
    assert_close(Subject(ours).answers(item), theirs, item)
    if (stored, dtype) == ("float32", "float16"):
        assert ours.info()["dtype"] == "float16, float32"


@SEQ2SEQ
@pytest.mark.parametrize("prompts", [[[5, 6], [7, 8]], [[0], [9]]])
def test_decoder_prompts(family: Family, prompts: list[list[int]]) -> None:
    recipe = next(iter(family.laws.values()))
    theirs, ours = both(family, recipe)
    sources = recipe.ids(2, 12)
    begun = [[*recipe.start, *prompt] for prompt in prompts]
    run = theirs.generate(sources, prompts=begun, do_sample=False, max_length=11, **recipe.for_transformers)
    assert_same_ids(run, ids(ours.run(sources, begun, max_length=11)), "with a start token")
    # Without the start token it is added, row by row: the same outputs, and as many new tokens.
    if prompts[0][0] not in recipe.start:
        assert ids(ours.run(sources, prompts, max_length=11)) == run.ids


@pytest.mark.parametrize(("family", "recipe"), LOSSES)
@pytest.mark.parametrize("target", [[5], [5, 6, 7, 1], [5, -100, 7, -100, 1], [-100, -100, 3]])
def test_the_loss_is_that_of_transformers(family: Family, recipe: Recipe, target: list[int]) -> None:
    # The decoder reads the labels one place later, and a pad token for every -100.
    padded = replace(recipe, config=recipe.config | {"pad_token_id": 2})
    theirs, ours = both(family, padded)
    [source] = recipe.ids(1, 15)
    assert ours.loss(source, target) == pytest.approx(theirs.loss(source, target), rel=1e-5)
