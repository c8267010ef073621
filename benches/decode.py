"""End to end against the peers, in interleaved rounds: decode, prefill, a batch of eight; start-up and memory.

    python benches/decode.py                                  every model and precision, five rounds
    python benches/decode.py --models gpt2 --precisions f32   one group; --merge FILE adds it to earlier ones

Engines of one precision live at the same time, each in its own process, and take turns within a round; the machine's
limits are measured right before and after each work; the better of the two counts. Every call gets a
prompt of its own: some peers keep prefixes across calls. Nothing is converted or loaded while the clock runs, and every
engine has had prompts of each size before it does. A peer that is not installed is named as missing.

What is counted (B sequences, T prompt tokens, S new tokens; seconds are whole calls, medians over the rounds):
    decode   (S - 1) * B / (seconds(T, S) - seconds(T, 1)), T = 32, S = 128; batch 8: T = 32, S = 65, contexts 32 to 96
    prefill  T / seconds(T, 1), T = 512, three times a round
Fractions of the limit count bytes of weights and cache read per step, or FLOPs of matrices, attention and head; they
and the ratio of batch 8 are taken within each round. The peak is what a core reaches in its best 65 microseconds; where
other tenants use the other half of a core, less is sustained, and prefill is stated against that, too. Some machines'
memory changes its speed within seconds: "steady" holds the same over the rounds in which read bandwidth was the same
(a tenth) before, between and after the works, and "per GB" is the tokens that an engine decodes while a GB can be read,
over its own steady rounds: so engines can be compared that met memory of different speeds.
At bf16 we run twice: weights in bf16 with float32 products ("fastdecode"), and products in bf16 as the peers form
them ("fastdecode_bf16", compute_dtype="bfloat16").
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from folders import MODELS, Shape, build

HERE = Path(__file__).resolve().parent
# What we are in this run: products in float32, and in bfloat16. One file drives both.
OURS = ("fastdecode", "fastdecode_bf16")
# Our own engines first, then the peers; the precisions each has. int8 stands for 8-bit weights of any scheme.
ENGINES = {
    "fastdecode": ["f32", "bf16"],
    "fastdecode_bf16": ["bf16"],
    "transformers": ["f32", "bf16"],
    "ctranslate2": ["f32", "int8"],
    "llama_cpp": ["f32", "bf16", "int8"],
    "openvino": ["f32", "bf16"],
}
PRECISIONS = ["f32", "bf16", "int8"]
# (sequences, prompt tokens, new tokens)
DECODE, PREFILL, BATCH = (1, 32, 128), (1, 512, 1), (8, 32, 65)
WORKS = {"decode": DECODE, "batch 8": BATCH, "prefill": PREFILL}
# Calls in a round: a prompt is short, and one alone would measure what else the machine did just then.
CALLS = {"prefill": 3}
START_UP_RUN = (1, 16, 64)
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
        script = HERE / "peers" / f"{kind}_{OURS[0] if engine in OURS else engine}.py"
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


def prompts(count: int, length: int, vocab: int) -> list[list[int]]:
    """Draws prompts that no call has had before."""
    return [[random.randrange(vocab) for _ in range(length)] for _ in range(count)]


def call(worker: Worker, work: tuple[int, int, int], vocab: int) -> float:
    """Returns the seconds of one call with fresh prompts, after a pause in which other engines' threads go to sleep."""
    time.sleep(0.3)
    count, length, new = work
    seconds: float = worker.ask(do="generate", prompts=prompts(count, length, vocab), new=new)["seconds"]
    return seconds


def rate(worker: Worker, work: tuple[int, int, int], vocab: int) -> float:
    """Returns tokens per second: of prefill where one token is asked for, else of the steps after the first token."""
    count, length, new = work
    if new == 1:
        return count * length / call(worker, work, vocab)
    first = call(worker, (count, length, 1), vocab)
    return count * (new - 1) / (call(worker, work, vocab) - first)


