"""Conversations in the pipeline for text generation, as transformers 5.24 takes and returns them.

Nothing here knows templates: the model makes ids of a conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from .arrays import bad_option, brief, is_message

# Options of the pipeline that are for conversations.
OWN = (
    "chat_template",
    "chat_variables",
    "continue_final_message",
    "documents",
    "tokenizer_encode_kwargs",
    "tools",
)


def as_inputs(inputs: Any) -> Any:  # noqa: ANN401 (inputs of a call)
    """The inputs of a call; messages that come one by one are one conversation."""
    if not isinstance(inputs, Iterator):
        return inputs
    first = next(inputs, None)
    if first is None:
        return iter(())
    return [first, *inputs] if is_message(first) else chain([first], inputs)


def refuse_for_texts(own: Mapping[str, Any]) -> None:
    """Refuses options that have no effect on a text.

    Raises:
        OptionError: There is one; `continue_final_message` changes nothing and is passed over, as in transformers.
    """
    for name in OWN:
        if name != "continue_final_message" and own.get(name):
            raise bad_option(name, "None with a text as the input", brief(own[name]))


def continues(messages: Sequence[Mapping[str, Any]], own: Mapping[str, Any]) -> bool:
    """Whether the last message is continued, and not answered."""
    asked = own.get("continue_final_message")
    if asked is None:
        return _role(messages[-1]) == "assistant"
    if not isinstance(asked, bool):
        raise bad_option("continue_final_message", "True, False or None", brief(asked))
    return asked


def _role(message: Any) -> object:  # noqa: ANN401 (a mapping, or an object)
    return message.get("role") if isinstance(message, Mapping) else getattr(message, "role", None)


def ids_of(model: Any, messages: Sequence[Mapping[str, Any]], own: Mapping[str, Any]) -> list[int]:  # noqa: ANN401
    """Ids of a conversation.

    Args:
        model: A `CausalLM`.
        messages: The conversation.
        own: Options of the pipeline.

    Raises:
        ChatTemplateError: There is no template, or it fails.
        OptionError: An option cannot be used.
    """
    variables: dict[str, Any] = {}
    for name in ("tokenizer_encode_kwargs", "chat_variables"):
        given = own.get(name)
        if not isinstance(given, (Mapping, type(None))):
            raise bad_option(name, "a mapping of names to values, or None", brief(given))
        variables |= given or {}
    named = {name: own[name] for name in ("chat_template", "documents", "tools") if own.get(name) is not None}
    last_is_open = continues(messages, own)
    ids: list[int] = model.apply_chat_template(
        messages,
        add_generation_prompt=not last_is_open,
        continue_final_message=last_is_open,
        **{**variables, **named},
    )
    return ids


def joined(messages: Sequence[Any], answer: str, own: Mapping[str, Any]) -> list[Any]:
    """A conversation with its answer, which is a message of its own or the end of the last one."""
    if not continues(messages, own):
        return [*messages, {"role": "assistant", "content": answer}]
    last = messages[-1]
    content = last.get("content") if isinstance(last, Mapping) else getattr(last, "content", None)
    if isinstance(content, (list, tuple)):
        at = max((at for at, part in enumerate(content) if "text" in part), default=len(content) - 1)
        parts = [
            {**part, "text": part.get("text", "") + answer} if i == at else part
            for i, part in enumerate(content)
        ]
        return [*messages[:-1], {"role": _role(last), "content": parts}]
    return [*messages[:-1], {"role": _role(last), "content": f"{content or ''}{answer}"}]
