"""Draws a result of decode.py or seq2seq.py as bars: python benches/chart.py benches/results/FILE.json [OUT.svg]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

LABELS = {
    "fastdecode": "fastdecode",
    "fastdecode_bf16": "fastdecode, bf16 products",
    "fastdecode_int4_head": "fastdecode, head in int4",
    "transformers": "transformers",
    "ctranslate2": "CTranslate2",
    "llama_cpp": "llama.cpp",
    "openvino": "OpenVINO GenAI",
}
# Kind of report -> the model that is shown, its title, and what is shown of it.
SHOWN = {
    "decode": (
        "gpt2",
        "GPT-2 (124M), tokens per second",
        {"decode": "decode, 1 sequence", "prefill": "prefill of 512", "batch 8": "decode, 8 sequences"},
    ),
    "seq2seq": (
        "t5-base",
        "T5-base, new tokens (of beams: positions) per second after a source of 128",
        {"greedy 1": "greedy, 1 source", "greedy 8": "greedy, 8 sources", "beam 4, 1": "4 beams, 1 source"},
    ),
}
OURS, THEIRS, TEXT = "#d9480f", "#adb5bd", "#6c757d"


def main() -> None:
    source = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_suffix(".svg")
    report = json.loads(source.read_text())
    model, title, works = SHOWN[report.get("kind", "decode")]
    # Runs of 2026-11-26 and before had our bfloat16 beside the eight bits of others.
    groups = [
        group
        for group in report["groups"]
        if group["model"] == model and group["precisions"]["fastdecode"] == group["precision"]
    ]
    if not groups:
        raise SystemExit(f"{source} has no group of {model}")
    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "fastdecode", "text.color": TEXT, "font.size": 9}
    )
    figure, axes = plt.subplots(len(groups), len(works), figsize=(9, 1.9 * len(groups)), squeeze=False)
    for row, group in zip(axes, groups, strict=True):
        for axis, (work, name) in zip(row, works.items(), strict=True):
            medians = group["summary"]["medians"][work]
            names = [engine for engine in LABELS if engine in medians][::-1]
            values = [medians[engine] for engine in names]
            bars = axis.barh(
                [LABELS[n] for n in names],
                values,
                color=[OURS if n.startswith("fastdecode") else THEIRS for n in names],
            )
            axis.bar_label(bars, fmt="%.0f", padding=3, color=TEXT)
            axis.set_title(f"{name}, {group['precision']}", color=TEXT, fontsize=9)
            axis.set_xlim(0, max(values) * 1.2)
            axis.xaxis.set_visible(False)
            axis.tick_params(colors=TEXT, length=0)
            axis.spines[:].set_visible(False)
            if axis is not row[0]:
                axis.yaxis.set_visible(len(names) != len(row[0].get_yticks()))
    threads = groups[0]["threads"]
    figure.suptitle(
        f"{title}, longer is better; {report['cpu']}, {threads} threads, {report['date']}",
        color=TEXT,
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(target, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
