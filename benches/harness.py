"""What the benchmarks share: engines in processes of their own, the limits around their works, and result files."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from precisions import OURS

HERE = Path(__file__).resolve().parent
READ = "read_bytes_per_second"
# Two speeds of memory are the same when the lower is this much of the higher.
STEADY = 0.9
# Modules may leave their bytecode behind, as pip does when it installs: else every process would compile them anew.
INSTALLED = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

Json = dict[str, Any]


class Worker:
    """One engine in its own process and virtual environment.

    Args:
        engine: Its name.
        peers: Folder of virtual environments.
        kind: Which of its files under peers/ drives it: "run" (text generation) or "seq2seq".
    """

    def __init__(self, engine: str, peers: Path, kind: str = "run") -> None:
        own = peers / engine / "bin" / "python"
        # A peer without an environment of its own may be installed beside the package.
        self.python = str(own if own.exists() else Path(sys.executable))
        script = HERE / "peers" / f"{kind}_{'fastdecode' if engine in OURS else engine}.py"
        self.engine = engine
        # A file, since a pipe that nobody reads fills up and stops the engine.
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (open as long as the process)
        self.process = subprocess.Popen(
            [self.python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=INSTALLED,
        )

    def ask(self, **request: Any) -> Json:
        """Sends a request and returns the answer.

        Raises:
            RuntimeError: The worker reports an error, or has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            last = self.log.read().strip().splitlines()[-1:]
            raise RuntimeError(last[0] if last else f"the worker of {self.engine} ended")
        answer: Json = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def better(one: Json, other: Json) -> Json:
    """Returns the higher of two measurements of the machine's limits, without those that it does not have.

    The lower read bandwidth stays beside it: where the two differ, memory changed its speed meanwhile. Of sustained
    arithmetic it is the mean, since that is what was left to a work between them.
    """
    limits = {key: max(value, other[key]) for key, value in one.items() if value}
    held = {key: (one[key] + other[key]) / 2 for key in limits if "sustained" in key}
    return limits | held | {"least_read": min(one[READ], other[READ])}


def step_bytes(read: Json, context: float) -> float:
    """Returns the bytes of weights and cache that a step of one sequence reads, of source and tokens so far together.

    Args:
        read: What our worker says of its model ("info").
        context: Tokens.
    """
    return float(read["step_weight_bytes"] + read["cache_bytes_per_token"] * context)


def of_limit(reached: list[float], limits: list[Json], key: str) -> list[float]:
    """Returns what a work reached of a limit in each round: the machine's speed changes between them."""
    return [value / limit[key] for value, limit in zip(reached, limits, strict=True)]


def steady(*works: list[Json]) -> list[int]:
    """Returns the rounds in which memory had one speed before, between and after some works: they can be compared."""

    def spread(limits: tuple[Json, ...]) -> float:
        return float(min(limit["least_read"] for limit in limits) / max(limit[READ] for limit in limits))

    return [turn for turn, limits in enumerate(zip(*works, strict=True)) if spread(limits) >= STEADY]


def in_steady(values: list[float], *works: list[Json]) -> Json:
    """Returns the median of a ratio over steady rounds, and of each of them the read bandwidth (GB/s) and the value."""
    rounds = [[works[0][turn][READ] / 1e9, values[turn]] for turn in steady(*works)]
    return {"median": statistics.median(value for _, value in rounds) if rounds else None, "rounds": rounds}


def per_gb(rates: dict[str, list[float]], limits: dict[str, list[Json]]) -> dict[str, float]:
    """Returns the tokens that each engine decodes while a GB can be read: medians of its steady rounds."""
    found = {}
    for engine, by in rates.items():
        turns = steady(limits[engine])
        if turns:
            found[engine] = statistics.median(by[turn] / limits[engine][turn][READ] * 1e9 for turn in turns)
    return found


def show_per_gb(found: dict[str, float]) -> None:
    """Prints what `per_gb` found, with our ratio to every peer."""
    cells = []
    for engine, value in found.items():
        ratios = [f"{found[own] / value:.2f}x" for own in OURS if own in found and engine not in OURS]
        cells.append(f"{engine} {value:.2f}" + (f" ({', '.join(ratios)})" if ratios else ""))
    sys.stdout.write("  decode of 1, tokens per GB of read bandwidth:   " + "   ".join(cells) + "\n")


def in_words(found: Json) -> str:
    """Returns what `in_steady` found in words."""
    if not found["rounds"]:
        return "no steady round"
    each = ", ".join(f"{value:.2f} at {read:.0f}" for read, value in found["rounds"])
    return f"{found['median']:.2f} ({each} GB/s)"


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def save(report: Json, target: Path) -> None:
    """Writes what is known so far; a run that is cut short keeps its finished groups."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")
