"""One state in several threads, in signal handlers and in forked children: one call at a time, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import tiny
from fastdecode import errors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

THREADS = 4
PROMPT = [300, 301, 302]


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose steps are long enough for threads to meet in them."""
    sizes: Any = {"n_positions": 1024, "n_embd": 192, "n_head": 4, "n_layer": 4}
    return tiny.write_folder(tmp_path_factory.mktemp("models") / "slow", **sizes)


@pytest.fixture(scope="module")
def slow_model(slow_folder: Path) -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load(slow_folder, num_threads=2)


def test_steps_of_four_threads(slow_model: fastdecode.CausalLM) -> None:
    for _ in range(100):
        if steps_of_four_threads(slow_model):
            return
    pytest.fail("the threads never met")


def steps_of_four_threads(model: fastdecode.CausalLM) -> int:
    """How many steps were refused; those that were not are all there."""
    state = model.prefill(PROMPT)
    start = threading.Barrier(THREADS)

    def work(thread: int) -> tuple[list[tuple[int, NDArray[np.float32]]], int]:
        done, busy = [], 0
        start.wait()
        # Every token is another one, so that its place is known afterwards.
        for token in range(thread, 280, THREADS):
            try:
                done.append((token, state.step(token)))
            except errors.StateBusyError:
                busy += 1
        return done, busy

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(work, range(THREADS)))
    tokens = state.tokens
    done = {token: logits for found, _ in results for token, logits in found}
    assert tokens[: len(PROMPT)] == PROMPT
    assert sorted(tokens[len(PROMPT) :]) == sorted(done)
    for found, _ in results:
        places = [tokens.index(token) for token, _ in found]
        assert places == sorted(places)
    fresh = model.logits(tokens)
    for token, logits in done.items():
        assert np.array_equal(logits, fresh[tokens.index(token)])
    assert np.array_equal(state.logits, fresh[-1])
    return sum(busy for _, busy in results)


def test_everything_at_once(slow_model: fastdecode.CausalLM) -> None:
    """Steps, truncations, logits, forks, and calls that fail in their second chunk, from four threads."""
    state = slow_model.prefill(PROMPT * 110)
    length, start = len(state), threading.Barrier(THREADS)

    def work(thread: int) -> dict[str, int]:
        draw, seen = random.Random(thread), dict.fromkeys(("ok", "busy", "failed"), 0)
        start.wait()
        for _ in range(60):
            kind = draw.choice(["step", "truncate", "logits", "fork", "tokens", "too long"])
            try:
                if kind == "step":
                    state.step(draw.randrange(280))
                elif kind == "truncate":
                    state.truncate(length)
                elif kind == "logits":
                    assert state.logits.shape == (320,)
                elif kind == "fork":
                    fork = state.fork()
                    assert np.array_equal(fork.logits, slow_model.prefill(fork.tokens).logits)
                elif kind == "tokens":
                    assert state.tokens[:length] == PROMPT * 110
                    assert len(state) >= length
                else:
                    state._core.append([1] * 800)
                seen["ok"] += 1
            except errors.StateBusyError:
                assert kind in ("step", "truncate", "logits", "too long")
                seen["busy"] += 1
            except errors.ContextLengthError:
                assert kind == "too long"
                seen["failed"] += 1
        return seen

    with ThreadPoolExecutor(THREADS) as pool:
        seen = list(pool.map(work, range(THREADS)))
    for outcome in ("ok", "failed"):
        assert sum(counts[outcome] for counts in seen) > 0, outcome
    assert np.array_equal(state.logits, slow_model.prefill(state.tokens).logits)


def in_a_call(state: fastdecode.State) -> threading.Thread:
    """A thread that is appending a thousand tokens to the first two of the state."""

    def work() -> None:
        while True:
            try:
                state._core.append([7] * 1000)
            except errors.StateBusyError:
                continue
            return

    state.truncate(2)
    worker = threading.Thread(target=work)
    worker.start()
    while True:
        try:
            state.truncate(2)
        except errors.StateBusyError:
            return worker
        time.sleep(0.001)  # between its own calls, so that the other thread finds the state free


def test_who_waits_and_who_is_refused(slow_model: fastdecode.CausalLM) -> None:
    state = slow_model.prefill(PROMPT)
    worker = in_a_call(state)  # after a truncation, so the logits are still to be computed
    calls: list[Any] = [lambda: state.logits, lambda: state.step(9), lambda: state.truncate(2)]
    for call in calls:
        with pytest.raises(errors.StateBusyError) as caught:
            call()
        assert isinstance(caught.value, RuntimeError)
        assert "another thread" in str(caught.value.got)
        assert "fork()" in str(caught.value.expected)
    assert len(state) == 1002
    worker.join()
    worker = in_a_call(state)
    assert state.fork().tokens == [*PROMPT[:2], *[7] * 1000]
    worker.join()
    worker = in_a_call(state)
    assert state.tokens == [*PROMPT[:2], *[7] * 1000]
    worker.join()
    assert np.array_equal(state.logits, slow_model.prefill(state.tokens).logits)


def test_a_signal_handler_meets_its_own_call(tmp_path: Path) -> None:
    """It would wait for ever for the call that it interrupts."""
    sizes: Any = {"n_positions": 2**14, "n_embd": 192, "n_head": 4, "n_layer": 4}
    folder = tiny.write_folder(tmp_path / "m", **sizes)
    script = f"""
import fastdecode, signal
model = fastdecode.load({str(folder)!r}, num_threads=1)
state = model.prefill([1, 2])
met = []
def handler(*_):
    try:
        len(state)
        return  # The signal came between two calls; the next one may come within one.
    except fastdecode.errors.StateBusyError as error:
        met.append("same thread" in error.got)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for call in (lambda: state.tokens, lambda: state.fork(), lambda: state.step(3)):
        try:
            met.append(call())
        except fastdecode.errors.StateBusyError as error:
            met.append("same thread" in error.got)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
while not met:
    state._core.append([5] * 8000)
    state.truncate(2)
print(met)
print(len(state))
"""
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout == "[True, True, True, True]\n2\n"


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_child_that_is_forked_during_a_call(slow_model: fastdecode.CausalLM) -> None:
    expected = slow_model.prefill([5, 6]).logits
    state, free = slow_model.prefill(PROMPT), slow_model.prefill([5, 6])
    worker = in_a_call(state)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that waits for ever is killed, and counts as failed
        refused = 0
        calls: list[Any] = [lambda: len(state), lambda: state.tokens, state.fork, lambda: state.step(1)]
        for call in calls:
            try:
                call()
            except errors.StateBusyError as error:
                refused += "forked" in str(error.got)
        os._exit(0 if refused == 4 and np.array_equal(free.logits, expected) and len(free.fork()) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    worker.join()
    assert len(state) == 1002
