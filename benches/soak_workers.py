"""Workers of the soak test: threads, and tasks of an event loop, that take requests in every way there is."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import os
import random
import signal
import threading
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

from fastdecode.errors import CancelledError
from soak_calls import SENTENCES, Entry, Pieces, Subject, Wrong, check, is_list, run, told

# Seconds without a sign of life after which a worker hangs, and after which a child does.
PATIENCE, CHILD = 90, 60


@dataclass
class Run:
    """What all workers share."""

    until: float
    done: collections.Counter[str] = field(default_factory=collections.Counter)
    beats: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until and not self.failures

    def beat(self, worker: str, what: str) -> None:
        """A worker has done something."""
        self.beats[worker] = time.monotonic()
        self.done[what] += 1


def in_child(work: Any) -> None:
    """Forks a child that does the work; the child must end well, and soon."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            signal.alarm(CHILD)
            work()
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise Wrong(
            f"a forked child ended with {status}" + (", it hung" if status == -signal.SIGALRM else "")
        )


class Worker:
    """A thread that works through random requests.

    Args:
        name: Its name; with the seed, it fixes what it draws.
        seed: The seed of the run.
        subjects: Models and their requests.
        shared: What all workers share.
    """

    def __init__(self, name: str, seed: int, subjects: list[Subject], shared: Run) -> None:
        self.name, self.subjects, self.shared = name, subjects, shared
        self.draw = random.Random(f"{seed} {name}")
        # Others come more than once, so that forks stay rare.
        usual = [self.run, self.run, self.stream, self.slow_stream, self.drop, self.drop_cycle, self.cancel]
        self.works = usual * 4 + [self.by_hand, self.encode, self.fork, self.fork_stream] + [self.behind] * 6

    def pick(self, *, streams: bool = False) -> tuple[Subject, Entry]:
        subject = self.draw.choice(self.subjects)
        entries = [entry for entry in subject.entries if entry.streams or not streams]
        return subject, self.draw.choice(entries)

    def loop(self) -> None:
        try:
            while self.shared.goes_on:
                work = self.draw.choice(self.works)
                work()
                self.shared.beat(self.name, work.__name__)
        except BaseException:
            self.shared.failures.append(f"{self.name}:\n{traceback.format_exc()}")

    def run(self) -> None:
        subject, entry = self.pick()
        check(entry, subject, run(subject.model, entry.items, entry.options))

    def stream(self) -> None:
        subject, entry = self.pick(streams=True)
        pieces = Pieces(entry)
        for chunk in subject.model.stream(entry.items, **entry.options):
            pieces.take(chunk)
        pieces.check(subject)

    def slow_stream(self) -> None:
        """Another call, or a pause, in the middle of a stream."""
        subject, entry = self.pick(streams=True)
        pieces = Pieces(entry)
        for chunk in subject.model.stream(entry.items, **entry.options):
            pieces.take(chunk)
            if self.draw.random() < 0.1:
                self.draw.choice((self.run, lambda: time.sleep(0.02)))()
        pieces.check(subject)

    def drop(self) -> None:
        subject, entry = self.pick(streams=True)
        stream = subject.model.stream(entry.items, **entry.options)
        for _ in range(self.draw.randint(0, 6)):
            next(stream, None)
        if self.draw.random() < 0.5:
            stream.close()

    def drop_cycle(self) -> None:
        """A stream that the garbage collector finds, in whatever thread it then runs."""
        subject, entry = self.pick(streams=True)
        stream = subject.model.stream(entry.items, **entry.options)
        cycle: list[Any] = [stream]
        cycle.append(cycle)
        for _ in range(self.draw.randint(1, 4)):
            next(stream, None)
        if self.draw.random() < 0.2:
            gc.collect()

    def cancel(self) -> None:
        """A call that another thread cancels."""
        subject, entry = self.pick()
        decoding = subject.model._start(self.as_items(subject, entry), entry.options)
        timer = threading.Timer(self.draw.random() * 0.01, decoding.cancel)
        timer.start()
        try:
            outputs = decoding.outputs()
        except CancelledError:
            return
        finally:
            timer.join()
        check(entry, subject, [told(output) for output in outputs])

    @staticmethod
    def as_items(subject: Subject, entry: Entry) -> Any:
        asked = entry.items if is_list(entry.items) else [entry.items]
        return subject.model._items(asked, None, None)[0] if subject.model.has_encoder else asked

    def greedy(self, *, has_encoder: bool) -> tuple[Subject, Entry]:
        while True:
            subject, entry = self.pick()
            if entry.name == "greedy" and subject.model.has_encoder == has_encoder:
                return subject, entry

    def by_hand(self) -> None:
        """A state, step by step, and a fork of it."""
        subject, entry = self.greedy(has_encoder=self.draw.random() < 0.5)
        model, ids = subject.model, entry.expected[0][1]
        state = (
            model.prefill(memory=model.encode(entry.items))
            if model.has_encoder
            else model.prefill(entry.items)
        )
        for place, token in enumerate(ids[:12]):
            chosen = int(state.logits.argmax())
            if chosen != token:
                raise Wrong(
                    f"{subject.name}, by hand: token {place} of {entry.items!r} is {chosen}, alone {token}"
                )
            if self.draw.random() < 0.2:
                state = state.fork()
            state.step(token)

    def behind(self) -> None:
        """A prompt behind a part of it that is read first; a child may go on with that, too."""
        while True:
            subject, entry = self.pick()
            if not subject.model.has_encoder and not is_list(entry.items):
                break
        cut = self.draw.randint(0, len(entry.items))
        options, rest = entry.options, entry.items[cut:]
        with subject.model.prefix(entry.items[:cut]) as prefix:
            behind = options | {"prefix": prefix}
            check(entry, subject, run(subject.model, rest if rest else [rest], behind))
            if self.draw.random() < 0.05:
                in_child(lambda: check(entry, subject, run(subject.model, rest if rest else [rest], behind)))
            if "num_beams" not in options and len(entry.expected) == 1:
                decoding = subject.model._start([entry.items], options, reuse=prefix, keep=True)
                stream = decoding.stream()
                for _ in range(self.draw.randint(1, 6)):
                    next(stream, None)
                stream.close()
                if (kept := decoding.kept()) is not None:
                    check(
                        entry,
                        subject,
                        [told(subject.model._start([entry.items], options, reuse=kept).outputs()[0])],
                    )

    def encode(self) -> None:
        """Sources that are encoded, shared and left."""
        subject, entry = self.greedy(has_encoder=True)
        model = subject.model
        memories = model.encode([entry.items, self.draw.choice(SENTENCES)])
        check(entry, subject, [told(model.run(memory=memories[0], **entry.options))])
        _, other = self.greedy(has_encoder=True)
        stream = model.stream(memory=memories[0], max_new_tokens=20, do_sample=False)
        next(stream, None)
        del memories
        check(other, subject, [told(model.run(memory=model.encode(other.items), **other.options))])

    def fork(self) -> None:
        subject, entry = self.pick()
        in_child(lambda: check(entry, subject, run(subject.model, entry.items, entry.options)))

    def fork_stream(self) -> None:
        """A stream that is half read when its process forks: both finish it."""
        subject, entry = self.pick(streams=True)
        pieces = Pieces(entry)
        stream = subject.model.stream(entry.items, **entry.options)
        for _ in range(self.draw.randint(0, 8)):
            chunk = next(stream, None)
            if chunk is not None:
                pieces.take(chunk)

        def finish() -> None:
            for chunk in stream:
                pieces.take(chunk)
            pieces.check(subject)

        in_child(finish)
        finish()


