"""Tools for a template: JSON schemas as they are, and functions by their type hints and docstrings.

The rules are those of `get_json_schema` in transformers 5.24. Nothing here knows templates.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from .arrays import bad_option, brief

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Types that a JSON value has by itself.
_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_PLAIN: dict[Any, dict[str, Any]] = {kind: {"type": name} for kind, name in _SCALARS.items()} | {
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}
# Types of other libraries, by their names, so that none is imported.
_FOREIGN = {("PIL.Image", "Image"): {"type": "image"}, ("torch", "Tensor"): {"type": "audio"}}

_SECTIONS = ("Args:", "Returns:", "Raises:")
# The beginning of an argument's description: its indentation, its name, perhaps a type in brackets.
_ARGUMENT = re.compile(r"([ \t]*)(\w+)(?:[ \t]*\([^()\n]*\))?:\s*(.*)", re.DOTALL)
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def schemas(tools: Any) -> list[Any] | None:  # noqa: ANN401 (checked here)
    """The tools of a call as JSON schemas.

    Args:
        tools: A list of schemas (dictionaries) and of functions, or None.

    Raises:
        OptionError: One of them is neither, or a function that cannot be described.
    """
    if tools is None:
        return None
    expected = "a list of JSON schemas, or of functions with type hints and a docstring"
    if isinstance(tools, (str, bytes, Mapping)) or not hasattr(tools, "__iter__"):
        raise bad_option("tools", expected, brief(tools))
    found: list[Any] = []
    for tool in tools:
        if isinstance(tool, dict):
            found.append(tool)
        elif inspect.isfunction(tool) or inspect.ismethod(tool):
            found.append(schema_of(tool))
        else:
            raise bad_option("tools", expected, brief(tool))
    return found


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a function.

    Args:
        function: It has a docstring in Google's style, which describes every argument, and type hints.

    Raises:
        OptionError: One of these is missing, or a type that no schema has.
    """
    name = getattr(function, "__name__", "operation")
    text = (inspect.getdoc(function) or "").strip()
    if not text:
        raise _bad(name, "a docstring", "none")
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError) as error:
        raise _bad(name, "type hints whose names are known", str(error)) from error
    parameters = [*inspect.signature(function).parameters.values()]
    if parameters and parameters[0].name in ("self", "cls") and parameters[0].annotation is inspect._empty:
        parameters = parameters[1:]
    for parameter in parameters:
        if parameter.annotation is inspect._empty:
            raise _bad(name, f"a type hint for every argument, {parameter.name!r} too", "none")
    described, descriptions, returned = _sections(text)
    properties: dict[str, Any] = {}
    result = None
    for argument, hint in hints.items():
        if argument == "return":
            # What cannot be said of a result is left out; the model never writes one.
            try:
                result = _schema_of_type(hint)
            except _Unknown:
                result = None
            continue
        if argument in ("self", "cls") and argument not in {parameter.name for parameter in parameters}:
            continue
        try:
            schema = _schema_of_type(hint)
        except _Unknown as error:
            raise _bad(name, f"another type for {argument!r}", str(error)) from error
        if argument not in descriptions:
            raise _bad(name, f"a description of {argument!r} under Args: in its docstring", "none")
        properties[argument] = schema
        _describe(schema, descriptions[argument], name)
    whole: dict[str, Any] = {"type": "object", "properties": properties}
    if required := [p.name for p in parameters if p.default is inspect._empty]:
        whole["required"] = required
    answer = {"name": name, "description": described, "parameters": whole}
    if result is not None:
        answer["return"] = result | ({} if returned is None else {"description": returned})
    return {"type": "function", "function": answer}


def _describe(schema: dict[str, Any], text: str, function: str) -> None:
    """Puts a description into the schema of an argument; choices at its end become the values of an enum."""
    import json

    choices = _CHOICES.search(text)
    if choices is not None:
        try:
            values = json.loads(choices[1])
        except ValueError as error:
            raise _bad(function, "choices as a JSON list", f"{choices[1]!r}") from error
        schema["enum"] = [value.strip() if isinstance(value, str) else value for value in values]
        text = text[: choices.start()].strip()
    schema["description"] = text


