"""A folder's tokenizer files to a `Tokenizer`, put together as transformers 5.24 does it.

What counts is the class that the folder declares, or else that of its model_type (AutoTokenizer there).
GPT2Tokenizer takes vocabulary, merges, added tokens and post-processor of tokenizer.json and is byte-level BPE
as GPT-2 has it (models/gpt2/tokenization_gpt2.py); T5Tokenizer takes vocabulary, added tokens and the table of
characters, and is what T5 has (models/t5/tokenization_t5.py); any other class takes the file as it is. With
`tokenizer`, the only importers of `tokenizers`. Nothing here knows models or options.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ConfigError, FileReadError, TokenizerError
from .families import TOKENIZER_CLASSES, family
from .folder import POINTER, bad_field, is_pointer, optional_json, read_json
from .tokenizer import Tokenizer, token_limit

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_file(file: Path) -> Tokenizer:
    """The tokenizer of one file, as it is.

    Args:
        file: A tokenizer.json, or a SentencePiece model (`*.model`), which is T5's.

    Raises:
        TokenizerError: The file is malformed, or needs the sentencepiece package.
    """
    _refuse_pointer(file)
    return _read_pieces(file) if file.suffix == ".model" else _finish(_from_file(file), {}, {})


def read_folder(folder: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a model's folder, or None where it has none.

    Args:
        folder: Folder with tokenizer.json, with vocab.json and merges.txt, or with spiece.model.
        config: Contents of its config.json.

    Raises:
        TokenizerError: A file of the tokenizer is malformed, or needs the sentencepiece package.
        ConfigError: tokenizer_config.json is not a JSON object, or its truncation_side is none.
        FileReadError: A file cannot be read.
    """
    settings = optional_json(folder / "tokenizer_config.json")
    if (side := settings.get("truncation_side")) not in (None, "right", "left"):
        raise bad_field(
            str(folder / "tokenizer_config.json"), "truncation_side", '"right" or "left"', repr(side)
        )
    file, pieces = folder / "tokenizer.json", folder / TOKENIZER_CLASSES["T5Tokenizer"].files[0]
    vocabulary, merges = (folder / name for name in TOKENIZER_CLASSES["GPT2Tokenizer"].files)
    for known in (file,) if file.is_file() else (vocabulary, merges, pieces):
        _refuse_pointer(known)
    declared = _declared(settings, config)
    added: dict[str, Any] = settings.get("added_tokens_decoder") or {}
    if file.is_file() and declared == "T5Tokenizer":
        content = read_json(file)
        if "added_tokens_decoder" not in settings:
            added = _listed(folder, content)
        backend = _t5(_unigram(content, file), file)
    elif file.is_file():
        backend = _from_file(file)
        if "added_tokens_decoder" in settings and _other_tokens(backend, added):
            backend = _from_file(file, without_added_tokens=True)
        if declared == "GPT2Tokenizer":
            _make_gpt2(backend, settings, file)
    elif vocabulary.is_file() and merges.is_file():
        backend = _from_vocabulary(vocabulary, merges)
        _make_gpt2(backend, settings, vocabulary)
        declared = "GPT2Tokenizer"
    elif pieces.is_file():
        # transformers reads it with T5Tokenizer alone and refuses UMT5's, whose pieces work in the same way.
        unigram = _from_sentencepiece(pieces)
        declared = "T5Tokenizer"
        if "added_tokens_decoder" not in settings:
            added = _listed(folder, {})
        if not _extra_tokens(settings):
            added = unigram.added | added
        backend = _t5(unigram, pieces, extra_ids=_extra_ids(settings))
    else:
        return None
    older = {} if "added_tokens_decoder" in settings else optional_json(folder / "special_tokens_map.json")
    if declared == "T5Tokenizer" and not _extra_tokens(settings) and not older.get("extra_special_tokens"):
        extra = list(older.get("additional_special_tokens") or [])
        if not any("<extra_id_" in str(_content(token)) for token in extra):
            extra += _sentinels(_extra_ids(settings))
        older = older | {"extra_special_tokens": extra}
    settings = {name: value for name, value in (settings | older).items() if value is not None}
    named = dict(TOKENIZER_CLASSES[declared].tokens) if declared in TOKENIZER_CLASSES else {}
    if not named and backend.padding is not None:
        named = {"pad_token": backend.padding["pad_token"]}
    tokenizer = _finish(backend, named | settings, added)
    if declared == "T5Tokenizer":
        _end_with_eos(tokenizer)
    elif not file.is_file() and settings.get("add_bos_token") and tokenizer.bos_token is not None:
        _begin_with_bos(tokenizer)
    return tokenizer


