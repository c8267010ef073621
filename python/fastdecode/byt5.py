"""ByT5's tokenizer: a token for each byte of UTF-8, and special tokens that are cut out of the text first.

As ByT5Tokenizer of transformers 5.24 has it (models/byt5/tokenization_byt5.py and tokenization_python.py there). Ids 0
to 2 are for padding, end and unknown; byte b is id b + 3; sentinels follow. It needs no files and no library.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from .detokenizer import clean_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .tokenizer_backends import BytesIn, Decoding

_OFFSET = 3
_BYTES = 256


class Cut(NamedTuple):
    """A token that is cut out of a text.

    Attributes:
        content: Its text.
        lstrip: Whether white space in front of it goes with it.
        rstrip: Whether white space behind it goes with it.
        single_word: Whether it counts only between spaces.
    """

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class ByT5Backend:
    """Ids of bytes, with added tokens beside them, as a `Backend`.

    Args:
        added: Tokens with fixed ids; those of padding, end and unknown have 0, 1 and 2.
        special: Special tokens; those that have no id get the next free ones in this order.
        eos_token: Token that ends a text.
        split_special_tokens: Whether nothing is cut out of a text.
    """

    def __init__(
        self,
        added: Mapping[int, Cut],
        special: Sequence[str],
        *,
        eos_token: str,
        split_special_tokens: bool = False,
    ) -> None:
        self.decoding: Decoding = "pieces"
        self.has_unknown = False
        self.spells_bytes: BytesIn = (
            None  # its tokens are characters in the place of bytes, half ones included
        )
        self.special_tokens = frozenset(special)
        self._by_id = dict(added)
        self._ids = {cut.content: index for index, cut in added.items()}
        self._add([token for token in special if token not in self._ids])
        self._eos = self._ids[eos_token]
        # A token that has two ids is left out under its last one alone.
        self._special_ids = frozenset(self._ids[token] for token in special if token in self._ids)
        # The longest of those that begin at the same place is cut out.
        contents = sorted((cut.content for cut in self._by_id.values() if cut.content), key=len, reverse=True)
        self._cuts = (
            None
            if split_special_tokens or not contents
            else re.compile("(" + "|".join(re.escape(text) for text in contents) + ")")
        )

    def _vocabulary(self) -> dict[str, int]:
        tokens: dict[str, int] = {}
        for index in range(_BYTES + _OFFSET):
            cut = self._by_id.get(index)
            if cut is not None or index >= _OFFSET:
                tokens[chr(index - _OFFSET) if cut is None else cut.content] = index
        return tokens | {cut.content: index for index, cut in sorted(self._by_id.items())}

    def _add(self, tokens: Iterable[str]) -> None:
        known = self._vocabulary()
        following = len(known)
        for token in tokens:
            if not token or token in self._ids:
                continue
            if token not in known:
                known[token] = following
                following += 1
            self._ids[token] = known[token]
            self._by_id[known[token]] = Cut(token)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return len(self._vocabulary())

    def encode_as_text(self, text: str) -> list[int]:
        """Ids of a text in which no token is looked for."""
        return [self._ids.get(chr(byte), byte + _OFFSET) for byte in text.encode()]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text; it ends with the end token, unless it does so by itself."""
        ids: list[int] = []
        for part in self._parts(text):
            if part in self._ids and self._cuts is not None:
                ids.append(self._ids[part])
            else:
                # A byte may be a token of the folder's own.
                ids += [self._ids.get(chr(byte), byte + _OFFSET) for byte in part.encode()]
        if add_special_tokens and ids[-1:] != [self._eos]:
            ids.append(self._eos)
        return ids

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[str]:
        """Tokens of a text: a character for each byte."""
        ids = self.encode(text, add_special_tokens=add_special_tokens)
        return [token for token in map(self.id_to_token, ids) if token is not None]

    def _parts(self, text: str) -> list[str]:
        if self._cuts is None:
            return [text]
        parts = [part for part in self._cuts.split(text) if part]
        for place, part in enumerate(parts):
            if part not in self._ids:
                continue
            cut = self._by_id[self._ids[part]]
            before = parts[place - 1] if place > 0 else ""
            after = parts[place + 1] if place + 1 < len(parts) else ""
            if cut.rstrip and after:
                parts[place + 1] = after.lstrip()
            if cut.lstrip and before:
                parts[place - 1] = before.rstrip()
            if cut.single_word and before and before[-1] != " ":
                parts[place - 1], parts[place] = parts[place - 1] + part, ""
            elif cut.single_word and after and after[0] != " ":
                parts[place], parts[place + 1] = "", part + parts[place + 1]
        return [part for part in parts if part]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of ids; bytes that are no UTF-8 are left out, and so are ids beyond the vocabulary."""
        left_out = self._special_ids if skip_special_tokens else frozenset()
        tokens = (self.id_to_token(index) for index in ids if index not in left_out)
        return self.join([token for token in tokens if token is not None])

    def clean_up(self, text: str) -> str:
        """Text with its spaces cleaned up."""
        return clean_up(text)

    def join(self, tokens: list[str]) -> str:
        """Text of tokens; one that is no byte and not added is left out."""
        parts = []
        for token in tokens:
            if token in self._ids:
                parts.append(token.encode())
            elif len(token) == 1 and ord(token) < _BYTES:
                parts.append(bytes([ord(token)]))
        return b"".join(parts).decode("utf-8", errors="ignore")

    def token_to_id(self, token: str) -> int | None:
        """Id of a token, or None where there is no such token."""
        if token in self._ids:
            return self._ids[token]
        return ord(token) + _OFFSET if len(token) == 1 and ord(token) < _BYTES else None

    def id_to_token(self, token_id: int) -> str | None:
        """Token of an id, or None beyond the vocabulary."""
        if token_id in self._by_id:
            return self._by_id[token_id].content
        return chr(token_id - _OFFSET) if _OFFSET <= token_id < _BYTES + _OFFSET else None


def cut(token: Any, **flags: bool) -> Cut:  # noqa: ANN401 (str or tokenizers.AddedToken)
    """A token as a `Cut`; a string has the given flags."""
    if isinstance(token, str):
        return Cut(token, **flags)
    return Cut(token.content, token.lstrip, token.rstrip, token.single_word)
