"""How long it takes to begin, against another build of the package, in pairs: importing, loading, the first text.

    python benches/start.py OTHER                      OTHER: a folder that holds the other build's package `fastdecode`
    python benches/start.py OTHER --models gpt2-bf16 --pairs 30

Every measurement is a process of its own, and the two builds take turns; every second pair begins with the other build.
Files are in the page cache: they are read once before. Printed are medians: of both, and of differences of pairs.

    import    `import fastdecode`
    load      `fastdecode.load` of a folder of real size with random weights
    text      the first text after that, of one new token: the tokenizer is read
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

MODELS = ("gpt2-bf16", "gpt2-f32", "t5-base-f32")

SCRIPT = """
import json, sys, time
began = time.perf_counter()
import fastdecode
imported = time.perf_counter()
model = fastdecode.load(sys.argv[1], num_threads=2)
loaded = time.perf_counter()
model.generate("The king said", max_new_tokens=1)
first = time.perf_counter()
print(json.dumps({"import": imported - began, "load": loaded - imported, "text": first - loaded}))
"""


def seconds(package: Path, folder: Path) -> dict[str, float]:
    """Times one process that uses the package in `package`."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints a line per model and measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--cache", type=Path, default=Path(".peers/models"))
    parsed = parser.parse_args()
    from folders import build

    ours = Path(__file__).resolve().parent.parent / "python"
    if not (parsed.other / "fastdecode").is_dir():
        parser.error(f"OTHER: expected a folder with the package fastdecode, got {parsed.other}")
    print(f"{'model':12} {'':8} {'other ms':>9} {'ours ms':>9} {'difference':>11}")
    for name in parsed.models:
        model, _, kind = name.rpartition("-")
        folder = build(model, kind, parsed.cache)
        found: dict[str, list[tuple[float, float]]] = {}
        for pair in range(-1, parsed.pairs):
            order = (ours, parsed.other) if pair % 2 else (parsed.other, ours)
            times = {package: seconds(package, folder) for package in order}
            if pair < 0:  # which reads the files
                continue
            for what, other in times[parsed.other].items():
                found.setdefault(what, []).append((other * 1e3, times[ours][what] * 1e3))
        for what, pairs in found.items():
            others, own = (statistics.median(side) for side in zip(*pairs, strict=True))
            difference = statistics.median(mine - other for other, mine in pairs)
            print(
                f"{name:12} {what:8} {others:9.2f} {own:9.2f} {difference:+8.2f} ms {difference / others:+7.1%}"
            )


if __name__ == "__main__":
    main()
