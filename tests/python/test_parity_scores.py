"""Parity with transformers in losses, scores of given tokens and perplexities."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import torch
from families import FAMILIES, Family, Recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import EXAMPLES, PHASES, both
from reference import Reference

DEMO = Path(fastdecode.__file__).parent / "demo" / "demo-stories"
TEXT = Path(__file__).resolve().parent.parent / "golden" / "texts" / "carroll-shakespeare.txt"
FAMILIES_HERE = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def forward(theirs: Any, ids: list[int], source: list[int] | None, model: Any = None, **more: Any) -> Any:
    """The reference's answer to ids, read by the decoder where there is a source."""
    model = model or theirs.model
    with torch.no_grad():
        if source is None:
            return model(torch.tensor([ids]), **more)
        return model(torch.tensor([source]), decoder_input_ids=torch.tensor([ids]), use_cache=False, **more)


def assert_near(got: list[float], want: list[float], exact: list[float]) -> None:
    """Holds numbers to 1e-4 of the largest, and to twice the reference's own error in float32 beside it."""
    bound = 1e-4 * max(1.0, *(abs(x) for x in want))
    own = max(abs(a - b) for a, b in zip(want, exact, strict=True))
    apart = max(abs(a - b) for a, b in zip(got, want, strict=True))
    assert apart <= bound + 2 * own, f"differ by {apart:.2e}, allowed are {bound:.2e} and twice {own:.2e}"


@FAMILIES_HERE
def test_any_tokens_are_as_probable_as_transformers_says(family: Family) -> None:
    @settings(max_examples=family.examples(15) * EXAMPLES, phases=PHASES)
    @given(recipe=family.recipes(), prompt=st.integers(1, 8), lengths=st.lists(st.integers(1, 5), min_size=1))
    def hold(recipe: Recipe, prompt: int, lengths: list[int]) -> None:
        theirs, ours = both(family, recipe)
        [before] = recipe.ids(1, prompt)
        targets = [recipe.ids(1, length, salt=9 + place)[0] for place, length in enumerate(lengths)]
        limit = family.positions(recipe.config)
        if limit is not None:
            targets = [target[: max(1, limit - prompt)] for target in targets]
            before = before[: max(1, limit - max(map(len, targets)))]
        scores = ours.score([(before, target) for target in targets])
        doubled = copy.deepcopy(theirs.model).double()
        for target, score in zip(targets, scores, strict=True):
            source = before if family.has_encoder else None
            read = [*(recipe.start if family.has_encoder else before), *target][:-1]
            told = []
            for model in (theirs.model, doubled):
                logits = forward(theirs, read, source, model).logits[0][-len(target) :]
                told.append(logits.log_softmax(-1)[range(len(target)), target].tolist())
            assert score.token_ids == target
            assert_near(score.token_logprobs, told[0], told[1])
            assert ours.score([(before, target)]) == [score]

    hold()


@pytest.mark.parametrize("family", [f for f in FAMILIES.values() if not f.has_encoder], ids=lambda f: f.name)
def test_any_loss_is_that_of_transformers(family: Family) -> None:
    @settings(max_examples=family.examples(20) * EXAMPLES, phases=PHASES)
    @given(recipe=family.recipes(), length=st.integers(2, 14), data=st.data())
    def hold(recipe: Recipe, length: int, data: st.DataObject) -> None:
        theirs, ours = both(family, recipe)
        limit = family.positions(recipe.config) or length
        ids = recipe.ids(1, min(length, limit))[0]
        if len(ids) < 2:
            return
        token = st.one_of(st.just(-100), st.integers(0, recipe.vocab - 1))
        labels = data.draw(st.one_of(st.none(), st.lists(token, min_size=len(ids), max_size=len(ids))))
        told = torch.tensor([ids if labels is None else labels])
        if labels is not None and set(labels[1:]) == {-100}:
            assert math.isnan(forward(theirs, ids, None, labels=told).loss.item())
            with pytest.raises(fastdecode.errors.OptionError, match="a token that counts"):
                ours.loss(ids, labels)
            return
        want = forward(theirs, ids, None, labels=told).loss.item()
        exact = forward(theirs, ids, None, copy.deepcopy(theirs.model).double(), labels=told).loss.item()
        assert_near([ours.loss(ids, labels)], [want], [exact])

    hold()


@pytest.mark.parametrize(("stride", "window"), [(64, 128), (512, None), (100, 300)])
def test_the_perplexity_of_a_text_is_that_of_the_guide(stride: int, window: int | None) -> None:
    """What the guide to fixed-length models computes with transformers, in words of our own."""
    theirs, ours = Reference(DEMO), fastdecode.CausalLM.load("demo-stories")
    assert ours.tokenizer is not None
    text = TEXT.read_text(encoding="utf-8")[:6000]
    ids = ours.tokenizer.encode(text)
    size, nats, weight, scored = window or 512, 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        part = ids[begin : begin + size]
        end = begin + len(part)
        labels = torch.tensor([part])
        labels[:, : len(part) - (end - scored)] = -100
        counted = int((labels != -100).sum()) - 1
        nats += forward(theirs, part, None, labels=labels).loss.item() * counted
        weight, scored = weight + counted, end
        if end == len(ids):
            break
    assert ours.perplexity(text, stride, window) == pytest.approx(math.exp(nats / weight), rel=1e-4)