def own_kind(engine: str, precision: str) -> str:
    """Returns the precision in which an engine runs: without 8-bit weights, our 16-bit ones stand beside the peers'."""
    return "bf16" if engine in OURS and precision == "int8" else precision


def asked(engine: str, kind: str) -> str:
    """Returns the precision as the engine's file takes it."""
    return "bf16 dot" if engine == "fastdecode_bf16" else kind


def measure(shape: Shape, precision: str, options: argparse.Namespace) -> Json:
    """Runs the rounds of one model at one precision and returns what every engine reached."""
    cache: Path = options.cache
    workers, missing, versions = {}, {}, {}
    for engine in ENGINES:
        kind = own_kind(engine, precision)
        if kind not in ENGINES[engine]:
            continue
        # Peers that convert start from float32, as their users do.
        folder = build(shape, "bf16" if engine in OURS and kind == "bf16" else "f32", cache)
        worker = Worker(engine, options.peers)
        try:
            place = {"folder": str(folder), "cache": str(cache), "precision": asked(engine, kind)}
            worker.ask(do="prepare", **place)
            versions[engine] = worker.ask(do="load", threads=options.threads, **place)["version"]
            # The first prompts of a size get memory from the system and read code.
            for count, length, _ in WORKS.values():
                worker.ask(do="generate", prompts=prompts(count, length, shape.vocab), new=4)
        except RuntimeError as error:
            missing[engine] = str(error)
            sys.stdout.write(f"  MISSING {engine} {kind}: {error}\n")
            worker.close()
            continue
        workers[engine] = (kind, worker)
    rates: dict[str, dict[str, list[float]]] = {name: {engine: [] for engine in workers} for name in WORKS}
    limits: dict[str, dict[str, list[Json]]] = {}
    size = shape.weight_bytes(4 if precision == "f32" else 2)
    ours = workers["fastdecode"][1]
    for turn in range(options.rounds):
        order = list(workers)
        random.shuffle(order)
        for engine in order:
            before = ours.ask(do="limits", bytes=size)
            for name in (work for work in WORKS for _ in range(CALLS.get(work, 1))):
                rates[name][engine].append(rate(workers[engine][1], WORKS[name], shape.vocab))
                after = ours.ask(do="limits", bytes=size)
                limits.setdefault(engine, {}).setdefault(name, []).append(better(before, after))
                before = after
        shown = ", ".join(f"{engine} {rates['decode'][engine][-1]:.1f}" for engine in workers)
        sys.stdout.write(f"  round {turn + 1}: decode {shown}\n")
        sys.stdout.flush()
    for _, worker in workers.values():
        worker.close()
    return {
        "model": shape.name,
        "precision": precision,
        "threads": options.threads,
        "rounds": options.rounds,
        "versions": versions,
        "missing": missing,
        "precisions": {engine: kind for engine, (kind, _) in workers.items()},
        "limits": limits,
        "tokens_per_second": rates,
    }


