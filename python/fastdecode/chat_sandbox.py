"""The environment of jinja2 in which chat templates run: that of transformers 5.24, with every operation bounded.

An immutable sandbox with trimmed blocks, `break` and `continue`, `{% generation %}`, `tojson` without escapes for HTML,
`raise_exception` and `strftime_now`. Here alone, beside `chat_filters`, is jinja2 imported.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from datetime import datetime
from types import BuiltinMethodType
from typing import TYPE_CHECKING, Any, TypeVar

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.runtime import Macro, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from . import chat_filters
from .chat_bounds import MOST_COMPARED, MOST_TEXT, TooMuch, length, meter, number, size_of_operator, weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jinja2.parser import Parser
    from jinja2.runtime import Context

T = TypeVar("T")

# Filters of our own, under names that no template can write.
_JOINED, _WEIGHED = "~", "=="
# Methods of texts and numbers that take a width or a number of bytes as their first argument.
_WIDE = frozenset({"center", "ljust", "rjust", "zfill", "to_bytes"})
# Parts into which a text may be split.
_MOST_PARTS = 1_000_000
# White space, where a text is split without a separator.
_BLANKS = [character for character in map(chr, range(0x3001)) if character.isspace()]
# Methods whose time may be that of both texts multiplied.
_SEARCHING = frozenset({"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"})
# The C library writes at most so many characters for each of a date's format.
_PER_CHARACTER = 256


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` .. `{% endgeneration %}`, which prints what is between."""

    tags = {"generation"}  # noqa: RUF012 (as the base class has it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    """`dict` of a template: what it makes, without what its class has."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:  # noqa: ANN401 (as `dict`)
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:  # noqa: ANN401 (as above)
        return dict.fromkeys(*values)


