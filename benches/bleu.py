"""BLEU of demo-en-fr's held-out sentences by type of weights, greedy and with four beams, in Markdown.

    python benches/bleu.py fra.txt

The file is the one that the model was trained on; what was held out then is translated. Counted as on the model's
card: against all translations of a sentence, with sacrebleu, which this needs beside torch and transformers, as the
training does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import fastdecode

# What was held out in training is decided there, and so is how outputs are counted.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from pairs import hold_out, read_pairs
from train_translator import MAX_NEW_TOKENS, PREFIX, Options, by_source, count

DTYPES: list[Any] = ["float32", "bfloat16", "int8", "int4", {"default": "int4", "lm_head": "int4"}]
BEAMS = (1, 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("translations", type=Path, help="fra.txt")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    _, held = hold_out(read_pairs(options.translations), Options.held_out, 0)
    references = by_source(held)
    sources = [PREFIX + sentence for sentence in references]
    sys.stdout.write(f"demo-en-fr, {len(sources):,} sentences with {len(held):,} translations\n\n")
    titles = [
        f"{'greedy' if beams == 1 else f'{beams} beams'}, {name}"
        for beams in BEAMS
        for name in ("BLEU", "chrF")
    ]
    sys.stdout.write(f"| dtype | {' | '.join(titles)} |\n|---|{'--:|' * len(titles)}\n")
    signatures: dict[str, str] = {}
    for dtype in DTYPES:
        model: Any = fastdecode.load("demo-en-fr", dtype=dtype, num_threads=options.threads)
        cells = []
        for beams in BEAMS:
            texts = model.generate(sources, num_beams=beams, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
            for name, (score, signature) in count(texts, references).items():
                cells.append(f"{score:.2f}")
                signatures[name] = signature
        name = (
            dtype if isinstance(dtype, str) else ", ".join(f"{part}={kind}" for part, kind in dtype.items())
        )
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()
    sys.stdout.write(
        "\n" + "\n".join(f"{name}: {signature}" for name, signature in signatures.items()) + "\n"
    )


if __name__ == "__main__":
    main()
