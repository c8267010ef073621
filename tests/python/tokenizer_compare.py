"""How fastdecode's tokenizer of a folder differs from transformers' own: ids, text, stream and what it says of itself.

Run as a program, it draws many folders (tokenizer_folders.py) and counts:

    python tests/python/tokenizer_compare.py --folders 1000 [--first 0] [--pieces]
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import tiny
import tokenizers
from fastdecode.errors import FastdecodeError
from fastdecode.folder import optional_json
from fastdecode.tokenizer import Tokenizer
from fastdecode.tokenizer_files import read_folder
from tokenizer_folders import GOLDEN, KINDS, OF_PIECES, TOKENS, draw, dump

# T5's real vocabulary.
T5 = GOLDEN
GPT2 = {"model_type": "gpt2"}

TEXTS = [
    "",
    " ",
    "Hello world, it's a wolf's house.",
    "  two  spaces \n and\ttabs ",
    "Il était une fois À l'orée; Großmutter ﬁn ①",
    "昔々、ある所に🙂 naïve café 中文字",
    "don't , do . it ? we 're n't",
    "\u200b\ufeff\u00a0x\u3000e\u0301",
    "12345 Ünïcode ABC",
    " Hello\n\n1. a  12\t(x)<s> b</s>c",
]


def texts_for(folder: Path) -> list[str]:
    """Returns texts that hold the tokens which the folder may name."""
    chooser = random.Random(str(sorted(path.name for path in folder.iterdir())))
    mixed = [
        "".join(chooser.choice([*TOKENS, " ", "a", " wolf", "X", "é"]) for _ in range(8)) for _ in range(6)
    ]
    return [*TEXTS, " ".join(TOKENS), "".join(TOKENS), *mixed]


def compare(folder: Path) -> tuple[str, list[str]]:
    """How fastdecode's tokenizer of a folder differs from transformers'.

    Returns:
        What became of it ("equal", "different", "refused", "theirs raises", "theirs has no vocabulary"), and the
        differences.
    """
    from transformers import AutoTokenizer

    try:
        theirs: Any = AutoTokenizer.from_pretrained(folder)
        theirs("a")
    except Exception as error:
        with contextlib.suppress(FastdecodeError):
            read_folder(folder, optional_json(folder / "config.json"))
        return "theirs raises", [f"{type(error).__name__}: {error}"[:200]]
    try:
        ours = read_folder(folder, optional_json(folder / "config.json"))
    except FastdecodeError as error:
        if "which is not supported" in str(error):
            return "refused", [str(error)]
        if len(theirs) < 250 and "for a" in str(error):
            return "theirs has no vocabulary", [str(error)]
        return "different", [f"{type(error).__name__}: {error}"]
    if ours is None or (len(theirs) < 250 < ours.vocab_size):
        return ("theirs has no vocabulary" if len(theirs) < 250 else "different"), ["ours is none"]
    differences = list(_differences(folder, ours, theirs))
    return "different" if differences else "equal", differences


def _differences(folder: Path, ours: Any, theirs: Any) -> Any:
    shown = {
        "bos": (ours.bos_token, theirs.bos_token),
        "eos": (ours.eos_token, theirs.eos_token),
        "pad": (ours.pad_token, theirs.pad_token),
        "unk": (ours.unk_token, theirs.unk_token),
        "special": (set(ours.all_special_tokens), set(theirs.all_special_tokens)),
        "pad id": (ours.pad_token_id, theirs.pad_token_id),
        "bos id": (ours.bos_token_id, theirs.bos_token_id),
        "eos id": (ours.eos_token_id, theirs.eos_token_id),
        "size": (ours.vocab_size, len(theirs)),
        "side": (ours.truncation_side, theirs.truncation_side),
        "limit": (
            ours.model_max_length,
            theirs.model_max_length if theirs.model_max_length < 10**15 else None,
        ),
    }
    yield from (f"{name}: {a!r} instead of {b!r}" for name, (a, b) in shown.items() if a != b)
    chooser = random.Random(0)
    rows: list[list[int]] = [
        [chooser.randrange(len(theirs)) for _ in range(length)] for length in (1, 2, 5, 20, 60)
    ]
    rows.append(list(range(len(theirs) - min(len(theirs), 30), len(theirs))))
    rows.append([*range(6), *range(6)])
    for text in texts_for(folder):
        for special in (True, False):
            try:
                ids = list(theirs(text, add_special_tokens=special)["input_ids"])
            except Exception:  # the library's own, where a vocabulary has no token for what is unknown
                with contextlib.suppress(FastdecodeError):
                    ours.encode(text, add_special_tokens=special)
                continue
            if (mine := ours.encode(text, add_special_tokens=special)) != ids:
                yield f"ids of {text!r} ({special}): {mine} instead of {ids}"
            rows.append(ids)
            if not special and (tokens := ours.tokenize(text)) != (others := theirs.tokenize(text)):
                yield f"tokens of {text!r}: {tokens} instead of {others}"
    if (found := ours.convert_tokens_to_ids(TOKENS)) != (others := theirs.convert_tokens_to_ids(TOKENS)):
        yield f"ids of tokens: {found} instead of {others}"
    for ids in rows:
        for skip in (False, True):
            others = theirs.convert_ids_to_tokens(ids, skip_special_tokens=skip)
            if (tokens := ours.convert_ids_to_tokens(ids, skip_special_tokens=skip)) != others:
                yield f"tokens of {ids} ({skip}): {tokens} instead of {others}"
        for skip in (False, True):
            try:
                whole = theirs.decode(ids, skip_special_tokens=skip)
            except ValueError:  # ByT5's, for an id between its bytes and its added tokens
                ours.decode(ids, skip_special_tokens=skip)
                continue
            if (text := ours.decode(ids, skip_special_tokens=skip)) != whole:
                yield f"text of {ids} ({skip}): {text!r} instead of {whole!r}"
            pieces = ours.detokenizer(skip_special_tokens=skip)
            joined = "".join(pieces.push([token]) for token in ids) + pieces.finish()
            if joined != whole:
                yield f"stream of {ids} ({skip}): {joined!r} instead of {whole!r}"


def write(folder: Path, **files: Any) -> Path:
    """Writes JSON files, by their names without the extension."""
    for name, value in files.items():
        dump(folder, f"{name}.json", value)
    return folder


def vocabulary(folder: Path, **files: Any) -> Path:
    """Writes vocab.json and merges.txt over bytes, of 257 tokens, and other files."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: index for index, token in enumerate([*alphabet, tiny.END])}
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return write(folder, vocab=tokens, **files)


def pieces(folder: Path, **files: Any) -> Path:
    """Copies T5's SentencePiece model, and writes other files."""
    shutil.copy(T5 / "spiece.model", folder)
    return write(folder, **({"config": {"model_type": "t5"}} | files))


def load(folder: Path) -> Tokenizer:
    tokenizer = read_folder(folder, optional_json(folder / "config.json"))
    assert tokenizer is not None
    return tokenizer


def check(folder: Path) -> Tokenizer:
    """Compares with transformers; returns ours."""
    assert compare(folder) == ("equal", [])
    return load(folder)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--pieces", action="store_true", help="only folders with a tokenizer.model")
    parsed = parser.parse_args()
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    outcomes: Counter[str] = Counter()
    for seed in range(parsed.first, parsed.first + parsed.folders):
        with tempfile.TemporaryDirectory() as name:
            described = draw(Path(name), seed, OF_PIECES if parsed.pieces else KINDS)
            outcome, details = compare(Path(name))
            outcomes[outcome] += 1
            if outcome == "different":
                print(described, *(line[:300] for line in details[:4]), sep="\n  ", flush=True)
    print(f"{parsed.folders} folders: {dict(outcomes)}")
    return 1 if outcomes["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
