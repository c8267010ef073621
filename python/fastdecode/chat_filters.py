"""The filters and tests of jinja2, bounded: each is asked what it may make before it makes it.

A wrapped filter is one that takes the context, so that none is computed when a template is compiled. Nothing here knows
what a chat is.
"""

# The signatures are those of the filters.
# ruff: noqa: ANN401, ARG001, FBT002
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jinja2

from .chat_bounds import MOST_COMPARED, MOST_TEXT, TooMuch, length, meter, size_of_format, weight

if TYPE_CHECKING:
    from jinja2.runtime import Context

    _Filter = Callable[..., Any]

# Filters that do not look at the text of what they are given, or only at one item of it.
_CHEAP = frozenset(
    {
        "abs",
        "attr",
        "count",
        "d",
        "default",
        "first",
        "float",
        "int",
        "items",
        "last",
        "length",
        "list",
        "map",
        "random",
        "reject",
        "rejectattr",
        "reverse",
        "safe",
        "select",
        "selectattr",
    }
)
# Filters that look at every word, or at every item, several times.
_SLOW = frozenset({"striptags", "title", "urlize", "wordcount", "wordwrap"})
_MOST_SLOW = MOST_TEXT // 16
# Filters whose first argument may be an iterator that is to be looked at first.
_OF_ITEMS = frozenset({"dictsort", "groupby", "join", "max", "min", "sort", "sum", "unique"})
# Tests that compare, or look for something.
_COMPARING = frozenset(
    {
        "==",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        "eq",
        "equalto",
        "ge",
        "gt",
        "greaterthan",
        "in",
        "le",
        "lessthan",
        "lt",
        "ne",
    }
)
# Digits to which a number is rounded; no float has so many.
_MOST_DIGITS = 400
_ESCAPED = "&<>'\""


def bounded(filters: Mapping[str, _Filter]) -> dict[str, _Filter]:
    """Filters by name, each under the bounds of the rendering that is at work."""
    return {name: _bounded(name, function) for name, function in filters.items()}


def bounded_tests(tests: Mapping[str, _Filter]) -> dict[str, _Filter]:
    """The same for tests."""
    return {name: _weighing(function) if name in _COMPARING else function for name, function in tests.items()}


def _weighing(test: _Filter) -> _Filter:
    def weighed(*values: Any) -> Any:
        for value in values:
            if not isinstance(value, (str, int, float)):
                weight(value)
        return test(*values)

    return weighed


def _bounded(name: str, function: _Filter) -> _Filter:
    takes = getattr(getattr(function, "jinja_pass_arg", None), "name", None)
    size = _SIZES.get(name)

    @jinja2.pass_context
    def limited(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        running = meter()
        if name in _OF_ITEMS and isinstance(value, Iterator):
            value = list(value)
        if name not in _CHEAP:
            given = weight(value)
            for other in (*args, *kwargs.values()):
                weight(other)
            if name in _SLOW and given > _MOST_SLOW:
                raise TooMuch(f"the filter {name} takes at most {_MOST_SLOW // 10**6} MB")
        if size is not None and running is not None:
            try:
                most = size(value, *args, **kwargs)
            except (TypeError, ValueError, AttributeError, OverflowError):
                most = 0  # arguments that the filter itself refuses
            running.allow(most)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        before = () if takes is None else (first[takes],)
        result = function(*before, value, *args, **kwargs)
        return result if running is None else running.made(result, value)

    return limited


def _text(value: object) -> int:
    return weight(value)


def _lines(value: object) -> int:
    return str(value).count("\n") + 1 if isinstance(value, str) else weight(value)


def _center(value: object, width: int = 80) -> int:
    return _text(value) + width


def _indent(s: object, width: int | str = 4, first: object = False, blank: object = False) -> int:
    return _text(s) + _lines(s) * (len(width) if isinstance(width, str) else width)


def _join(value: Any, d: object = "", attribute: object = None) -> int:
    return _text(value) + len(value) * _text(d)


def _replace(s: object, old: object, new: object, count: object = None) -> int:
    text = s if isinstance(s, str) else str(s)
    return len(text) + text.count(str(old)) * _text(new)


def _format(value: object, *args: object, **kwargs: object) -> int:
    return size_of_format(value if isinstance(value, str) else str(value), kwargs or args)


def _wordwrap(
    s: object,
    width: int = 79,
    break_long_words: object = True,
    wrapstring: str | None = None,
    break_on_hyphens: object = True,
) -> int:
    lines = 2 * _text(s) // max(width, 1) + _lines(s)
    return _text(s) + lines * max(length(wrapstring), 1)


def _trim(value: object, chars: object = None) -> int:
    return MOST_TEXT + 1 if _text(value) * length(chars) > MOST_COMPARED else 0


def _truncate(
    s: object, length: object = 255, killwords: object = False, end: str = "...", leeway: object = None
) -> int:
    return _text(s) + len(end)


def _urlize(value: object, *args: object, **kwargs: object) -> int:
    text = str(value)
    words = len(text.split())
    return 2 * len(text) + words * (20 + sum(length(item) for item in (*args, *kwargs.values())))


def _escape(value: object) -> int:
    if not isinstance(value, str):
        return 6 * _text(value)
    return len(value) + 5 * sum(map(value.count, _ESCAPED))


def _xmlattr(d: object, autospace: object = True) -> int:
    return 6 * _text(d)


def _batch(value: object, linecount: int, fill_with: object = None) -> int:
    return 8 * linecount


def _slice(value: object, slices: int, fill_with: object = None) -> int:
    return 8 * slices


def _round(value: object, precision: int = 0, method: object = "common") -> int:
    return MOST_TEXT + 1 if abs(precision) > _MOST_DIGITS else 0


def _sum(iterable: Any, attribute: object = None, start: object = 0) -> int:
    # Lists are added up by copying what there is so far, again and again.
    return 0 if isinstance(start, (int, float)) else (len(iterable) + 1) * (_text(iterable) + _text(start))


_SIZES: dict[str, Callable[..., int]] = {
    "batch": _batch,
    "center": _center,
    "e": _escape,
    "escape": _escape,
    "forceescape": _escape,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "slice": _slice,
    "sum": _sum,
    "trim": _trim,
    "truncate": _truncate,
    "urlize": _urlize,
    "wordwrap": _wordwrap,
    "xmlattr": _xmlattr,
}
