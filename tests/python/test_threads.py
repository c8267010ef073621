"""More than one thread, more than one process, and Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import tiny
from ctrl_c import seconds_to_stop

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: Any = {"max_new_tokens": 40, "eos_token_id": None}


def test_two_threads_generate_at_once(model: fastdecode.CausalLM, ids_model: fastdecode.CausalLM) -> None:
    prompts = [[seed, seed + 1] for seed in range(8)]
    expected = [model.run(prompt, **OPTIONS).token_ids for prompt in prompts]
    others = [ids_model.run([prompt[0]], **OPTIONS).token_ids for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        mine = pool.map(lambda prompt: model.run(prompt, **OPTIONS).token_ids, prompts * 3)
        theirs = pool.map(lambda prompt: ids_model.run([prompt[0]], **OPTIONS).token_ids, prompts * 3)
        assert list(mine) == expected * 3
        assert list(theirs) == others * 3


def test_one_state_in_two_threads_stays_whole(model: fastdecode.CausalLM) -> None:
    state = model.prefill([5, 6, 7])
    with ThreadPoolExecutor(4) as pool:
        forks = list(pool.map(lambda token: state.fork().step(token), range(16)))
    for token, logits in enumerate(forks):
        assert np.array_equal(logits, model.logits([5, 6, 7, token])[-1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_generates(model: fastdecode.CausalLM) -> None:
    expected = model.run([5, 6], **OPTIONS).token_ids  # the parent's threads are running now
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            same = model.run([5, 6], **OPTIONS).token_ids == expected
            os.write(write, b"same" if same else b"other")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        assert answer.read() == b"same"
    assert os.waitpid(child, 0)[1] == 0
    assert model.run([5, 6], **OPTIONS).token_ids == expected


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_forking_while_other_threads_generate(model: fastdecode.CausalLM) -> None:
    """Whatever the other threads hold at that moment, the child needs none of it."""
    expected = model.run([5, 6], **OPTIONS).token_ids
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            model.run([[7] * 20] * 3, **OPTIONS)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # a child that waits for ever is killed, and counts as failed
                same = model.run([5, 6], **OPTIONS).token_ids == expected
                os._exit(0 if same else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        for worker in workers:
            worker.join()


# Process 1 of a pid namespace forks into another one, where the child is process 1 as well: only a count of forks
# tells it from its parent. `unshare` itself is called by ctypes, since os.unshare came with Python 3.12.
NAMESPACES = """
import ctypes, os, signal, sys
NEWUSER, NEWPID = 0x10000000, 0x20000000
libc = ctypes.CDLL(None, use_errno=True)
def unshare(flags):
    if libc.unshare(flags) != 0:
        print("refused:", os.strerror(ctypes.get_errno()), flush=True)
        os._exit(0)
def answer_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def leave(code):
    sys.stdout.flush()
    os._exit(code)
signal.alarm(120)
unshare(NEWPID if os.geteuid() == 0 else NEWUSER | NEWPID)
first = os.fork()
if first:
    leave(answer_of(first))
signal.alarm(100)  # process 1 of a namespace hears what the outer one's kernel sends it
import fastdecode
model = fastdecode.load({folder!r}, num_threads=2)
expected = model.run([5, 6], max_new_tokens=20, eos_token_id=None).token_ids
state = model.prefill([5, 6, 7])
unshare(NEWPID)
second = os.fork()
if second == 0:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    same = model.run([5, 6], max_new_tokens=20, eos_token_id=None).token_ids == expected
    same = same and bool((state.fork().step(8) == model.logits([5, 6, 7, 8])[-1]).all())
    print("child", os.getpid(), same, flush=True)
    leave(0)
print("parent", os.getpid(), answer_of(second), flush=True)
leave(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PID NAMESPACES ARE NOT TESTED: only Linux has them")
def test_a_forked_child_with_the_pid_of_its_parent_generates(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", NAMESPACES.format(folder=str(folder))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            answer, complaint = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("a child that has the pid of its parent hangs")
    if answer.startswith("refused:") and os.geteuid() != 0:
        pytest.skip(
            f"PID NAMESPACES ARE NOT TESTED: the system does not let this user make one ({answer.strip()})"
        )
    assert answer.splitlines() == ["child 1 True", "parent 1 0"], answer + complaint
    assert process.returncode == 0, complaint


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_models_go_to_other_processes(model: fastdecode.CausalLM, method: str) -> None:
    expected = [model.generate([seed], **OPTIONS) for seed in range(3)]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert list(pool.map(generate, [model] * 3, range(3))) == expected


def generate(model: fastdecode.CausalLM, seed: int) -> str:
    return model.generate([seed], **OPTIONS)


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of so many positions that a single call takes minutes."""
    folder = tmp_path_factory.mktemp("models") / "long"
    return tiny.write_folder(folder, vocab_size=48, n_positions=120_000, n_embd=96, n_layer=2)


@pytest.mark.parametrize(
    "call",
    [
        "model.run([1] * 8, max_new_tokens=119_000, eos_token_id=None)",
        "model.run([1] * 119_000, max_new_tokens=1)",
        "model.logits([1] * 119_000)",
        "list(model.stream([1], max_new_tokens=119_000, eos_token_id=None))",
    ],
    ids=["new tokens", "prompt", "logits", "stream"],
)
def test_ctrl_c_ends_a_call_within_a_second(long_folder: Path, call: str) -> None:
    assert seconds_to_stop(long_folder, call, after=0.5) < 1


def test_the_interpreter_is_free_during_a_step(tmp_path: Path) -> None:
    model = fastdecode.load(
        tiny.write_folder(tmp_path / "m", n_positions=4096, n_embd=192, n_layer=4), num_threads=1
    )
    worker = threading.Thread(target=lambda: model.run([1] * 500, max_new_tokens=1))
    worker.start()
    turns = 0
    while worker.is_alive():
        turns += 1
        time.sleep(0.001)
    worker.join()
    assert turns > 5
