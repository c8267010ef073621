"""Everything at once, for as long as is asked: threads, tasks, forks and cancels on a few models, each result checked.

    python benches/soak.py                           ten minutes
    python benches/soak.py --minutes 2 --seed 5

What runs is random, but drawn from the seed. A table of requests of every kind (greedy, sampled, beams, stop strings,
lists, log-probabilities; GPT-2 and T5) is run up front, each request alone, and lists prompt by prompt where that
means the same. Then threads and tasks of an event loop take requests from the table, on models with and without tight
limits, and some that keep prefixes between calls: they run them, stream them, read streams slowly, drop them, cancel
them, divide prompts into a prefix that is read once and what is behind it, fork children that finish a stream that was
half read or generate, decode by hand and encode. It fails where a finished result differs from its single
run, where something goes wrong that was not asked for, where a worker has no result for a minute and a half (the
stacks of all threads are shown), where memory grows from the first half to the second, and where a model still holds
a cache at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import faulthandler
import gc
import os
import random
import signal
import statistics
import sys
import threading
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastdecode
from fastdecode.errors import CancelledError

# Seconds without a sign of life after which a worker hangs, and after which a child does.
PATIENCE, CHILD = 90, 60
# What memory may grow by from the first half to the second: a part of it, and bytes beside.
GROWTH, SLACK = 0.03, 8e6
WARM_UP = 0.2

STORIES = [
    "Once upon a time",
    "The wolf",
    "There was a king who",
    "",
    "She opened the door and",
    "One day, a little",
]
SENTENCES = [
    "The cat is on the table.",
    "I am very happy.",
    "Where are you?",
    "We have a big house.",
    "He eats an apple.",
]


@dataclass(frozen=True)
class Entry:
    """A request of the table.

    Attributes:
        name: What it is.
        items: A prompt or source, or a list of them.
        options: Options of the call.
        expected: What comes of it, sequence by sequence.
    """

    name: str
    items: Any
    options: dict[str, Any]
    expected: list[Any]

    @property
    def streams(self) -> bool:
        """Whether it can be streamed."""
        return "num_beams" not in self.options


def told(output: Any) -> tuple[Any, ...]:
    """What of an output must be the same every time."""
    logprobs = [(one.token_id, one.logprob, one.top) for one in output.logprobs or []]
    return output.text, list(output.token_ids), output.finish_reason, output.score, logprobs


def is_list(items: Any) -> bool:
    """Whether these are several prompts, and not one of text or ids."""
    return isinstance(items, list) and not isinstance(items[0], int)


def run(model: Any, items: Any, options: dict[str, Any]) -> list[Any]:
    outputs = model.run(items, **options)
    return [told(output) for output in (outputs if isinstance(outputs, list) else [outputs])]


def table(model: Any, items: list[Any], draw: random.Random) -> list[Entry]:
    """Returns requests for a model, with what comes of each alone."""

    def some(least: int, most: int) -> list[Any]:
        return [draw.choice(items) for _ in range(draw.randint(least, most))]

    def new() -> dict[str, Any]:
        return {"max_new_tokens": draw.randint(1, 40)}

    def sampled() -> dict[str, Any]:
        return {"do_sample": True, "seed": draw.randrange(1000), "top_k": 20, "temperature": 0.9}

    found: list[tuple[str, Any, dict[str, Any]]] = []
    for _ in range(6):
        seeded = some(2, 8)
        found += [
            ("greedy", draw.choice(items), new()),
            ("stop strings", draw.choice(items), new() | {"stop": draw.choice(["e", ".", [" a", "th"]])}),
            ("sampled", draw.choice(items), new() | sampled() | {"top_p": 0.9}),
            ("several", draw.choice(items), new() | sampled() | {"num_return_sequences": draw.randint(2, 5)}),
            ("beams", draw.choice(items), new() | {"num_beams": draw.randint(2, 4)}),
            (
                "sampled beams",
                draw.choice(items),
                new() | sampled() | {"num_beams": 3, "num_return_sequences": 2},
            ),
            ("log-probabilities", draw.choice(items), new() | {"logprobs": 2}),
            (
                "processors",
                draw.choice(items),
                new() | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
            ),
            ("list", some(2, 12), new()),
            ("list with beams", some(2, 5), new() | {"num_beams": 2}),
            ("list with stop strings", some(2, 12), new() | sampled() | {"stop": ["e", "."]}),
            ("list, one seed", some(2, 12), new() | sampled()),
            ("list, seeds", seeded, new() | sampled() | {"seed": [draw.randrange(1000) for _ in seeded]}),
        ]
    found += [
        ("long list", some(150, 200), {"max_new_tokens": 3}),
        ("long list, one seed", some(150, 200), {"max_new_tokens": 3} | sampled()),
        ("long", draw.choice(items), {"max_new_tokens": 200, "eos_token_id": None}),
    ]
    entries = []
    for name, asked, given in found:
        options = {"do_sample": False} | given
        seeds: Any = options.get("seed")
        if is_list(asked) and (not options.get("do_sample") or isinstance(seeds, list)):
            each = [options | ({"seed": seeds[place]} if seeds else {}) for place in range(len(asked))]
            expected = [one for item, own in zip(asked, each, strict=True) for one in run(model, item, own)]
        else:
            expected = run(model, asked, options)
        entries.append(Entry(name, asked, options, expected))
    return entries


@dataclass
class Subject:
    """A model and what is asked of it."""

    name: str
    model: Any
    entries: list[Entry]


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


class Wrong(Exception):
    """A result is not what it must be."""


def check(entry: Entry, subject: Subject, got: list[Any]) -> None:
    for place, (one, other) in enumerate(zip(got, entry.expected, strict=True)):
        if one != other:
            raise Wrong(
                f"{subject.name}, {entry.name}: sequence {place} of {entry.items!r} with {entry.options}: "
                f"got {one!r}, alone {other!r}"
            )


class Pieces:
    """What a stream has given so far."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.ids: list[list[int]] = [[] for _ in entry.expected]
        self.texts = ["" for _ in entry.expected]

    def take(self, chunk: Any) -> None:
        self.ids[chunk.index] += chunk.token_ids
        self.texts[chunk.index] += chunk.text

    def check(self, subject: Subject) -> None:
        for place, (text, ids, *_) in enumerate(self.entry.expected):
            if (self.texts[place], self.ids[place]) != (text, ids):
                raise Wrong(
                    f"{subject.name}, {self.entry.name} streamed: sequence {place} of {self.entry.items!r} with "
                    f"{self.entry.options}: got {self.texts[place]!r} {self.ids[place]}, alone {text!r} {ids}"
                )


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


