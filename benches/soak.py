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
import faulthandler
import gc
import os
import random
import statistics
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import fastdecode
from soak_calls import SENTENCES, STORIES, Subject, table
from soak_workers import PATIENCE, Run, Tasks, Worker

# What memory may grow by from the first half to the second: a part of it, and bytes beside.
GROWTH, SLACK = 0.03, 8e6
WARM_UP = 0.2


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
