"""What does the work of a `Tokenizer`: the interface, and a tokenizer of the `tokenizers` library behind it.

Nothing here knows files, settings of a folder, models or options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from .detokenizer import clean_up

if TYPE_CHECKING:
    import tokenizers

# What may happen to the text of tokens when another token follows:
# "bytes": nothing, since each token is a run of bytes, written in GPT-2's table.
# "pieces": only half a character at its end becomes a whole one (and what runs of byte tokens say changes).
# "any": the next token may change the end of it.
# "whole": any later token may change all of it.
Decoding = Literal["bytes", "pieces", "any", "whole"]
BytesIn = Literal["table", "hex"] | None


class Backend(Protocol):
    """What a `Tokenizer` needs of the object that does its work, where that is none of the `tokenizers` library.

    Attributes:
        decoding: What may happen to text when another token follows; it decides what a stream holds back.
        has_unknown: Whether a token that is asked for by name, and that there is not, is the unknown one.
    """

    decoding: Decoding
    has_unknown: bool

    @property
    def spells_bytes(self) -> BytesIn:
        """How tokens spell bytes: "table" (GPT-2's characters), "hex" (`<0x0A>`), or None where they are text."""
        ...

    @property
    def special_tokens(self) -> frozenset[str]:
        """Tokens that `skip_special_tokens` leaves out."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text; a UnicodeEncodeError or TypeError for a lone surrogate."""
        ...

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[str]:
        """Tokens of a text, as `encode`; what is unknown may stand for itself."""
        ...

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of ids, without any clean-up; ids beyond the vocabulary are nothing."""
        ...

    def clean_up(self, text: str) -> str:
        """Text with its spaces cleaned up, where that is asked for."""
        ...

    def join(self, tokens: list[str]) -> str:
        """Text of tokens: `convert_tokens_to_string` in transformers."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Id of a token, or None where there is no such token."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """Token of an id, or None beyond the vocabulary."""
        ...


class LibraryBackend:
    """A tokenizer of the `tokenizers` library as a `Backend`.

    Args:
        library: The tokenizer.
        cleans_bpe: Whether spaces are cleaned up over BPE, too, where that is asked for.
    """

    has_unknown = True

    def __init__(self, library: tokenizers.Tokenizer, *, cleans_bpe: bool = False) -> None:
        self.library = library
        self.decoding: Decoding = "bytes" if type(library.decoder).__name__ == "ByteLevel" else "pieces"
        self._cleans = cleans_bpe or type(library.model).__name__ != "BPE"

    @property
    def spells_bytes(self) -> BytesIn:
        """How tokens spell bytes, by the steps of the decoder."""
        decoder = self.library.decoder
        if decoder is None:
            return None
        state = bytes(decoder.__getstate__())
        # ByteFallback counts where a decoder has both, as in transformers.
        if b'"type":"ByteFallback"' in state:
            return "hex"
        return "table" if b'"type":"ByteLevel"' in state else None

    @property
    def special_tokens(self) -> frozenset[str]:
        """Tokens that `skip_special_tokens` leaves out."""
        tokens = self.library.get_added_tokens_decoder().items()
        return frozenset(
            token.content for index, token in tokens if token.special or self._is_left_out(index)
        )

    def _is_left_out(self, token_id: int) -> bool:
        """Whether the library leaves a token out; one that was special before its flags changed stays so there."""
        shown, left = (self.library.decode([token_id], skip_special_tokens=skip) for skip in (False, True))
        return shown != "" == left

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.library.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text."""
        return list(self.library.encode(text, add_special_tokens=add_special_tokens).ids)

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[str]:
        """Tokens of a text."""
        return list(self.library.encode(text, add_special_tokens=add_special_tokens).tokens)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of ids, without any clean-up."""
        return str(self.library.decode(ids, skip_special_tokens=skip_special_tokens))

    def clean_up(self, text: str) -> str:
        """Text with its spaces cleaned up, where the class does so."""
        return clean_up(text) if self._cleans else text

    def join(self, tokens: list[str]) -> str:
        """Text of tokens."""
        decoder = self.library.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))

    def token_to_id(self, token: str) -> int | None:
        """Id of a token, or None."""
        return self.library.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Token of an id, or None."""
        return self.library.id_to_token(token_id)
