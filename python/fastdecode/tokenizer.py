"""Text to ids and ids to text, all at once or as they come; the only importer of `tokenizers`.

A folder's tokenizer is put together as transformers 5.23 does it for GPT-2 (tokenization_utils_tokenizers.py
and models/gpt2/tokenization_gpt2.py there): where the declared class is GPT2Tokenizer, or none, only
vocabulary, merges, added tokens and post-processor of tokenizer.json count, and the rest is byte-level BPE as
GPT-2 has it; any other class takes the file as it is. Nothing here knows models or options.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import OptionError, TokenizerError
from .folder import optional_json, read_json

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A model's tokenizer: the library's own object, with the settings that transformers would give it.

    Args:
        backend: The tokenizer of the `tokenizers` library.
        bos_token: Token that begins a text, or None.
        eos_token: Token that ends a text, or None.

    Example:
        >>> tokenizer = fastdecode.load("demo-stories").tokenizer
        >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
        'Once upon a time'
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, bos_token: str | None = None, eos_token: str | None = None
    ) -> None:
        self.backend = backend
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._bytes: dict[int, bytes] = {}
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
        """Ids of a text, with the special tokens that the tokenizer adds by itself (GPT-2: none).

        Args:
            text: Any text.
            add_special_tokens: Whether those special tokens are added.

        Raises:
            OptionError: `text` is not a string, or not valid Unicode (a lone surrogate).
        """
        if not isinstance(text, str):
            raise _bad_text(f"a {type(text).__name__}")
        try:
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except (TypeError, UnicodeEncodeError) as error:
            raise _bad_text("a string with a lone surrogate, which is no character") from error

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary become nothing.

        Args:
            ids: Token ids, 0 or above.
            skip_special_tokens: Leave special tokens out.
        """
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def detokenizer(self, *, skip_special_tokens: bool = False) -> Detokenizer:
        """A decoder for ids that come one at a time."""
        if type(self.backend.decoder).__name__ == "ByteLevel":
            return _ByteLevelDetokenizer(self, skip_special_tokens=skip_special_tokens)
        return _WindowDetokenizer(self, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool) -> bytes:
        """Bytes of one token of a byte-level vocabulary."""
        if skip_special_tokens and self.backend.id_to_token(token_id) in self._special:
            return b""
        known = self._bytes.get(token_id)
        if known is None:
            known = _byte_level(self.backend.id_to_token(token_id) or "")
            self._bytes[token_id] = known
        return known


class Detokenizer:
    """Ids in, text out, in pieces that join exactly to the text of all ids and never split a character."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these next ids complete; may be empty."""
        raise NotImplementedError

    def finish(self) -> str:
        """What is left when no more ids come."""
        raise NotImplementedError


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
        return self._tokenizer.decode(self._ids[start:stop], skip_special_tokens=self._skip)

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        before = self._text(self._start, self._read)
        after = self._text(self._start, len(self._ids))
        if after.endswith("\ufffd") or not after.startswith(before) or len(after) == len(before):
            return ""  # half a character, or a token that changes the text before it: wait for the next one
        self._read = len(self._ids)
        self._start = max(self._start, self._read - self._KEPT)
        self._given.append(after[len(before) :])
        return self._given[-1]

    def finish(self) -> str:
        given = "".join(self._given)
        full = self._text(0, len(self._ids))
        return full[len(given) :] if full.startswith(given) else ""


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


