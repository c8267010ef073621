"""Prefixes that a model keeps by itself: the same bits, within their bytes, and given up before anybody waits."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import signal
import threading
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
from families import FAMILIES
from fastdecode import errors
from subject import same

GREEDY: Any = {"max_new_tokens": 6, "logprobs": 2, "eos_token_id": None, "do_sample": False}


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory, byte_level: Any) -> Path:
    """As `folder`, with room for long prompts."""
    sizes: Any = {"n_positions": 512}
    return tiny.write_folder(tmp_path_factory.mktemp("models") / "long", tokenizer=byte_level, **sizes)


@pytest.fixture(scope="module")
def plain(long_folder: Path) -> Any:
    """A model that keeps nothing."""
    return fastdecode.load(long_folder, num_threads=2)


@pytest.fixture
def block(plain: Any) -> int:
    """Bytes of sixteen tokens."""
    bytes_per_token: int = plain.info()["cache_bytes_per_token"]
    return 16 * bytes_per_token


def kept(model: Any) -> tuple[int, int]:
    """Prefixes that a model keeps, and their bytes, which are all that it holds where nothing runs."""
    info = model.info()
    assert info["prefix_cache_bytes_live"] == info["cache_bytes_live"]
    return info["prefix_cache_entries"], info["prefix_cache_bytes_live"]


def test_calls_that_begin_alike(long_folder: Path, plain: Any, block: int) -> None:
    model = fastdecode.load(long_folder, prefix_cache_bytes=20 * block)
    assert model.info()["prefix_cache_bytes"] == 20 * block
    assert kept(model) == (0, 0)
    system = list(range(100))
    first = model.run([*system, 7, 8], **GREEDY)
    assert (first.usage.prompt_tokens, first.usage.cached_tokens) == (102, 0)
    assert same(first, plain.run([*system, 7, 8], **GREEDY))
    assert kept(model) == (1, 7 * block)
    # The same again, the next turn of it, another question.
    again = model.run([*system, 7, 8], **GREEDY)
    assert same(again, first)
    assert again.usage.cached_tokens == 101
    turn = [*system, 7, 8, *first.token_ids, 5, 4]
    second = model.run(turn, **GREEDY)
    assert same(second, plain.run(turn, **GREEDY))
    assert second.usage.cached_tokens == 102 + 5
    other = model.run([*system, 9], **GREEDY)
    assert same(other, plain.run([*system, 9], **GREEDY))
    assert other.usage.cached_tokens == 100
    # The second turn holds the first, and the third has a block of its own.
    assert kept(model) == (2, 9 * block)
    text = model.run("Once upon a time", **GREEDY)
    assert model.run("Once upon a time", **GREEDY).usage.cached_tokens == text.usage.prompt_tokens - 1


def test_what_nobody_asked_for_is_not_kept(plain: Any) -> None:
    info = plain.info()
    assert (info["prefix_cache_bytes"], info["prefix_cache_entries"], info["prefix_cache_bytes_live"]) == (
        0,
        0,
        0,
    )
    for _ in range(2):
        assert plain.run([5, 6, 7], **GREEDY).usage.cached_tokens == 0
    assert plain.info()["cache_bytes_live"] == 0


def test_every_way_to_end(long_folder: Path, block: int) -> None:
    """Lists, rows that share a prompt, searches, streams that are left, stop strings, tasks: what was read is kept."""
    model = fastdecode.load(long_folder, prefix_cache_bytes=60 * block)
    ids = list(range(64))
    model.run([*ids, 1], do_sample=True, seed=1, num_return_sequences=3, max_new_tokens=20, eos_token_id=None)
    assert model.run([*ids, 2], **GREEDY).usage.cached_tokens == 64
    assert kept(model)[1] <= (4 + 4 * 2) * block, "what rows share is there once"
    beams: Any = {"num_beams": 3, "max_new_tokens": 5}
    ids = [token + 1 for token in ids]
    model.run([*ids, 1], **beams)
    assert model.run([*ids, 2], **beams).usage.cached_tokens == 64
    ids = [token + 1 for token in ids]
    stream = model.stream([*ids, 1], max_new_tokens=100, eos_token_id=None)
    told = [token for _ in range(20) for token in next(stream).token_ids]
    stream.close()
    assert model.run([*ids, 1, *told, 3], **GREEDY).usage.cached_tokens >= 65 + len(told) - 1
    ids = [token + 1 for token in ids]

    async def task() -> None:
        async for _ in model.astream([*ids, 1], max_new_tokens=5, eos_token_id=None):
            pass

    asyncio.run(task())
    assert model.run([*ids, 1], **GREEDY).usage.cached_tokens == 64
    outputs = model.run([[*ids, number] for number in range(10, 20)], **GREEDY)
    assert all(output.usage.cached_tokens == 64 for output in outputs)
    text = model.generate("Once upon a time", **GREEDY)
    stopped = model.run("Once upon a time", stop=text[:2], **GREEDY)
    assert stopped.usage.cached_tokens == stopped.usage.prompt_tokens - 1
    with model.prefix(range(30)) as prefix:
        for spared in (30, 33):
            assert model.run([31, 32, 33, 50], prefix=prefix, **GREEDY).usage.cached_tokens == spared


def test_prompts_of_one_list(long_folder: Path, plain: Any, block: int) -> None:
    """The second prompt does not wait for the first one's end."""
    model = fastdecode.load(long_folder, prefix_cache_bytes=200 * block)
    prompts = [[*[token % 300 for token in range(400)], number] for number in range(16)]
    outputs = model.run(prompts, **GREEDY)
    for output, prompt in zip(outputs, prompts, strict=True):
        assert same(output, plain.run(prompt, **GREEDY))
    assert sum(output.usage.cached_tokens >= 400 for output in outputs) >= 14
    assert kept(model) == (16, (25 + 16) * block)


