"""Laws 2 and 3 for every family, to the bit: cached and uncached, batch and single, threads, forks, draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import laws
import numpy as np
import pytest
from families import FAMILIES, Family, Input, Lengths, Recipe
from laws import SHORT, Case
from subject import same, same_answers

CAUSAL = {name: family for name, family in FAMILIES.items() if not family.has_encoder}
GROUPS = [
    pytest.param(family, *group, id=f"{family.name}: {name}")
    for family in FAMILIES.values()
    for name, group in family.groups.items()
]
EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)

case = laws.case_of(FAMILIES.values())


def test_cached_equals_uncached_at_every_split(case: Case, types: dict[str, Any]) -> None:
    model, item = case.load(**types), case.item(48)
    whole, prompt = model.logits(item), item.prompt
    for split in range(1, len(prompt)):
        state = model.prefill(item, split)
        assert np.array_equal(state.logits, whole[split - 1]), f"prefill of {split}"
        assert np.array_equal(state.step(prompt[split]), whole[split]), f"step after {split}"
    state = model.prefill(item, 1)
    assert np.array_equal(state.logits, whole[0])
    stepped = [state.step(token) for token in prompt[1:]]
    assert np.array_equal(np.stack(stepped), whole[1:])


@EVERY
@pytest.mark.parametrize("length", [255, 256, 257, 513])
def test_chunks_of_keys_change_nothing(
    family: Family, length: int, types: dict[str, Any], tmp_path: Path
) -> None:
    # Keys are reduced in chunks of 256 positions, a source's too: a split on either side of a border must not show.
    case = Case(family, family.chunks, family.write(family.chunks, tmp_path))
    model, item = case.load(**types), case.item(length + 3, source=length)
    whole, prompt = model.logits(item), item.prompt
    for split in (1, 255, 256, 257, length):
        if split > length:
            continue
        state = model.prefill(item, split)
        assert np.array_equal(state.logits, whole[split - 1])
        for place in range(split, min(split + 3, len(prompt))):
            assert np.array_equal(state.step(prompt[place]), whole[place])


def test_batch_equals_single(case: Case, types: dict[str, Any]) -> None:
    model = case.load(**types)
    options: dict[str, Any] = {"max_new_tokens": 9, "logprobs": 4}
    together = model.run(case.batch(), **options)
    for item, output in zip(case.batch(), together, strict=True):
        assert same(model.run_one(item, **options), output)


def test_a_list_of_seeds_draws_as_single_runs_do(case: Case, types: dict[str, Any]) -> None:
    model = case.load(**types)
    options: dict[str, Any] = {
        "max_new_tokens": 9,
        "logprobs": 2,
        "do_sample": True,
        "temperature": 1.3,
        "top_k": 0,
    }
    seeds = list(range(100, 100 + len(case.batch())))
    together = model.run(case.batch(), seed=seeds, **options)
    for item, seed, output in zip(case.batch(), seeds, together, strict=True):
        assert same(model.run_one(item, seed=seed, **options), output)


def test_beams_of_a_batch_equal_single_ones(case: Case, types: dict[str, Any]) -> None:
    model = case.load(**types)
    options: dict[str, Any] = {"max_new_tokens": 9, "num_beams": 3, "num_return_sequences": 2}
    together = model.run(case.batch(), **options)
    for place, item in enumerate(case.batch()):
        pairs = zip(model.run([item], **options), together[2 * place : 2 * place + 2], strict=True)
        assert all((left.token_ids, left.score) == (right.token_ids, right.score) for left, right in pairs)


def test_any_number_of_threads_gives_the_same_bits(case: Case, types: dict[str, Any]) -> None:
    alone = case.load(num_threads=1, **types)
    want = [alone.answers(item) for item in case.borders()]
    batches = [case.batch(), case.batch(SHORT)]
    runs = [alone.run(batch, max_new_tokens=6, logprobs=3) for batch in batches]
    for threads in (2, 3, 8):
        model = case.load(num_threads=threads, **types)
        for item, answers in zip(case.borders(), want, strict=True):
            assert same_answers(model.answers(item), answers), f"{threads} threads, {len(item.prompt)} rows"
        for batch, run in zip(batches, runs, strict=True):
            outs = model.run(batch, max_new_tokens=6, logprobs=3)
            assert all(same(left, right) for left, right in zip(outs, run, strict=True)), f"{threads} threads"


@pytest.mark.parametrize(("family", "recipe", "lengths"), GROUPS)
def test_rows_in_groups_change_nothing(
    family: Family, recipe: Recipe, lengths: list[Lengths], types: dict[str, Any], tmp_path: Path
) -> None:
    # Members divide the rows of long prompts and sources, too, and not only the outputs.
    case = Case(family, recipe, family.write(recipe, tmp_path))
    items, options = case.items(lengths), {"max_new_tokens": 3, "logprobs": 3}
    alone = case.load(num_threads=1, **types)
    want, run = [alone.answers(item) for item in items], alone.run(items, **options)
    for threads in (2, 3, 4, 6):
        model = case.load(num_threads=threads, **types)
        for item, answers in zip(items, want, strict=True):
            assert same_answers(model.answers(item), answers), f"{threads} threads, {len(item.prompt)} rows"
        outputs = model.run(items, **options)
        assert all(same(left, right) for left, right in zip(outputs, run, strict=True)), f"{threads} threads"


def test_a_fork_that_diverges_equals_a_run_from_scratch(case: Case, types: dict[str, Any]) -> None:
    model, item = case.load(**types), case.item(19, source=25)

    def scratch(length: int, *more: int) -> Any:
        return model.logits(Input([*item.prompt[:length], *more], item.source))[-1]

    state = model.prefill(item)
    other = state.fork()
    for token in (5, 6, 7):
        state.step(token)
    for token in (8, 9):
        other.step(token)
    assert np.array_equal(state.logits, scratch(19, 5, 6, 7))
    assert np.array_equal(other.logits, scratch(19, 8, 9))
    state.truncate(17)
    assert state.tokens == item.prompt[:17]
    assert np.array_equal(state.logits, scratch(17))
    assert np.array_equal(state.step(3), scratch(17, 3))


@pytest.mark.parametrize("family", CAUSAL.values(), ids=CAUSAL)
def test_embedding_rows_equal_tokens(family: Family, types: dict[str, Any], tmp_path: Path) -> None:
    for name, recipe in family.laws.items():
        case = Case(family, recipe, family.write(recipe, tmp_path / name))
        subject, prompt = case.load(**types), case.item(21).prompt
        state = subject.model.prefill(embeddings=subject.model.embed(prompt))
        assert state.tokens == [-1] * 21
        assert np.array_equal(state.logits, subject.model.logits(prompt)[-1])


@EVERY
def test_compute_in_bfloat16_is_its_own_arithmetic(family: Family, tmp_path: Path) -> None:
    # Without this the laws above could hold for a compute type that is never used.
    recipe = family.laws[family.wide]
    case = Case(family, recipe, family.write(recipe, tmp_path))
    item = case.item(40, source=40)
    full = case.load(dtype="bfloat16").answers(item)
    half = case.load(dtype="bfloat16", compute_dtype="bfloat16").answers(item)
    for name in full:
        apart = np.abs(full[name] - half[name]).max() / np.abs(full[name]).max()
        # Single hidden states are further apart than logits, which are sums over all of them.
        assert 1e-4 < apart < (5e-2 if name == "logits" else 1e-1), name