class _Unknown(Exception):
    """A type that no JSON schema has."""


def _schema_of_type(hint: Any) -> dict[str, Any]:  # noqa: ANN401 (a type hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None:
        return _schema_of_bare_type(hint)
    if origin in (Union, types.UnionType):
        return _schema_of_union(arguments)
    if origin is Literal and arguments:
        return _enum([*arguments], brief(hint))
    if origin is list:
        return {"type": "array", "items": _schema_of_type(arguments[0])} if arguments else {"type": "array"}
    if origin is tuple:
        if not arguments:
            return {"type": "array"}
        if len(arguments) == 1 or ... in arguments:
            raise _Unknown(f"{brief(hint)}; a list says the same")
        return {"type": "array", "prefixItems": [_schema_of_type(item) for item in arguments]}
    if origin is dict:
        values = {"additionalProperties": _schema_of_type(arguments[1])} if len(arguments) == 2 else {}
        return {"type": "object", **values}
    raise _Unknown(brief(hint))


def _schema_of_bare_type(hint: Any) -> dict[str, Any]:  # noqa: ANN401 (as above)
    import enum

    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        values = [member.value for member in hint]
        if not values:
            raise _Unknown(f"{hint.__name__}, an enum without members")
        return _enum(values, hint.__name__)
    try:
        known = _PLAIN.get(hint)
    except TypeError:
        known = None
    if known is None and isinstance(hint, type):
        known = _FOREIGN.get((hint.__module__, hint.__name__))
    if known is None:
        raise _Unknown(f"{brief(hint)} (a schema written by hand can say what it is)")
    return dict(known)


def _enum(values: list[Any], name: str) -> dict[str, Any]:
    if any(type(value) not in _SCALARS for value in values):
        raise _Unknown(f"{name}, whose values are not all of JSON's scalar types")
    kinds = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _schema_of_union(arguments: tuple[Any, ...]) -> dict[str, Any]:
    members = [_schema_of_type(item) for item in arguments if item is not type(None)]
    whole: dict[str, Any]
    if len(members) == 1:
        [whole] = members
    elif all(member.keys() == {"type"} and isinstance(member["type"], str) for member in members):
        names = sorted({member["type"] for member in members})
        whole = {"type": names[0] if len(names) == 1 else names}
    else:
        whole = {"anyOf": members}
    return whole | {"nullable": True} if type(None) in arguments else whole


def _sections(text: str) -> tuple[str, dict[str, str], str | None]:
    """A docstring's description, its arguments' descriptions, and what it says about the result (or None)."""
    description = text[: _first(text, _SECTIONS, 0)].strip()
    arguments: dict[str, str] = {}
    block = re.search(r"\n\s*Args:\n", text)
    if block is not None:
        body = text[block.end() : _first(text, _SECTIONS[1:], block.end())]
        arguments = _arguments([line for line in body.split("\n") if line.strip()])
    result = None
    block = re.search(r"\n\s*Returns:\n\s*", text)
    if block is not None:
        result = text[block.end() : _first(text, _SECTIONS[2:], block.end())].strip()
    return description, arguments, result


def _first(text: str, names: Iterable[str], begin: int) -> int:
    """Where the first of some names stands, or the end of the text."""
    return min((at for name in names if (at := text.find(name, begin)) >= 0), default=len(text))


def _arguments(lines: list[str]) -> dict[str, str]:
    """Descriptions by the arguments' names; lines that are indented deeper go on with the one before."""
    found: dict[str, str] = {}
    name, indent, gathered = None, "", ""
    for line in lines:
        begins = _ARGUMENT.match(line)
        deeper = (
            name is not None
            and line.startswith(indent)
            and line[len(indent) : len(indent) + 1] in (" ", "\t")
        )
        if begins is not None and not deeper:
            if name is not None:
                found[name] = gathered
            indent, name, gathered = begins[1], begins[2], begins[3].strip()
        elif name is not None:
            gathered = f"{gathered} {line.strip()}".strip()
    if name is not None:
        found[name] = gathered
    return found


def _bad(function: str, expected: str, got: str) -> Exception:
    return bad_option("tools", f"{expected} in the function {function}", got)
