"""Ids to text as they come: pieces that join to the whole text, never end within a character, and stop in time.

What may still change (half a character, a space that clean-up may remove, the beginning of a stop string) is
held back until it is certain. Nothing here knows files, models or options.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .tokenizer import Tokenizer


class Detokenizer:
    """Ids in, text out, in pieces that join exactly to the text of all ids and never split a character."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these next ids complete; may be empty."""
        raise NotImplementedError

    def finish(self) -> str:
        """What is left when no more ids come."""
        raise NotImplementedError


def detokenizer(tokenizer: Tokenizer, *, skip_special_tokens: bool) -> Detokenizer:
    """The detokenizer that suits a tokenizer.

    Args:
        tokenizer: Whose ids will come.
        skip_special_tokens: Leave special tokens out.
    """
    if tokenizer.decoding == "bytes":
        return _ByteLevelDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    window = _WindowDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return _CleaningDetokenizer(window) if tokenizer.clean_up_tokenization_spaces else window


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
        return self._utf8.decode(b"", final=True)


class _WindowDetokenizer(Detokenizer):
    """For any decoder: the text of a short window with the new ids, less the text of the window without them.

    The window begins some tokens back, since a decoder may treat the first token of a text in a way of its
    own.
    """

    _KEPT = 8

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
        start = max(self._start, self._read - self._KEPT)
        if self._text(start, self._read):  # or the next token would look like the first of a text
            self._start = start
        self._given.append(after[len(before) :])
        return self._given[-1]

    def finish(self) -> str:
        given = "".join(self._given)
        full = self._text(0, len(self._ids))
        return full[len(given) :] if full.startswith(given) else ""


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
        rest, self._held = self._held + self._inner.finish(), ""
        return clean_up(rest)


class StopText:
    """Cuts a text that comes in pieces before the first of some strings.

    Args:
        stops: Strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Text that can be given out; what may begin a stop string is held back until it is known."""
        if self.stopped:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` and is not all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
