"""End to end against the peers, in interleaved rounds: decode, prefill, a batch of eight; start-up and memory.

    python benches/decode.py                                  every model but mistral-7b, every precision, five rounds
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
them ("fastdecode_bf16", compute_dtype="bfloat16"). At int4, too: with embeddings and head in int8 ("fastdecode"), and
with a head of four bits ("fastdecode_int4_head"). int8 and int4 stand for eight and four bits of any scheme:
CTranslate2's rows, llama.cpp's q8_0 and q4_0 with 32 weights to a scale, OpenVINO's int8, and its int4 with 128.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from costs import Model, counted
from folders import LARGE, build, names
from harness import (
    HERE,
    INSTALLED,
    READ,
    Json,
    Worker,
    better,
    cpu_name,
    in_steady,
    in_words,
    of_limit,
    per_gb,
    save,
    show_per_gb,
    step_bytes,
)
from precisions import OURS, PRECISIONS, asked, peak_of, stored, sustained

# Our own engines first, then the peers; the precisions each has.
ENGINES = {engine: list(kinds) for engine, kinds in OURS.items()} | {
    "transformers": ["f32", "bf16"],
    "ctranslate2": ["f32", "int8"],
    "llama_cpp": ["f32", "bf16", "int8", "int4"],
    "openvino": ["f32", "bf16", "int8", "int4"],
}
# (sequences, prompt tokens, new tokens)
DECODE, PREFILL, BATCH = (1, 32, 128), (1, 512, 1), (8, 32, 65)
WORKS = {"decode": DECODE, "batch 8": BATCH, "prefill": PREFILL}
# Calls in a round: a prompt is short, and one alone would measure what else the machine did just then.
CALLS = {"prefill": 3}
START_UP_RUN = (1, 16, 64)


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


def measure(model: Model, precision: str, options: argparse.Namespace) -> Json:
    """Runs the rounds of one model at one precision and returns what every engine reached."""
    cache: Path = options.cache
    workers, missing, versions, reads = {}, {}, {}, {}
    for engine in ENGINES:
        if precision not in ENGINES[engine] or engine not in options.engines:
            continue
        kind = asked(engine, precision)
        folder = build(model.name, stored(engine, precision), cache)
        worker = Worker(engine, options.peers)
        try:
            place = {"folder": str(folder), "cache": str(cache), "precision": kind}
            worker.ask(do="prepare", **place)
            versions[engine] = worker.ask(do="load", threads=options.threads, **place)["version"]
            if engine in OURS:
                reads[engine] = worker.ask(do="info")
            # The first prompts of a size get memory from the system and read code.
            for count, length, _ in WORKS.values():
                worker.ask(do="generate", prompts=prompts(count, length, model.vocab), new=4)
        except RuntimeError as error:
            missing[engine] = str(error)
            sys.stdout.write(f"  MISSING {engine} {kind}: {error}\n")
            worker.close()
            continue
        workers[engine] = (kind, worker)
    rates: dict[str, dict[str, list[float]]] = {name: {engine: [] for engine in workers} for name in WORKS}
    limits: dict[str, dict[str, list[Json]]] = {}
    size, ours = reads["fastdecode"]["step_weight_bytes"], workers["fastdecode"][1]
    for turn in range(options.rounds):
        order = list(workers)
        random.shuffle(order)
        for engine in order:
            before = ours.ask(do="limits", bytes=size)
            for name in (work for work in WORKS for _ in range(CALLS.get(work, 1))):
                rates[name][engine].append(rate(workers[engine][1], WORKS[name], model.vocab))
                after = ours.ask(do="limits", bytes=size)
                limits.setdefault(engine, {}).setdefault(name, []).append(better(before, after))
                before = after
        shown = ", ".join(f"{engine} {rates['decode'][engine][-1]:.1f}" for engine in workers)
        sys.stdout.write(f"  round {turn + 1}: decode {shown}\n")
        sys.stdout.flush()
    for _, worker in workers.values():
        worker.close()
    return {
        "model": model.name,
        "precision": precision,
        "threads": options.threads,
        "rounds": options.rounds,
        "versions": versions,
        "missing": missing,
        "precisions": {engine: kind for engine, (kind, _) in workers.items()},
        "reads": reads,
        "limits": limits,
        "tokens_per_second": rates,
    }


def start_up(model: Model, options: argparse.Namespace) -> list[Json]:
    """Measures import, load and peak memory of every engine, each time in a fresh process."""
    rows = []
    modules = {
        "fastdecode": "fastdecode",
        "fastdecode_bf16": "fastdecode",
        "fastdecode_int4_head": "fastdecode",
        "transformers": "torch, transformers.models.auto",
        "ctranslate2": "ctranslate2",
        "llama_cpp": "llama_cpp",
        "openvino": "openvino_genai",
    }
    for engine, has in ENGINES.items():
        if engine not in options.engines:
            continue
        for precision in (kind for kind in has if kind in ("f32", "bf16")):
            folder = build(model.name, stored(engine, precision), options.cache)
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
                    worker.ask(do="generate", prompts=prompts(count, length, model.vocab), new=new)
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


def fractions(model: Model, result: Json) -> Json:
    """Returns all medians, and for each of our engines its shares of the limits and its ratio to every peer."""
    by_work = result["tokens_per_second"]
    medians = {
        work: {engine: statistics.median(values) for engine, values in by.items()}
        for work, by in by_work.items()
    }
    _, prompt, new = DECODE
    flops = model.prompt_flops(PREFILL[1]) / PREFILL[1]
    ours = {}
    for engine in OURS:
        if engine not in result["limits"]:
            continue
        limits = result["limits"][engine]
        rates = {work: by[engine] for work, by in by_work.items()}
        reads = result["reads"][engine]
        read = [rate * step_bytes(reads, prompt + new / 2) for rate in rates["decode"]]
        peak = peak_of(result["precisions"][engine], limits["prefill"])
        count, short, more = BATCH
        together = [rate / count * step_bytes(reads, short + more / 2) for rate in rates["batch 8"]]
        eight = [many / one for many, one in zip(rates["batch 8"], rates["decode"], strict=True)]
        decode = of_limit(read, limits["decode"], READ)
        prefilled = [rate * flops for rate in rates["prefill"]]
        prefill = of_limit(prefilled, limits["prefill"], peak)
        ours[engine] = {
            "of_limit": {
                "decode": statistics.median(decode),
                "batch_8_of_8": statistics.median(of_limit(together, limits["batch 8"], READ)),
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
            f" batch 8 is {own['batch_8_over_1']:.2f}x batch 1, {of['batch_8_of_8']:.3f} of 8 times the limit of 1\n"
        )
        same = {name: in_words(found) for name, found in own["steady"].items()}
        sys.stdout.write(
            "    in rounds of one memory speed: " + "; ".join(map(": ".join, same.items())) + "\n"
        )
    for engine, reason in result["missing"].items():
        sys.stdout.write(f"  MISSING {engine}: {reason}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[name for name in names(has_encoder=False) if name not in LARGE],
        choices=names(has_encoder=False),
        help=f"those of every family by default, but {', '.join(LARGE)}",
    )
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument(
        "--engines",
        nargs="+",
        default=list(ENGINES),
        choices=list(ENGINES),
        help="fastdecode must be among them, and measures the limits",
    )
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
    if "fastdecode" not in options.engines:
        parser.error(f"--engines: expected fastdecode among them, got {' '.join(options.engines)}")
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
        model = counted(name, options.cache)
        if options.start_up:
            report["start_up"] += [{"model": name, **row} for row in start_up(model, options)]
            save(report, target)
            continue
        for precision in options.precisions:
            sys.stdout.write(f"{name} {precision}\n")
            result = measure(model, precision, options)
            result["summary"] = fractions(model, result)
            show(result)
            report["groups"].append(result)
            save(report, target)
    sys.stdout.write(f"\nwrote {target}; the chart: python benches/chart.py {target}\n")


def prepare(options: argparse.Namespace) -> None:
    """Builds and converts everything that the run needs, so that a timed run starts at once."""
    for name in options.models:
        folders = {kind: build(name, kind, options.cache) for kind in ("f32", "bf16")}
        for engine in options.engines:
            for precision in ENGINES[engine]:
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
