"""Text to ids and ids to text: one interface over whatever makes them, with what transformers adds to it.

A tokenizer of the `tokenizers` library is used as it is; everything else is a `Backend` (`tokenizer_backends`). Nothing
here knows files (`tokenizer_files` puts tokenizers together), objects of transformers (`tokenizer_objects`), models or
options.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, overload

from .arrays import bad_option, brief
from .detokenizer import common, detokenizer
from .errors import OptionError, TokenizerError
from .tokenizer_backends import LibraryBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import tokenizers

    from .detokenizer import Detokenizer
    from .encodings import Encoding
    from .tokenizer_backends import Backend, Decoding


class Tokenizer:
    """A model's tokenizer: the object that does the work, with the settings that transformers would give it.

    Args:
        backend: A tokenizer of the `tokenizers` library, or a `Backend`.
        bos_token: Token that begins a text, or None.
        eos_token: Token that ends a text, or None.
        pad_token: Token that fills shorter texts up, or None.
        unk_token: Token that stands for those that the vocabulary does not have, or None.
        all_special_tokens: Tokens that the folder names as special ones; None for those that `skip_special_tokens`
            leaves out of a text.
        clean_up_tokenization_spaces: Take away spaces before marks and contractions in decoded text (not for
            BPE, as in transformers).
        model_max_length: Tokens that truncation leaves, or None where the folder names no limit.
        truncation_side: Where truncation takes tokens away: "right" or "left".
        given: What the attribute `backend` shows, where that is not the one that does the work.
        special_tokens_map: Special tokens by their names ("eos_token", "unk_token", ...), for chat templates.

    Attributes:
        backend: The object that was given: of the `tokenizers` library, of transformers, or a `Backend`.
        folder: The folder that it was read from, whose chat templates are its own; or None.

    Example:
        >>> tokenizer = fastdecode.load("demo-stories").tokenizer
        >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
        'Once upon a time'
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer | Backend,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        unk_token: str | None = None,
        all_special_tokens: Iterable[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        model_max_length: int | None = None,
        truncation_side: str = "right",
        given: object = None,
        special_tokens_map: Mapping[str, str] | None = None,
    ) -> None:
        worker: Any = backend
        self._backend: Backend = (
            LibraryBackend(worker) if hasattr(worker, "get_added_tokens_decoder") else worker
        )
        self.backend: Any = backend if given is None else given
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.pad_token = pad_token
        self.unk_token = unk_token
        # A backend may clean up nothing, whatever is asked for.
        cleans = self.decoding == "whole" or self._backend.clean_up(_CLEANABLE) != _CLEANABLE
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces and cleans
        self.model_max_length = model_max_length
        self.truncation_side = truncation_side
        self.special_tokens_map = dict(special_tokens_map or {})
        self.folder: Path | None = None
        # Bytes of tokens by their ids: as they are, and without special ones.
        self._bytes: dict[int, bytes] = {}
        self._shown_bytes: dict[int, bytes] = {}
        self._special = self._backend.special_tokens
        self.all_special_tokens = list(
            dict.fromkeys(sorted(self._special) if all_special_tokens is None else all_special_tokens)
        )
        self._falls_back_to_bytes = False
        # Classes in pure Python may refuse a token that they do not have.
        with contextlib.suppress(TypeError, ValueError, LookupError):
            self._falls_back_to_bytes = self._backend.join(["<0x41>"]) == "A"

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text, or None."""
        return None if self.bos_token is None else self._id_of(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text, or None."""
        return None if self.eos_token is None else self._id_of(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        """Id of the token that fills shorter texts up, or None."""
        return None if self.pad_token is None else self._id_of(self.pad_token)

    @property
    def unk_token_id(self) -> int | None:
        """Id of the token that stands for unknown ones, or None."""
        return None if self.unk_token is None else self._backend.token_to_id(self.unk_token)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.vocab_size

    def token_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it, or None where there is none.

        Raises:
            OptionError: It is no token.
        """
        if not isinstance(token, str):
            raise _bad_tokens(token)
        try:
            return self._backend.token_to_id(token)
        except (TypeError, UnicodeEncodeError) as error:
            raise _bad_tokens(token) from error

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer adds by itself (GPT-2: none; T5: `</s>`).

        Args:
            text: The text.
            add_special_tokens: Add those tokens; without, only what the text itself holds.

        Raises:
            OptionError: `text` is not a string, or not valid Unicode (a lone surrogate).
        """
        ids: list[int] = self._read(self._backend.encode, text, add_special_tokens)
        return ids

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> list[str]:
        """Tokens of a text, as the vocabulary spells them.

        Args:
            text: The text.
            add_special_tokens: Add the special tokens that the tokenizer adds by itself.

        Raises:
            OptionError: As `encode`.

        Example:
            >>> fastdecode.load("demo-stories").tokenizer.tokenize("Once upon a time")
            ['Once', '\u0120upon', '\u0120a', '\u0120time']
        """
        tokens: list[str] = self._read(self._backend.tokens, text, add_special_tokens)
        return tokens

    def _read(self, read: Callable[..., Any], text: object, add_special_tokens: bool) -> Any:  # noqa: ANN401, FBT001
        """What the backend makes of a text, whose errors become those of the package."""
        if not isinstance(text, str):
            raise _bad_text(f"a {type(text).__name__}")
        try:
            return read(text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise _bad_text("a string with a lone surrogate, which is no character") from error
        except BaseException as error:
            # The library raises errors of its own where a vocabulary has no token for what is unknown; a panic of it is
            # no `Exception`.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            expected = "a vocabulary that has a token for every text"
            raise TokenizerError(
                f"tokenizer: expected {expected}, got: {error}", expected=expected, got=str(error)
            ) from error

    def decode(
        self,
        ids: Iterable[int] | int,
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Text of ids, or of one.

        Bytes that are not UTF-8 become U+FFFD (in ByT5 nothing); ids beyond the vocabulary are left out.

        Args:
            ids: Token ids, from 0 to 2**32 - 1, or one of them.
            skip_special_tokens: Leave special tokens out.
            clean_up_tokenization_spaces: Take away spaces before marks and contractions; None for what the
                tokenizer's folder says.

        Raises:
            OptionError: These are no token ids.
        """
        plain = _plain(ids)
        if not isinstance(skip_special_tokens, bool):
            raise bad_option("skip_special_tokens", "True or False", brief(skip_special_tokens))
        try:
            text = self._backend.decode(plain, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise _bad_ids(ids) from error
        clean = clean_up_tokenization_spaces
        if clean is None:
            clean = self.clean_up_tokenization_spaces
        return self._backend.clean_up(text) if clean else text

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...  # type: ignore[overload-overlap]
    @overload
    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int | None] | None:
        """Ids of tokens, or of one; an unknown one has the id of `unk_token`, or None where there is none.

        Args:
            tokens: Tokens as the vocabulary spells them, or one of them.

        Raises:
            OptionError: These are no tokens.
        """
        if isinstance(tokens, str):
            return self._id_of(tokens)
        if not hasattr(tokens, "__iter__"):
            raise _bad_tokens(tokens)
        return [self._id_of(token) for token in tokens]

    def _id_of(self, token: str) -> int | None:
        found = self.token_id(token)
        return self.unk_token_id if found is None and self._backend.has_unknown else found

    @overload
    def convert_ids_to_tokens(self, ids: int, *, skip_special_tokens: bool = False) -> str | None: ...
    @overload
    def convert_ids_to_tokens(
        self, ids: Iterable[int], *, skip_special_tokens: bool = False
    ) -> list[str | None]: ...
    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], *, skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """Tokens of ids, or of one, as the vocabulary spells them; None for an id beyond it.

        Args:
            ids: Token ids, from 0 to 2**32 - 1, or one of them.
            skip_special_tokens: Leave out the tokens of `all_special_tokens` (not where one id is given).

        Raises:
            OptionError: These are no token ids.
        """
        plain = _plain(ids)
        try:
            tokens = [self._backend.id_to_token(token_id) for token_id in plain]
        except OverflowError as error:
            raise _bad_ids(ids) from error
        if hasattr(ids, "__index__") and not getattr(ids, "ndim", 0):
            return tokens[0]
        if skip_special_tokens:
            left_out = set(self.convert_tokens_to_ids(self.all_special_tokens))
            return [token for token, index in zip(tokens, plain, strict=True) if index not in left_out]
        return tokens

    @property
    def decoding(self) -> Decoding:
        """What may happen to text when another token follows."""
        return self._backend.decoding

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Encoding:
        """Ids and masks of a text or of a list of texts, as a tokenizer of transformers gives them.

        Args:
            text: A text, or a list of them.
            add_special_tokens: As in `encode`.
            padding: Fill shorter texts up with the pad token, on the right, where their mask is 0: True or "longest"
                up to the longest of a list, "max_length" up to `max_length`; False or "do_not_pad" for none.
            truncation: Take ids away beyond `max_length`, on the side of `truncation_side`: True, "longest_first" or
                "only_first"; False or "do_not_truncate" for no.
            max_length: Ids that truncation leaves; None for `model_max_length`.
            return_tensors: "np" for arrays of int64 and of shape (N, S), or None for lists.

        Returns:
            A dictionary with `input_ids` and `attention_mask`, which are attributes, too.

        Raises:
            OptionError: An argument cannot be used, or texts of different lengths are to make an array.

        Example:
            >>> fastdecode.load("demo-stories").tokenizer("Once upon a time", return_tensors="np").input_ids.shape
            (1, 4)
        """
        from .encodings import encoded

        return encoded(
            self,
            text,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )

    def batch_decode(
        self,
        ids: Iterable[Iterable[int] | int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Texts of several lists of ids, or of the rows of an array; see `decode`.

        Args:
            ids: Lists of token ids; one list of ids is taken for a list of it alone, as in transformers.
            skip_special_tokens: As in `decode`.
            clean_up_tokenization_spaces: As in `decode`.

        Raises:
            OptionError: These are no lists of token ids.
        """
        rows: Any = ids
        if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__") or getattr(ids, "ndim", 1) < 1:
            raise bad_option("ids", "lists of token ids (decode takes one)", brief(ids))
        # Arrays of any size have __index__, too.
        is_list = isinstance(ids, (list, tuple)) and bool(ids)
        if getattr(ids, "ndim", 0) == 1 or (
            is_list and hasattr(rows[0], "__index__") and not getattr(rows[0], "ndim", 0)
        ):
            rows = [ids]
        return [
            self.decode(
                row,
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            )
            for row in rows
        ]

    def detokenizer(self, *, skip_special_tokens: bool = False) -> Detokenizer:
        """A decoder for ids that come one at a time."""
        return detokenizer(self, skip_special_tokens=skip_special_tokens)

    def ends_in_bytes(self, ids: list[int], *, skip_special_tokens: bool) -> bool:
        """Whether the last of the ids that show is a byte, in a vocabulary that falls back to bytes."""
        if not self._falls_back_to_bytes:
            return False
        for token_id in reversed(ids):
            token = self._backend.id_to_token(token_id)
            if token is not None and not (skip_special_tokens and token in self._special):
                return _BYTE_TOKEN.fullmatch(token) is not None
        return False

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special_tokens` leaves a token out."""
        return self._backend.id_to_token(token_id) in self._special

    def context(self, ids: Sequence[int], *, skip_special_tokens: bool) -> Sequence[int]:
        """The end of some ids behind which the text of others does not depend on what was before; may be empty."""
        if self.decoding == "bytes":
            # A character has four bytes at most.
            known = (self.token_bytes(token_id, skip_special_tokens=skip_special_tokens) for token_id in ids)
            return ids if sum(map(len, known)) >= 4 else ids[:0]
        if self._falls_back_to_bytes:
            # Bytes in a row are decoded together, so that none may be cut off.
            shown = (
                place for place, token_id in enumerate(ids) if self._shows_text(token_id, skip_special_tokens)
            )
            ids = ids[next(shown, len(ids)) :]
        return ids if self.decode(ids, skip_special_tokens=skip_special_tokens).strip() else ids[:0]

    def _shows_text(self, token_id: int, skip_special_tokens: bool) -> bool:  # noqa: FBT001 (as it is called)
        """Whether a token is shown and no byte."""
        token = self._backend.id_to_token(token_id)
        hidden = token is None or (skip_special_tokens and token in self._special)
        return not hidden and _BYTE_TOKEN.fullmatch(token or "") is None

    def stop_piece(self, token_id: int) -> str | bytes | None:
        """What a token adds to a text, as transformers sees it where it looks for stop strings.

        Returns:
            Bytes in a vocabulary that spells bytes, else text; None beyond the vocabulary.
        """
        token = self._backend.id_to_token(token_id)
        if token is None:
            return None
        spells = self._backend.spells_bytes
        if spells == "table" and all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        if spells == "hex" and _HEX_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        # The first token of a text may be decoded in a way of its own, so that some text stands before it.
        before = [
            self._backend.id_to_token(index) or "" for index in self.encode(_BEFORE, add_special_tokens=False)
        ]
        text = self._backend.join([*before, token])
        at = text.find(_BEFORE)
        if at < 0:  # a vocabulary without these letters
            without = self._backend.join(before) if before else ""
            piece = text[common(text, without) :]
        else:
            piece = text[at + len(_BEFORE) :]
        return piece if spells is None else piece.encode("utf-8", errors="replace")

    @property
    def spells_bytes(self) -> bool:
        """Whether tokens may be parts of characters, so that stop strings are looked for in bytes."""
        return self._backend.spells_bytes is not None

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool) -> bytes:
        """Bytes of one token of a byte-level vocabulary."""
        kept = self._shown_bytes if skip_special_tokens else self._bytes
        known = kept.get(token_id)
        if known is None:
            token = self._backend.id_to_token(token_id) or ""
            hidden = skip_special_tokens and token in self._special
            known = kept[token_id] = b"" if hidden else _byte_level(token)
        return known


def _plain(ids: Any) -> list[int]:  # noqa: ANN401 (ids, or what a caller takes for them)
    try:
        if isinstance(ids, (str, bytes)):
            raise TypeError
        # Arrays of any size have __index__, too.
        if hasattr(ids, "__index__") and not getattr(ids, "ndim", 0):
            return [int(ids)]
        return [int(token) for token in ids]
    except (TypeError, ValueError, OverflowError) as error:
        raise _bad_ids(ids) from error


def _bad_ids(got: object) -> OptionError:
    return bad_option("ids", "a token id or a list of them, each from 0 to 2**32 - 1", brief(got))


def _bad_tokens(got: object) -> OptionError:
    return bad_option("tokens", "a token or a list of them, each a string of characters", brief(got))


def token_limit(value: object) -> int | None:
    """Tokens that truncation leaves, by a model_max_length; transformers writes 10**30 for "no limit"."""
    return int(value) if isinstance(value, (int, float)) and 0 < value < 10**15 else None


# Letters that stand before a token whose text is asked for, as transformers chose them.
_BEFORE = "abcdef"
_HEX_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Text that clean-up changes.
_CLEANABLE = "a ."
# A token that stands for one byte, in vocabularies that fall back to bytes.
_BYTE_TOKEN = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


def _byte_table() -> dict[str, int]:
    """The character that stands for each byte in GPT-2's vocabulary (Radford et al. 2019, encoder.py).

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from U+0100 on, in
    order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_table()


def _byte_level(token: str) -> bytes:
    """Bytes of a token; one with a character outside the table stands for itself, as the library has it."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


def _bad_text(got: str) -> OptionError:
    return OptionError(f"prompt: expected text, got {got}", option="prompt", expected="text", got=got)
