"""What types of weights make of the bundled models: the tables of docs/quality.md, in Markdown.

    python benches/quality.py --books BOOKS --wikitext wiki.test.txt --translations fra.txt

Each is optional. Books and translations are those that the models were trained on; what was held out then is measured,
the books' stories in one row with `<|endoftext|>` around each. How WikiText's lines are joined, docs/scores.md says.
It needs torch and transformers, as the training does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import fastdecode
from fastdecode.load_options import dtype_of_words
from fastdecode.quality_command import read_text

# What was held out in training is decided there.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from books import read_books
from pairs import hold_out, read_pairs
from train_stories import END_OF_TEXT, HELD_OUT
from train_translator import PREFIX, Options


def stories(folder: str, model: Any) -> list[int]:
    """The held-out stories as ids."""
    [end] = model.tokenizer.encode(END_OF_TEXT)
    ids = []
    for story in read_books(Path(folder), HELD_OUT)[1]:
        ids += [end, *model.tokenizer.encode(story)]
    return [*ids, end]


def translations(file: str, _: Any) -> list[tuple[str, str]]:
    """The held-out pairs."""
    _, held = hold_out(read_pairs(Path(file)), Options.held_out, 0)
    return [(PREFIX + english, french) for english, french in held]


def table(report: fastdecode.QualityReport) -> str:
    """The report in Markdown."""
    measure = report.measure
    base = getattr(report.rows[0], measure)
    lines = [
        f"| dtype | products | {measure} | change | KL | agreement | weights, MB | per step, MB | tokens/s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in report.rows:
        value = getattr(row, measure)
        cells: tuple[str, ...] = (
            str(row.dtype),
            row.compute_dtype,
            f"{value:,.4f}",
            f"{value / base - 1:+.2%}",
            f"{row.kl:.3g}",
            f"{row.agreement:.2%}",
            f"{row.weight_bytes / 1e6:,.1f}",
            f"{row.step_weight_bytes / 1e6:,.1f}",
            f"{row.tokens_per_second:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--books", metavar="FOLDER", help="the books, for demo-stories")
    parser.add_argument("--wikitext", metavar="FILE", help="WikiText-2's test set, for demo-stories")
    parser.add_argument("--translations", metavar="FILE", help="fra.txt, for demo-en-fr")
    parser.add_argument("--dtype", action="append", help="as `fastdecode quality` takes it")
    parser.add_argument("--limit", type=int, help="tokens of each")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    dtypes: Any = options.dtype and [dtype_of_words([text]) for text in options.dtype]
    measured: list[tuple[str, str, Any, Any]] = [
        ("demo-stories", "held-out stories", options.books, stories),
        ("demo-stories", "WikiText-2, test", options.wikitext, lambda file, _: read_text(file)),
        ("demo-en-fr", "held-out pairs", options.translations, translations),
    ]
    if not any(place for _, _, place, _ in measured):
        parser.error("expected at least one of --books, --wikitext and --translations")
    for name, title, place, read in measured:
        if place is None:
            continue
        model: Any = fastdecode.load(name, dtype="float32", num_threads=options.threads)
        # Windows of demo-stories stand side by side: its context is as long as a stride.
        report = model.quality(read(place, model), dtypes=dtypes, limit=options.limit)
        here = f"{model.info()['num_threads']} threads of {fastdecode.cpu_info()['name']}"
        sys.stdout.write(f"{name}, {title}: {report.rows[0].tokens:,} tokens; {here}\n\n{table(report)}\n\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
