"""Laws 2 and 3 through the package, to the bit: cached and uncached, batch and single, threads, forks, draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import reference
from reference import Recipe, config

# Stored type, and the type in which products are formed.
TYPES = [("float32", None), ("float16", None), ("bfloat16", None), ("bfloat16", "bfloat16")]
SHAPES = {
    "widths of 48": Recipe(config(heads=3, head_dim=16, layers=2, positions=64), seed=21),
    "odd widths": Recipe(
        config(heads=3, head_dim=17, layers=2, vocab=101, n_inner=37, positions=64), seed=22
    ),
    "wide": Recipe(config(heads=4, head_dim=64, layers=2, vocab=515, positions=64), seed=23),
}
RAGGED = [1, 7, 16, 33, 2]
# No sequence longer than a task of attention, so that keys are put by whoever attends.
SHORT = [1, 7, 16, 20, 2]
# Rows around which the work is split in other ways: private norms, rows packed alone and together, tasks of attention.
BORDERS = [2, 8, 9, 16, 17, 24, 25, 40]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("laws")
    return {name: reference.write(recipe, root / name) for name, recipe in SHAPES.items()}


@pytest.fixture(params=TYPES, ids=lambda types: "/".join(filter(None, types)))
def types(request: pytest.FixtureRequest) -> dict[str, Any]:
    dtype, compute = request.param
    return {"dtype": dtype, "compute_dtype": compute}


@pytest.fixture(params=sorted(SHAPES))
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def tokens(length: int, vocab: int = 97, seed: int = 0) -> list[int]:
    drawn: list[int] = np.random.default_rng(seed).integers(0, vocab, length).tolist()
    return drawn


def ragged(lengths: list[int] = RAGGED) -> list[list[int]]:
    return [tokens(length, seed=length) for length in lengths]


def same(left: Any, right: Any) -> bool:
    """Whether two outputs agree in ids and in every bit of every reported log-probability."""
    return list(left.token_ids) == list(right.token_ids) and left.logprobs == right.logprobs


def test_cached_equals_uncached_at_every_split(folder: Path, types: dict[str, Any]) -> None:
    model, prompt = fastdecode.load(folder, **types), tokens(48)
    whole = model.logits(prompt)
    for split in range(1, len(prompt)):
        state = model.prefill(prompt[:split])
        assert np.array_equal(state.logits, whole[split - 1]), f"prefill of {split}"
        assert np.array_equal(state.step(prompt[split]), whole[split]), f"step after {split}"
    state = model.prefill(prompt[:1])
    stepped = [state.step(token) for token in prompt[1:]]
    assert np.array_equal(np.stack(stepped), whole[1:])


@pytest.mark.parametrize("length", [255, 256, 257, 513])
def test_chunks_of_keys_change_nothing(length: int, types: dict[str, Any], tmp_path: Path) -> None:
    # Keys are reduced in chunks of 256 positions: a split on either side of a border must not show.
    folder = reference.write(Recipe(config(layers=1, positions=520), seed=24), tmp_path)
    model, prompt = fastdecode.load(folder, **types), tokens(length + 3)
    whole = model.logits(prompt)
    for split in (1, 255, 256, 257, length):
        if split > length:
            continue
        state = model.prefill(prompt[:split])
        assert np.array_equal(state.logits, whole[split - 1])
        for place in range(split, min(split + 3, len(prompt))):
            assert np.array_equal(state.step(prompt[place]), whole[place])


def test_batch_equals_single(folder: Path, types: dict[str, Any]) -> None:
    model = fastdecode.load(folder, **types)
    options: dict[str, Any] = {"max_new_tokens": 9, "logprobs": 4}
    together = model.run(ragged(), **options)
    for prompt, output in zip(ragged(), together, strict=True):
        assert same(model.run(prompt, **options), output)


def test_a_list_of_seeds_draws_as_single_runs_do(folder: Path, types: dict[str, Any]) -> None:
    model = fastdecode.load(folder, **types)
    options: dict[str, Any] = {
        "max_new_tokens": 9,
        "logprobs": 2,
        "do_sample": True,
        "temperature": 1.3,
        "top_k": 0,
    }
    seeds = list(range(100, 100 + len(RAGGED)))
    together = model.run(ragged(), seed=seeds, **options)
    for prompt, seed, output in zip(ragged(), seeds, together, strict=True):
        assert same(model.run(prompt, seed=seed, **options), output)


def test_any_number_of_threads_gives_the_same_bits(folder: Path, types: dict[str, Any]) -> None:
    prompts = [tokens(length) for length in BORDERS]
    alone = fastdecode.load(folder, num_threads=1, **types)
    want = [alone.logits(prompt) for prompt in prompts]
    batches = [ragged(), ragged(SHORT)]
    runs = [alone.run(batch, max_new_tokens=6, logprobs=3) for batch in batches]
    for threads in (2, 3, 8):
        model = fastdecode.load(folder, num_threads=threads, **types)
        for prompt, logits in zip(prompts, want, strict=True):
            assert np.array_equal(model.logits(prompt), logits), f"{threads} threads, {len(prompt)} rows"
        for batch, run in zip(batches, runs, strict=True):
            outs = model.run(batch, max_new_tokens=6, logprobs=3)
            assert all(same(left, right) for left, right in zip(outs, run, strict=True)), f"{threads} threads"


@pytest.mark.parametrize("lengths", [[300], [513], [200, 90, 1, 250]], ids=str)
def test_rows_in_groups_change_nothing(lengths: list[int], types: dict[str, Any], tmp_path: Path) -> None:
    # Members divide the rows of long prompts, too, and not only the outputs.
    folder = reference.write(Recipe(config(heads=2, head_dim=17, layers=2, positions=520), seed=25), tmp_path)
    options: dict[str, Any] = {"max_new_tokens": 3, "logprobs": 3}
    alone = fastdecode.load(folder, num_threads=1, **types)
    want, run = [alone.logits(prompt) for prompt in ragged(lengths)], alone.run(ragged(lengths), **options)
    for threads in (2, 3, 4, 6):
        model = fastdecode.load(folder, num_threads=threads, **types)
        for prompt, logits in zip(ragged(lengths), want, strict=True):
            assert np.array_equal(model.logits(prompt), logits), f"{threads} threads, {len(prompt)} rows"
        outputs = model.run(ragged(lengths), **options)
        assert all(same(left, right) for left, right in zip(outputs, run, strict=True)), f"{threads} threads"


def test_a_fork_that_diverges_equals_a_run_from_scratch(folder: Path, types: dict[str, Any]) -> None:
    model, prompt = fastdecode.load(folder, **types), tokens(19)
    state = model.prefill(prompt)
    other = state.fork()
    for token in (5, 6, 7):
        state.step(token)
    for token in (8, 9):
        other.step(token)
    assert np.array_equal(state.logits, model.logits([*prompt, 5, 6, 7])[-1])
    assert np.array_equal(other.logits, model.logits([*prompt, 8, 9])[-1])
    state.truncate(17)
    assert state.tokens == prompt[:17]
    assert np.array_equal(state.logits, model.logits(prompt[:17])[-1])
    assert np.array_equal(state.step(3), model.logits([*prompt[:17], 3])[-1])


def test_embedding_rows_equal_tokens(folder: Path, types: dict[str, Any]) -> None:
    model, prompt = fastdecode.load(folder, **types), tokens(21)
    state = model.prefill(embeddings=model.embed(prompt))
    assert state.tokens == [-1] * 21
    assert np.array_equal(state.logits, model.logits(prompt)[-1])


def test_compute_in_bfloat16_is_its_own_arithmetic(folders: dict[str, Path]) -> None:
    # Without this the laws above could hold for a compute type that is never used.
    prompt = tokens(40)
    full = fastdecode.load(folders["wide"], dtype="bfloat16").logits(prompt)
    half = fastdecode.load(folders["wide"], dtype="bfloat16", compute_dtype="bfloat16").logits(prompt)
    apart = np.abs(full - half).max() / np.abs(full).max()
    assert 1e-4 < apart < 5e-2