def test_bytes_are_bounds(long_folder: Path, plain: Any, block: int) -> None:
    model = fastdecode.load(long_folder, prefix_cache_bytes=10 * block + 5, cache_bytes=40 * block)
    draw = random.Random(3)
    for _ in range(40):
        prompt = [draw.randrange(3) for _ in range(draw.randrange(1, 200))]
        assert same(model.run(prompt, **GREEDY), plain.run(prompt, **GREEDY))
        entries, live = kept(model)
        assert entries <= 10
        assert live <= 10 * block
    tiny_one = fastdecode.load(long_folder, prefix_cache_bytes=1)
    tiny_one.run([1, 2, 3], **GREEDY)
    assert kept(tiny_one) == (0, 0)


def test_states_and_prefixes_go_before_what_nobody_needs(long_folder: Path, block: int) -> None:
    model = fastdecode.load(long_folder, prefix_cache_bytes=20 * block, cache_bytes=20 * block)
    for number in range(4):
        model.run([number] * 70, **GREEDY)
    assert kept(model) == (4, 20 * block)
    state = model.prefill([9] * 50)
    info = model.info()
    assert (info["cache_bytes_live"], info["prefix_cache_entries"]) == (19 * block, 3)
    with model.prefix(range(100)):
        assert model.info()["prefix_cache_entries"] == 1
    for _ in range(14):
        state.step(5)
    assert model.info()["prefix_cache_entries"] == 1
    with model.prefix(range(200)):
        assert model.info()["prefix_cache_entries"] == 0
    del state
    outputs = [model.run([number] * 70, **GREEDY | {"max_new_tokens": 200}) for number in range(3)]
    assert [output.usage.cached_tokens for output in outputs] == [0, 0, 0]
    assert len({len(output.token_ids) for output in outputs}) == 1
    assert kept(model)[1] <= 20 * block


def test_values_that_cannot_be_used(long_folder: Path, block: int, tmp_path: Path) -> None:
    for wrong in (-1, 1.5, True, "1", 2**63):
        with pytest.raises(
            errors.OptionError, match="prefix_cache_bytes: expected an integer from 0 to cache_bytes"
        ):
            fastdecode.load(long_folder, prefix_cache_bytes=wrong)  # type: ignore[arg-type]
    with pytest.raises(
        errors.OptionError, match=f"prefix_cache_bytes: expected 0 to {block}, which is cache_bytes"
    ):
        fastdecode.load(long_folder, cache_bytes=block, prefix_cache_bytes=block + 1)
    whole = fastdecode.load(long_folder, cache_bytes=8 * block, prefix_cache_bytes=8 * block)
    assert whole.run([5], **GREEDY).usage.cached_tokens == 0
    folder = FAMILIES["t5"].write_tiny(tmp_path / "t5", tokenizer=tiny.with_end())
    for load in (fastdecode.load, fastdecode.Seq2SeqLM.load, fastdecode.TextEncoder.load):
        with pytest.raises(errors.OptionError, match="prefix_cache_bytes: expected 0 with an encoder"):
            load(folder, prefix_cache_bytes=block)
        assert load(folder, prefix_cache_bytes=0).info()["prefix_cache_bytes"] == 0


