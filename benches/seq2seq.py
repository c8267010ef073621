"""Encoder-decoders end to end against the peers, in interleaved rounds: greedy and beams, one source and eight.

    python benches/seq2seq.py                                        every model and precision, five rounds
    python benches/seq2seq.py --models t5-base --precisions f32      one group; --merge FILE adds it to earlier ones
    python benches/seq2seq.py --models t5-tiny --rounds 1 --source 8 --new 4        tries the script itself

Works as decode.py does: engines of one precision live at the same time, each in its own process, and take turns within
a round; limits are measured right before and after each work; every call gets sources of its own, drawn
from the vocabulary; nothing is converted or loaded while the clock runs, and every engine has had sources of each size
before it does; a peer that is not installed is named as missing.

What is counted (B sources of T tokens, S new tokens each, none of which may end an output; medians over the rounds):
    greedy B, beam 4 B   (S - 1) * B / (seconds(T, S) - seconds(T, 1)): tokens, or positions of the search, per second
    encode               seconds of the encoder over one source (ours makes the keys and values of cross-attention too)
Fractions of the limit count bytes of weights, cache and source read per step, or FLOPs of encoder and cross-attention;
they and our own ratios (batch 8, beams) are taken within each round, and once more over the rounds in which memory had
one speed ("steady", as in decode.py, and tokens "per GB", too).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from costs import Model, counted
from folders import build, names
from harness import (
    HERE,
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
}
BEAMS, ENCODES = 4, 3
# Name -> (sources, beams).
WORKS = {"greedy 1": (1, 1), "greedy 8": (8, 1), "beam 4, 1": (1, BEAMS), "beam 4, 8": (8, BEAMS)}
# CTranslate2 has no call for the encoder alone; llama.cpp no beams, and it ends the process on several sources at once.
LACKS = {"ctranslate2": ("encode",), "llama_cpp": ("greedy 8", "beam 4, 1", "beam 4, 8")}
# transformers and CTranslate2 give their last 128 ids no piece of text, and the first three are special.
FIRST_ID, IDS = 3, 32000


def sources(count: int, length: int) -> list[list[int]]:
    """Draws sources that no call has had before."""
    return [[random.randrange(FIRST_ID, IDS) for _ in range(length)] for _ in range(count)]


def call(worker: Worker, work: tuple[int, int], length: int, new: int) -> float:
    """Returns the seconds of one call with fresh sources, after a pause in which other engines' threads go to sleep."""
    time.sleep(0.3)
    count, beams = work
    seconds: float = worker.ask(do="generate", prompts=sources(count, length), new=new, beams=beams)[
        "seconds"
    ]
    return seconds


def start(
    model: Model, precision: str, options: argparse.Namespace
) -> tuple[dict[str, tuple[str, Worker]], Json, Json]:
    """Converts, loads and warms up every engine; returns those that run, the missing ones and all versions."""
    workers: dict[str, tuple[str, Worker]] = {}
    missing, versions = {}, {}
    for engine, has in ENGINES.items():
        if precision not in has:
            continue
        kind = asked(engine, precision)
        folder = build(model.name, stored(engine, precision), options.cache)
        worker = Worker(engine, options.peers, "seq2seq")
        try:
            place = {"folder": str(folder), "cache": str(options.cache), "precision": kind}
            worker.ask(do="prepare", **place)
            versions[engine] = worker.ask(do="load", threads=options.threads, **place)["version"]
            for name, work in WORKS.items():
                if name not in LACKS.get(engine, ()):
                    call(worker, work, options.source, 4)
        except RuntimeError as error:
            missing[engine] = str(error)
            sys.stdout.write(f"  MISSING {engine} {kind}: {error}\n")
            worker.close()
            continue
        workers[engine] = (kind, worker)
    return workers, missing, versions


