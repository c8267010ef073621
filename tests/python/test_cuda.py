"""What a GPU computes is what the CPU computes: every family, on the emulated driver with the kernels that a GPU runs.

The CPU's own results are held against transformers elsewhere. Here the device's are held against the CPU's: logits
within 1e-4 of the largest in float32, within 1.5 times the error of transformers in bfloat16; ids equal wherever the
choice was not too close to call.
"""

from __future__ import annotations

import gc
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import emulated
import fastdecode
import laws
import numpy as np
import pytest
from families import FAMILIES, Family, Lengths
from laws import Case
from parity import reference_of
from subject import Subject, same, same_answers

TYPES = ["float32", "bfloat16"]
# The part of the largest logit by which a float32 logit of the GPU may differ from the CPU's.
BOUND = 1e-4

# What is special about a family, in models that an emulated GPU runs in seconds.
SMALL = [replace(f, laws={n: r for n, r in f.laws.items() if n != f.wide}) for f in FAMILIES.values()]

case = laws.case_of(SMALL)
EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@pytest.fixture(autouse=True)
def gpu(emulated_gpu: Any) -> Any:
    """Every test has the emulated GPU."""
    return emulated_gpu


def on_cpu(case: Case, dtype: Any, **options: Any) -> Subject:
    compute = "bfloat16" if dtype == "bfloat16" else None
    return case.load(dtype=dtype, compute_dtype=compute, **options)


def on_gpu(case: Case, dtype: Any, **options: Any) -> Subject:
    loaded = case.load(dtype=dtype, device="cuda", **options)
    assert loaded.model.info()["device"] == "cuda:0"
    return loaded


def distance(left: Any, right: Any) -> float:
    """How far apart two arrays are, as a part of the largest value."""
    return float(np.abs(left - right).max() / np.abs(right).max())


def test_logits_in_float32(case: Case) -> None:
    cpu, gpu = on_cpu(case, "float32"), on_gpu(case, "float32")
    # One row, few rows that attend by themselves, tiles of attention, more rows than a tile of a product.
    for length, source in [(1, 1), (3, 5), (9, 17), (40, 33), (66, 70)]:
        item = case.item(min(length, 64), source)
        theirs = cpu.answers(item)
        for name, ours in gpu.answers(item).items():
            assert distance(ours, theirs[name]) <= BOUND, f"{name} of {length} and {source}"


def test_logits_in_bfloat16(case: Case) -> None:
    import torch

    gpu = on_gpu(case, "bfloat16")
    assert gpu.model.info()["compute_dtype"] == "bfloat16"
    reference = reference_of(case.family, case.folder, "bfloat16")
    item = case.item(40, 33)
    exact = reference.answers(item)["logits"]
    rounded = reference.model.to(torch.bfloat16)
    theirs = reference.answers(item, lambda *a, **k: _in_float(rounded(*a, **k)))["logits"]
    error, own = np.abs(gpu.logits(item) - exact).max(), np.abs(theirs - exact).max()
    assert error <= 1.5 * own, f"{error} where transformers in bfloat16 has {own}"


def _in_float(output: Any) -> Any:
    for name, value in output.items():
        if hasattr(value, "float"):
            output[name] = value.float()
    return output


@EVERY
@pytest.mark.parametrize("dtype", TYPES)
def test_more_keys_than_a_chunk(family: Family, dtype: str, tmp_path: Path) -> None:
    case = Case(family, family.chunks, family.write(family.chunks, tmp_path))
    cpu, gpu = on_cpu(case, dtype), on_gpu(case, dtype)
    item = case.item(300, source=270)
    state, theirs = gpu.prefill(item, 297), cpu.logits(item)
    assert distance(state.logits, theirs[296]) <= (BOUND if dtype == "float32" else 0.05)
    for place in (297, 298, 299):
        assert distance(state.step(item.prompt[place]), theirs[place]) <= (
            BOUND if dtype == "float32" else 0.05
        )


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_of_a_bucket_are_single_ones_to_the_bit(case: Case, dtype: str) -> None:
    gpu = on_gpu(case, dtype)
    # Prompts and sources of more than eight tokens go through the same kernels alone and side by side. Afterwards five
    # rows go through products that do not know how many rows there are.
    items = case.batch(([9, 16, 33, 20, 12], [21, 9, 17, 33, 10]))
    options: dict[str, Any] = {"max_new_tokens": 5, "logprobs": 2}
    for item, output in zip(items, gpu.run(items, **options), strict=True):
        assert same(gpu.run_one(item, **options), output)


