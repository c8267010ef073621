"""Tokenizers that a caller hands over: folders, files, and objects of `tokenizers` and of transformers.

An object of transformers gives the ids and the text, whatever its class is, so that they are its own. Neither library
is imported here: an object is known by its methods. Nothing here knows models or options.
"""

from __future__ import annotations

import os
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from .arrays import brief
from .detokenizer import clean_up
from .errors import OptionError
from .tokenizer import Tokenizer, token_limit
from .tokenizer_backends import LibraryBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from .tokenizer_backends import BytesIn, Decoding

_EXPECTED = "a folder with a tokenizer, a tokenizer.json, or an object of tokenizers or transformers"
# What every tokenizer of transformers has, and what one of the tokenizers library has.
_TRANSFORMERS = ("__call__", "decode", "convert_ids_to_tokens", "convert_tokens_to_ids")
_LIBRARY = ("encode", "decode", "id_to_token", "token_to_id", "get_added_tokens_decoder")
# Where transformers defines what decoding does for all classes.
_BASES = ("transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers")


def as_tokenizer(tokenizer: object) -> Tokenizer:
    """A tokenizer from whatever `load(tokenizer=...)` accepts.

    Args:
        tokenizer: A `Tokenizer`, a folder, a tokenizer.json, spiece.model or tokenizer.model, an object of the
            `tokenizers` library, or any tokenizer of transformers, those in pure Python included.

    Raises:
        OptionError: It is none of these, or a folder without a tokenizer.
        TokenizerError: The file is malformed.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    found = None
    if isinstance(tokenizer, (str, os.PathLike)):
        found = _from_path(tokenizer)
    elif not isinstance(tokenizer, type):
        found = _from_object(tokenizer)
    if found is not None:
        return found
    raise OptionError(
        f"tokenizer: expected {_EXPECTED}, got {brief(tokenizer)}",
        option="tokenizer",
        expected=_EXPECTED,
        got=brief(tokenizer),
    )


def _from_path(given: str | os.PathLike[str]) -> Tokenizer | None:
    from pathlib import Path

    from .folder import optional_json
    from .tokenizer_files import read_file, read_folder

    path = Path(given)
    if path.is_dir():
        return read_folder(path, optional_json(path / "config.json"))
    return read_file(path) if path.is_file() else None


def _from_object(given: Any) -> Tokenizer | None:  # noqa: ANN401 (known by its methods)
    if _has(given, _TRANSFORMERS):
        backend = TransformersBackend(given)
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        named = {name: getattr(given, name, None) for name in names}
        special = getattr(given, "all_special_tokens", None)
        return Tokenizer(
            backend,
            all_special_tokens=None if special is None else [str(token) for token in special],
            **{name: str(token) for name, token in named.items() if token is not None},
            clean_up_tokenization_spaces=bool(getattr(given, "clean_up_tokenization_spaces", False)),
            model_max_length=token_limit(getattr(given, "model_max_length", None)),
            truncation_side=str(getattr(given, "truncation_side", "right")),
            given=given,
            special_tokens_map={
                str(name): token
                for name, token in (getattr(given, "special_tokens_map", None) or {}).items()
                if isinstance(token, str)
            },
        )
    if _has(given, _LIBRARY):
        return Tokenizer(given)
    # The classes of tokenizers.implementations hold one.
    inner: Any = getattr(given, "_tokenizer", None)
    return Tokenizer(inner, given=given) if _has(inner, _LIBRARY) else None


def _has(given: Any, names: tuple[str, ...]) -> bool:  # noqa: ANN401 (any object)
    return all(callable(getattr(given, name, None)) for name in names)


class TransformersBackend:
    """A tokenizer of transformers as a `Backend`: ids and text are those that the object gives.

    Args:
        given: The object.
    """

    has_unknown = True

    def __init__(self, given: Any) -> None:  # noqa: ANN401 (of any class)
        self._given = given
        self._quiet = _taken(given.__call__, verbose=False)
        self._plain = _taken(given.decode, clean_up_tokenization_spaces=False)
        self._unknown: set[int] = set()
        self._tokens: dict[int, str] = {}  # of a class in pure Python, when it had so many
        self._count = -1
        self.decoding: Decoding = "any"
        library: Any = getattr(given, "backend_tokenizer", None)
        if getattr(given, "clean_up_tokenization_spaces", False) and not _as_all(
            given, "clean_up_tokenization"
        ):
            self.decoding = "whole"
        elif (
            _has(library, _LIBRARY) and _as_all(given, "decode", "_decode") and "decode" not in vars(library)
        ):
            self.decoding = LibraryBackend(library).decoding
        elif type(given).__name__ == "ByT5Tokenizer":
            self.decoding = "pieces"

    @property
    def spells_bytes(self) -> BytesIn:
        """How tokens spell bytes; transformers sees that only in classes over the tokenizers library."""
        library: Any = getattr(self._given, "backend_tokenizer", None)
        return LibraryBackend(library).spells_bytes if _has(library, _LIBRARY) else None

    @property
    def special_tokens(self) -> frozenset[str]:
        """Tokens that `skip_special_tokens` leaves out."""
        library: Any = getattr(self._given, "backend_tokenizer", None)
        if _has(library, _LIBRARY):
            return LibraryBackend(library).special_tokens
        return frozenset(str(token) for token in getattr(self._given, "all_special_tokens", ()))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return len(self._given)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text."""
        encoded = self._given(text, add_special_tokens=add_special_tokens, **self._quiet)
        return [int(token_id) for token_id in encoded["input_ids"]]

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[str]:
        """Tokens of a text; classes in pure Python add no special tokens by themselves."""
        if not add_special_tokens:
            return [str(token) for token in self._given.tokenize(text)]
        ids = self.encode(text, add_special_tokens=True)
        return [str(token) for token in self._given.convert_ids_to_tokens(ids)]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of ids, without any clean-up."""

        def text(known: list[int]) -> str:
            return str(self._given.decode(known, skip_special_tokens=skip_special_tokens, **self._plain))

        try:
            return text([token_id for token_id in ids if token_id not in self._unknown])
        except Exception:
            # Classes in pure Python raise errors of many types for an id that they do not know.
            unknown = {token_id for token_id in {*ids} if self._is_unknown(token_id)} - self._unknown
            if not unknown:
                raise
            self._unknown |= unknown
            return text([token_id for token_id in ids if token_id not in self._unknown])

    def _is_unknown(self, token_id: int) -> bool:
        try:
            self._given.decode([token_id], skip_special_tokens=False)
        except Exception:
            return True
        return False

    def clean_up(self, text: str) -> str:
        """Text with its spaces cleaned up, where the class does so."""
        library: Any = getattr(self._given, "backend_tokenizer", None)
        if library is not None and type(library.model).__name__ == "BPE":
            forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
            if not getattr(self._given, forced, False):
                return text
        clean = getattr(self._given, "clean_up_tokenization", clean_up)
        return str(clean(text))

    def join(self, tokens: list[str]) -> str:
        """Text of tokens."""
        return str(self._given.convert_tokens_to_string(tokens))

    def token_to_id(self, token: str) -> int | None:
        """Id of a token, or None."""
        token_id = self._given.convert_tokens_to_ids(token)
        # An unknown token has the id of the one that stands for such.
        return token_id if isinstance(token_id, int) and self.id_to_token(token_id) == token else None

    def id_to_token(self, token_id: int) -> str | None:
        """Token of an id, or None."""
        library: Any = getattr(self._given, "backend_tokenizer", None)
        if _has(library, _LIBRARY):
            return LibraryBackend(library).id_to_token(token_id)
        # Classes in pure Python make up tokens for ids that they do not have.
        if self._count != len(self._given):
            self._count = len(self._given)
            self._tokens = {index: str(token) for token, index in self._given.get_vocab().items()}
        return self._tokens.get(token_id)


def _taken(method: Callable[..., Any], **options: bool) -> dict[str, bool]:
    """Those of some options that a method takes; one of the caller's own class may take fewer than transformers'."""
    known = signature(method).parameters.values()
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known):
        return options
    names = {parameter.name for parameter in known}
    return {name: value for name, value in options.items() if name in names}


def _as_all(given: object, *names: str) -> bool:
    """Whether the object has these methods from the classes that all tokenizers of transformers come from."""
    return all(getattr(getattr(type(given), name, None), "__module__", None) in _BASES for name in names)