def measure(model: Model, precision: str, options: argparse.Namespace) -> Json:
    """Runs the rounds of one model at one precision and returns what every engine reached."""
    workers, missing, versions = start(model, precision, options)
    if "fastdecode" not in workers:
        raise SystemExit(f"fastdecode itself does not run: {missing['fastdecode']}")
    ours = workers["fastdecode"][1]
    reads = {engine: worker.ask(do="info") for engine, (_, worker) in workers.items() if engine in OURS}
    size = reads["fastdecode"]["step_weight_bytes"]
    seconds: dict[str, dict[str, list[list[float]]]] = {name: {} for name in WORKS}
    encode: dict[str, list[float]] = {}
    limits: dict[str, dict[str, list[Json]]] = {}
    for turn in range(options.rounds):
        order = list(workers)
        random.shuffle(order)
        for engine in order:
            before = ours.ask(do="limits", bytes=size)
            worker, lacks = workers[engine][1], LACKS.get(engine, ())
            missing |= {f"{engine}, {name}": "it has no such call" for name in lacks}
            if "encode" not in lacks:
                for _ in range(ENCODES):  # short calls: one alone would measure what came before it
                    time.sleep(0.3)
                    done = worker.ask(do="encode", prompts=sources(1, options.source))
                    encode.setdefault(engine, []).append(done["seconds"])
            after = ours.ask(do="limits", bytes=size)
            limits.setdefault(engine, {}).setdefault("encode", []).append(better(before, after))
            before = after
            for name, work in WORKS.items():
                if name in lacks:
                    continue
                pair = [call(worker, work, options.source, new) for new in (1, options.new)]
                seconds[name].setdefault(engine, []).append(pair)
                after = ours.ask(do="limits", bytes=size)
                limits[engine].setdefault(name, []).append(better(before, after))
                before = after
        shown = [f"{name} {pairs[-1][1]:.2f} s" for name, pairs in seconds["greedy 1"].items()]
        sys.stdout.write(f"  round {turn + 1}: greedy {', '.join(shown)}\n")
        sys.stdout.flush()
    for _, worker in workers.values():
        worker.close()
    return {
        "model": model.name,
        "precision": precision,
        "threads": options.threads,
        "rounds": options.rounds,
        "source": options.source,
        "new": options.new,
        "versions": versions,
        "missing": missing,
        "precisions": {engine: kind for engine, (kind, _) in workers.items()},
        "reads": reads,
        "limits": limits,
        "seconds": seconds,
        "encode_seconds": encode,
    }


def summary(model: Model, result: Json) -> Json:
    """Returns medians, what ours are of the machine's limits, and their ratio to every peer's."""
    new = result["new"]
    rates = {
        name: {
            engine: [(new - 1) * WORKS[name][0] / (whole - first) for first, whole in pairs]
            for engine, pairs in by.items()
        }
        for name, by in result["seconds"].items()
    }
    medians = {
        name: {engine: statistics.median(values) for engine, values in by.items()}
        for name, by in rates.items()
    }
    encode = {engine: statistics.median(values) for engine, values in result["encode_seconds"].items()}
    flops = model.prompt_flops(result["source"])
    ours = {}
    for engine in OURS:
        if engine not in result["limits"]:
            continue
        limits = result["limits"][engine]
        read = step_bytes(result["reads"][engine], result["source"] + new / 2)
        one, eight = (rates[name][engine] for name in ("greedy 1", "greedy 8"))
        encoded = [flops / seconds for seconds in result["encode_seconds"][engine]]
        whole = {name: [pair[1] for pair in by[engine]] for name, by in result["seconds"].items()}
        peak = peak_of(result["precisions"][engine], limits["encode"])
        decode = of_limit([rate * read for rate in one], limits["greedy 1"], READ)
        each = [limit for limit in limits["encode"] for _ in range(ENCODES)]
        eight_over_one = [many / rate for many, rate in zip(eight, one, strict=True)]
        beam_over_greedy = [
            beam / greedy for beam, greedy in zip(whole["beam 4, 1"], whole["greedy 1"], strict=True)
        ]
        ratios = {
            name: {peer: by[engine] / value for peer, value in by.items() if peer not in OURS}
            for name, by in medians.items()
        }
        ratios["encode"] = {
            peer: value / encode[engine] for peer, value in encode.items() if peer not in OURS
        }
        ours[engine] = {
            "of_limit": {
                "greedy 1": statistics.median(decode),
                "encode": statistics.median(of_limit(encoded, each, peak)),
                "encode_of_sustained": statistics.median(of_limit(encoded, each, sustained(peak))),
                "peak": peak,
            },
            "batch_8_over_1": statistics.median(eight_over_one),
            "beam_time_over_greedy": statistics.median(beam_over_greedy),
            "steady": {
                "decode": in_steady(decode, limits["greedy 1"]),
                "batch_8_over_1": in_steady(eight_over_one, limits["greedy 1"], limits["greedy 8"]),
                "beam_time_over_greedy": in_steady(
                    beam_over_greedy, limits["greedy 1"], limits["greedy 8"], limits["beam 4, 1"]
                ),
            },
            "ratios": ratios,
        }
    limits = {engine: by["greedy 1"] for engine, by in result["limits"].items()}
    return {
        "medians": medians,
        "encode_seconds": encode,
        "decode_per_gb": per_gb(rates["greedy 1"], limits),
        "ours": ours,
    }