def test_a_pickled_model_keeps_the_option_and_nothing_else(long_folder: Path, block: int) -> None:
    model = fastdecode.CausalLM.load(long_folder, prefix_cache_bytes=20 * block)
    model.run([5] * 40, **GREEDY)
    copied = pickle.loads(pickle.dumps(model))
    assert (copied.info()["prefix_cache_bytes"], kept(copied)) == (20 * block, (0, 0))
    assert copied.run([5] * 40, **GREEDY).usage.cached_tokens == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_begins_with_nothing(long_folder: Path, plain: Any, block: int) -> None:
    """It keeps its own; the parent's is as it was, whatever other threads were at."""
    model = fastdecode.load(long_folder, num_threads=2, prefix_cache_bytes=40 * block, max_rows=4)
    ids = list(range(80))
    want = plain.run(ids, **GREEDY).token_ids
    done = threading.Event()

    def work() -> None:
        draw = random.Random(1)
        while not done.is_set():
            model.run([[draw.randrange(2)] * draw.randrange(1, 40) for _ in range(3)], **GREEDY)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(8):
            model.run(ids, **GREEDY)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(60)
                    first, again = [model.run(ids, **GREEDY) for _ in range(2)]
                    right = first.token_ids == again.token_ids == want
                    right = right and (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 79)
                    code = 0 if right and model.info()["prefix_cache_entries"] == 1 else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert model.run(ids, **GREEDY).token_ids == want
    finally:
        done.set()
        for worker in workers:
            worker.join()
    assert kept(model)[1] <= 40 * block


def test_anything_at_once(long_folder: Path, plain: Any, block: int) -> None:
    """Four threads do whatever there is to do, behind prefixes and without; each result is that of a plain model."""
    model = fastdecode.load(
        long_folder, num_threads=2, cache_bytes=60 * block, prefix_cache_bytes=30 * block, max_rows=5
    )
    draw = random.Random(7)
    stems = [[draw.randrange(300) for _ in range(length)] for length in (17, 64, 150)]
    kinds: list[Any] = [
        {},
        {"do_sample": True, "seed": 5, "num_return_sequences": 2},
        {"num_beams": 2},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    ]
    table = []
    for place in range(24):
        stem = draw.choice(stems)
        prompt = [
            *stem[: draw.randrange(1, len(stem) + 1)],
            *[draw.randrange(300) for _ in range(draw.randrange(9))],
        ]
        options = {"max_new_tokens": draw.randrange(1, 30), "eos_token_id": None} | kinds[place % len(kinds)]
        table.append((prompt, options, [output.token_ids for output in plain.run([prompt], **options)]))
    wrong: list[Any] = []

    def work(seed: int) -> None:
        draw, handles = random.Random(seed), [model.prefix(stem[: 10 + seed]) for stem in stems]
        for _ in range(40):
            prompt, options, want = draw.choice(table)
            handle = draw.choice([None, *handles])
            if "num_beams" not in options and "num_return_sequences" not in options and draw.random() < 0.4:
                decoding = model._start([prompt], options, reuse=handle, keep=draw.random() < 0.5)
                stream, read = decoding.stream(), []
                for piece in stream:
                    read += piece.token_ids
                    if draw.random() < 0.1:
                        break
                stream.close()
                if read != want[0][: len(read)]:
                    wrong.append((prompt, options, read))
                continue
            got = [output.token_ids for output in model._start([prompt], options, reuse=handle).outputs()]
            if got != want:
                wrong.append((prompt, options, got))
        for handle in handles:
            handle.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    entries, live = kept(model)
    assert entries > 0
    assert live <= 30 * block
