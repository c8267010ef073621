"""This package against another build of it, in pairs: whether a change costs speed.

    python benches/before.py OTHER                     OTHER: a folder that holds the other build's package `fastdecode`
    python benches/before.py OTHER --models gpt2-f32 --pairs 60

Each build has a process of its own, several times anew: where a process gets its memory alone is worth a hundredth, to
either build. The two take turns at the same work, a few hundredths of a second each, so that what
the machine does to the one it does to the other; every second pair begins with the other build. The ratio of a pair is
the other build's time over ours: above 1, ours is faster. Printed are the median of the ratios and an interval that
holds the median with 95 % probability, whatever their distribution (order statistics of a binomial).

    decode    some steps of one sequence, contexts of 32 to 160
    eight     some steps of eight sequences
    prompt    a prompt of 512 up to its first token; T5: encoding a source of 128
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

STEPS, NEW, PROMPT, LONG, SOURCE = 5, 128, 32, 512, 128
WORKS = ("decode", "eight", "prompt")
GREEDY = {"do_sample": False, "eos_token_id": None}


class Subject:
    """One build's model of a folder, and its works.

    Args:
        folder: A model folder.
        compute: `compute_dtype`, or None.
        threads: Threads of the model.
    """

    def __init__(self, folder: str, compute: str | None, threads: int) -> None:
        import random

        import fastdecode

        self.random, self.at = random.Random(1), Path(fastdecode.__file__).parent
        kind: Any = compute
        self.model: Any = fastdecode.load(folder, compute_dtype=kind, num_threads=threads)
        self.work, self.steps = "", self._steps(1)

    def ids(self, length: int) -> list[int]:
        return [self.random.randrange(3, self.model.info()["vocab_size"]) for _ in range(length)]

    def _steps(self, count: int) -> Generator[float]:
        """Yields for ever the seconds of some steps of `count` sequences."""
        while True:
            length = SOURCE if self.model.has_encoder else PROMPT
            prompts = [self.ids(length) for _ in range(count)]
            items = self.model._items(prompts, None, None)[0] if self.model.has_encoder else prompts
            running = self.model._start(items, GREEDY | {"max_new_tokens": NEW})._generation
            # The prompts or sources come in several chunks.
            while not running.advance():
                pass
            for _ in range(1, NEW - STEPS, STEPS):
                start = time.perf_counter()
                for _ in range(STEPS):
                    running.advance()
                yield time.perf_counter() - start

    def seconds(self, work: str) -> float:
        if work != self.work:
            # A call that is left open runs some tokens ahead, in the steps of the next work.
            self.steps.close()
            self.work, self.steps = work, self._steps(8 if work == "eight" else 1)
        if work != "prompt":
            return next(self.steps)
        ids = self.ids(SOURCE if self.model.has_encoder else LONG)
        start = time.perf_counter()
        if self.model.has_encoder:
            self.model.encode(ids)
        else:
            self.model.run(ids, max_new_tokens=1, do_sample=False)
        return time.perf_counter() - start


def serve(folder: str, compute: str | None, threads: int) -> None:
    """Runs works that are named line by line, and answers with their seconds."""
    subject = Subject(folder, compute, threads)
    sys.stdout.write(f"{subject.at}\n")
    for line in sys.stdin:
        sys.stdout.flush()
        sys.stdout.write(f"{subject.seconds(line.strip())}\n")
        sys.stdout.flush()


class Build:
    """A build in a process of its own.

    Args:
        package: Folder that holds its `fastdecode`; None for the one that is installed.
        arguments: Those of `serve`.
    """

    def __init__(self, package: Path | None, arguments: list[str]) -> None:
        environment = dict(os.environ) | ({"PYTHONPATH": str(package)} if package else {})
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", *arguments]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds("decode")

    def seconds(self, work: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if "/" in line:
            sys.stderr.write(f"from {line}")
            line = self.process.stdout.readline()
        return float(line)


def interval(ratios: list[float]) -> tuple[float, float]:
    """Returns the order statistics between which the median lies with at least 95 % probability."""
    count, below, outside = len(ratios), 0, 0.0
    while outside + math.comb(count, below) / 2**count <= 0.025:
        outside += math.comb(count, below) / 2**count
        below += 1
    ordered = sorted(ratios)
    return ordered[max(below - 1, 0)], ordered[min(count - below, count - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path)
    parser.add_argument(
        "--models", nargs="+", default=["gpt2-f32", "gpt2-bf16", "gpt2-dot", "t5-base-f32", "t5-base-bf16"]
    )
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--pairs", type=int, default=120, help="of every work, over all processes")
    parser.add_argument("--processes", type=int, default=6, help="pairs of processes, one after the other")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cache", type=Path, default=Path(".peers/models"), help="folder for models made here"
    )
    options = parser.parse_args()
    from folders import build

    for name in options.models:
        model, kind = name.rsplit("-", 1)
        dtype, compute = ("bf16", "bfloat16") if kind == "dot" else (kind, "")
        arguments = [str(build(model, dtype, options.cache)), compute, str(options.threads)]
        ratios: dict[str, list[float]] = {work: [] for work in options.works}
        for start in range(options.processes):
            builds = [Build(options.other, arguments), Build(None, arguments)]
            for work, found in ratios.items():
                for turn in range(start, start + options.pairs // options.processes):
                    order = builds if turn % 2 else builds[::-1]
                    by = {one: one.seconds(work) for one in order}
                    found.append(by[builds[0]] / by[builds[1]])
            for one in builds:
                one.process.kill()
        for work, found in ratios.items():
            low, high = interval(found)
            middle = statistics.median(found)
            sys.stdout.write(f"{name}, {work}: {middle:.4f} ({low:.4f} to {high:.4f}; {len(found)} pairs)\n")
            sys.stderr.write(json.dumps({"model": name, "work": work, "ratios": found}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3] or None, int(sys.argv[4]))
    else:
        main()
