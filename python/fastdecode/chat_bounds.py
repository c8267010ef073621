"""How much time and text one rendering may take: templates come from the hub, and the sandbox of jinja2 bounds neither.

A `Meter` counts what one rendering makes; a trace function of the rendering thread holds it to a deadline, also where
the template calls nothing that counts. Operations in C are bounded by the sizes of what they are given, before they
begin. Nothing here knows jinja2.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

T = TypeVar("T")

# Seconds of one rendering, with its compilation.
DEADLINE = 5.0
# Characters that one operation may make, and the whole text.
MOST_TEXT = 16_000_000
# Characters that all operations of a rendering may make together, and that all expressions may write.
MOST_MADE, MOST_WRITTEN = 16 * MOST_TEXT, 4 * MOST_TEXT
# Characters that a search may compare where its time is that of both texts multiplied.
MOST_COMPARED = 10**9
# Bits of a whole number; those of more than 4,300 digits cannot be written anyway.
_MOST_BITS = 100_000
# What one item of a list counts: the memory of the list, and with its own where the item is new, where the whole is
# looked at, and in a dictionary.
_ITEM, _HELD = 8, 64
# What holds other values; no abstract class is asked, as that would be traced.
_HOLDERS: Any = (
    list,
    tuple,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
# Numbers within a format that are looked at; longer ones are too large.
_DIGITS = len(str(MOST_TEXT))


class TooMuch(Exception):
    """A rendering wants more text than it may make."""


class TimeUp(BaseException):
    """A rendering has taken too long; a template cannot catch it."""


class Meter:
    """What one rendering has taken.

    Attributes:
        deadline: When it must have ended, on `time.monotonic`.
    """

    def __init__(self) -> None:
        self.deadline = time.monotonic() + DEADLINE
        self._made = 0
        self._written = 0

    def check(self) -> None:
        """Raises where the time is up."""
        if time.monotonic() > self.deadline:
            raise TimeUp

    def allow(self, size: int) -> None:
        """Raises where an operation would make so much.

        Raises:
            TooMuch: It is more than an operation may make.
        """
        self.check()
        if size > MOST_TEXT:
            raise TooMuch(f"an operation would make more than {MOST_TEXT // 10**6} MB")

    def made(self, result: T, given: object = None) -> T:
        """Takes note of what an operation has made.

        Args:
            result: What it has made.
            given: What it was made of: a list of a text's parts holds new texts, and not what was there before.
        """
        size = length(result)
        self.allow(size)
        if isinstance(given, (str, bytes)) and isinstance(result, list):
            size = len(result) * _HELD
        self._made += size
        if self._made > MOST_MADE:
            raise TooMuch(f"its operations make more than {MOST_MADE // 10**6} MB together")
        return result

    def wrote(self, size: int) -> None:
        """Takes note of so many characters that an expression writes."""
        self._written += size
        if self._written > MOST_WRITTEN:
            raise TooMuch(f"its expressions write more than {MOST_WRITTEN // 10**6} MB")


_LOCAL = threading.local()
# Modules whose own lines are not traced.
_BOUNDED = frozenset(f"{__package__}.{name}" for name in ("chat_bounds", "chat_filters", "chat_sandbox"))


def meter() -> Meter | None:
    """The meter of the rendering that this thread is at; None for none."""
    return getattr(_LOCAL, "meter", None)


def bounded(run: Callable[[Meter], T]) -> T:
    """Runs something under a meter of its own and a deadline.

    Args:
        run: It is called in this thread, whose trace function (that of a debugger, say) comes back afterwards.

    Raises:
        TimeUp: It took too long.
        TooMuch: It made too much.
    """
    outer, before, own = meter(), sys.gettrace(), Meter()

    def line(*_: object) -> object:
        own.check()
        return line

    def enter(frame: FrameType, _event: str, _argument: object) -> Any:  # noqa: ANN401 (a trace function)
        own.check()
        # What is bounded by sizes is not slowed down by looking at each of its lines.
        return None if frame.f_globals.get("__name__") in _BOUNDED else line

    _LOCAL.meter = own
    sys.settrace(enter)
    try:
        return run(own)
    finally:
        sys.settrace(before)
        _LOCAL.meter = outer


def length(value: object) -> int:
    """What a text or a list counts by itself, whatever is in the list."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (list, tuple)):
        return len(value) * _ITEM
    if isinstance(value, (dict, set, frozenset)):
        return len(value) * _HELD
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise TooMuch(f"a whole number of more than {_MOST_BITS} bits")
    return 0


def weight(value: object) -> int:
    """Characters of a value as text, about; lists that hold others several times count them as often.

    Raises:
        TooMuch: They are more than an operation may make.
    """
    if isinstance(value, (str, bytes)):
        return len(value)
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, dict):
            total += len(item) * _HELD
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, _HOLDERS):
            total += len(item) * _HELD
            waiting.extend(item)
        elif isinstance(item, int):
            total += item.bit_length() // 3
        else:
            total += _HELD
        if total > MOST_TEXT or len(waiting) > MOST_TEXT // _HELD:
            raise TooMuch(f"a value of more than {MOST_TEXT // 10**6} MB as text")
    return total


def size_of_operator(operator: str, left: Any, right: Any) -> int:  # noqa: ANN401 (any values)
    """What an operator makes of two values, at most; 0 where that is of no size worth counting."""
    if operator == "%":
        return size_of_format(left, right) if isinstance(left, (str, bytes)) else 0
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        bits = bits * max(right, 0) if operator == "**" else bits + right.bit_length()
        if bits > _MOST_BITS:
            raise TooMuch(f"a whole number of more than {_MOST_BITS} bits")
        return 0
    if operator == "+":
        return length(left) + length(right)
    if operator == "*":
        if isinstance(left, int):
            left, right = right, left
        if isinstance(right, int) and isinstance(left, (str, bytes, list, tuple)):
            return length(left) * max(right, 0)
    return 0


_CONVERSION = re.compile(
    r"%(?:\((?P<name>[^)]*)\))?[#0\- +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+)?)?[hlL]?(?P<kind>.)",
    re.DOTALL,
)


def size_of_format(text: str | bytes, given: Any) -> int:  # noqa: ANN401 (a value, or several)
    """What `text % given` makes, at most."""
    pattern = text.decode("latin-1") if isinstance(text, bytes) else text
    total = len(pattern)
    by_name = given if isinstance(given, dict) else {}
    values = given if isinstance(given, tuple) else (given,)
    total += weight(values) if not by_name else 0
    # A star takes the next value for a number; whichever it is, it is not above the largest.
    largest = max((value for value in values if isinstance(value, int)), default=0)
    for found in _CONVERSION.finditer(pattern):
        for part in (found["width"], found["precision"]):
            if part == "*":
                total += abs(largest)
            elif part:
                total += number(part)
        if found["name"] is not None:
            total += weight(by_name.get(found["name"], ""))
        elif by_name and found["kind"] != "%":
            total += weight(by_name)
        if total > MOST_TEXT:
            break
    return total


def number(digits: str) -> int:
    """A number that is written within a format; one with too many digits is above everything that is allowed."""
    digits = digits.lstrip("0")
    return MOST_TEXT + 1 if len(digits) > _DIGITS else int(digits or "0")