def as_tokenizer(tokenizer: object) -> Tokenizer:
    """A tokenizer from whatever `load(tokenizer=...)` accepts.

    Args:
        tokenizer: A `Tokenizer`, a folder, a tokenizer.json, an object of the `tokenizers` library, or one of
            transformers that is built on it.

    Raises:
        OptionError: It is none of these, or a folder without a tokenizer.
        TokenizerError: The file is malformed.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    expected = "a folder with a tokenizer, a tokenizer.json, or an object of tokenizers or transformers"
    if isinstance(tokenizer, (str, os.PathLike)):
        from pathlib import Path

        path = Path(tokenizer)
        found = read_folder(path, {}) if path.is_dir() else None
        if found is None and path.is_file():
            return _finish(_from_file(path), {}, {})
        if found is not None:
            return found
    else:
        backend: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if all(
            hasattr(backend, name) for name in ("encode", "decode", "id_to_token", "get_added_tokens_decoder")
        ):
            named = {name: getattr(tokenizer, name, None) for name in ("bos_token", "eos_token")}
            return Tokenizer(
                backend, **{name: str(token) for name, token in named.items() if token is not None}
            )
    raise OptionError(
        f"tokenizer: expected {expected}, got {tokenizer!r}",
        option="tokenizer",
        expected=expected,
        got=repr(tokenizer),
    )


def read_folder(folder: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a model's folder, or None where it has none.

    Args:
        folder: Folder with tokenizer.json, or with vocab.json and merges.txt.
        config: Contents of its config.json.

    Raises:
        TokenizerError: A file of the tokenizer is malformed.
        ConfigError: tokenizer_config.json is not a JSON object.
        FileReadError: A file cannot be read.
    """
    settings = optional_json(folder / "tokenizer_config.json")
    declared = str(settings.get("tokenizer_class") or config.get("tokenizer_class") or "GPT2Tokenizer")
    is_gpt2 = declared.removesuffix("Fast") == "GPT2Tokenizer"
    file = folder / "tokenizer.json"
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if file.is_file():
        backend = _from_file(file)
        if "added_tokens_decoder" in settings and _other_tokens(backend, settings["added_tokens_decoder"]):
            backend = _from_file(file, without_added_tokens=True)
        if is_gpt2:
            _make_gpt2(backend, settings, file)
    elif vocabulary.is_file() and merges.is_file():
        backend = _from_vocabulary(vocabulary, merges)
        _make_gpt2(backend, settings, vocabulary)
        is_gpt2 = True
    else:
        return None
    if "added_tokens_decoder" not in settings:
        settings = settings | optional_json(folder / "special_tokens_map.json")
    named: dict[str, Any] = {}
    if is_gpt2:
        named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    elif backend.padding is not None:
        named = {"pad_token": backend.padding["pad_token"]}
    tokenizer = _finish(backend, named | settings, settings.get("added_tokens_decoder") or {})
    if not file.is_file() and settings.get("add_bos_token") and tokenizer.bos_token is not None:
        from tokenizers.processors import TemplateProcessing

        bos = tokenizer.bos_token
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    return tokenizer


def _malformed(file: Path, error: Exception) -> TokenizerError:
    expected = "a tokenizer that the tokenizers library reads"
    return TokenizerError(
        f"{file}: expected {expected}, got: {error}", file=str(file), expected=expected, got=str(error)
    )


def _from_file(file: Path, *, without_added_tokens: bool = False) -> tokenizers.Tokenizer:
    import json

    import tokenizers

    # The library raises bare Exception for every malformed file.
    try:
        if not without_added_tokens:
            return tokenizers.Tokenizer.from_file(str(file))
        return tokenizers.Tokenizer.from_str(json.dumps(read_json(file) | {"added_tokens": []}))
    except OSError:
        raise
    except Exception as error:
        raise _malformed(file, error) from error


def _from_vocabulary(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:
        raise _malformed(vocabulary, error) from error


def _make_gpt2(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], file: Path) -> None:
    from tokenizers import decoders, models, pre_tokenizers

    if not isinstance(backend.model, models.BPE):
        raise TokenizerError(
            f"{file}: expected a model of type BPE for a GPT2Tokenizer, got {type(backend.model).__name__}",
            file=str(file),
            expected="a model of type BPE for a GPT2Tokenizer",
            got=type(backend.model).__name__,
        )
    backend.normalizer = None
    backend.model.dropout = None
    backend.model.unk_token = None
    backend.model.fuse_unk = False
    backend.model.byte_fallback = False
    backend.model.ignore_merges = False
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()


def _content(token: object) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _other_tokens(backend: tokenizers.Tokenizer, declared: object) -> bool:
    """Whether tokenizer_config.json lists other added tokens than tokenizer.json; then its list counts."""
    if not isinstance(declared, Mapping):
        return False
    inside = {str(index): token.content for index, token in backend.get_added_tokens_decoder().items()}
    return inside != {str(index): _content(token) for index, token in declared.items()}


def _number(index: str) -> int:
    return int(index) if index.isdecimal() else -1


def _added(token: object, *, special: bool) -> tokenizers.AddedToken | None:
    from tokenizers import AddedToken

    content = _content(token)
    if content is None:
        return None
    if not isinstance(token, Mapping):
        return AddedToken(content, special=special, normalized=not special)
    flags = {
        name: bool(token[name])
        for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        if name in token
    }
    flags["special"] = flags.get("special", False) or special
    return AddedToken(content, **flags)


def _finish(
    backend: tokenizers.Tokenizer, settings: Mapping[str, Any], declared: Mapping[str, Any]
) -> Tokenizer:
    """Adds the tokens that the folder declares, in the order of their ids, then the missing special ones."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(settings.get("split_special_tokens"))
    named = {name: settings.get(name) for name in _NAMED}
    names = {_content(token) for token in named.values()}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if isinstance(extra, Mapping):
        extra = list(extra.values())
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = [
        (declared[index], _content(declared[index]) in names) for index in sorted(declared, key=_number)
    ]
    wanted = [*listed, *((token, True) for token in named.values()), *((token, True) for token in extra)]
    for token, special in wanted:
        added = _added(token, special=special)
        if added is not None and added.content not in present:
            present.add(added.content)
            backend.add_tokens([added])
    return Tokenizer(backend, bos_token=_content(named["bos_token"]), eos_token=_content(named["eos_token"]))
