"""Streams of asyncio: one thread leads all those of a model, while there are any, and no loop is ever blocked."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
from families import FAMILIES
from fastdecode import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GREEDY: Any = {"max_new_tokens": 30, "eos_token_id": None, "do_sample": False}
PRIVATE = "fastdecode-streams"


def leaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(PRIVATE)]


def soon(is_so: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether something becomes true; threads need a moment to end."""
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        time.sleep(0.005)
    return is_so()


async def text_of(model: Any, prompt: Any, **options: Any) -> str:
    return "".join([str(chunk) async for chunk in model.astream(prompt, **(GREEDY | options))])


@pytest.fixture
def fresh(folder: Path) -> Any:
    """A model that no other test has streams of."""
    gc.collect()
    assert soon(lambda: not leaders())
    return fastdecode.load(folder, num_threads=2)


def test_two_hundred_streams_leave_the_default_executor_to_others(fresh: Any) -> None:
    prompts = [[1 + at, 2] * (1 + at % 7) for at in range(200)]
    expected = [str(output) for output in fresh.run(prompts, **GREEDY)]
    waits: list[float] = []

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        streams = asyncio.gather(*(text_of(fresh, prompt) for prompt in prompts))
        while not streams.done():
            began = time.perf_counter()
            assert await loop.run_in_executor(None, lambda: threading.current_thread().name)
            waits.append(time.perf_counter() - began)
            assert len(leaders()) <= 1, "one thread for all of them"
            await asyncio.sleep(0.01)
        return await streams

    assert asyncio.run(main()) == expected
    assert len(waits) > 1
    assert max(waits) <= 0.5


def test_the_loop_turns_while_a_step_takes_long(tmp_path: Path) -> None:
    """A prompt of 4,000 tokens is read in steps that the loop does not wait for."""
    model = fastdecode.load(
        tiny.write_folder(tmp_path / "m", n_positions=4096, n_embd=192, n_layer=4), num_threads=1
    )

    async def main() -> float:
        stream = asyncio.create_task(text_of(model, [[1] * 4000], max_new_tokens=2))
        longest, before = 0.0, time.perf_counter()
        while not stream.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now
        await stream
        return longest

    assert asyncio.run(main()) <= 0.5


