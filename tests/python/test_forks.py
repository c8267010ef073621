"""Forked children use the model, and go on with what their own thread had open, whatever other threads were at."""

from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
from families import FAMILIES
from fastdecode import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fastdecode.decoding import Decoding

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")

GREEDY: Any = {"max_new_tokens": 40, "eos_token_id": None, "do_sample": False}
SAMPLED: Any = {"max_new_tokens": 40, "eos_token_id": None, "do_sample": True, "temperature": 1.5, "seed": 3}
FORKS = 12


def in_a_child(work: Callable[[], bool]) -> None:
    """Forks; what the child's work says must be true. A child that waits for ever is killed, and counts as failed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            code = 0 if work() else 2
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"1: an exception, 2: another answer, a signal: {os.waitstatus_to_exitcode(status)}"


@pytest.fixture(params=["gpt2", "t5"])
def busy(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path
) -> Iterator[tuple[Any, list[Decoding]]]:
    """A model that three threads generate with all the time, and what they are generating."""
    if request.param == "t5":
        folder = FAMILIES["t5"].write_tiny(tmp_path / "t5", tokenizer=tiny.with_end())
    model = fastdecode.load(folder, num_threads=2, max_rows=6)
    done = threading.Event()

    def decoding(prompts: list[list[int]]) -> Decoding:
        items = model._items(prompts, None, None)[0] if model.has_encoder else prompts
        made: Decoding = model._start(items, GREEDY | {"max_new_tokens": 15})
        return made

    def work(place: int) -> None:
        while not done.is_set():
            running[place] = decoding([[7 + place] * 20] * 3)
            running[place].outputs()

    running = [decoding([[7 + place] * 20] * 3) for place in range(3)]
    first = list(running)
    workers = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for worker in workers:
        worker.start()
    while any(now is then for now, then in zip(running, first, strict=True)):
        time.sleep(0.001)
    try:
        yield model, running
    finally:
        done.set()
        for worker in workers:
            worker.join()


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "drawn"])
@pytest.mark.parametrize("pieces", [0, 1, 15])
def test_a_child_goes_on_with_a_stream(
    busy: tuple[Any, list[Decoding]], options: dict[str, Any], pieces: int
) -> None:
    """Its sequences are read again in the child: the pieces are those that the parent gets."""
    model, _ = busy
    prompts = [[5, 6], [8] * 20]
    whole = {at: output.token_ids for at, output in enumerate(model.run(prompts, **options))}

    def rest(stream: Any, found: list[Any]) -> bool:
        found = found + list(stream)
        ids: dict[int, list[int]] = {}
        for chunk in found:
            ids.setdefault(chunk.index, []).extend(chunk.token_ids)
        return ids == whole

    for _ in range(FORKS):
        stream = model.stream(prompts, **options)
        found = [next(stream) for _ in range(pieces)]
        in_a_child(functools.partial(rest, stream, found))
        in_a_child(lambda: model.run(prompts[0], **GREEDY).token_ids != [])
        assert rest(stream, found), "the parent's stream is as it was"


def test_a_grandchild_goes_on(model: fastdecode.CausalLM) -> None:
    expected = model.run([5], **SAMPLED).token_ids
    stream = model.stream([5], **SAMPLED)
    ids = list(next(stream).token_ids)

    def child() -> bool:
        ids.extend(next(stream).token_ids)

        def grandchild() -> bool:
            ids.extend(token for chunk in stream for token in chunk.token_ids)
            return ids == expected

        in_a_child(grandchild)
        ids.extend(token for chunk in stream for token in chunk.token_ids)
        return ids == expected

    in_a_child(child)


def test_calls_of_other_threads_end_in_a_child(busy: tuple[Any, list[Decoding]]) -> None:
    """The child may ask them, cancel them, or drop them; it waits for none of them."""
    model, running = busy
    expected = model.run([5, 6], **GREEDY).token_ids

    def child(how: int) -> bool:
        if how % 3 == 0:
            for decoding in running:
                try:
                    decoding.take()
                except (
                    errors.StateBusyError,
                    errors.CancelledError,
                ):  # in a call at the fork, or just done with one
                    continue
        if how % 3 == 1:
            for decoding in running:
                decoding.cancel()
        running.clear()
        gc.collect()
        return bool(model.run([5, 6], **GREEDY).token_ids == expected) and model.info()["max_rows"] == 6

    for how in range(FORKS):
        in_a_child(functools.partial(child, how))


def test_searches_lists_and_finished_rows_go_on_in_a_child(
    model: fastdecode.CausalLM, ids_model: fastdecode.CausalLM
) -> None:
    """A search has given nothing out before its end and begins again; rows that have ended are not given out again."""
    search = {**GREEDY, "num_beams": 3}
    expected = [output.token_ids for output in model.run([[5], [6]], **search)]
    decoding = model._start([[5], [6]], search)
    for _ in range(4):
        decoding.advance()
    in_a_child(lambda: [output.token_ids for output in decoding.outputs()] == expected)
    assert [output.token_ids for output in decoding.outputs()] == expected

    small = fastdecode.load("demo-stories", max_rows=3, num_threads=1)
    options: Any = {**SAMPLED, "max_new_tokens": 6}
    prompts = [[at + 1] for at in range(12)]
    whole = [output.token_ids for output in small.run(prompts, **options)]
    stream = small.stream(prompts, **options)
    found: list[fastdecode.Chunk] = []
    while sum(chunk.finish_reason is not None for chunk in found) < 5:
        found.append(next(stream))

    def ids(chunks: list[fastdecode.Chunk]) -> list[list[int]]:
        return [
            [token for chunk in chunks if chunk.index == at for token in chunk.token_ids] for at in range(12)
        ]

    in_a_child(lambda: ids(found + list(stream)) == whole)
    assert ids(found + list(stream)) == whole
    text = model.generate([5], **GREEDY)
    stopped = model.stream([[5], [6]], **GREEDY, stop=[text[6:9]])
    begun = [next(stopped) for _ in range(4)]
    plain = model.run([[5], [6]], **GREEDY, stop=[text[6:9]])
    ends = [output.token_ids for output in plain]

    def both(chunks: list[fastdecode.Chunk]) -> list[list[int]]:
        return [[t for chunk in chunks if chunk.index == at for t in chunk.token_ids] for at in (0, 1)]

    in_a_child(lambda: both(begun + list(stopped)) == ends)
    assert both(begun + list(stopped)) == ends
    assert len(ids_model.run([1], **GREEDY).token_ids) == 40


def test_a_pool_of_threads_in_a_child(busy: tuple[Any, list[Decoding]]) -> None:
    model, _ = busy
    prompts = [[at + 1] * 3 for at in range(6)]
    expected = [model.run(prompt, **GREEDY).token_ids for prompt in prompts]

    def child() -> bool:
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda prompt: model.run(prompt, **GREEDY).token_ids, prompts)) == expected

    for _ in range(4):
        in_a_child(child)


def test_a_child_ends_by_itself(folder: Path) -> None:
    """Without `os._exit`: what the interpreter drops at its end waits for nothing of the parent."""
    script = f"""
import fastdecode, os, signal, sys, threading, time
model = fastdecode.load({str(folder)!r}, num_threads=2)
options = dict(max_new_tokens=30, eos_token_id=None)
expected = model.run([5], **options).token_ids
done = threading.Event()
def work():
    while not done.is_set():
        model.run([[7] * 20] * 3, **options)
workers = [threading.Thread(target=work) for _ in range(3)]
for worker in workers:
    worker.start()
stream = model.stream([5], **options)
next(stream)
for _ in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        assert model.run([5], **options).token_ids == expected
        next(stream)
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
done.set()
print("well")
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=200
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "well\n", "")
