"""Laws 2 and 3 for encoder-decoders, to the bit: ragged and alone, cached and not, batch and single, threads, forks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import reference_t5
from fastdecode import Seq2SeqLM
from reference_t5 import START, Recipe, config
from test_laws_bits import TYPES, same, tokens

SHAPES = {
    "t5, odd widths": Recipe(config(heads=3, d_kv=17, d_model=33, d_ff=37, num_decoder_layers=3), seed=41),
    "gated, wide": Recipe(
        config(heads=4, d_kv=64, d_model=64, d_ff=130, vocab=515, feed_forward_proj="gated-gelu"), seed=42
    ),
    "umt5": Recipe(config("umt5", relative_attention_max_distance=20), seed=43),
}
RAGGED = [1, 7, 16, 33, 2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("laws")
    return {name: reference_t5.write(recipe, root / name) for name, recipe in SHAPES.items()}


@pytest.fixture(params=TYPES, ids=lambda types: "/".join(filter(None, types)))
def types(request: pytest.FixtureRequest) -> dict[str, Any]:
    dtype, compute = request.param
    return {"dtype": dtype, "compute_dtype": compute}


@pytest.fixture(params=sorted(SHAPES))
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def ragged() -> list[list[int]]:
    return [tokens(length, seed=length) for length in RAGGED]


def decoder_ids(length: int) -> list[int]:
    return [START, *tokens(length - 1, seed=99)]


def test_sources_of_a_list_are_encoded_as_alone(folder: Path, types: dict[str, Any]) -> None:
    model = Seq2SeqLM.load(folder, **types)
    prompt = decoder_ids(9)
    for source, memory in zip(ragged(), model.encode(ragged()), strict=True):
        alone = model.encode(source)
        assert memory.source_ids == source
        assert memory.hidden.shape == (len(source), model.config["d_model"])
        assert np.array_equal(memory.hidden, alone.hidden)
        assert np.array_equal(model.logits(memory, prompt), model.logits(alone, prompt))
        assert np.array_equal(model.logits(source, prompt), model.logits(alone, prompt))


def test_more_sources_than_fit_a_chunk(folder: Path) -> None:
    model = Seq2SeqLM.load(folder)
    sources = [tokens(length, seed=length) for length in (600, 1, 300, 300, 2)]
    for source, memory in zip(sources, model.encode(sources), strict=True):
        assert np.array_equal(memory.hidden, model.encode(source).hidden)
    outputs = model.run(sources, max_new_tokens=3, logprobs=2)
    for source, output in zip(sources, outputs, strict=True):
        assert same(model.run(source, max_new_tokens=3, logprobs=2), output)


def test_cached_equals_uncached_at_every_split(folder: Path, types: dict[str, Any]) -> None:
    model, prompt = Seq2SeqLM.load(folder, **types), decoder_ids(48)
    memory = model.encode(tokens(21))
    whole = model.logits(memory, prompt)
    for split in range(1, len(prompt)):
        state = model.prefill(prompt[:split], memory=memory)
        assert np.array_equal(state.logits, whole[split - 1]), f"prefill of {split}"
        assert np.array_equal(state.step(prompt[split]), whole[split]), f"step after {split}"
    state = model.prefill(memory=memory)
    assert state.tokens == [START]
    stepped = [state.step(token) for token in prompt[1:]]
    assert np.array_equal(np.stack(stepped), whole[1:])


@pytest.mark.parametrize("length", [255, 256, 257, 513])
def test_chunks_of_keys_change_nothing(length: int, types: dict[str, Any], tmp_path: Path) -> None:
    # Keys are reduced in chunks of 256 positions, in the source and in the decoder.
    folder = reference_t5.write(Recipe(config(layers=1), seed=44), tmp_path)
    model, prompt = Seq2SeqLM.load(folder, **types), decoder_ids(length + 2)
    source = tokens(length)
    memory = model.encode([source, tokens(3)])[0]
    assert np.array_equal(memory.hidden, model.encode(source).hidden)
    whole = model.logits(memory, prompt)
    for split in (1, 255, 256, 257, length):
        if split <= length:
            state = model.prefill(prompt[:split], memory=memory)
            assert np.array_equal(state.logits, whole[split - 1])
            assert np.array_equal(state.step(prompt[split]), whole[split])


def test_batch_equals_single(folder: Path, types: dict[str, Any]) -> None:
    model = Seq2SeqLM.load(folder, **types)
    options: dict[str, Any] = {"max_new_tokens": 9, "logprobs": 4}
    prompts = [decoder_ids(length) for length in (1, 5, 17, 2, 3)]
    together = model.run(ragged(), prompts, **options)
    for source, prompt, output in zip(ragged(), prompts, together, strict=True):
        assert same(model.run(source, prompt, **options), output)
        assert same(model.run(memory=model.encode(source), decoder_prompt=prompt, **options), output)


def test_beams_of_a_batch_equal_single_ones(folder: Path, types: dict[str, Any]) -> None:
    model = Seq2SeqLM.load(folder, **types)
    options: dict[str, Any] = {"max_new_tokens": 9, "num_beams": 4, "num_return_sequences": 2}
    together = model.run(ragged(), **options)
    for place, source in enumerate(ragged()):
        alone = model.run([source], **options)
        pairs = zip(alone, together[2 * place : 2 * place + 2], strict=True)
        assert all((left.token_ids, left.score) == (right.token_ids, right.score) for left, right in pairs)


def test_any_number_of_threads_gives_the_same_bits(folder: Path, types: dict[str, Any]) -> None:
    alone = Seq2SeqLM.load(folder, num_threads=1, **types)
    run = alone.run(ragged(), max_new_tokens=6, logprobs=3)
    memories = [alone.encode(tokens(length)) for length in (2, 9, 17, 20, 37)]
    want = [alone.logits(memory, decoder_ids(length)) for memory in memories for length in (8, 16, 24, 40)]
    for threads in (2, 3, 8):
        model = Seq2SeqLM.load(folder, num_threads=threads, **types)
        others = [model.encode(list(memory.source_ids)) for memory in memories]
        for memory, other in zip(memories, others, strict=True):
            assert np.array_equal(other.hidden, memory.hidden), f"{threads} threads"
        got = [model.logits(other, decoder_ids(length)) for other in others for length in (8, 16, 24, 40)]
        assert all(map(np.array_equal, got, want)), f"{threads} threads"
        outs = model.run(ragged(), max_new_tokens=6, logprobs=3)
        assert all(same(left, right) for left, right in zip(outs, run, strict=True)), f"{threads} threads"


def test_rows_in_groups_change_nothing(folder: Path, types: dict[str, Any]) -> None:
    # Members divide the rows of long sources, too, and not only the outputs.
    sources = [tokens(length, seed=length) for length in (150, 9, 170)]
    prompt = decoder_ids(270)
    alone = Seq2SeqLM.load(folder, num_threads=1, **types)
    memories, logits = alone.encode(sources), alone.logits(sources[0], prompt)
    for threads in (2, 3, 4):
        model = Seq2SeqLM.load(folder, num_threads=threads, **types)
        for memory, expected in zip(model.encode(sources), memories, strict=True):
            assert np.array_equal(memory.hidden, expected.hidden), f"{threads} threads"
        assert np.array_equal(model.logits(sources[0], prompt), logits), f"{threads} threads"


def test_a_fork_that_diverges_equals_a_run_from_scratch(folder: Path, types: dict[str, Any]) -> None:
    model, prompt, source = Seq2SeqLM.load(folder, **types), decoder_ids(19), tokens(25)
    state = model.prefill(prompt, memory=model.encode(source))
    other = state.fork()
    for token in (5, 6, 7):
        state.step(token)
    for token in (8, 9):
        other.step(token)
    assert np.array_equal(state.logits, model.logits(source, [*prompt, 5, 6, 7])[-1])
    assert np.array_equal(other.logits, model.logits(source, [*prompt, 8, 9])[-1])
    state.truncate(17)
    assert state.tokens == prompt[:17]
    assert np.array_equal(state.logits, model.logits(source, prompt[:17])[-1])
    assert np.array_equal(state.step(3), model.logits(source, [*prompt[:17], 3])[-1])


def test_one_memory_serves_many_at_the_same_time(folder: Path) -> None:
    model = Seq2SeqLM.load(folder, num_threads=2)
    memory = model.encode(tokens(30))
    want = [model.run(memory=memory, max_new_tokens=8, do_sample=True, seed=seed) for seed in range(8)]
    before = memory.hidden

    def draw(seed: int) -> Any:
        return model.run(memory=memory, max_new_tokens=8, do_sample=True, seed=seed)

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(draw, range(8)))
    assert all(same(left, right) for left, right in zip(got, want, strict=True))
    assert np.array_equal(memory.hidden, before)


def test_compute_in_bfloat16_is_its_own_arithmetic(folders: dict[str, Path]) -> None:
    # Without this the laws above could hold for a compute type that is never used.
    source, folder = tokens(40), folders["gated, wide"]
    full = fastdecode.load(folder, dtype="bfloat16").encode(source).hidden
    half = fastdecode.load(folder, dtype="bfloat16", compute_dtype="bfloat16").encode(source).hidden
    apart = np.abs(full - half).max() / np.abs(full).max()
    assert 1e-4 < apart < 1e-1