class _Namespace(Namespace):
    """`namespace` of a template, without names that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:  # noqa: ANN401 (a name may be `self`)
        self, values = arguments[0], dict(*arguments[1:], **named)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401 (any value)
        _refuse_private(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        # Namespaces within count when their own texts are made.
        _allow(weight(self.__attrs))
        return _made(super().__repr__())


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name with an underscore in front, got {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    _allow(length(pattern) * _PER_CHARACTER)
    return datetime.now().strftime(pattern)


class _Formatter(SandboxedFormatter):
    """`str.format` with bounded widths, and a bounded whole."""

    _total = 0

    def format_field(self, value: Any, format_spec: str) -> Any:  # noqa: ANN401 (as the base class)
        self._total += weight(value) + sum(map(number, re.findall(r"\d+", str(format_spec))))
        _allow(self._total)
        return super().format_field(value, format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:  # noqa: ANN401 (as above)
        weight(value)
        return super().convert_field(value, conversion)


class _EscapeFormatter(_Formatter, SandboxedEscapeFormatter):
    """The same for texts that are escaped."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment; templates of all threads share it."""

    # Those that can make more than they are given.
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=_written,
        )
        self.filters["tojson"] = _tojson
        self.filters = chat_filters.bounded(self.filters)
        self.filters |= {_JOINED: _joined, _WEIGHED: _weighed}
        known: Any = self.tests
        tests: Any = chat_filters.bounded_tests(known)
        self.tests = tests
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }
        setattr(self, "concat", _concat)  # noqa: B010 (a method of the class, of which this is another)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.Compare, nodes.Pair)):
            _weigh_operands(node)
        _replace_joins(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 (any values)
        """An operator whose result may be larger than what it is given."""
        _allow(size_of_operator(operator, left, right))
        return _made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (any values)
        """A call; methods of texts are bounded by what they are given."""
        owner = obj.__self__ if isinstance(obj, BuiltinMethodType) else None
        if isinstance(owner, (str, bytes, int, float)):
            if obj.__name__ == "join" and args and isinstance(args[0], Iterator):
                args = ([*args[0]], *args[1:])  # what comes one by one is looked at first
            _allow(_size_of_method(owner, obj.__name__, args, kwargs))
        elif not isinstance(obj, Macro):
            for value in (*args, *kwargs.values()):
                if not isinstance(value, (str, int, float)):
                    weight(value)
            if owner is not None:
                weight(owner)
        return _made(super().call(context, obj, *args, **kwargs), owner)

    def getitem(self, obj: Any, argument: Any) -> Any:  # noqa: ANN401 (any values)
        """An item; a key that is a tuple is looked at as a whole."""
        if isinstance(argument, tuple):
            weight(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:  # noqa: ANN401 (any value)
        """`str.format` and `str.format_map`, bounded."""
        if super().wrap_str_format(value) is None:
            return None
        text, by_map = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:  # noqa: ANN401 (as `str.format`)
            if by_map:
                if kwargs or len(args) != 1:
                    raise TypeError("format_map() takes exactly one argument")
                [kwargs] = args
                args = ()
            formatter = (
                _EscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _Formatter(self)
            )
            made: str = type(text)(formatter.vformat(text, args, kwargs))
            return made

        return formatted


@functools.cache
def environment() -> ChatEnvironment:
    """The environment, made once."""
    return ChatEnvironment()


def literals(template: str) -> str:
    """The texts within a template: what it writes as it stands, and every string in its expressions."""
    tree = environment().parse(template)
    found = [node.data for node in tree.find_all(nodes.TemplateData)]
    found += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\0".join(found)


def _allow(size: int) -> None:
    running = meter()
    if running is not None:
        running.allow(size)
    elif size > MOST_TEXT:
        raise TooMuch(f"an operation would make more than {MOST_TEXT // 10**6} MB")


def _made(result: T, given: object = None) -> T:
    running = meter()
    return result if running is None else running.made(result, given)


def _written(value: Any) -> Any:  # noqa: ANN401 (any value)
    """What an expression writes, when it may."""
    running = meter()
    if running is not None:
        size = weight(value)
        running.allow(size)
        running.wrote(size)
    return value


def _concat(pieces: Iterable[str]) -> str:
    """The pieces of a block or a macro as one text."""
    held = list(pieces)
    _allow(sum(map(len, held)))
    return _made("".join(held))


@jinja2.pass_context
def _joined(context: Context, values: tuple[Any, ...]) -> str:
    """`a ~ b`."""
    _allow(sum(map(weight, values)))
    return _made(markup_join(values) if context.eval_ctx.autoescape else str_join(values))


@jinja2.pass_context
def _weighed(_: Context, value: Any) -> Any:  # noqa: ANN401 (any value)
    """A value that is compared, or a key: one that holds others is looked at as a whole."""
    if not isinstance(value, (str, int, float)):
        weight(value)
    return value


def _own_filter(value: nodes.Expr, name: str) -> nodes.Filter:
    node = nodes.Filter(value, name, [], [], None, None)
    node.set_lineno(value.lineno)
    return node


def _weigh_operands(node: nodes.Node) -> None:
    if isinstance(node, nodes.Pair):
        if not isinstance(node.key, nodes.Const):
            node.key = _own_filter(node.key, _WEIGHED)
        return
    assert isinstance(node, nodes.Compare)
    holders: list[Any] = [node, *node.ops]
    for holder in holders:
        if not isinstance(holder.expr, nodes.Const):
            holder.expr = _own_filter(holder.expr, _WEIGHED)


def _replace_joins(tree: nodes.Node) -> None:
    """Makes a filter of every `~`, so that it counts."""
    for node in [tree, *tree.find_all(nodes.Node)]:
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(node, field, _as_filter(value))
            elif isinstance(value, list):
                value[:] = [_as_filter(item) if isinstance(item, nodes.Concat) else item for item in value]


def _as_filter(node: nodes.Concat) -> nodes.Filter:
    values = nodes.Tuple(node.nodes, "load")
    values.set_lineno(node.lineno)
    return _own_filter(values, _JOINED)


def _tojson(
    value: Any,  # noqa: ANN401 (any value)
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 (as a template calls it)
    indent: Any = None,  # noqa: ANN401 (as in `json`)
    separators: Any = None,  # noqa: ANN401 (as in `json`)
    sort_keys: bool = False,  # noqa: FBT001, FBT002 (as above)
) -> str:
    weight(value)
    if isinstance(indent, (int, str)):
        _allow(indent if isinstance(indent, int) else len(indent))
    if indent is None and separators is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    pieces, total = [], 0
    for piece in encoder.iterencode(value):
        total += len(piece)
        _allow(total)
        pieces.append(piece)
    return "".join(pieces)


def _size_of_method(
    owner: Any,  # noqa: ANN401 (a text or a number)
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> int:
    """What a method of a text or a number makes, at most; 0 where it is not more than a few times the text."""
    values = [*args, *kwargs.values()]
    for value in values:
        weight(value)
    whole: int = length(owner)
    numbers = [value for value in values if isinstance(value, int)]
    if name in _WIDE:
        return whole + max(numbers, default=0)
    if name == "expandtabs":
        tab = b"\t" if isinstance(owner, bytes) else "\t"
        return whole + int(owner.count(tab)) * max(numbers, default=8)
    if name == "replace" and len(args) >= 2 and isinstance(args[0], (str, bytes)):
        return whole + int(owner.count(args[0])) * length(args[1])
    if name == "translate" and args:
        table = args[0].values() if isinstance(args[0], dict) else args[0]
        return whole * max((length(value) for value in table if isinstance(value, str)), default=1)
    if name == "join" and args:
        items = args[0]
        return whole * len(items) + weight(items) if hasattr(items, "__len__") else 0
    if name in _SEARCHING:
        for value in values:
            if whole * length(value) > MOST_COMPARED and isinstance(value, (str, bytes)):
                raise TooMuch(f"a text of {whole} characters is searched for {length(value)}")
    if name in ("split", "rsplit", "splitlines"):
        given = next((value for value in values if isinstance(value, (str, bytes)) and value), None)
        blanks: list[Any] = [*_BLANKS] if given is None else [given]
        if isinstance(owner, bytes) and given is None:
            blanks = [blank.encode() for blank in _BLANKS if blank.isascii()]
        if sum(map(owner.count, blanks)) > _MOST_PARTS:
            raise TooMuch(f"a text is split into more than {_MOST_PARTS} parts")
    return 0