@pytest.mark.parametrize("count", [9, 12, 33])
def test_more_rows_than_a_bucket_of_single_ones(case: Case, count: int) -> None:
    """Graphs are recorded for powers of two: rows that fill one up belong to no sequence, and change nothing."""
    cpu, gpu = on_cpu(case, "float32"), on_gpu(case, "float32")
    items = [case.item(9 + row % 3, 9 + row % 5) for row in range(count)]
    for options in ({"logprobs": 1}, {}):
        asked: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None, **options}
        theirs, ours = cpu.run(items, **asked), gpu.run(items, **asked)
        for item, one, other in zip(items, theirs, ours, strict=True):
            if one.token_ids != other.token_ids:
                assert _is_close(cpu, item, one.token_ids, other.token_ids), f"{one} and {other}"


@pytest.mark.parametrize("dtype", TYPES)
def test_repeated_runs_are_equal_to_the_bit(case: Case, dtype: str) -> None:
    gpu, item = on_gpu(case, dtype), case.item(21)
    first = gpu.answers(item)
    assert all(same_answers(first, gpu.answers(item)) for _ in range(3))
    assert same_answers(first, on_gpu(case, dtype).answers(item)), "another model of the same folder"


@pytest.mark.parametrize("dtype", TYPES)
def test_forks_and_truncation(case: Case, dtype: str) -> None:
    gpu, item = on_gpu(case, dtype), case.item(40)
    state = gpu.prefill(item, 20)
    fork = state.fork()
    left, right = state.step(5), fork.step(6)
    assert not np.array_equal(left, right)
    again = gpu.prefill(item, 20)
    assert np.array_equal(left, again.step(5)), "a fork does not write into its parent's block"
    again.truncate(20)
    assert np.array_equal(right, again.step(6)), "and the parent not into its fork's"
    # Of as many tokens as go through the same products as the longer prompt's.
    state.truncate(12)
    assert np.array_equal(state.step(9), _stepped(gpu, item, 12, 9))


def _stepped(subject: Subject, item: Any, length: int, token: int) -> Any:
    return subject.prefill(item, length).step(token)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "seed": 3, "temperature": 0.8, "top_k": 7},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=["greedy", "beams", "sampled", "processors"],
)
def test_ids_are_those_of_the_cpu(case: Case, options: dict[str, Any]) -> None:
    cpu, gpu = on_cpu(case, "float32"), on_gpu(case, "float32")
    items = case.batch(laws.SHORT)[:3]
    asked = {"max_new_tokens": 11, "eos_token_id": None, **options}
    for item in items:
        theirs, ours = _listed(cpu.run_one(item, **asked)), _listed(gpu.run_one(item, **asked))
        for one, other in zip(theirs, ours, strict=True):
            if one.token_ids != other.token_ids:
                assert _is_close(cpu, item, one.token_ids, other.token_ids), f"{one} and {other}"


def _listed(outputs: Any) -> list[Any]:
    return outputs if isinstance(outputs, list) else [outputs]


def _is_close(cpu: Subject, item: Any, ids: list[int], others: list[int]) -> bool:
    """Whether the first choice that differs was between logits that the GPU's error may exchange."""
    place = next(i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b)
    logits = cpu.logits(item._replace(prompt=[*item.prompt, *ids[:place]]))[-1]
    return bool(abs(logits[ids[place]] - logits[others[place]]) <= 4 * BOUND * np.abs(logits).max())


def test_greedy_steps_are_made_several_at_a_time(case: Case, gpu: Any) -> None:
    model, item = on_gpu(case, "float32"), case.item(9)
    asked: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": None}
    before = gpu.report()["launches"].get("fd_advance", 0)
    several = model.run_one(item, **asked)
    assert gpu.report()["launches"]["fd_advance"] > before, "the device chose"
    # What looks at logits is chosen by the host, token by token.
    single = model.run_one(item, logprobs=0, **asked)
    assert several.token_ids == single.token_ids
    eos = several.token_ids[12]
    first = several.token_ids.index(eos)
    ended = model.run_one(item, max_new_tokens=20, eos_token_id=eos)
    assert ended.token_ids == several.token_ids[: first + 1]
    assert ended.finish_reason == "eos"


