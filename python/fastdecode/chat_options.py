"""Options of a call whose prompts are conversations: their names, their meaning and their values.

Nothing here knows templates or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from .arrays import bad_option, brief


class ChatOptions(TypedDict, total=False):
    """Options of `generate`, `run`, `stream` and `astream` that conversations take; without one each is an error.

    Attributes:
        chat_template: A template's name in the model's folder, or a layout's ("chatml", "alpaca", "vicuna", "plain"),
            or the text of a template. Without it the folder's own counts.
        tools: JSON schemas, or functions with type hints and a docstring in Google's style.
        documents: Dictionaries with title and text, for templates that take any.
        chat_variables: What the template sees beside the messages, by name (`{"enable_thinking": False}`).
        continue_final_message: True where the last message is to be continued, instead of being answered; or the name
            of its field that is.
        sanitize_control_tokens: Encode control tokens in the messages' texts as ordinary text.
    """

    chat_template: str | None
    tools: Sequence[Any] | None
    documents: Sequence[Mapping[str, Any]] | None
    chat_variables: Mapping[str, Any] | None
    continue_final_message: bool | str
    sanitize_control_tokens: bool


# What a template sees under these names comes from the call itself.
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
NAMES = tuple(ChatOptions.__annotations__)


class Asked(NamedTuple):
    """The options of one call, checked as far as that goes without a template."""

    chat_template: Any = None
    tools: Any = None
    documents: Any = None
    variables: Mapping[str, Any] = {}
    continue_final_message: bool | str = False
    sanitize: bool = False


def asked(options: Mapping[str, Any]) -> Asked:
    """What a call asks for.

    Args:
        options: Those of `ChatOptions`, as given by the caller.

    Raises:
        OptionError: A value is of the wrong type.
    """
    variables = options.get("chat_variables")
    if variables is None:
        variables = {}
    if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
        raise bad_option("chat_variables", "a mapping of names to values", brief(variables))
    continues = options.get("continue_final_message", False)
    if not isinstance(continues, (bool, str)) or continues == "":
        raise bad_option("continue_final_message", "True, False or the name of a field", brief(continues))
    sanitize = options.get("sanitize_control_tokens", False)
    if not isinstance(sanitize, bool):
        raise bad_option("sanitize_control_tokens", "True or False", brief(sanitize))
    return Asked(
        options.get("chat_template"),
        options.get("tools"),
        options.get("documents"),
        variables,
        continues,
        sanitize,
    )


def divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a call that conversations take, and the others."""
    chat = {name: value for name, value in options.items() if name in NAMES}
    return chat, {name: value for name, value in options.items() if name not in NAMES}


def refuse(chat: Mapping[str, Any], expected: str) -> None:
    """Refuses options that have no effect; those with the value of their absence are none.

    Args:
        chat: Options as given by the caller.
        expected: What would take them.

    Raises:
        OptionError: There is one.
    """
    for name, value in chat.items():
        if value is not None and value is not False and not (isinstance(value, Mapping) and not value):
            raise bad_option(name, expected, brief(value))
