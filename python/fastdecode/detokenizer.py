"""Ids to text as they come: pieces that join to the whole text and never end within a character.

What may still change (half a character, a space that clean-up may remove) is held back until it is certain. Nothing
here knows files, models or options.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .tokenizer import Tokenizer


class Detokenizer:
    """Ids in, text out, in pieces that join exactly to the text of all ids and never split a character."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these next ids complete; may be empty."""
        raise NotImplementedError

    def finish(self) -> str:
        """What is left where no more ids come; changes nothing, so that more may come."""
        raise NotImplementedError


def detokenizer(tokenizer: Tokenizer, *, skip_special_tokens: bool) -> Detokenizer:
    """The detokenizer that suits a tokenizer.

    Args:
        tokenizer: Whose ids will come.
        skip_special_tokens: Leave special tokens out.
    """
    if tokenizer.decoding == "whole":
        return _WholeDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    if tokenizer.decoding == "bytes":
        plain: Detokenizer = _ByteLevelDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    elif tokenizer.decoding == "pieces":
        plain = _WindowDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    else:
        plain = _LateDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return _CleaningDetokenizer(plain) if tokenizer.clean_up_tokenization_spaces else plain


def after_prompt(
    tokenizer: Tokenizer, prompt_end: Callable[[int], Sequence[int]], *, skip_special_tokens: bool
) -> Detokenizer:
    """A detokenizer for the ids behind a prompt: its pieces are what they add to the prompt's text.

    Where the prompt ends within a character, the character is whole in the text of the ids that complete it.

    Args:
        tokenizer: Whose ids will come.
        prompt_end: Gives the last ids of the prompt, as many as asked for or all that there are. The first ones of a
            long prompt do not matter.
        skip_special_tokens: Leave special tokens out.
    """
    most = 2 * _KEPT
    while True:
        ids = prompt_end(most)
        if len(ids) < most:  # all of it
            break
        if known := tokenizer.context(ids, skip_special_tokens=skip_special_tokens):
            ids = known
            break
        most *= 8
    inner = detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    if not ids:
        return inner
    inner.push(ids)
    return _AfterPrompt(inner, held) if (held := inner.finish()) else inner


# Tokens that stand before new ones when their text is asked for.
_KEPT = 8


class _AfterPrompt(Detokenizer):
    """What another detokenizer gives behind a prompt, less what of it is the prompt's text.

    Args:
        inner: A detokenizer that was given the prompt.
        held: What it holds back of the prompt's text, and gives with the next ids.
    """

    def __init__(self, inner: Detokenizer, held: str) -> None:
        self._inner = inner
        self._prompt = held

    def push(self, token_ids: Sequence[int]) -> str:
        piece = self._inner.push(token_ids)
        same = common(piece, self._prompt)
        self._prompt = self._prompt[same:] if same == len(piece) else ""
        return piece[same:]

    def finish(self) -> str:
        rest = self._inner.finish()
        return rest[common(rest, self._prompt) :]


def common(one: str, other: str) -> int:
    """Length of the longest beginning that two texts have in common."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(place for place in range(length) if one[place] != other[place])


class _ByteLevelDetokenizer(Detokenizer):
    """Every token is a run of bytes, so that the cost of a token does not depend on how many came before."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        piece = b"".join(
            self._tokenizer.token_bytes(token_id, skip_special_tokens=self._skip) for token_id in token_ids
        )
        return self._utf8.decode(piece)

    def finish(self) -> str:
        half, _ = self._utf8.getstate()
        return half.decode("utf-8", errors="replace")