def test_steps_that_decode_are_recorded_once(case: Case, gpu: Any) -> None:
    model = on_gpu(case, "float32")
    state = model.prefill(case.item(5))
    state.step(3)
    before = gpu.report()
    for token in range(4, 9):
        state.step(token)
    after = gpu.report()
    assert after["graph_launches"] == before["graph_launches"] + 5
    assert after["calls"]["cuGraphInstantiateWithFlags"] == before["calls"]["cuGraphInstantiateWithFlags"]


def test_graphs_change_nothing(case: Case, monkeypatch: pytest.MonkeyPatch, gpu: Any) -> None:
    item, asked = case.item(9), {"max_new_tokens": 6, "logprobs": 2}
    recorded = on_gpu(case, "bfloat16").run_one(item, **asked)
    monkeypatch.setenv("FASTDECODE_CUDA_GRAPH", "0")
    before = gpu.report()["graph_launches"]
    assert same(on_gpu(case, "bfloat16").run_one(item, **asked), recorded)
    assert gpu.report()["graph_launches"] == before


def test_scores_and_embeddings(case: Case) -> None:
    cpu, gpu = on_cpu(case, "float32"), on_gpu(case, "float32")
    item = case.item(9, 7)
    pair = (item.source or item.prompt[:4], item.prompt[4:])
    [theirs], [ours] = cpu.model.score([pair]), gpu.model.score([pair])
    assert np.allclose(ours.token_logprobs, theirs.token_logprobs, rtol=0, atol=1e-3)
    if not case.family.has_encoder:
        rows = cpu.model.embed(item.prompt)
        assert np.array_equal(gpu.model.embed(item.prompt), rows)
        given, read = (m.model.prefill(embeddings=rows) for m in (gpu, cpu))
        assert distance(given.logits, read.logits) <= BOUND


@pytest.mark.parametrize("dtype", TYPES)
def test_embeddings_of_tokens(case: Case, dtype: str) -> None:
    cpu, gpu = on_cpu(case, dtype), on_gpu(case, dtype)
    if isinstance(cpu.model, fastdecode.CausalLM):
        ids = [*case.item(9, 7).prompt, 0]
        assert np.array_equal(gpu.model.embed(ids), cpu.model.embed(ids))
        assert gpu.model.embed([]).shape == (0, cpu.model.embed(ids).shape[1])


def test_an_encoder_alone(tmp_path: Path) -> None:
    family = FAMILIES["t5"]
    recipe = next(iter(family.laws.values()))
    folder = family.write(recipe, tmp_path)
    cpu, gpu = (fastdecode.TextEncoder.load(folder, device=device) for device in ("cpu", "cuda"))
    sources = [recipe.ids(1, length, salt=length)[0] for length in (1, 5, 40)]
    for theirs, ours in zip(cpu.encode(sources), gpu.encode(sources), strict=True):
        assert distance(ours, theirs) <= BOUND


def test_everything_is_given_back(tmp_path: Path, gpu: Any) -> None:
    family = FAMILIES["gpt2"]
    recipe = next(iter(family.laws.values()))
    case = Case(family, recipe, family.write(recipe, tmp_path))
    kinds = ("memory", "allocations", "pinned", "streams", "executables", "modules")

    def held() -> dict[str, int]:
        gc.collect()
        report = gpu.report()
        return {kind: report[kind] for kind in kinds}

    before = held()
    model = on_gpu(case, "float32")
    model.run(case.items([Lengths(5), Lengths(9)]), max_new_tokens=12)
    assert all(now > then for now, then in zip(held().values(), before.values(), strict=True))
    del model
    assert held() == before


def test_the_emulator_has_every_kernel() -> None:
    text = "".join(path.read_text() for path in sorted(emulated.KERNELS.glob("*.cu")))
    written = re.findall(r'^extern "C" __global__ void .* (fd_\w+)\(|^FEW\((fd_\w+),', text, re.MULTILINE)
    kernels = sorted(one or other for one, other in written)
    assert kernels == sorted(re.findall(r"^EMU_KERNEL\((\w+),", text, re.MULTILINE))
    assert len(kernels) <= 60
