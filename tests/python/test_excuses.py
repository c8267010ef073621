"""What parity excuses, and what it does not: results that float32 leaves open are still held to what is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from families.gpt2 import GPT2Recipe, config
from reference import Reference
from reference_beams import BeamReference, Found
from tally import TALLY

# Tokens of one embedding: their logits are equal, so that either is as good a choice.
TWINS = (7, 8)
PROMPTS = [[1, 2, 3], [4, 5, 6]]


@pytest.fixture
def theirs(tmp_path: Path) -> Reference:
    """A model whose most likely tokens are twins."""
    theirs = Reference(FAMILIES["gpt2"].write(GPT2Recipe(config(vocab=20), seed=9), tmp_path))
    table = theirs.model.transformer.wte.weight
    with torch.no_grad():
        # Along the mean of what the prompts end with, so that the twins come first.
        hidden = theirs.model.transformer(torch.tensor(PROMPTS)).last_hidden_state[:, -1].mean(0)
        table[TWINS[0]] = table[TWINS[1]] = 4 * hidden / hidden.norm()
    return theirs


@pytest.fixture(autouse=True)
def own_tally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what these tests provoke out of what the run counts."""
    monkeypatch.setattr(TALLY, "choices", 0)
    monkeypatch.setattr(TALLY, "excused", [])


def swapped(ids: list[int]) -> list[int]:
    """The ids with each twin for the other."""
    return [TWINS[1 - TWINS.index(token)] if token in TWINS else token for token in ids]


OPTIONS: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 1, "pad_token_id": 0}


def test_a_twin_is_excused_and_counted(theirs: Reference) -> None:
    held = BeamReference(theirs.model, PROMPTS)
    want = held.search(**OPTIONS)
    assert {token for ids in want.ids for token in ids} <= set(TWINS), "twins come first"
    held.hold(Found([swapped(ids) for ids in want.ids], want.scores), "twins", **OPTIONS)
    assert (TALLY.choices, len(TALLY.excused)) == (2, 2)


@pytest.mark.parametrize(
    "sampled", [{}, {"do_sample": True, "seed": 3, "top_k": 4}], ids=["searched", "drawn"]
)
def test_no_other_answer_is_excused_where_twins_are(theirs: Reference, sampled: dict[str, Any]) -> None:
    options = OPTIONS | sampled
    held = BeamReference(theirs.model, PROMPTS)
    want = held.search(**options)
    for token in sorted(set(range(20)) - {*TWINS, *want.ids[0]})[:4]:
        ids = [[token], want.ids[1]]
        lie = Found(ids, want.scores)
        with pytest.raises(AssertionError, match="the reference scores these ids"):
            held.hold(lie, "a score that is not theirs", **options)
        honest = Found(ids, held.scores_of(ids, **options))
        with pytest.raises(AssertionError, match=r"sources \[0\]"):
            held.hold(honest, "another token", **options)
    wrong_score = Found([swapped(want.ids[0]), want.ids[1]], [want.scores[0] + 0.1, want.scores[1]])
    with pytest.raises(AssertionError):
        held.hold(wrong_score, "twins of another score", **options)
    assert TALLY.excused == []


def test_an_excused_source_does_not_excuse_its_neighbour(theirs: Reference) -> None:
    held = BeamReference(theirs.model, PROMPTS)
    want = held.search(**OPTIONS)
    ids = [swapped(want.ids[0]), [3]]
    with pytest.raises(AssertionError, match=r"sources \[1\]"):
        held.hold(Found(ids, held.scores_of(ids, **OPTIONS)), "a neighbour", **OPTIONS)


def test_scores_anew_are_those_of_the_search(theirs: Reference) -> None:
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 5}
    options |= {"eos_token_id": 3, "length_penalty": 0.5, "repetition_penalty": 1.3, "min_new_tokens": 2}
    options |= {"encoder_repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    draws: list[dict[str, Any]] = [{}, {"do_sample": True, "seed": 5, "temperature": 1.5, "top_k": 8}]
    for sampled in draws:
        held = BeamReference(theirs.model, PROMPTS)
        want = held.search(**options, **sampled)
        assert held.scores_of(want.ids, **options, **sampled) == pytest.approx(want.scores, abs=1e-5)


def test_ids_drawn_from_nothing_are_held_to_their_scores(theirs: Reference) -> None:
    # So cold a draw that every candidate but the best underflows.
    options = OPTIONS | {"do_sample": True, "seed": 3, "temperature": 1e-4, "top_k": 0}
    held = BeamReference(theirs.model, PROMPTS)
    want = held.search(**options)
    assert want.drawn_from_nothing, "more was drawn than has a probability"
    ids = [[11], [12]]
    true = held.scores_of(ids, **options)
    held.hold(Found(ids, true), "from nothing", **options)
    assert len(TALLY.excused) == 2
    with pytest.raises(AssertionError, match="the reference scores these ids"):
        held.hold(Found(ids, [true[0], true[1] + 1.0]), "from nothing", **options)
