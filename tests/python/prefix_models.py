"""What tests of prefixes share: options of a call, and what a model holds."""

from __future__ import annotations

from typing import Any

GREEDY: Any = {"max_new_tokens": 6, "logprobs": 3, "eos_token_id": None, "do_sample": False}


def holds(model: Any) -> int:
    """Bytes of keys and values that anything of the model holds."""
    held: int = model.info()["cache_bytes_live"]
    return held
