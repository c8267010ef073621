"""One sequence, eight, and prompts against the limits around every few steps: where a machine changes its speed.

    python benches/stretches.py gpt2 --precisions f32 bf16 "bf16 dot"       contexts 32 to 160, of eight 32 to 96
    python benches/stretches.py t5-base --precisions bf16 --seconds 120     sources of 128, 64 new tokens
    python benches/stretches.py qwen2.5-0.5b --precisions bf16 --long 2000  eight sequences of that many tokens as well

decode.py and seq2seq.py hold whole generations against limits that were measured before and after, seconds apart. Here
a few steps of one sequence, as many of eight, and a prompt take turns, and each stands between two measurements; "bf16
dot" is compute_dtype="bfloat16", "int4 head" has four bits in the head, too. Medians by speed of memory, and how many
stretches they are of:

    decode          bytes read per step over the read bandwidth, where it was the same before and after (a twentieth)
    eight           tokens per second of eight sequences over eight times what the read bandwidth allows one of them
    eight over one  their tokens per second over those of one sequence, where it was the same around both
    prompt          FLOP/s of a prompt of 512 (T5: of encoding a source of 128) over the peak; over what was sustained
    eight, long     as decode, for eight sequences with long contexts: weights once, the keys and values of every one
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import fastdecode
from costs import Model
from decode import BATCH, DECODE, PREFILL
from fastdecode import _core
from folders import MODELS, build
from harness import READ, Json, better, cpu_name, save
from precisions import OPTIONS, peak_of, sustained

STEPS = 3
READ_BYTES = 200_000_000
# New tokens of sequences with long contexts, whose prompts take minutes.
LONG_NEW = 400
# Two speeds of memory are the same when the lower is this much of the higher.
AGREE = 0.95
# GB/s of a group of stretches.
WIDTH = 10
SOURCE, NEW = 128, 64
# Bare steps: greedy, to the end.
GREEDY: Json = {"do_sample": False, "eos_token_id": None}


class Subject:
    """A model in one precision, and what its works cost.

    Args:
        name: One of the models of decode.py or seq2seq.py.
        precision: One of `precisions.OPTIONS`.
        cache: Folder of model folders.
        threads: Threads of the model and of the limits.
    """

    def __init__(self, name: str, precision: str, cache: Path, threads: int) -> None:
        folder = build(name, "f32" if precision == "f32" else "bf16", cache)
        self.load: Any = partial(fastdecode.load, folder, num_threads=threads, **OPTIONS[precision])
        self.model: Any = self.load()
        flops = Model(name, self.model).prompt_flops(SOURCE if MODELS[name].has_encoder else PREFILL[1])
        self.info, self.threads, self.prompt_flops = self.model.info(), threads, flops
        self.peak = peak_of(precision, [self.limits()])

    def ids(self, length: int) -> list[int]:
        return [random.randrange(3, self.info["vocab_size"]) for _ in range(length)]

    def sources(self, count: int) -> list[list[int]]:
        return [self.ids(SOURCE) for _ in range(count)]

    def limits(self) -> Json:
        return dict(_core.measure_limits(READ_BYTES, num_threads=self.threads))

    def prompt(self) -> float:
        """Returns the seconds of a prompt, or of a source."""
        ids, sources = self.ids(PREFILL[1]), self.sources(1)
        start = time.perf_counter()
        if self.model.has_encoder:
            self.model.encode(sources)
        else:
            self.model.run(ids, max_new_tokens=1, do_sample=False)
        return time.perf_counter() - start

    def steps(self, count: int, context: int | None = None) -> Iterator[tuple[float, float]]:
        """Yields for ever, of a stretch of `count` sequences, the seconds of a step and the bytes that it reads."""
        # A model of its own: calls of one model that stand still are computed with those that go on.
        model: Any = self.load()
        memories = model.encode(self.sources(count)) if model.has_encoder else None
        new = NEW if memories else (DECODE if count == 1 else BATCH)[2]
        length, source = (1, SOURCE) if memories else (DECODE[1], 0)
        if context is not None:
            new, length = LONG_NEW, context - LONG_NEW // 2
        while True:
            items = (
                model._items(None, None, memories)[0]
                if memories
                else [self.ids(length) for _ in range(count)]
            )
            running = model._start(items, GREEDY | {"max_new_tokens": new})._generation
            # Long prompts are read in several steps; each sequence has its first token before the clock runs.
            begun: set[int] = set()
            while len(begun) < count:
                begun.update(event[0] for event in running.advance() or ())
            for done in range(1, new - STEPS, STEPS):
                start = time.perf_counter()
                for _ in range(STEPS):
                    running.advance()
                seconds = (time.perf_counter() - start) / STEPS
                keys = count * (source + length + done + STEPS / 2)
                yield seconds, self.info["step_weight_bytes"] + keys * self.info["cache_bytes_per_token"]


def measure(subject: Subject, seconds: float, context: int | None) -> dict[str, dict[int, list[float]]]:
    """Returns the values of every kind of stretch by speed of memory."""
    found: dict[str, dict[int, list[float]]] = {}

    def note(kind: str, limits: Json, value: float) -> None:
        speed = int(limits[READ] / 1e9) // WIDTH * WIDTH
        found.setdefault(kind, {}).setdefault(speed, []).append(round(value, 4))

    one, eight = subject.steps(1), subject.steps(8)
    long = None if context is None else subject.steps(8, context)
    if long is not None:
        next(long)  # reads the prompts
    end = time.monotonic() + seconds
    points = [subject.limits()]
    while time.monotonic() < end:
        alone, read = next(one)
        points.append(subject.limits())
        together, read_eight = next(eight)
        points.append(subject.limits())
        prompt = subject.prompt()
        points.append(subject.limits())
        around = [better(*pair) for pair in itertools.pairwise(points)]
        same = [limits["least_read"] >= AGREE * limits[READ] for limits in around]
        if same[0]:
            note("decode", around[0], read / alone / around[0][READ])
        if same[1]:
            # Of eight sequences, one reads the weights and its own keys.
            weights = subject.info["step_weight_bytes"]
            note("eight", around[1], (weights + (read_eight - weights) / 8) / together / around[1][READ])
        if same[0] and same[1]:
            note("eight over one", better(points[0], points[1]), 8 * alone / together)
        for kind, limit in (
            ("prompt, of the peak", subject.peak),
            ("prompt, of what was sustained", sustained(subject.peak)),
        ):
            note(kind, around[2], subject.prompt_flops / prompt / around[2][limit])
        if long is not None:
            step, read = next(long)
            points.append(subject.limits())
            limits = better(*points[-2:])
            if limits["least_read"] >= AGREE * limits[READ]:
                note("eight, long", limits, read / step / limits[READ])
        points = points[-1:]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--seconds", type=float, default=60, help="per precision")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--long", type=int, metavar="TOKENS", help="contexts of eight more sequences")
    parser.add_argument(
        "--cache", type=Path, default=Path(".peers/models"), help="folder for models made here"
    )
    parser.add_argument("--merge", type=Path, help="result file to which every stretch of this run is added")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    report: Json = {"date": datetime.now(UTC).date().isoformat(), "cpu": cpu_name()}
    if options.merge and options.merge.exists():
        report = json.loads(options.merge.read_text())
    for precision in options.precisions:
        subject = Subject(options.model, precision, options.cache, options.threads)
        found = measure(subject, options.seconds, options.long)
        of = {"model": options.model, "precision": precision, "threads": options.threads, "steps": STEPS}
        report.setdefault("stretches", []).append(of | {"by_speed": found})
        for kind, by in found.items():
            cells = [
                f"{statistics.median(values):.3f} at {speed} to {speed + WIDTH} GB/s (of {len(values)})"
                for speed, values in sorted(by.items())
            ]
            sys.stdout.write(f"{options.model}, {precision}: {kind} {'; '.join(cells)}\n")
        sys.stdout.flush()
        if options.merge:
            save(report, options.merge)


if __name__ == "__main__":
    main()