class Tasks(Worker):
    """A thread with an event loop and so many tasks."""

    def __init__(self, name: str, seed: int, subjects: list[Subject], shared: Run, count: int) -> None:
        super().__init__(name, seed, subjects, shared)
        self.count = count

    def loop(self) -> None:
        try:
            while self.shared.goes_on:
                asyncio.run(self.some())
        except BaseException:
            self.shared.failures.append(f"{self.name}:\n{traceback.format_exc()}")

    async def some(self) -> None:
        """Some seconds of tasks; then another loop."""
        until = time.monotonic() + 5
        async with asyncio.TaskGroup() as group:
            for _ in range(self.count):
                group.create_task(self.task(until))

    async def task(self, until: float) -> None:
        while self.shared.goes_on and time.monotonic() < until:
            work = self.draw.choice((self.astream, self.astream, self.leave, self.cancel_task))
            await work()
            self.shared.beat(self.name, work.__name__)

    async def astream(self) -> None:
        subject, entry = self.pick(streams=True)
        pieces = Pieces(entry)
        async for chunk in subject.model.astream(entry.items, **entry.options):
            pieces.take(chunk)
        pieces.check(subject)

    async def leave(self) -> None:
        """A stream that is left in the middle, closed or not."""
        subject, entry = self.pick(streams=True)
        stream, left = subject.model.astream(entry.items, **entry.options), self.draw.randint(0, 5)
        async for _ in stream:
            left -= 1
            if left <= 0:
                break
        if self.draw.random() < 0.5:
            await stream.aclose()

    async def cancel_task(self) -> None:
        """A task that is cancelled while it reads."""
        task = asyncio.ensure_future(self.astream())
        await asyncio.sleep(self.draw.random() * 0.02)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
