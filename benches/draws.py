"""What drawing tokens costs beside a step of GPT-2: counted inside the engine, over taking the best ones.

    python benches/draws.py                          three minutes on two cores

The first part comes from `cargo bench --bench draws`: nanoseconds of a step without its forward, greedy and drawn
(temperature=0.8, top_k=50, top_p=0.9, a seed), for 1, 8 and 64 rows, over 200 steps. The second is measured here: a
greedy step of gpt2's shape with random weights in bfloat16 (benches/folders.py), at a context of about 40. Printed is
the first as a part of the second; beside it what drawing adds to whole steps of that model, whose medians are of
greedy and drawn calls that take turns, so that it is seen twice, though less exactly.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fastdecode
from folders import ROOT, build

ROWS, PROMPT, MOST = (1, 8, 64), 16, 0.05
LINE = re.compile(r"rows (\d+), threads \d+: greedy (\d+) ns, drawn (\d+) ns")
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
DRAWN = GREEDY | {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 3}


def inside(threads: int) -> dict[int, tuple[float, float]]:
    """Returns the seconds of a step without its forward, greedy and drawn, by rows."""
    command = ["cargo", "bench", "--locked", "--bench", "draws", "--", str(threads)]
    text = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {int(rows): (int(one) / 1e9, int(other) / 1e9) for rows, one, other in LINE.findall(text)}


def steps(model: Any, rows: int, options: dict[str, Any], count: int) -> list[float]:
    """Returns the seconds of so many steps of a call with so many rows."""
    prompts = [[row + 1] * PROMPT for row in range(rows)]
    running = model._start(prompts, options | {"max_new_tokens": count + 8})._generation
    # The prompts come in several chunks.
    while len(running.advance()) < rows:
        pass
    found = []
    for _ in range(count):
        start = time.perf_counter()
        events = running.advance()
        found.append(time.perf_counter() - start)
        assert len(events) == rows
    running.cancel()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--cache", type=Path, default=Path(".peers/models"), help="folder for models made here"
    )
    options = parser.parse_args()
    more = inside(options.threads)
    model = fastdecode.load(build("gpt2", "bf16", options.cache), num_threads=options.threads)
    for rows in ROWS:
        greedy, drawn = [], []
        count = max(8, 48 // rows)
        for turn in range(options.rounds + 1):
            found = [steps(model, rows, given, count) for given in (GREEDY, DRAWN)]
            if turn:
                greedy += found[0]
                drawn += found[1]
        step, whole = statistics.median(greedy), statistics.median(drawn) - statistics.median(greedy)
        best, draw = more[rows]
        sys.stdout.write(
            f"{rows} rows: choosing takes {best * 1e6:.1f} us greedily and {draw * 1e6:.1f} us by drawing, a greedy "
            f"step {step * 1e3:.2f} ms; drawing adds {(draw - best) / step:.2%} (aim: at most {MOST:.0%}); "
            f"whole steps {whole / step:+.1%}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
