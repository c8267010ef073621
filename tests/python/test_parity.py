"""Parity with transformers (laws 4 and 5) over random folders of every family: hidden states, logits, ids, scores."""

from __future__ import annotations

from typing import Any

import pytest
from families import DTYPES, FAMILIES, Family, Lengths, Recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import EXAMPLES, PHASES, both, ends, found, ids, sampling, searches, whole
from reference import assert_close, assert_same_ids
from reference_beams import BeamReference
from subject import Subject

EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
LONGEST = [
    pytest.param(family, *longest, id=f"{family.name}: {name}")
    for family in FAMILIES.values()
    for name, longest in family.longest.items()
]


@EVERY
def test_any_folder_gives_what_transformers_gives(family: Family) -> None:
    @settings(max_examples=family.examples(120) * EXAMPLES, phases=PHASES)
    @given(
        recipe=family.recipes(),
        length=st.integers(1, 70 if family.has_encoder else 14),
        prompt=st.integers(1, 30),
        options=sampling(),
        end=ends(),
    )
    def hold(recipe: Recipe, length: int, prompt: int, options: dict[str, Any], end: dict[str, Any]) -> None:
        theirs, ours = both(family, recipe)
        batch = recipe.ids(3, length)
        item = whole(family, recipe, batch[0], prompt)
        assert_close(Subject(ours).answers(item), theirs, item, f"of {recipe}")
        greedy = theirs.generate(batch, do_sample=False, **end, **recipe.for_transformers)
        assert_same_ids(greedy, ids(ours.run(batch, do_sample=False, **end)), f"greedy with {end}, {recipe}")
        sampled = theirs.generate(batch, **options, **end, **recipe.for_transformers)
        what = f"sampled with {options}, {end}, {recipe}"
        assert_same_ids(sampled, ids(ours.run(batch, **options, **end)), what)

    hold()


@EVERY
def test_any_search_gives_what_transformers_gives(family: Family) -> None:
    # A search costs the reference of an encoder-decoder more than twice as much.
    @settings(max_examples=family.examples(60 if family.has_encoder else 150) * EXAMPLES, phases=PHASES)
    @given(
        recipe=family.recipes(),
        length=st.integers(1, 20 if family.has_encoder else 12),
        options=searches(),
    )
    def hold(recipe: Recipe, length: int, options: dict[str, Any]) -> None:
        theirs, ours = both(family, recipe)
        if recipe.vocab < 97:  # n-grams of a few tokens soon leave none that is allowed
            options = {name: value for name, value in options.items() if "ngram" not in name}
        batch = recipe.ids(3, length)
        pad = {} if "eos_token_id" in options else {"pad_token_id": 0}
        BeamReference(theirs.model, batch).hold(
            found(ours.run(batch, **options)),
            f"beams with {options}, {recipe}",
            **options,
            **pad,
            **recipe.for_transformers,
        )

    hold()


@EVERY
def test_a_chosen_type_rounds_as_transformers_does(family: Family) -> None:
    @settings(max_examples=family.examples(25) * EXAMPLES, phases=PHASES)
    @given(recipe=family.recipes(), dtype=st.sampled_from(DTYPES))
    def hold(recipe: Recipe, dtype: str) -> None:
        theirs, ours = both(family, recipe, dtype)
        batch = recipe.ids(2, 7)
        item = whole(family, recipe, batch[0], 7)
        assert_close(Subject(ours).answers(item), theirs, item, f"stored as {dtype}, {recipe}")
        run = theirs.generate(batch, do_sample=False, max_new_tokens=5, **recipe.for_transformers)
        assert_same_ids(run, ids(ours.run(batch, max_new_tokens=5)), f"stored as {dtype}, {recipe}")

    hold()


@pytest.mark.parametrize(("family", "recipe", "lengths"), LONGEST)
def test_long_inputs(family: Family, recipe: Recipe, lengths: Lengths) -> None:
    theirs, ours = both(family, recipe)
    [item] = family.inputs(recipe, [lengths])
    assert_close(Subject(ours).answers(item), theirs, item)
    first = item.source or item.prompt
    batch, options = [first, first[::-1]], {"do_sample": True, "seed": 5, "max_new_tokens": 6}
    run = theirs.generate(batch, **options, **recipe.for_transformers)
    assert_same_ids(run, ids(ours.run(batch, **options)), str(recipe))
