"""Reads translation pairs and holds some out without leaking a sentence of either language.

This file owns the sentences; it knows nothing of tokens or models.
"""

from __future__ import annotations

import random
import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

Pair = tuple[str, str]

_LARGEST_HELD_GROUP = 20  # pairs; a larger group would leave one kind of sentence to validation
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\ufeff]")


def normalize(sentence: str) -> str:
    """One spelling for what looks alike: composed letters, plain spaces, straight apostrophes."""
    sentence = unicodedata.normalize("NFKC", sentence).replace("\u2019", "'")
    return " ".join(_INVISIBLE.sub("", sentence).split())


def read_pairs(file: Path) -> list[Pair]:
    """Reads tab-separated lines (English, French, and columns that are ignored), each pair once.

    Raises:
        SystemExit: a line has no tab.
    """
    pairs: dict[Pair, None] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise SystemExit(f"{file}:{number}: expected English, a tab and French, got {line!r}")
        pairs[normalize(columns[0]), normalize(columns[1])] = None
    return list(pairs)


def hold_out(pairs: list[Pair], sentences: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Splits pairs into (training, held out) by connected groups.

    Pairs that share a sentence of either language, in either case of letters, belong to one group,
    and a group is never divided. Very large groups are always for training.

    Args:
        pairs: all pairs.
        sentences: how many different English sentences to hold out, at least.
        seed: decides which.
    """
    parent: dict[Pair, Pair] = {}

    def root(node: Pair) -> Pair:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for english, french in pairs:
        parent[root(("en", english.lower()))] = root(("fr", french.lower()))
    groups: dict[Pair, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(root(("en", pair[0].lower())), []).append(pair)
    candidates = [group for group in groups.values() if len(group) <= _LARGEST_HELD_GROUP]
    random.Random(seed).shuffle(candidates)
    held: dict[Pair, None] = {}
    english_held: set[str] = set()
    for group in candidates:
        if len(english_held) >= sentences:
            break
        held.update(dict.fromkeys(group))
        english_held.update(english for english, _ in group)
    return [pair for pair in pairs if pair not in held], list(held)
