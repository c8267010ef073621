"""What the code computes, to the bit: one digest per model, type and table of kernels, kept in tests/golden/bits.json.

    python tests/python/bits.py            writes the digests of every table that this CPU has into that file
    python tests/python/bits.py --print    prints one table's digests: FASTDECODE_ISA chooses it

`test_bits` holds every later version to the file: a change that means to keep the results leaves it as it is, and one
that means to change them makes it anew and says so. A digest is of the logits of prompts around the borders of tiles,
tasks and chunks, of what lists and searches give with their log-probabilities, and of hidden states. The results of
one, two and three threads must agree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
from families import FAMILIES

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
FILE = GOLDEN / "bits.json"
THREADS = (1, 2, 3)
TYPES: list[tuple[Any, Any]] = [
    ("auto", None),
    ("bfloat16", None),
    ("float16", None),
    ("bfloat16", "bfloat16"),
    ("int8", None),
    ("int4", None),
]
# Tables that form products of integers by other instructions than a table beside them, and everything else as it does:
# so they must give its results.
INTEGERS = {"avx512vnni": "avx512", "avxvnni": "avx2"}
# Around private norms, rows packed alone and together, tasks of attention, chunks of keys, groups of rows, chunks of
# a prompt.
LENGTHS = (1, 2, 8, 9, 16, 17, 25, 40, 257, 300, 530)
RAGGED = (1, 7, 16, 33, 2)
# No step of these has a task of attention that is not the only one of its sequence.
SHORT = (1, 7, 16, 20, 2)


def folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields every model: random ones written under `root`, those of the goldens, and the demos."""
    for family in FAMILIES.values():
        recipes = {**family.laws, "chunks": family.chunks} | {
            f"table {i}": r for i, r in enumerate(family.tables)
        }
        for name, recipe in recipes.items():
            full = f"{family.name}: {name}"
            yield full, family.write_tiny(root / full, seed=recipe.seed, **recipe.config)
    for config_file in sorted(GOLDEN.glob("*/config.json")):
        if list(config_file.parent.glob("*.safetensors")):
            yield config_file.parent.name, config_file.parent
    for name in ("demo-stories", "demo-en-fr"):
        yield name, Path(fastdecode.__file__).parent / "demo" / name


def tokens(length: int, vocab: int) -> list[int]:
    drawn: list[int] = np.random.default_rng(length).integers(0, vocab, length).tolist()
    return drawn


def results(model: Any) -> Iterator[Any]:
    """Yields arrays and outputs of one model."""
    info = model.info()
    vocab, limit = info["vocab_size"], info["context_length"] or 600
    lengths = [length for length in LENGTHS if length <= limit]
    ragged = [[tokens(min(n, limit - 6), vocab) for n in batch] for batch in (RAGGED, SHORT)]
    options: dict[str, Any] = {"max_new_tokens": 6, "logprobs": 2, "eos_token_id": None, "do_sample": False}
    beams: dict[str, Any] = {
        "max_new_tokens": 4,
        "num_beams": 3,
        "num_return_sequences": 2,
        "eos_token_id": None,
        "do_sample": False,
    }
    if model.has_encoder:
        for memory in model.encode([tokens(n, vocab) for n in lengths]):
            yield memory.hidden
            yield model.logits(memory, tokens(9, vocab))
        yield from (model.logits(tokens(20, vocab), tokens(n, vocab)) for n in lengths)
    else:
        yield from (model.logits(tokens(n, vocab)) for n in lengths)
    for batch in ragged:
        yield from model.run(batch, **options)
        yield from model.run(batch[:3], **beams)


def digest(values: Iterator[Any]) -> str:
    """One digest of arrays and outputs."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            found.update(value.tobytes())
        else:
            found.update(repr((list(value.token_ids), value.score)).encode())
            for at in value.logprobs or ():
                found.update(np.array([at.logprob, *(p for _, p in at.top)], np.float32).tobytes())
    return found.hexdigest()[:20]


def trace(model: Any) -> dict[str, str]:
    """Digests of the activations of one pass, by name."""
    vocab = model.info()["vocab_size"]
    ids = tokens(9, vocab)
    shown = model.trace(tokens(18, vocab), ids) if model.has_encoder else model.trace(ids)
    return {name: digest(iter([values])) for name, values in shown.items()}


def kernels() -> str:
    """The chosen table; where the bf16 dot serves products in bfloat16, which the family decides, it says so."""
    cpu = fastdecode._core.cpu_info()
    if cpu["isa"] != "avx512bf16":
        return INTEGERS.get(cpu["isa"], str(cpu["isa"]))
    # Without the dot the two tables of AVX-512 compute the same.
    return "avx512bf16, dot" if cpu["family"] in ("zen4", "zen5") else "avx512"


def table() -> dict[str, Any]:
    """Digests of every model in every type, by the chosen table; those of all numbers of threads must be one."""
    found: dict[str, Any] = {}
    integers = fastdecode._core.cpu_info()["isa"] in INTEGERS
    with tempfile.TemporaryDirectory() as root:
        for name, folder in folders(Path(root)):
            for dtype, compute in TYPES:
                if integers and not dtype.startswith("int"):
                    continue
                kind = "/".join(filter(None, (dtype, compute)))
                by = {
                    n: digest(
                        results(fastdecode.load(folder, dtype=dtype, compute_dtype=compute, num_threads=n))
                    )
                    for n in THREADS
                }
                if len(set(by.values())) != 1:
                    raise RuntimeError(
                        f"{name}, {kind}: expected one result for all numbers of threads, got {by}"
                    )
                found[f"{name}, {kind}"] = by[1]
            if ": " in name and not integers:
                found[f"{name}, trace"] = trace(fastdecode.load(folder, num_threads=2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="print the digests of the chosen table")
    if parser.parse_args().print:
        sys.stdout.write(json.dumps({kernels(): table()}))
        return
    report = json.loads(FILE.read_text()) if FILE.exists() else {}
    for isa in fastdecode._core.cpu_info()["available"]:
        if isa in INTEGERS:
            continue
        child = subprocess.run(
            [sys.executable, __file__, "--print"],
            env=os.environ | {"FASTDECODE_ISA": isa},
            check=True,
            stdout=subprocess.PIPE,
        )
        report |= json.loads(child.stdout)
    FILE.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
