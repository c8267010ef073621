"""Compares fastdecode's tokenizer of a folder with transformers' own, line by line over text files.

    python tools/compare_tokenizers.py FOLDER FILE...

Compares ids, text with and without special tokens, and the joined pieces of a stream. Lines of .jsonl files count as
they stand. Prints the first differences and ends with status 1 where there are any. Needs the `test` extra.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastdecode.folder import optional_json
from fastdecode.tokenizer_files import read_folder


def differences(ours: Any, theirs: Any, texts: Iterable[str]) -> Iterator[str]:
    """Yields one description per text on which the two differ."""
    for text in texts:
        ids = list(theirs(text)["input_ids"])
        if ours.encode(text) != ids:
            yield f"ids of {text!r}: {ours.encode(text)} instead of {ids}"
        for skip in (False, True):
            whole = theirs.decode(ids, skip_special_tokens=skip)
            if ours.decode(ids, skip_special_tokens=skip) != whole:
                yield f"text of {ids}: {ours.decode(ids, skip_special_tokens=skip)!r} instead of {whole!r}"
            pieces = ours.detokenizer(skip_special_tokens=skip)
            joined = "".join(pieces.push([token]) for token in ids) + pieces.finish()
            if joined != whole:
                yield f"stream of {ids}: {joined!r} instead of {whole!r}"


def lines(file: Path) -> list[str]:
    """Returns the different lines of a file that hold anything."""
    return list(dict.fromkeys(line for line in file.read_text(encoding="utf-8").splitlines() if line))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=None, help="lines of every file, at most")
    parsed = parser.parse_args()
    from transformers import AutoTokenizer

    ours = read_folder(parsed.folder, optional_json(parsed.folder / "config.json"))
    if ours is None:
        parser.error(f"{parsed.folder} has no tokenizer")
    theirs = AutoTokenizer.from_pretrained(parsed.folder)
    compared = different = 0
    for file in parsed.files:
        texts = lines(file)[: parsed.limit]
        compared += len(texts)
        for difference in differences(ours, theirs, texts):
            different += 1
            if different <= 20:
                print(f"{file.name}: {difference}")
    print(f"{compared} lines compared, {different} differences")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
