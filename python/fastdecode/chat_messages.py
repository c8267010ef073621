"""Conversations as data: what a message is, and how a conversation becomes plain values for a template.

The rules are those of transformers 5.24 (utils/chat_template_utils.py): objects become dictionaries, keys of a message
that are None are dropped, everything else becomes plain JSON types, and reasoning has several names. Nothing here knows
templates, tokenizers or models.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .arrays import bad_option, brief, is_message

# Names under which a message may carry its reasoning; templates read the first, some the second.
REASONING = ("reasoning_content", "thinking", "reasoning")

EXPECTED = "a list of messages, each a mapping with role and content"


def conversation(given: Any, option: str = "messages") -> list[dict[str, Any]]:  # noqa: ANN401 (checked here)
    """The messages of one conversation as dictionaries, without the keys that are None.

    Args:
        given: Messages as mappings, dataclasses or pydantic models, or an object that has them as `messages`.
        option: Name of the argument, for error messages.

    Raises:
        OptionError: It is empty, or one of them is no message.
    """
    held = getattr(given, "messages", given)
    if isinstance(held, Iterator):
        held = list(held)
    if not isinstance(held, (list, tuple)):
        raise bad_option(option, EXPECTED, brief(given))
    if not held:
        raise bad_option(option, "at least one message", "an empty conversation")
    found = []
    for message in held:
        plain = _as_dicts(message)
        if not isinstance(plain, dict):
            raise bad_option(option, EXPECTED, f"a message {brief(message)}")
        found.append({key: value for key, value in plain.items() if value is not None})
    return found


def is_batch(given: Any) -> bool:  # noqa: ANN401 (any object)
    """Whether these are several conversations, and not one."""
    if not isinstance(given, (list, tuple)) or not given:
        return False
    first = given[0]
    return isinstance(first, (list, tuple)) or (hasattr(first, "messages") and not is_message(first))


def _as_dicts(value: Any) -> Any:  # noqa: ANN401 (any object)
    """The value with mappings, dataclasses and pydantic models in it as dictionaries."""
    if isinstance(value, Mapping):
        return {key: _as_dicts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_dicts(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_as_dicts(item) for item in value)
    fields = _fields(value)
    if fields is not None:
        return {name: _as_dicts(getattr(value, name)) for name in fields}
    dump = getattr(value, "model_dump", None)
    return _as_dicts(dump()) if callable(dump) and not isinstance(value, type) else value


def _fields(value: object) -> list[str] | None:
    """Names of the fields of an instance of a dataclass; None for anything else."""
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is None or isinstance(value, type):
        return None
    import dataclasses

    return [field.name for field in dataclasses.fields(value)]  # type: ignore[arg-type]


def plain(value: Any) -> Any:  # noqa: ANN401 (any object)
    """The value built anew from plain JSON types; what is none of them becomes its type's name in angle brackets.

    A template is code of somebody else, so that it sees no object with methods.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return plain(value.item())
    fields = _fields(value)
    if fields is not None:
        return {name: plain(getattr(value, name)) for name in fields}
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return plain(dump())
    return f"<{type(value).__name__}>"


def with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under the names that templates read."""
    found = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def text_of(message: Mapping[str, Any], option: str = "messages") -> str:
    """The text of a message, whose content is a text or a list of parts with texts.

    Raises:
        OptionError: It has none.
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not parts or not all(isinstance(text, str) for text in texts):
        raise bad_option(option, "a content that is a text, or a list of parts with texts", brief(content))
    return "".join(str(text) for text in texts)


def source_of(messages: Any, option: str = "source") -> str:  # noqa: ANN401 (checked here)
    """What an encoder-decoder reads of a conversation: the text of the last message of a user.

    Raises:
        OptionError: There is none.
    """
    for message in reversed(conversation(messages, option)):
        if message.get("role") == "user":
            return text_of(message, option)
    raise bad_option(option, 'a conversation with a message whose role is "user"', "none")