def _read_pieces(file: Path) -> Tokenizer:
    """T5's tokenizer from a SentencePiece model alone."""
    unigram = _from_sentencepiece(file)
    named = {**TOKENIZER_CLASSES["T5Tokenizer"].tokens, "extra_special_tokens": _sentinels(100)}
    tokenizer = _finish(_t5(unigram, file), named, unigram.added)
    _end_with_eos(tokenizer)
    return tokenizer


def _declared(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Name of the class that transformers would take, without "Fast"."""
    of_type = family(config.get("model_type", "gpt2"))
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class") or of_type.tokenizer_class
    return "" if declared is None or of_type.keeps_tokenizer_file else str(declared).removesuffix("Fast")


def _malformed(
    file: Path, error: object, expected: str = "a tokenizer that the tokenizers library reads"
) -> TokenizerError:
    return TokenizerError(
        f"{file}: expected {expected}, got: {error}", file=str(file), expected=expected, got=str(error)
    )


def _pass_on_others(error: BaseException) -> None:
    """Raises what is no failure of the library, such as Ctrl-C; its panics are not of class Exception either."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _refuse_pointer(file: Path) -> None:
    if is_pointer(file):
        expected, got = POINTER
        raise _malformed(file, got, expected)


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
    except BaseException as error:
        _pass_on_others(error)
        raise _malformed(file, error) from error


def _from_vocabulary(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
    except BaseException as error:
        _pass_on_others(error)
        # The library does not say in which of the two files it was.
        sound = False
        with contextlib.suppress(ConfigError, FileReadError):
            sound = all(isinstance(index, int) for index in read_json(vocabulary).values())
        raise _malformed(merges if sound else vocabulary, error) from error


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


class _Unigram(NamedTuple):
    """What a T5Tokenizer takes from a file.

    Attributes:
        vocabulary: Pieces with their scores, in the order of their ids.
        characters: The table by which SentencePiece normalizes characters, or None.
        added: Pieces that are never split, by id, as tokenizer_config.json would list them.
    """

    vocabulary: list[tuple[str, float]]
    characters: bytes | None
    added: dict[str, Any]


def _unigram(content: Mapping[str, Any], file: Path) -> _Unigram:
    """Vocabulary and character table of a tokenizer.json."""
    import base64
    import binascii

    expected = "a model of type Unigram with a vocabulary of (piece, score) for a T5Tokenizer"
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    try:
        if not isinstance(vocabulary, list):
            raise TypeError(f"a vocabulary of type {type(vocabulary).__name__}")
        pieces = [(str(piece), float(score)) for piece, score in vocabulary]
        normalizer = content.get("normalizer") or {}
        steps = normalizer.get("normalizers", []) if normalizer.get("type") == "Sequence" else [normalizer]
        tables = [step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"]
        return _Unigram(pieces, base64.b64decode(tables[0]) if tables and tables[0] else None, {})
    except (TypeError, ValueError, KeyError, AttributeError, binascii.Error) as error:
        raise TokenizerError(
            f"{file}: expected {expected}, got: {error}", file=str(file), expected=expected, got=str(error)
        ) from error


def _from_sentencepiece(file: Path) -> _Unigram:
    """Vocabulary and character table of a SentencePiece model, through that library's own description of it."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        expected = "the packages sentencepiece and protobuf (pip install 'fastdecode[sentencepiece]')"
        raise TokenizerError(
            f"{file}: expected {expected}, got none of them: {error}",
            file=str(file),
            expected=f"{expected}, or a tokenizer.json beside it",
            got=str(error),
        ) from error
    from google.protobuf.message import DecodeError

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise _malformed(file, error, "a SentencePiece model") from error
    unigram = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    if not model.pieces or model.trainer_spec.model_type != unigram:
        kind = sentencepiece_model_pb2.TrainerSpec.ModelType.Name(model.trainer_spec.model_type)
        got = f"{len(model.pieces)} pieces of type {kind}"
        raise _malformed(file, got, "a SentencePiece model of type UNIGRAM with pieces")
    control, user_defined = 3, 4
    added = {
        str(index): {"content": piece.piece, "normalized": False, "special": piece.type == control}
        for index, piece in enumerate(model.pieces)
        if piece.type in (control, user_defined)
    }
    vocabulary = [(piece.piece, piece.score) for piece in model.pieces]
    return _Unigram(vocabulary, model.normalizer_spec.precompiled_charsmap or None, added)


def _t5(unigram: _Unigram, file: Path, *, extra_ids: int = 100) -> tokenizers.Tokenizer:
    """The backend of a T5Tokenizer.

    Args:
        unigram: Its vocabulary and character table.
        file: Where they are from. SentencePiece models lack the sentinels, a tokenizer.json has them.
        extra_ids: Number of sentinels.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    vocabulary = list(unigram.vocabulary)
    if file.suffix == ".model":
        vocabulary += [(token, 0.0) for token in reversed(_sentinels(extra_ids))]
    # The library raises bare Exception for every vocabulary or table that it cannot use.
    try:
        backend = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
        if unigram.characters is not None:
            backend.normalizer = normalizers.Precompiled(unigram.characters)
    except BaseException as error:
        _pass_on_others(error)
        raise _malformed(file, error) from error
    metaspace: dict[str, Any] = {"replacement": "\u2581", "prepend_scheme": "always", "split": True}
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    backend.decoder = decoders.Metaspace(**metaspace)
    return backend


def _sentinels(count: int) -> list[str]:
    return [f"<extra_id_{number}>" for number in range(count)]


def _extra_ids(settings: Mapping[str, Any]) -> int:
    count = settings.get("extra_ids", 100)
    return count if isinstance(count, int) and 0 <= count < 2**20 else 100


def _extra_tokens(settings: Mapping[str, Any]) -> Any:  # noqa: ANN401 (what a JSON file holds)
    return settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []


def _listed(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Added tokens by id, from the older added_tokens.json and from tokenizer.json."""
    older = optional_json(folder / "added_tokens.json")
    listed: dict[str, Any] = {str(index): token for token, index in older.items()}
    tokens = content.get("added_tokens") or []
    return listed | {str(token.get("id")): token for token in tokens if isinstance(token, Mapping)}


def _begin_with_bos(tokenizer: Tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    tokenizer.backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )


def _end_with_eos(tokenizer: Tokenizer) -> None:
    """A text ends with `</s>`, under the id of the folder's end token."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend.post_processor = TemplateProcessing(
        single=["$A", "</s>"],
        pair=["$A", "</s>", "$B", "</s>"],
        special_tokens=[("</s>", tokenizer.eos_token_id)],
    )


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
    extra = _extra_tokens(settings)
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
    return Tokenizer(
        backend,
        bos_token=_content(named["bos_token"]),
        eos_token=_content(named["eos_token"]),
        clean_up_tokenization_spaces=bool(settings.get("clean_up_tokenization_spaces")),
        model_max_length=token_limit(settings.get("model_max_length", settings.get("max_len"))),
        truncation_side=settings.get("truncation_side", "right"),
    )
