"""Functions as tools: the schema of each is that of transformers' get_json_schema."""

# mypy: disable-error-code="type-arg,no-untyped-def,name-defined"
# ruff: noqa: ARG003, ANN001, ANN201, UP006, UP007, UP045, F821, B006

import enum
import typing
from typing import Any, Literal, Optional, Union

import pytest
from fastdecode import errors
from fastdecode.chat_tools import schema_of, schemas
from transformers.utils import get_json_schema


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2
    NONE = None


class Empty(enum.Enum):
    pass


class Held(enum.Enum):
    LIST = (1, 2)


class Own:
    pass


def plain(x: float, y: int = 3) -> str:
    """Adds two numbers.

    Goes on for
    a second paragraph.

    Args:
        x: The first number.
        y (int, *optional*): The second one, whose description goes on
            over a line: with a colon,

            and a blank line.

    Returns:
        Their sum,
        as a text.

    Raises:
        ValueError: Never.
    """
    return str(x + y)


def types(
    a: list[int],
    b: dict[str, float],
    c: tuple[int, str],
    d: Optional[str],
    e: Union[int, str],
    f: int | list[str] | None,
    g: Literal["x", "y", 3, None],
    h: Any,
    i: Colour,
    j: list,
    k: dict,
    m: tuple,
    n: bool | None = None,
    o: list | tuple = (),
    p: typing.List[Literal[True, False]] = [],
    q: dict[str, list[int | None]] | None = None,
) -> None:
    """Takes every type.

    Args:
        a: A
        b: B
        c: C
        d: D
        e: E
        f: F
        g: G
        h: H
        i: I
        j: J
        k: K
        m: M
        n: N
        o: O
        p: P
        q: Q
    """


def choices(drink: str, size: int = 1) -> dict[str, int]:
    """Serves.

    Args:
        drink: What to drink (choices: ["tea", " coffee "])
        size: How much (Choices: [1, 2, 3])

    Returns:
        What is left: a mapping.
    """
    return {drink: size}


def nothing() -> Own:
    """Takes nothing."""
    return Own()


def one_line(x: int) -> int:
    """Args: are named here. Returns: too.

    Args:
      x:  Spaces  around.
    """
    return x


class Machine:
    def method(self, speed: float):
        """Runs.

        Args:
            speed: How fast.
        """

    @classmethod
    def made(cls, name: str) -> "Machine":
        """Makes one.

        Args:
            name: What it is called
        """
        return cls()


@pytest.mark.parametrize(
    "function",
    [plain, types, choices, nothing, one_line, Machine().method, Machine.made],
    ids=lambda function: function.__name__,
)
def test_schemas_are_those_of_transformers(function: Any) -> None:
    expected = get_json_schema(function)
    assert schema_of(function) == expected
    # Templates write schemas in their order.
    assert str(schema_of(function)) == str(expected)


def test_tools_of_a_call() -> None:
    schema = {"type": "function", "function": {"name": "x"}}
    assert schemas(None) is None
    assert schemas([]) == []
    assert schemas((schema, plain)) == [schema, get_json_schema(plain)]
    for tools in ("x", {"name": "x"}, 3, ["x"], [Machine], [print], [lambda x: x]):
        with pytest.raises(errors.OptionError, match="tools"):
            schemas(tools)


def without_docstring(x: int) -> int:
    return x


def without_hint(x):
    """Does.

    Args:
        x: X
    """


def without_description(x: int):
    """Does."""


def own_class(x: Own):
    """Does.

    Args:
        x: X
    """


def one_tuple(x: tuple[int]):
    """Does.

    Args:
        x: X
    """


def long_tuple(x: tuple[int, ...]):
    """Does.

    Args:
        x: X
    """


def empty_enum(x: Empty):
    """Does.

    Args:
        x: X
    """


def held_enum(x: Held):
    """Does.

    Args:
        x: X
    """


def bad_choices(x: str):
    """Does.

    Args:
        x: X (choices: a, b)
    """


def unknown_name(x: "Unknown"):
    """Does.

    Args:
        x: X
    """


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (without_docstring, "a docstring in the function without_docstring"),
        (without_hint, "type hint for every argument, 'x'"),
        (without_description, "description of 'x'"),
        (own_class, "another type for 'x'.*Own"),
        (one_tuple, "another type"),
        (long_tuple, "another type"),
        (empty_enum, "without members"),
        (held_enum, "scalar types"),
        (bad_choices, "choices as a JSON list"),
        (unknown_name, "names are known"),
    ],
)
def test_a_function_that_cannot_be_described(function: Any, match: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 (of many types)
        get_json_schema(function)
    with pytest.raises(errors.OptionError, match=match):
        schema_of(function)
