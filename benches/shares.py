"""Decode as a share of the read bandwidth: python benches/shares.py gpt2 --dtypes int8 int4 "int4 head" --eight.

A round stands between two measurements of the bandwidth. Bytes of a step are the weights and the keys and values of
all its rows, and of their sources. Eight rows are given twice: by the bytes of their step, and by eight times what the
bandwidth allows one of them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import fastdecode
from fastdecode import _core
from folders import build

# Tokens of prompts (of sources, where there is an encoder), and new tokens behind the first.
PROMPT, SOURCE, NEW, NEW_OF_EIGHT = 32, 128, 48, 64
READ = 300_000_000
FOUR_BITS: Any = {"default": "int4", "lm_head": "int4"}


def bandwidth() -> float:
    return float(_core.measure_limits(READ)["read_bytes_per_second"])


def measure(model: Any, rounds: int, *, eight: bool) -> list[dict[str, float]]:
    """Tokens per second, and shares, of each round."""
    info = model.info()
    length = SOURCE if model.has_encoder else PROMPT
    weights, token = info["step_weight_bytes"], info["cache_bytes_per_token"]
    asked = {"do_sample": False, "eos_token_id": None}

    def ids() -> list[int]:
        return [random.randrange(info["vocab_size"]) for _ in range(length)]

    found = []
    for _ in range(rounds):
        before = bandwidth()
        one = NEW / model.run(ids(), max_new_tokens=NEW + 1, **asked).timings.decode
        rows = 0.0
        if eight:
            outputs = model.run([ids() for _ in range(8)], max_new_tokens=NEW_OF_EIGHT + 1, **asked)
            rows = 8 * NEW_OF_EIGHT / outputs[0].timings.decode
        read = max(before, bandwidth())
        of_row = token * (length + NEW_OF_EIGHT / 2)
        values = {
            "tok/s": one,
            "share": one * (weights + token * (length + NEW / 2)) / read,
            "GB/s": read / 1e9,
        }
        if eight:
            shares = {"share": (weights + 8 * of_row) / 8, "share of 8 times one": (weights + of_row) / 8}
            values |= {"eight tok/s": rows} | {f"eight {k}": rows * v / read for k, v in shares.items()}
        found.append(values)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a shape of benches/folders.py")
    parser.add_argument(
        "--dtypes", nargs="+", default=["int8"], help='types; "int4 head" for all in four bits'
    )
    parser.add_argument("--cache", type=Path, default=Path(".peers/models"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eight", action="store_true", help="eight rows, too")
    given = parser.parse_args()
    folder = build(given.model, "f32", given.cache)
    for dtype in given.dtypes:
        model = fastdecode.load(folder, dtype=FOUR_BITS if dtype == "int4 head" else dtype)
        found = measure(model, given.rounds, eight=given.eight)
        medians = {key: statistics.median(values[key] for values in found) for key in found[0]}
        cells = "  ".join(f"{key} {value:.3g}" for key, value in medians.items())
        sys.stdout.write(f"{given.model} {dtype} ({model.info()['isa']}): {cells}\n")


if __name__ == "__main__":
    main()
