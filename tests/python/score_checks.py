"""What tests of scores share: log-probabilities of logits, ids that are drawn, a text."""

from __future__ import annotations

from typing import Any

import numpy as np

STORY = "Once upon a time there was a little girl"


def logprobs(logits: Any) -> Any:
    """Log-softmax of float32 logits in double precision."""
    exact = logits.astype(np.float64)
    exact = exact - exact.max(-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(-1, keepdims=True))


def drawn(seed: int, count: int, vocab: int = 320) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, vocab, count)]
