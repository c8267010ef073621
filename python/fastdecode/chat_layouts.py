"""Layouts of our own for models whose folder has no chat template: what stands before and behind a message, as data.

They write no token that begins a text, so that what they make is tokenized with special tokens. Nothing here knows
templates, tokenizers or models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .arrays import bad_option, brief, spelt
from .chat_messages import text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# Stands for the tokenizer's end token, where there is one.
_EOS = "\0"


class Layout(NamedTuple):
    """How a conversation is written.

    Attributes:
        roles: By role, what stands before and behind the text of a message.
        opening: What the model's answer begins behind.
        stops: Texts that end an answer, beside the end token.
        tokens: Those of them that a model which knows the layout has as tokens.
    """

    roles: Mapping[str, tuple[str, str]]
    opening: str
    stops: tuple[str, ...]
    tokens: tuple[str, ...] = ()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        eos_token: str | None,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: Its messages.
            eos_token: The tokenizer's end token, if it has one.
            add_generation_prompt: Whether the answer's opening stands at the end.
            continue_final_message: Whether the last message is left open.

        Raises:
            OptionError: A role is none of the layout's, or a content has no text.
        """
        pieces = []
        for message in messages:
            role = spelt(message.get("role"))
            if role not in self.roles:
                raise bad_option(
                    "messages", f"one of the layout's roles, {', '.join(self.roles)}", brief(role)
                )
            before, behind = self.roles[role]
            pieces += [before, text_of(message).strip(), behind]
        if continue_final_message:
            pieces.pop()
        if add_generation_prompt:
            pieces.append(self.opening)
        return "".join(
            pieces[at] if at % 3 == 1 else _with_eos(pieces[at], eos_token) for at in range(len(pieces))
        )


def _with_eos(text: str, eos_token: str | None) -> str:
    return text.replace(_EOS, eos_token or "")


def _turns(roles: Iterable[str], before: str, behind: str) -> dict[str, tuple[str, str]]:
    return {role: (before.replace("ROLE", role), behind) for role in roles}


LAYOUTS: dict[str, Layout] = {
    "chatml": Layout(
        _turns(("system", "user", "assistant"), "<|im_start|>ROLE\n", "<|im_end|>\n"),
        "<|im_start|>assistant\n",
        ("<|im_end|>", "<|im_start|>"),
        ("<|im_end|>", "<|im_start|>"),
    ),
    "alpaca": Layout(
        {
            "system": ("", "\n\n"),
            "user": ("### Instruction:\n", "\n\n"),
            "assistant": ("### Response:\n", f"{_EOS}\n\n"),
        },
        "### Response:\n",
        ("### Instruction:",),
    ),
    "vicuna": Layout(
        {"system": ("", " "), "user": ("USER: ", " "), "assistant": ("ASSISTANT: ", _EOS)},
        "ASSISTANT:",
        ("USER:",),
    ),
    "plain": Layout(
        {"system": ("", "\n\n"), "user": ("Human: ", "\n\n"), "assistant": ("Assistant: ", "\n\n")},
        "Assistant:",
        ("\nHuman:",),
    ),
}
