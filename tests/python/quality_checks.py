"""What tests of quality share: texts and pairs, and what numpy makes of the logits of two models."""

from __future__ import annotations

from typing import Any

import numpy as np
from families import FAMILIES

T5 = FAMILIES["t5"]
TEXT = (
    "Once upon a time there was a little girl who lived in a house by the wood. One day her mother said to her: "
    "Take this cake to your grandmother, for she is ill. And the wolf, who stood behind a tree, heard every word."
)
PAIRS = [
    ("translate English to French: I am happy to see you.", "Je suis content de vous voir."),
    ("translate English to French: Where is the station?", "Où est la gare ?"),
    ("translate English to French: We have to go home now.", "Nous devons rentrer à la maison."),
]


def log_softmax(logits: Any) -> Any:
    exact = logits.astype(np.longdouble)
    return exact - np.log(np.exp(exact).sum(-1, keepdims=True))


def by_hand(rows: list[tuple[Any, Any, Any]]) -> tuple[float, float]:
    """Mean divergence, and share of best tokens that agree, of (float32's logits, other's logits, targets)."""
    divergences, agreed = [], []
    for ours, theirs, targets in rows:
        p, q = log_softmax(ours), log_softmax(theirs)
        assert len(p) == len(targets)
        for place, target in enumerate(targets):
            if target is not None:
                divergences.append(float(np.sum(np.exp(p[place]) * (p[place] - q[place]))))
                agreed.append(int(ours[place].argmax()) == int(theirs[place].argmax()))
    return sum(divergences) / len(divergences), sum(agreed) / len(agreed)
