"""Perplexity of a text file, as the Hugging Face guide to fixed-length models computes it.

    python benches/perplexity.py demo-stories wiki.test.txt
    python benches/perplexity.py demo-stories wiki.test.txt --stride 256 --against-transformers

The second line computes the same with transformers in float32, and fails where the two are more than 1e-4 of each other
apart. Dividing a text file into lines, joining them, or cleaning them is up to whoever makes the file.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import fastdecode

# How far the two may be apart, relatively.
BOUND = 1e-4


def by_transformers(folder: str, ids: list[int], stride: int, window: int) -> float:
    """Returns the perplexity that transformers' losses give, window by window."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nats, weight, scored = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        part = ids[begin : begin + window]
        end = begin + len(part)
        labels = torch.tensor([part])
        labels[:, : max(0, len(part) - (end - scored))] = -100
        counted = int((labels != -100).sum()) - 1
        if counted > 0:
            with torch.no_grad():
                nats += model(torch.tensor([part]), labels=labels).loss.item() * counted
            weight += counted
        scored = end
        if end == len(ids):
            break
    return math.exp(nats / weight)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, a bundled model or an id of the hub")
    parser.add_argument("file", type=Path, help="the text, UTF-8")
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--window", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--against-transformers", action="store_true")
    options = parser.parse_args()

    model: Any = fastdecode.CausalLM.load(options.model, num_threads=options.threads)
    ids = model.tokenizer.encode(options.file.read_text(encoding="utf-8"))
    began = time.perf_counter()
    ours = model.perplexity(ids, options.stride, options.window)
    seconds = time.perf_counter() - began
    sys.stdout.write(
        f"{len(ids)} tokens, perplexity {ours:.6f}, {len(ids) / seconds:.0f} tokens per second\n"
    )
    if not options.against_transformers:
        return 0
    bundled = Path(fastdecode.__file__).parent / "demo" / options.model
    folder = str(bundled) if bundled.is_dir() else options.model
    limit = model.info()["context_length"] or model.config["max_position_embeddings"]
    began = time.perf_counter()
    theirs = by_transformers(folder, ids, options.stride, options.window or limit)
    seconds = time.perf_counter() - began
    apart = abs(ours / theirs - 1)
    rate = f"{len(ids) / seconds:.0f} tokens per second"
    sys.stdout.write(
        f"transformers: perplexity {theirs:.6f}, {rate}; {apart:.1e} apart, allowed are {BOUND:.0e}\n"
    )
    return int(apart > BOUND)


if __name__ == "__main__":
    sys.exit(main())
