"""Long lists of prompts: what twenty thousand add to the process's memory, and whether they run as fast as a few.

    python benches/lists.py                          five minutes
    python benches/lists.py --prompts 2000 --rounds 1

Prompts of three ids and 16 new tokens each, on demo-stories. Memory is measured in a process of its own that has
generated before: its peak (VmHWM) at the end of the list, whose outputs are all still held, less what it had resident
before (VmRSS). The rate is held against one call with as many prompts as run side by side, repeated until it has made
the same number of tokens: half of these calls come before the list, half behind it. Every 200th row must equal its
single run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fastdecode

NEW, LENGTH, EVERY = 16, 3, 200
# What a list may add, in bytes, and what part of the rate of few prompts it must reach.
MOST_BYTES, LEAST_RATIO = 400e6, 0.9
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
SAMPLED: dict[str, Any] = GREEDY | {"do_sample": True, "seed": 7}
KINDS = {"greedy": GREEDY, "sampled, one seed": SAMPLED}


def prompts(count: int, model: Any) -> list[list[int]]:
    """Returns so many prompts, the same in every process."""
    draw, vocab = random.Random(5), model.info()["vocab_size"]
    return [[draw.randrange(3, vocab) for _ in range(LENGTH)] for _ in range(count)]


def resident(field: str) -> int:
    """Returns a size of this process from /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def memory_of(kind: str, count: int, threads: int) -> None:
    """Prints what a list adds to this process, which does nothing else."""
    model = fastdecode.load("demo-stories", num_threads=threads)
    asked = prompts(count, model)
    model.run(asked[: model.info()["max_rows"]], **KINDS[kind])
    before = resident("VmRSS")
    outputs = model.run(asked, **KINDS[kind])
    peak, after = resident("VmHWM"), resident("VmRSS")
    assert len(outputs) == count
    found = {"before": before, "peak": peak - before, "after": after - before}
    sys.stdout.write(json.dumps(found | {"live": model.info()["cache_bytes_live"]}) + "\n")


def added(kind: str, count: int, threads: int) -> dict[str, int]:
    """Returns what a list adds to a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", kind]
    command += ["--prompts", str(count), "--threads", str(threads)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def few(model: Any, asked: list[list[int]], options: dict[str, Any], tokens: int) -> tuple[int, float]:
    """Returns the tokens that one call with a few prompts has made until they are enough, and its seconds."""
    made, start = 0, time.perf_counter()
    while made < tokens:
        made += sum(len(output.token_ids) for output in model.run(asked, **options))
    return made, time.perf_counter() - start


def rates(
    model: Any, asked: list[list[int]], options: dict[str, Any], rounds: int
) -> list[tuple[float, float]]:
    """Returns the rates of the list and of a few of its prompts, tokens per second, in each round."""
    side = asked[: model.info()["max_rows"]]
    found = []
    few(model, side, options, 1)
    for _ in range(rounds):
        first = few(model, side, options, len(asked) * NEW // 2)
        start = time.perf_counter()
        outputs = model.run(asked, **options)
        seconds = time.perf_counter() - start
        second = few(model, side, options, len(asked) * NEW // 2)
        made = sum(len(output.token_ids) for output in outputs)
        assert made == len(asked) * NEW
        found.append((made / seconds, (first[0] + second[0]) / (first[1] + second[1])))
        if options is GREEDY:
            for place in range(0, len(asked), EVERY):
                alone = model.run(asked[place], **options)
                assert alone.token_ids == outputs[place].token_ids, f"row {place} differs from its single run"
                assert alone.text == outputs[place].text, f"the text of row {place} differs"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=list(KINDS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_of(options.memory_of, options.prompts, options.threads)
        return
    model: Any = fastdecode.load("demo-stories", num_threads=options.threads)
    asked = prompts(options.prompts, model)
    for kind, given in KINDS.items():
        found = added(kind, options.prompts, options.threads)
        aim = f" (aim: at most {MOST_BYTES / 1e6:.0f})" if kind == "greedy" else ""
        sys.stdout.write(
            f"{kind}, {options.prompts} prompts: {found['peak'] / 1e6:.0f} MB added at the peak{aim}, "
            f"{found['after'] / 1e6:.0f} MB with all outputs, {found['live']} bytes of cache alive\n"
        )
        measured = rates(model, asked, given, options.rounds)
        ratio = statistics.median(one / other for one, other in measured)
        aim = f" (aim: at least {LEAST_RATIO})" if kind == "greedy" else ""
        each = ", ".join(f"{one:.0f}/{other:.0f}" for one, other in measured)
        sys.stdout.write(
            f"{kind}: {statistics.median(one for one, _ in measured):.0f} tokens/s, {ratio:.3f} of one call with "
            f"{min(len(asked), model.info()['max_rows'])} prompts{aim}; rounds {each}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