class _WindowDetokenizer(Detokenizer):
    """For any decoder: the text of a short window with the new ids, less the text of the window without them.

    The window begins some tokens back, since a decoder may treat the first token of a text in a way of its
    own.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._start = 0  # first id of the window
        self._read = 0  # ids before this one are in the text that was given out
        self._given: list[str] = []

    def _text(self, start: int, stop: int) -> str:
        return self._tokenizer.decode(
            self._ids[start:stop], skip_special_tokens=self._skip, clean_up_tokenization_spaces=False
        )

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        if self._tokenizer.ends_in_bytes(self._ids[self._read :], skip_special_tokens=self._skip):
            return ""  # bytes in a row are decoded together: another one may take back what they say so far
        before = self._text(self._start, self._read)
        after = self._text(self._start, len(self._ids))
        if after.endswith("\ufffd") or not after.startswith(before) or len(after) == len(before):
            return ""  # half a character, or a token that changes the text before it: wait for the next one
        self._read = len(self._ids)
        start = max(self._start, self._read - _KEPT)
        if self._text(start, self._read):  # or the next token would look like the first of a text
            self._start = start
        self._given.append(after[len(before) :])
        return self._given[-1]

    def finish(self) -> str:
        given = "".join(self._given)
        full = self._text(0, len(self._ids))
        return full[len(given) :] if full.startswith(given) else ""


class _LateDetokenizer(Detokenizer):
    """For a decoder of which nothing is known: text is given out when the next ids have left it as it was."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._start = 0  # first id of the window
        self._seen = ""  # text of the window, up to the last push
        self._out = 0  # characters of it that were given out
        self._given: list[str] = []

    def _text(self, start: int) -> str:
        return self._tokenizer.decode(
            self._ids[start:], skip_special_tokens=self._skip, clean_up_tokenization_spaces=False
        )

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        text = self._text(self._start)
        if text == self._seen:  # ids that show nothing make nothing certain
            return ""
        certain = text[: common(text, self._seen)].rstrip("\ufffd")
        piece = certain[self._out :]
        self._out += len(piece)
        self._seen = text
        self._given.append(piece)
        if len(self._ids) - self._start > 4 * _KEPT:
            self._move(len(self._ids) - 2 * _KEPT)
        return piece

    def _move(self, start: int) -> None:
        """Lets the window begin later, where that leaves the text that is still to come as it is."""
        text, rest = self._text(start), self._seen[self._out :]
        if len(text) > len(rest) and text.endswith(rest):
            self._start, self._seen, self._out = start, text, len(text) - len(rest)

    def finish(self) -> str:
        given = "".join(self._given)
        full = self._text(0)
        return full[len(given) :] if full.startswith(given) else self._seen[self._out :]


class _WholeDetokenizer(Detokenizer):
    """For text that any later token may change: all of it comes at the end."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        return ""

    def finish(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)


# What clean-up replaces, in this order (PreTrainedTokenizerBase.clean_up_tokenization of transformers 5.24).
_CLEANED = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
# Those that come about when " ' " has become "'".
_JOINED = ("  ' m", "  ' s", "  ' ve", "  ' re", " n ' t")
_WHOLE = (*(old for old, _ in _CLEANED), *_JOINED)
# What may grow into one of them, the longest first.
_BEGINNINGS = tuple(
    sorted({old[:length] for old in _WHOLE for length in range(1, len(old))}, key=len, reverse=True)
)


def clean_up(text: str) -> str:
    """Text without the spaces that tokenization left before marks and contractions, as transformers does it."""
    for old, new in _CLEANED:
        text = text.replace(old, new)
    return text


class _CleaningDetokenizer(Detokenizer):
    """Cleans up what another detokenizer gives, and holds back what may begin something that is replaced."""

    def __init__(self, inner: Detokenizer) -> None:
        self._inner = inner
        self._held = ""

    def push(self, token_ids: Sequence[int]) -> str:
        self._held += self._inner.push(token_ids)
        cut = len(self._held)
        while (begun := self._begun(cut)) is not None:
            cut -= len(begun)
        piece, self._held = self._held[:cut], self._held[cut:]
        return clean_up(piece)

    def _begun(self, stop: int) -> str | None:
        """The longest end of the held text before `stop` that may grow into something that is replaced."""
        return next((begun for begun in _BEGINNINGS if self._held.endswith(begun, 0, stop)), None)

    def finish(self) -> str:
        return clean_up(self._held + self._inner.finish())
