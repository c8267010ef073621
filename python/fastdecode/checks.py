"""Which values an option of a call may have, one by one; `options` puts them together.

Nothing here knows where a value comes from.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

EarlyStopping = bool | Literal["never"]


def _whole(value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError
    return operator.index(value)


def _at_least(smallest: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        number = _whole(value)
        if not smallest <= number < 2**63:
            raise ValueError
        return number

    return check


def _real(accepts: Callable[[float], bool]) -> Callable[[object], float]:
    def check(value: object) -> float:
        if isinstance(value, (bool, str, bytes, bytearray)) or not hasattr(value, "__float__"):
            raise ValueError
        number = float(value)
        if not math.isfinite(number) or not accepts(number):
            raise ValueError
        return number

    return check


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def _early_stopping(value: object) -> EarlyStopping:
    return "never" if isinstance(value, str) and value == "never" else _boolean(value)


def _ids(value: object) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)):
        raise ValueError
    items = value if isinstance(value, Iterable) else (value,)
    ids = tuple(_whole(item) for item in items)
    if not all(0 <= item < 2**32 for item in ids):
        raise ValueError
    return ids


def _strings(value: object) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, (Sequence, set, frozenset)) or isinstance(items, bytes):
        raise ValueError
    if not all(isinstance(item, str) and item for item in items):
        raise ValueError
    return tuple(items)


def _seed(value: object) -> int | tuple[int, ...]:
    if isinstance(value, str):
        raise ValueError
    if isinstance(value, Iterable):
        return tuple(_one_seed(item) for item in value)
    return _one_seed(value)


def _one_seed(value: object) -> int:
    number = _whole(value)
    if not -(2**63) <= number < 2**64:
        raise ValueError
    return number % 2**64  # torch.manual_seed maps negative seeds in this way.


_PROBABILITY = _real(lambda x: 0 <= x <= 1)
_POSITIVE = _real(lambda x: x > 0)
_FINITE = _real(lambda _: True)

# Option -> (check that returns the value or raises ValueError, what it accepts). None is handled before.
CHECKS: dict[str, tuple[Callable[[object], Any], str]] = {
    "max_new_tokens": (_at_least(1), "an integer of at least 1"),
    "max_length": (_at_least(1), "an integer of at least 1"),
    "min_new_tokens": (_at_least(0), "an integer of at least 0"),
    "min_length": (_at_least(0), "an integer of at least 0"),
    "do_sample": (_boolean, "True or False"),
    "temperature": (
        _POSITIVE,
        "a number above 0 (for the most probable token at every step, do_sample=False)",
    ),
    "top_k": (_at_least(0), "an integer of at least 0 (0 means all tokens)"),
    "top_p": (_PROBABILITY, "a number from 0 to 1"),
    "min_p": (_PROBABILITY, "a number from 0 to 1"),
    "seed": (_seed, "an integer from -2**63 to 2**64 - 1, or a list of them, one per prompt"),
    "num_return_sequences": (_at_least(1), "an integer of at least 1"),
    "num_beams": (_at_least(1), "an integer of at least 1 (1 means no beams)"),
    "length_penalty": (_FINITE, "a finite number"),
    "early_stopping": (_early_stopping, 'True, False or "never"'),
    "repetition_penalty": (_POSITIVE, "a number above 0"),
    "encoder_repetition_penalty": (_POSITIVE, "a number above 0"),
    "no_repeat_ngram_size": (_at_least(0), "an integer of at least 0 (0 means off)"),
    "encoder_no_repeat_ngram_size": (_at_least(0), "an integer of at least 0 (0 means off)"),
    "eos_token_id": (_ids, "a token id or a list of token ids"),
    "stop": (_strings, "a string that is not empty, or a list of them"),
    "stop_token_ids": (_ids, "a token id or a list of token ids"),
    "logprobs": (_at_least(0), "an integer of at least 0"),
    "skip_special_tokens": (_boolean, "True or False"),
}