def start_up(shape: Shape, options: argparse.Namespace) -> list[Json]:
    """Measures import, load and peak memory of every engine, each time in a fresh process."""
    rows = []
    modules = {
        "fastdecode": "fastdecode",
        "fastdecode_bf16": "fastdecode",
        "transformers": "torch, transformers.models.auto",
        "ctranslate2": "ctranslate2",
        "llama_cpp": "llama_cpp",
        "openvino": "openvino_genai",
    }
    for engine, has in ENGINES.items():
        for precision in (kind for kind in has if kind != "int8"):
            folder = build(shape, "bf16" if engine in OURS and precision == "bf16" else "f32", options.cache)
            place = {
                "folder": str(folder),
                "cache": str(options.cache),
                "precision": asked(engine, precision),
            }
            loads, peaks, python = [], [], sys.executable
            try:
                for _ in range(options.rounds):
                    worker = Worker(engine, options.peers)
                    python = worker.python
                    worker.ask(do="prepare", **place)
                    loads.append(worker.ask(do="load", threads=options.threads, **place)["seconds"])
                    count, length, new = START_UP_RUN
                    worker.ask(do="generate", prompts=prompts(count, length, shape.vocab), new=new)
                    peaks.append(worker.ask(do="memory")["peak"])
                    worker.close()
            except RuntimeError as error:
                sys.stdout.write(f"  MISSING {engine} {precision}: {error}\n")
                rows.append({"engine": engine, "precision": precision, "missing": str(error)})
                continue
            imports = [
                seconds(python, f"import {modules[engine]}") - seconds(python, "pass") for _ in range(5)
            ]
            row = {
                "engine": engine,
                "precision": precision,
                "import_seconds": statistics.median(imports),
                "load_seconds": statistics.median(loads),
                "peak_bytes": statistics.median(peaks),
                "interpreter_bytes": interpreter_peak(python),
            }
            rows.append(row)
            sys.stdout.write(
                f"  {engine:13} {precision:5} import {row['import_seconds'] * 1e3:6.0f} ms, "
                f"load {row['load_seconds'] * 1e3:6.0f} ms, peak {row['peak_bytes'] / 1e6:6.0f} MB\n"
            )
    return rows


def seconds(python: str, code: str) -> float:
    """Returns the wall time of a fresh interpreter that runs `code`."""
    start = time.perf_counter()
    subprocess.run([python, "-c", code], check=True, capture_output=True, env=INSTALLED)
    return time.perf_counter() - start


def interpreter_peak(python: str) -> int:
    """Returns the largest resident size of an interpreter that does nothing, in bytes."""
    code = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return int(found.stdout) * 1024


def peak_of(engine: str, limits: list[Json]) -> str:
    """Returns the limit of an engine's products: the bf16 dot's where it forms them so and the CPU does it fast."""
    dot = engine == "fastdecode_bf16" and all("bf16_dot_flops_per_second" in limit for limit in limits)
    return "bf16_dot_flops_per_second" if dot else "f32_flops_per_second"


def sustained(peak: str) -> str:
    """Returns the name of the arithmetic that was sustained beside a peak."""
    return peak.replace("_flops", "_sustained_flops")


def fractions(shape: Shape, result: Json) -> Json:
    """Returns all medians, and for each of our engines its shares of the limits and its ratio to every peer."""
    by_work = result["tokens_per_second"]
    medians = {
        work: {engine: statistics.median(values) for engine, values in by.items()}
        for work, by in by_work.items()
    }
    _, prompt, new = DECODE
    flops = shape.prefill_flops(PREFILL[1]) / PREFILL[1]
    ours = {}
    for engine in OURS:
        if engine not in result["limits"]:
            continue
        limits = result["limits"][engine]
        rates = {work: by[engine] for work, by in by_work.items()}
        width = 4 if result["precisions"][engine] == "f32" else 2
        cache = shape.cache_bytes(prompt + new / 2) * (0.5 if engine == "fastdecode_bf16" else 1.0)
        read = [rate * (shape.weight_bytes(width) + cache) for rate in rates["decode"]]
        peak = peak_of(engine, limits["prefill"])
        eight = [many / one for many, one in zip(rates["batch 8"], rates["decode"], strict=True)]
        decode = of_limit(read, limits["decode"], READ)
        prefilled = [rate * flops for rate in rates["prefill"]]
        prefill = of_limit(prefilled, limits["prefill"], peak)
        ours[engine] = {
            "of_limit": {
                "decode": statistics.median(decode),
                "prefill": statistics.median(prefill),
                "prefill_of_sustained": statistics.median(
                    of_limit(prefilled, limits["prefill"], sustained(peak))
                ),
                "peak": peak,
            },
            "batch_8_over_1": statistics.median(eight),
            "steady": {
                "decode": in_steady(decode, limits["decode"]),
                "prefill": in_steady(prefill, limits["prefill"]),
                "batch_8_over_1": in_steady(eight, limits["decode"], limits["batch 8"]),
            },
            "ratios": {
                work: {peer: by[engine] / value for peer, value in by.items() if peer not in OURS}
                for work, by in medians.items()
            },
        }
    rates, limits = by_work["decode"], {name: by["decode"] for name, by in result["limits"].items()}
    return {"medians": medians, "decode_per_gb": per_gb(rates, limits), "ours": ours}


