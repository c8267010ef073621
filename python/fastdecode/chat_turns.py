"""Where a turn of the model ends, by what a template writes behind its text.

A conversation with marks for texts is rendered, and what stands behind the answer is looked at: a token of its own ends
a turn by its id; any other text, up to the end of its line, is a stop string. Nothing here knows which template it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .chat_tokens import single_token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .tokenizer import Tokenizer

# Texts that no template writes by itself, and that none changes.
_QUESTION, _ANSWER, _NEXT = "Qfd1question", "Qfd2answer", "Qfd3next"


class TurnEnd(NamedTuple):
    """What ends a turn beside the end tokens of the model.

    Attributes:
        token_ids: Ids that end it.
        strings: Texts that end it.
    """

    token_ids: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()


def of_template(render: Callable[[list[dict[str, str]]], str], tokenizer: Tokenizer) -> TurnEnd:
    """The end of a turn in a template's own words.

    Args:
        render: Renders messages without a generation prompt.
        tokenizer: Knows which text is a token.

    Raises:
        ChatTemplateError: The template does not render these messages.
    """
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    behind = render(messages).rpartition(_ANSWER)
    written = behind[2] if behind[1] else ""
    if not written.strip():
        # Nothing ends an answer but what the next message begins with.
        longer = render([*messages, {"role": "user", "content": _NEXT}])
        written = longer.rpartition(_ANSWER)[2].partition(_NEXT)[0] if _ANSWER in longer else ""
    return of_texts([written], tokenizer)


def of_texts(texts: Sequence[str], tokenizer: Tokenizer) -> TurnEnd:
    """The end of a turn by texts with which one may end.

    Args:
        texts: What stands behind an answer, whatever follows on later lines.
        tokenizer: As in `of_template`.
    """
    ids: list[int] = []
    strings: list[str] = []
    for text in texts:
        bare = text.lstrip()
        if not bare:
            continue
        found = single_token(tokenizer, bare)
        if found is not None:
            ids.append(found[1])
            continue
        line = bare.splitlines()[0].rstrip()
        # A line that begins there does not end a text in whose middle the same words stand.
        strings.append("\n" + line if "\n" in text[: len(text) - len(bare)] else line)
    return TurnEnd(tuple(dict.fromkeys(ids)), tuple(dict.fromkeys(strings)))
