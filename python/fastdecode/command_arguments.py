"""What arguments of the command line may be, as argparse wants it: a function from a text to a value for each kind.

A text that is none is shown in few characters, however long it is.
"""

from __future__ import annotations

from argparse import ArgumentTypeError

from .accepted import weight_types
from .arrays import brief
from .errors import OptionError
from .load_options import dtype_of_words


def whole(text: str) -> int:
    """An integer."""
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"invalid int value: {brief(text)}") from None


def real(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"invalid float value: {brief(text)}") from None


def at_least_one(text: str) -> int:
    """An integer of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"expected an integer of at least 1, got {brief(text)}")
    return number


def early_stopping(text: str) -> bool | str:
    """When a search with beams ends."""
    words: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}
    if text.lower() not in words:
        raise ArgumentTypeError(f"expected true, false or never, got {brief(text)}")
    return words[text.lower()]


def dtypes(text: str) -> str:
    """A type of weights, or types by part as NAME=TYPE,NAME=TYPE; as it is written."""
    try:
        weight_types("dtype", dtype_of_words([text]))
    except OptionError as error:
        raise ArgumentTypeError(f"expected {error.expected}, got {error.got}") from None
    return text