def show(result: Json) -> None:
    """Prints one group as a table of medians and ratios."""
    summary = result["summary"]
    head = f"{result['model']}, {result['precision']}, {result['threads']} threads"
    sys.stdout.write(f"\n{head}, tokens/s (ours over theirs)\n")
    for work, by in summary["medians"].items():
        cells = []
        for engine, value in by.items():
            ratios = [
                f"{own['ratios'][work][engine]:.2f}x"
                for own in summary["ours"].values()
                if engine not in OURS
            ]
            cells.append(f"{engine} {value:.1f}" + (f" ({', '.join(ratios)})" if ratios else ""))
        sys.stdout.write(f"  {work:8} " + "   ".join(cells) + "\n")
    show_per_gb(summary["decode_per_gb"])
    for engine, own in summary["ours"].items():
        of = own["of_limit"]
        sys.stdout.write(
            f"  {engine}: decode {of['decode']:.3f} of read bandwidth, prefill {of['prefill']:.3f} of"
            f" {of['peak']} ({of['prefill_of_sustained']:.3f} of what was sustained);"
            f" batch 8 is {own['batch_8_over_1']:.2f}x batch 1\n"
        )
        same = {name: in_words(found) for name, found in own["steady"].items()}
        sys.stdout.write(
            "    in rounds of one memory speed: " + "; ".join(map(": ".join, same.items())) + "\n"
        )
    for engine, reason in result["missing"].items():
        sys.stdout.write(f"  MISSING {engine}: {reason}\n")


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start-up", action="store_true", help="measure import, load and memory instead")
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="folder of virtual environments")
    parser.add_argument(
        "--cache", type=Path, default=Path(".peers/models"), help="folder for models made here"
    )
    parser.add_argument("--merge", type=Path, help="result file to which the groups of this run are added")
    parser.add_argument("--prepare", action="store_true", help="only build and convert the models")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    today = datetime.now(UTC).date().isoformat()
    target: Path = options.merge or HERE / "results" / f"{today}.json"
    report: Json = {"date": today, "cpu": cpu_name(), "groups": [], "start_up": []}
    if options.merge and target.exists():
        report = json.loads(target.read_text())
    if options.prepare:
        prepare(options)
        return
    for name in options.models:
        shape = MODELS[name]
        if options.start_up:
            report["start_up"] += [{"model": name, **row} for row in start_up(shape, options)]
            save(report, target)
            continue
        for precision in options.precisions:
            sys.stdout.write(f"{name} {precision}\n")
            result = measure(shape, precision, options)
            result["summary"] = fractions(shape, result)
            show(result)
            report["groups"].append(result)
            save(report, target)
    sys.stdout.write(f"\nwrote {target}; the chart: python benches/chart.py {target}\n")


def save(report: Json, target: Path) -> None:
    """Writes what is known so far; a run that is cut short keeps its finished groups."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")


def prepare(options: argparse.Namespace) -> None:
    """Builds and converts everything that the run needs, so that a timed run starts at once."""
    for name in options.models:
        folders = {kind: build(MODELS[name], kind, options.cache) for kind in ("f32", "bf16")}
        for engine, has in ENGINES.items():
            for precision in has:
                worker = Worker(engine, options.peers)
                try:
                    worker.ask(
                        do="prepare",
                        folder=str(folders["f32"]),
                        cache=str(options.cache),
                        precision=precision,
                    )
                    sys.stdout.write(f"  ready: {engine} {name} {precision}\n")
                except RuntimeError as error:
                    sys.stdout.write(f"  MISSING {engine} {precision}: {error}\n")
                worker.close()


if __name__ == "__main__":
    main()