def test_arguments_and_prompts_are_read_by_the_private_thread(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[str] = []
    read = type(fresh)._read

    def note(self: Any, item: Any) -> Any:
        readers.append(threading.current_thread().name)
        return read(self, item)

    monkeypatch.setattr(type(fresh), "_read", note)
    asyncio.run(text_of(fresh, ["Once", [5]]))
    assert len(readers) == 2
    assert all(name.startswith(PRIVATE) for name in readers)


def test_exceptions_come_to_the_coroutine_and_nowhere_else(fresh: Any) -> None:
    expected = fresh.generate([5], **GREEDY)

    async def main() -> None:
        good = asyncio.create_task(text_of(fresh, [5]))
        for wrong, options, error in (
            ("a", {"max_new_tokens": 0}, errors.OptionError),
            ("a", {"bogus": 1}, errors.UnknownOptionError),
            (["a", 3], {}, errors.OptionError),
            ("a", {"num_beams": 2}, errors.OptionError),
            ([1] * 100, {}, errors.ContextLengthError),
            (object(), {}, errors.OptionError),
        ):
            with pytest.raises(error):
                await text_of(fresh, wrong, **options)
        assert await good == expected
        assert await text_of(fresh, []) == ""

    asyncio.run(main())
    assert fresh.info()["cache_bytes_live"] == 0
    assert soon(lambda: not leaders())


def test_scores_that_leave_no_choice_end_one_stream() -> None:
    import numpy as np

    config = FAMILIES["gpt2"].tiny_config(vocab_size=48, tie_word_embeddings=False)
    weights = FAMILIES["gpt2"].tiny_weights(config)
    name = next(name for name in weights if name.endswith("wte.weight"))
    weights["lm_head.weight"] = weights[name].copy()
    weights[name][47] = np.nan
    model = fastdecode.CausalLM.from_tensors(config, weights, num_threads=1)
    expected = model.run([1], **GREEDY).token_ids

    async def ids(prompt: list[int]) -> list[int]:
        return [token async for chunk in model.astream(prompt, **GREEDY) for token in chunk.token_ids]

    async def main() -> list[Any]:
        return list(await asyncio.gather(ids([1]), ids([47]), ids([1]), return_exceptions=True))

    found = asyncio.run(main())
    assert found[0] == found[2] == expected
    assert isinstance(found[1], errors.ScoresError)


def test_the_private_thread_is_gone_when_no_stream_is_open(fresh: Any) -> None:
    async def main() -> None:
        first, second = fresh.astream([5], **GREEDY), fresh.astream([6], **GREEDY)
        await anext(first)
        await anext(second)
        assert len(leaders()) == 1
        await first.aclose()
        await anext(second)
        assert len(leaders()) == 1
        await second.aclose()

    for _ in range(3):
        asyncio.run(main())
        assert soon(lambda: not leaders())
    unused = fresh.astream([5])
    del unused
    assert not leaders(), "a stream that nobody has asked for a piece starts nothing"


def test_streams_that_begin_at_once_have_one_thread(folder: Path) -> None:
    """Loops in several threads that open the first streams of a model at the same moment."""
    for _ in range(10):
        model = fastdecode.load(folder, num_threads=1)
        expected = model.generate([5], **GREEDY)
        barrier = threading.Barrier(4)
        found: list[str] = []

        def loop(model: Any = model, barrier: Any = barrier, found: list[str] = found) -> None:
            barrier.wait(60)
            found.append(asyncio.run(text_of(model, [5])))

        assert soon(lambda: not leaders())
        threads = [threading.Thread(target=loop) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 4
        assert len(model._streams) == 1


def test_two_loops_in_two_threads_and_threads_that_wait(fresh: Any) -> None:
    prompts = [[at] for at in range(1, 13)]
    expected = [str(output) for output in fresh.run(prompts, **GREEDY)]

    async def main() -> list[str]:
        return await asyncio.gather(*(text_of(fresh, prompt) for prompt in prompts))

    found: dict[str, list[str]] = {}
    threads = [
        threading.Thread(target=lambda: found.update(one=asyncio.run(main()))),
        threading.Thread(target=lambda: found.update(two=asyncio.run(main()))),
        threading.Thread(target=lambda: found.update(run=[str(out) for out in fresh.run(prompts, **GREEDY)])),
        threading.Thread(
            target=lambda: found.update(
                stream=["".join(map(str, fresh.stream(prompt, **GREEDY))) for prompt in prompts]
            )
        ),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == dict.fromkeys(("one", "two", "run", "stream"), expected)


class TestLeaving:
    def test_cancelled_tasks_free_their_caches_and_the_others_go_on(self, fresh: Any) -> None:
        expected = fresh.generate([5], **(GREEDY | {"max_new_tokens": 60}))

        async def main() -> None:
            kept = asyncio.create_task(text_of(fresh, [5], max_new_tokens=60))
            tasks = [asyncio.create_task(text_of(fresh, [at], max_new_tokens=60)) for at in range(6, 40)]
            for place, task in enumerate(tasks):
                if place % 3:
                    await asyncio.sleep(0.001)
                task.cancel()
            for found in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(found, asyncio.CancelledError | str)
            assert await kept == expected

        for _ in range(3):
            asyncio.run(main())
            assert soon(lambda: fresh.info()["cache_bytes_live"] == 0)
            assert soon(lambda: not leaders())

    def test_a_reader_that_is_slow_holds_nobody_up(self, fresh: Any) -> None:
        """An open stream that nobody reads runs eight tokens ahead; the others come to their end."""
        expected = fresh.generate([5], **(GREEDY | {"max_new_tokens": 60}))

        async def main() -> None:
            slow = fresh.astream([5], **(GREEDY | {"max_new_tokens": 60}))
            text = str(await anext(slow))
            for at in range(3):
                assert await text_of(fresh, [6 + at]) == fresh.generate([6 + at], **GREEDY)
            text += "".join([str(chunk) async for chunk in slow])
            assert text == expected

        asyncio.run(main())

    @pytest.mark.parametrize("waits", [True, False])
    def test_a_loop_that_is_closed_without_ceremony(self, fresh: Any, waits: bool) -> None:
        """Streams of a closed loop end with the next round, or when they are dropped."""
        loop = asyncio.new_event_loop()
        streams = [fresh.astream([at], **(GREEDY | {"max_new_tokens": 60})) for at in range(1, 6)]

        async def begin() -> None:
            for stream in streams:
                await anext(stream)

        loop.run_until_complete(begin())
        tasks = [loop.create_task(anext(stream)) for stream in streams] if waits else []
        if waits:
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        if not waits:
            streams.clear()
            gc.collect()
        assert asyncio.run(text_of(fresh, [9])) == fresh.generate([9], **GREEDY)
        assert soon(lambda: fresh.info()["cache_bytes_live"] == 0)
        assert soon(lambda: not leaders()), "the thread leaves with the last open stream"
        del tasks

    def test_streams_of_a_closed_loop_that_are_still_held(self, fresh: Any) -> None:
        loop = asyncio.new_event_loop()
        stream = fresh.astream([5], **(GREEDY | {"max_new_tokens": 60}))
        loop.run_until_complete(anext(stream))
        assert fresh.info()["cache_bytes_live"] > 0
        loop.close()
        assert asyncio.run(text_of(fresh, [9])) == fresh.generate([9], **GREEDY)
        assert soon(lambda: fresh.info()["cache_bytes_live"] == 0)
        assert soon(lambda: not leaders())
        del stream

    def test_asyncio_run_ends_streams_that_were_left_open(self, fresh: Any) -> None:
        async def main() -> None:
            self.streams = [fresh.astream([at], **(GREEDY | {"max_new_tokens": 60})) for at in range(1, 6)]
            for stream in self.streams:
                await anext(stream)

        asyncio.run(main())
        assert soon(lambda: fresh.info()["cache_bytes_live"] == 0)
        assert soon(lambda: not leaders())

    def test_what_was_read_is_not_kept(self, fresh: Any) -> None:
        """The caller's prompts are let go of when the stream has begun."""
        prompts = [[300, 301]] * 3
        held = sys.getrefcount(prompts)

        async def main() -> int:
            stream = fresh.astream(prompts, **GREEDY)
            await anext(stream)
            more = sys.getrefcount(prompts) - held
            await stream.aclose()
            return more

        assert asyncio.run(main()) == 0


# What a process does that ends in the middle of its streams.
ENDINGS = {
    "exit in a coroutine": """
async def main():
    tasks = [asyncio.create_task(read(at)) for at in range(30)]
    await begun.wait()
    sys.exit(0)
begun = asyncio.Event()
asyncio.run(main())
""",
    "the main coroutine returns": """
async def main():
    tasks = [asyncio.create_task(read(at)) for at in range(30)]
    await begun.wait()
begun = asyncio.Event()
asyncio.run(main())
""",
    "a loop in a thread of a kind that is not waited for": """
async def main():
    tasks = [asyncio.create_task(read(at)) for at in range(30)]
    await begun.wait()
    go.set()
    await asyncio.gather(*tasks)
begun, go = asyncio.Event(), threading.Event()
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
assert go.wait(60)
""",
    "Ctrl-C": """
async def main():
    tasks = [asyncio.create_task(read(at)) for at in range(30)]
    await begun.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.gather(*tasks)
begun = asyncio.Event()
try:
    asyncio.run(main())
except KeyboardInterrupt:
    sys.exit(0)
sys.exit(1)
""",
}
PROGRAM = """
import asyncio, os, signal, sys, threading
import fastdecode
model = fastdecode.load({folder!r}, num_threads=2)
async def read(at):
    async for piece in model.astream([at + 1], max_new_tokens=20_000, eos_token_id=None):
        begun.set()
"""


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context in which streams do not end by themselves."""
    folder = tmp_path_factory.mktemp("models") / "long"
    sizes: Any = {"n_positions": 30_000, "n_embd": 96, "n_layer": 2}
    return tiny.write_folder(folder, tokenizer=tiny.byte_level(320), **sizes)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_in_the_middle_of_its_streams(long_folder: Path, ending: str) -> None:
    script = PROGRAM.format(folder=str(long_folder)) + ENDINGS[ending]
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=tiny.hear_ctrl_c,
    )
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")
    assert time.monotonic() - began < 30


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_has_streams_of_its_own(fresh: Any) -> None:
    """Forked while the private thread of the parent is at work: the child makes its own, and it goes, too."""
    expected = fresh.generate([5], **GREEDY)

    def child() -> bool:
        found = [asyncio.run(text_of(fresh, [5])) for _ in range(2)]
        gone = soon(lambda: not leaders())
        return found == [expected] * 2 and gone and fresh.generate([5], **GREEDY) == expected

    async def main() -> None:
        others = [asyncio.create_task(text_of(fresh, [at], max_new_tokens=60)) for at in range(1, 40)]
        for _ in range(6):
            await asyncio.sleep(0.005)
            process = os.fork()
            if process == 0:
                code = 1
                try:
                    signal.alarm(60)  # a child that waits for ever is killed, and counts as failed
                    code = 0 if child() else 2
                finally:
                    os._exit(code)
            assert os.waitpid(process, 0)[1] == 0
        await asyncio.gather(*others)

    asyncio.run(main())
    assert soon(lambda: not leaders())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_goes_on_with_a_stream(fresh: Any) -> None:
    """Its loop was not running at the fork, while the private thread was at work for another one."""
    expected = fresh.generate([5], **GREEDY)
    loop, stop = asyncio.new_event_loop(), threading.Event()

    async def others() -> None:
        while not stop.is_set():
            await asyncio.gather(*(text_of(fresh, [at]) for at in range(1, 9)))

    async def rest(stream: Any) -> str:
        return "".join([str(chunk) async for chunk in stream])

    worker = threading.Thread(target=lambda: asyncio.run(others()))
    worker.start()
    try:
        for _ in range(6):
            stream = fresh.astream([5], **GREEDY)
            begun = str(loop.run_until_complete(anext(stream)))
            process = os.fork()
            if process == 0:
                code = 1
                try:
                    signal.alarm(60)
                    code = 0 if begun + loop.run_until_complete(rest(stream)) == expected else 2
                finally:
                    os._exit(code)
            assert os.waitpid(process, 0)[1] == 0
            assert begun + loop.run_until_complete(rest(stream)) == expected
    finally:
        stop.set()
        worker.join()
        loop.close()