def resident() -> int:
    """Returns the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watch(shared: Run, began: float, workers: list[threading.Thread]) -> list[tuple[float, int]]:
    """Waits for all workers, and returns resident bytes by time."""
    sizes = []
    while any(worker.is_alive() for worker in workers):
        oldest = min((shared.beats[worker.name] for worker in workers if worker.is_alive()), default=0.0)
        # What hangs with the interpreter's lock held is found too.
        faulthandler.dump_traceback_later(max(1.0, oldest + PATIENCE - time.monotonic()), exit=True)
        time.sleep(0.25)
        sizes.append((time.monotonic() - began, resident()))
    faulthandler.cancel_dump_traceback_later()
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=6, help="threads")
    parser.add_argument("--tasks", type=int, default=6, help="of each of two event loops")
    parser.add_argument("--threads", type=int, default=2, help="of every model")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*use of fork.*", DeprecationWarning)
    draw = random.Random(options.seed)
    subjects = []
    for name, items in (("demo-stories", STORIES), ("demo-en-fr", SENTENCES)):
        model: Any = fastdecode.load(name, num_threads=options.threads)
        entries = table(model, [*items, model.tokenizer.encode(items[0] + " " + items[1])], draw)
        subjects.append(Subject(name, model, entries))
        few = model.info()["cache_bytes_per_token"] * 16 * 20
        bounds = [{"max_rows": 3}, {"cache_bytes": few}, {"cache_bytes": few, "max_rows": 5}]
        if not model.has_encoder:
            bounds += [
                {"prefix_cache_bytes": 2 * few},
                {"cache_bytes": few, "prefix_cache_bytes": few, "max_rows": 5},
            ]
        for limits in bounds:
            limited = fastdecode.load(name, num_threads=options.threads, **limits)
            subjects.append(Subject(f"{name} with {limits}", limited, entries))
    count = sum(len(subject.entries) for subject in subjects)
    sys.stdout.write(f"seed {options.seed}: {count} requests on {len(subjects)} models\n")
    sys.stdout.flush()
    began = time.monotonic()
    seconds = options.minutes * 60
    shared = Run(began + seconds)
    workers: list[Worker] = [
        Worker(f"thread {number}", options.seed, subjects, shared) for number in range(options.workers)
    ]
    workers += [Tasks(f"loop {number}", options.seed, subjects, shared, options.tasks) for number in range(2)]
    shared.beats.update({worker.name: began for worker in workers})
    threads = [threading.Thread(target=worker.loop, name=worker.name, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    sizes = watch(shared, began, threads)
    sys.stdout.write(
        "done: " + ", ".join(f"{what} {times}" for what, times in sorted(shared.done.items())) + "\n"
    )
    failures = list(shared.failures)
    if not failures:
        middle = (WARM_UP + 1) / 2 * seconds
        first = statistics.median(size for at, size in sizes if WARM_UP * seconds <= at < middle)
        second = statistics.median(size for at, size in sizes if middle <= at)
        sys.stdout.write(
            f"resident: {first / 1e6:.1f} MB in the first half, {second / 1e6:.1f} MB in the second\n"
        )
        course = [size for at, size in sizes if at <= seconds][:: max(1, len(sizes) // 10)]
        sys.stdout.write(
            "in the course of it: " + ", ".join(f"{size / 1e6:.0f}" for size in course) + " MB\n"
        )
        if second > first * (1 + GROWTH) + SLACK:
            failures.append("memory grows")
        gc.collect()
        infos = {subject.name: subject.model.info() for subject in subjects}
        lives = {
            name: info["cache_bytes_live"] - info["prefix_cache_bytes_live"] for name, info in infos.items()
        }
        failures += [
            f"{name} keeps {info['prefix_cache_bytes_live']} bytes of prefixes"
            for name, info in infos.items()
            if info["prefix_cache_bytes_live"] > info["prefix_cache_bytes"]
        ]
        failures += [
            f"{name} holds {live} bytes of its cache at the end" for name, live in lives.items() if live
        ]
    for failure in failures:
        sys.stdout.write(f"FAILED: {failure}\n")
    sys.stdout.flush()
    # Threads that are left must not keep a failed run alive.
    os._exit(1 if failures else 0)


if __name__ == "__main__":
    main()
