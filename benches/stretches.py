"""Decode of one sequence against the read bandwidth, in stretches of a few steps: where memory changes its speed.

    python benches/stretches.py FOLDER [--seconds 60] [--compute-dtype bfloat16]

decode.py holds whole generations against limits that were measured seconds before and after; here three steps stand
between two measurements of some milliseconds, and count where those agree to a twentieth. Printed by speed of memory.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import fastdecode
from fastdecode import _core

PROMPT, NEW, STEPS = 32, 128, 3
READ_BYTES = 200_000_000
AGREE = 0.95
# GB/s of a group of stretches.
WIDTH = 10


def read_bandwidth(threads: int) -> float:
    return float(_core.measure_limits(READ_BYTES, num_threads=threads)["read_bytes_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a GPT-2 folder")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compute-dtype", default=None)
    options = parser.parse_args()
    model = fastdecode.CausalLM.load(
        options.folder, num_threads=options.threads, compute_dtype=options.compute_dtype
    )
    info, vocab = model.info(), model.config["vocab_size"]
    found: dict[int, list[float]] = {}
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        state = model.prefill([random.randrange(vocab) for _ in range(PROMPT)])
        before = read_bandwidth(options.threads)
        for done in range(0, NEW, STEPS):
            start = time.perf_counter()
            for _ in range(STEPS):
                state.step(random.randrange(vocab))
            seconds = (time.perf_counter() - start) / STEPS
            after = read_bandwidth(options.threads)
            limit = max(before, after)
            if min(before, after) >= AGREE * limit:
                context = PROMPT + done + STEPS / 2
                read = info["step_weight_bytes"] + context * info["cache_bytes_per_token"]
                found.setdefault(int(limit / 1e9) // WIDTH * WIDTH, []).append(read / seconds / limit)
            before = after
    for speed, shares in sorted(found.items()):
        share = statistics.median(shares)
        sys.stdout.write(
            f"{speed} to {speed + WIDTH} GB/s: {share:.3f} of it (median of {len(shares)} stretches)\n"
        )


if __name__ == "__main__":
    main()
