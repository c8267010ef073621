"""How models with adapters are loaded in tests, and held against peft."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import peft_folders as made
from families import FAMILIES, Family, Input
from parity import ids
from reference import Reference, assert_close, assert_same_ids
from subject import Subject

GPT2, T5 = FAMILIES["gpt2"], FAMILIES["t5"]


def load(*where: Any, **options: Any) -> Any:
    """Loads, and sees to it that nothing is warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fastdecode.load(*where, num_threads=1, **options)


def hold(
    ours: Any, theirs: Reference, family: Family, vocab: int, what: str = "", **for_transformers: Any
) -> None:
    """Holds logits and greedy ids against the reference."""
    rows = np.random.default_rng(3).integers(0, vocab, (2, 8)).tolist()
    item = Input([0, *rows[0]], rows[1]) if family.has_encoder else Input(rows[0])
    assert_close(Subject(ours).answers(item), theirs, item, what)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5}
    assert_same_ids(
        theirs.generate(rows, **options, **for_transformers), ids(ours.run(rows, **options)), what
    )


def check(base: Path, adapters: list[Path], family: Family = GPT2, vocab: int = 50, **recipe: Any) -> Any:
    """Loads a base with adapters, and holds it against the reference."""
    ours = load(base, adapter=adapters)
    hold(ours, made.reference(family, base, adapters, **recipe), family, vocab)
    return ours
