"""Text to ids and ids to text: a tokenizer of the `tokenizers` library with what transformers adds to it.

Nothing here knows files (`tokenizer_files` puts tokenizers together), models or options.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .detokenizer import clean_up, detokenizer
from .errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import tokenizers

    from .detokenizer import Detokenizer
    from .encodings import Encoding


class Tokenizer:
    """A model's tokenizer: the library's own object, with the settings that transformers would give it.

    Args:
        backend: The tokenizer of the `tokenizers` library.
        bos_token: Token that begins a text, or None.
        eos_token: Token that ends a text, or None.
        clean_up_tokenization_spaces: Take away spaces before marks and contractions in decoded text (not for
            BPE, as in transformers).
        model_max_length: Tokens that truncation leaves, or None where the folder names no limit.
        truncation_side: Where truncation takes tokens away: "right" or "left".

    Example:
        >>> tokenizer = fastdecode.load("demo-stories").tokenizer
        >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
        'Once upon a time'
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        clean_up_tokenization_spaces: bool = False,
        model_max_length: int | None = None,
        truncation_side: str = "right",
    ) -> None:
        self.backend = backend
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._is_bpe = type(backend.model).__name__ == "BPE"
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces and not self._is_bpe
        self.model_max_length = model_max_length
        self.truncation_side = truncation_side
        self._bytes: dict[int, bytes] = {}
        self._falls_back_to_bytes = backend.decoder is not None and backend.decoder.decode(["<0x41>"]) == "A"
        self._special = frozenset(
            token.content for token in backend.get_added_tokens_decoder().values() if token.special
        )

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text, or None."""
        return None if self.bos_token is None else self.backend.token_to_id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text, or None."""
        return None if self.eos_token is None else self.backend.token_to_id(self.eos_token)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer adds by itself (GPT-2: none; T5: `</s>`).

        Args:
            text: The text.
            add_special_tokens: Add those tokens; without, only what the text itself holds.

        Raises:
            OptionError: `text` is not a string, or not valid Unicode (a lone surrogate).
        """
        if not isinstance(text, str):
            raise _bad_text(f"a {type(text).__name__}")
        try:
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except (TypeError, UnicodeEncodeError) as error:
            raise _bad_text("a string with a lone surrogate, which is no character") from error

    def decode(
        self,
        ids: Iterable[int],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary become nothing.

        Args:
            ids: Token ids, 0 or above.
            skip_special_tokens: Leave special tokens out.
            clean_up_tokenization_spaces: Take away spaces before marks and contractions; None for what the
                tokenizer's folder says.
        """
        text = str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))
        clean = clean_up_tokenization_spaces
        if clean is None:
            clean = self.clean_up_tokenization_spaces
        return clean_up(text) if clean and not self._is_bpe else text

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> Encoding:
        """Ids and masks of a text or of a list of texts, as a tokenizer of transformers gives them.

        Args:
            text: A text, or a list of them.
            add_special_tokens: As in `encode`.
            padding: Fill shorter texts of a list up with the pad token, on the right; their mask is 0 there.
            truncation: Take ids away beyond `max_length`, on the side of `truncation_side`.
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
        ids: Iterable[Iterable[int]],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Texts of several lists of ids, or of the rows of an array; see `decode`.

        Args:
            ids: Lists of token ids.
            skip_special_tokens: As in `decode`.
            clean_up_tokenization_spaces: As in `decode`.
        """
        return [
            self.decode(
                row,
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            )
            for row in ids
        ]

    def detokenizer(self, *, skip_special_tokens: bool = False) -> Detokenizer:
        """A decoder for ids that come one at a time."""
        return detokenizer(self, skip_special_tokens=skip_special_tokens)

    def ends_in_bytes(self, ids: list[int], *, skip_special_tokens: bool) -> bool:
        """Whether the last of the ids that show is a byte, in a vocabulary that falls back to bytes."""
        if not self._falls_back_to_bytes:
            return False
        for token_id in reversed(ids):
            token = self.backend.id_to_token(token_id)
            if token is not None and not (skip_special_tokens and token in self._special):
                return _BYTE_TOKEN.fullmatch(token) is not None
        return False

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool) -> bytes:
        """Bytes of one token of a byte-level vocabulary."""
        if skip_special_tokens and self.backend.id_to_token(token_id) in self._special:
            return b""
        known = self._bytes.get(token_id)
        if known is None:
            known = _byte_level(self.backend.id_to_token(token_id) or "")
            self._bytes[token_id] = known
        return known


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