def show(result: Json) -> None:
    """Prints one group as a table of medians and ratios."""
    found = result["summary"]
    head = f"{result['model']}, {result['precision']}, source {result['source']}, {result['new']} new tokens"
    sys.stdout.write(f"\n{head}, {result['threads']} threads; tokens or positions/s (ours over theirs)\n")

    def line(name: str, by: Json, unit: str, factor: float = 1.0) -> None:
        cells = []
        for engine, value in by.items():
            ratios = [
                f"{own['ratios'][name][engine]:.2f}x" for own in found["ours"].values() if engine not in OURS
            ]
            cells.append(
                f"{engine} {value * factor:.1f}{unit}" + (f" ({', '.join(ratios)})" if ratios else "")
            )
        sys.stdout.write(f"  {name:10} " + "   ".join(cells) + "\n")

    for name, by in found["medians"].items():
        line(name, by, "")
    line("encode", found["encode_seconds"], " ms", 1e3)
    show_per_gb(found["decode_per_gb"])
    for engine, own in found["ours"].items():
        of = own["of_limit"]
        sys.stdout.write(
            f"  {engine}: decode {of['greedy 1']:.3f} of read bandwidth, encoder {of['encode']:.3f} of {of['peak']}"
            f" ({of['encode_of_sustained']:.3f} of what was sustained);"
            f" batch 8 is {own['batch_8_over_1']:.2f}x batch 1; beam {BEAMS} takes"
            f" {own['beam_time_over_greedy']:.2f}x the time of greedy\n"
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
        "--models", nargs="+", default=["t5-base", "flan-t5-large"], choices=names(has_encoder=True)
    )
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--source", type=int, default=128, help="tokens of a source")
    parser.add_argument("--new", type=int, default=64, help="new tokens, at least 2")
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="folder of virtual environments")
    parser.add_argument(
        "--cache", type=Path, default=Path(".peers/models"), help="folder for models made here"
    )
    parser.add_argument("--merge", type=Path, help="result file to which the groups of this run are added")
    parser.add_argument("--prepare", action="store_true", help="only build and convert the models")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    today = datetime.now(UTC).date().isoformat()
    target: Path = options.merge or HERE / "results" / f"{today}-seq2seq.json"
    report: Json = {"kind": "seq2seq", "date": today, "cpu": cpu_name(), "groups": []}
    if options.merge and target.exists():
        report = json.loads(target.read_text())
    for name in options.models:
        model = counted(name, options.cache)
        for precision in options.precisions:
            sys.stdout.write(f"{name} {precision}\n")
            if options.prepare:
                for _, worker in start(model, precision, options)[0].values():
                    worker.close()
                continue
            result = measure(model, precision, options)
            result["summary"] = summary(model, result)
            show(result)
            report["groups"].append(result)
            save(report, target)
    if not options.prepare:
        sys.stdout.write(f"\nwrote {target}; the chart: python benches/chart.py {target}\n")


if __name__ == "__main__":
    main()
