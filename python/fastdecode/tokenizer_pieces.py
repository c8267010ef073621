"""T5Tokenizer, as transformers 5.24 builds it, and tokenizers of SentencePiece models without a class.

T5Tokenizer makes a Unigram of pieces and scores, whatever the model's own type is; they come from tokenizer.json or
from a SentencePiece model (models/t5/tokenization_t5.py there). A model without a class is followed in its own
settings (`SpmConverter.build_tokenizer_from_spm_proto` in convert_slow_tokenizer.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import TokenizerError
from .tokenizer_parts import errors_of, known_id, malformed, read_bytes, refuse_pointer
from .tokenizer_tokens import ADDED, OLD_EXTRA, content

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers

    from .tokenizer_parts import Files

# Kinds of pieces in a SentencePiece model.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "\u2581"


class Unigram(NamedTuple):
    """What a T5Tokenizer takes from a file.

    Attributes:
        vocabulary: Pieces with their scores, in the order of their ids.
        characters: The table by which SentencePiece normalizes characters, or None.
        added: Pieces that are never split; None from a tokenizer.json, which lists them elsewhere.
    """

    vocabulary: list[tuple[str, float]]
    characters: bytes | None
    added: list[Any] | None


def unigram_of_json(files: Files) -> Unigram:
    """Vocabulary and table of characters of a tokenizer.json.

    Raises:
        TokenizerError: It holds none.
    """
    import base64
    import binascii

    assert files.json is not None
    expected = "a model of type Unigram with a vocabulary of (piece, score) for a T5Tokenizer"
    model = (files.content or {}).get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    try:
        if not isinstance(vocabulary, list):
            raise TypeError(f"a vocabulary of type {type(vocabulary).__name__}")
        pieces = [(str(piece), float(score)) for piece, score in vocabulary]
        normalizer = (files.content or {}).get("normalizer") or {}
        if isinstance(normalizer, list):
            steps = normalizer
        else:
            steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
        tables = [step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"]
        return Unigram(pieces, base64.b64decode(tables[0]) if tables and tables[0] else None, None)
    except (TypeError, ValueError, KeyError, AttributeError, binascii.Error) as error:
        raise malformed(files.json, error, expected) from error


def read_pieces(file: Path) -> Any:  # noqa: ANN401 (a message of protobuf)
    """A SentencePiece model, through that library's own description of it.

    Raises:
        FileReadError: The file cannot be read.
        TokenizerError: It is no such model, or the library is missing.
    """
    refuse_pointer(file)
    held = read_bytes(file)
    _refuse_others(file, held)
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
        model.ParseFromString(held)
    except DecodeError as error:
        raise malformed(file, error, "a SentencePiece model") from error
    if not model.pieces:
        raise malformed(file, "no pieces", "a SentencePiece model with pieces")
    texts = [piece.piece for piece in model.pieces]
    texts += [getattr(model.trainer_spec, f"{name}_piece") for name in ("bos", "eos", "unk")]
    if not all(isinstance(text, str) for text in texts):  # protobuf gives what is no UTF-8 as bytes
        raise malformed(file, "a piece that is no UTF-8", "a SentencePiece model with pieces of text")
    return model


# A line of a vocabulary of tiktoken: the bytes of a token in base64, and its rank.
_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def _refuse_others(file: Path, held: bytes) -> None:
    """Raises for vocabularies of other programs, which transformers looks for under the same names."""
    got = None
    if "tekken" in file.name and file.suffix == ".json":
        got = "Mistral's own vocabulary (tekken), which is not supported"
    elif _RANK.match(held):
        got = "a vocabulary of tiktoken (as Llama 3 has it), which is not supported"
    if got is not None:
        expected = (
            "a SentencePiece model or a tokenizer.json (transformers writes one: AutoTokenizer.from_pretrained("
            f"{str(file.parent)!r}).save_pretrained(...)); or give the model its tokenizer: load(..., "
            f"tokenizer=transformers.AutoTokenizer.from_pretrained({str(file.parent)!r}))"
        )
        raise malformed(file, got, expected)


def unigram_of_pieces(file: Path) -> Unigram:
    """Vocabulary and table of characters of a SentencePiece model of any type.

    Raises:
        TokenizerError: As `read_pieces`.
    """
    model = read_pieces(file)
    vocabulary = [(piece.piece, piece.score) for piece in model.pieces]
    return Unigram(vocabulary, model.normalizer_spec.precompiled_charsmap or None, _never_split(model))


def _never_split(model: Any) -> list[Any]:  # noqa: ANN401 (a message of protobuf)
    """Pieces that are tokens of their own; those that a user defined are not special."""
    from tokenizers import AddedToken

    return [
        AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
        for piece in model.pieces
        if piece.type in (_CONTROL, _USER_DEFINED)
    ]


def merges_of_pieces(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that a class over bytes makes of a SentencePiece model, in the order of the pieces.

    Raises:
        TokenizerError: As `read_pieces`.
    """
    vocab = {piece.piece: index for index, piece in enumerate(read_pieces(file).pieces)}
    merges = [
        (name[:cut], name[cut:])
        for name in sorted(vocab, key=vocab.__getitem__)
        for cut in range(1, len(name))
        if name[:cut] in vocab and name[cut:] in vocab
    ]
    return vocab, merges


def own_pieces(file: Path, values: dict[str, Any]) -> None:
    """Puts the model's tokens that are never split in the place of an older list.

    Args:
        file: A SentencePiece model.
        values: Settings of the folder.
    """
    values[OLD_EXTRA] = _never_split(read_pieces(file))


def sentinels(count: int) -> list[str]:
    """T5's special tokens without names."""
    return [f"<extra_id_{number}>" for number in range(count)]


def t5(files: Files, values: dict[str, Any]) -> tokenizers.Tokenizer:
    """The backend of a T5Tokenizer, without its added tokens.

    Args:
        files: Files of the folder.
        values: Settings of the folder: extra_ids (100 by default). Its list of special tokens is completed.

    Raises:
        TokenizerError: A file is malformed.
    """
    file = files.json or files.pieces or files.folder / "spiece.model"
    count = values.get("extra_ids", 100)
    count = count if isinstance(count, int) and 0 <= count < 2**20 else 100
    made = unigram_of_json(files) if files.json is not None else unigram_of_pieces(file)
    # A SentencePiece model's own tokens stand in the place of an older list. The list of the settings, which goes by
    # the newer name, counts before either, even where it is empty.
    given = values.get(OLD_EXTRA) if made.added is None else made.added
    known = [] if given is None else [*given]
    has_sentinels = any("<extra_id_" in (content(token) or "") for token in known)
    values[OLD_EXTRA] = known if has_sentinels else [*known, *sentinels(count)]
    if made.added is not None:  # a tokenizer.json holds its sentinels
        more = [(token, 0.0) for token in reversed(sentinels(count))]
        made = made._replace(vocabulary=[*made.vocabulary, *more])
    return _t5_backend(made, file)


def _t5_backend(unigram: Unigram, file: Path) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    with errors_of(file):
        backend = tokenizers.Tokenizer(models.Unigram(unigram.vocabulary, unk_id=2, byte_fallback=False))
        if unigram.characters is not None:
            backend.normalizer = normalizers.Precompiled(unigram.characters)
    metaspace: dict[str, Any] = {"replacement": _SPACE, "prepend_scheme": "always", "split": True}
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    backend.decoder = decoders.Metaspace(**metaspace)
    return backend


def finish_t5(backend: tokenizers.Tokenizer, file: Path, named: Mapping[str, Any]) -> None:
    """A text ends with `</s>`, under the id of the folder's end token.

    Args:
        backend: The backend with its tokens.
        file: The folder's tokenizer_config.json, for error messages.
        named: Special tokens by name.

    Raises:
        TokenizerError: The folder takes its end token away.
    """
    from tokenizers.processors import TemplateProcessing

    end = content(named.get("eos_token"))
    if end is None:
        raise malformed(file, "null", "an eos_token for a T5Tokenizer")
    backend.post_processor = TemplateProcessing(
        single=["$A", "</s>"],
        pair=["$A", "</s>", "$B", "</s>"],
        # An empty one has the id of what is unknown.
        special_tokens=[("</s>", known_id(backend, end or content(named.get("unk_token")) or ""))],
    )


def of_pieces(file: Path, values: dict[str, Any]) -> tokenizers.Tokenizer:
    """The backend of a SentencePiece model without a class, by the model's own settings.

    Args:
        file: The model.
        values: Settings of the folder; its list of special tokens and its named ones are completed.

    Raises:
        TokenizerError: The file is malformed.
    """
    import tokenizers
    from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers

    model = read_pieces(file)
    added: dict[int, Any] = values[ADDED]
    trainer, normal = model.trainer_spec, model.normalizer_spec
    names = [piece.piece for piece in model.pieces]
    is_unigram = trainer.model_type == 1
    if not is_unigram:
        names = _renamed(names, added)
    own = {piece.piece for piece in model.pieces if piece.type == _USER_DEFINED}
    values[OLD_EXTRA] = [token for token in _never_split(model) if token.content not in own]
    if normal.add_dummy_prefix:
        # The text between added tokens is looked at before it is normalized, so that each part gets its own space.
        for index, token in added.items():
            flags = {"single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip}
            added[index] = AddedToken(token.content, **flags, normalized=False, special=token.special)
    with errors_of(file):
        backend = tokenizers.Tokenizer(
            _unigram_model(model) if is_unigram else _bpe_model(model, names, with_own=bool(own))
        )
        steps: list[Any] = []
        if normal.precompiled_charsmap:
            steps.append(normalizers.Precompiled(normal.precompiled_charsmap))
        if normal.remove_extra_whitespaces:
            edges, runs = tokenizers.Regex(r"\A +| +\z"), tokenizers.Regex(" {2,}")
            steps += [normalizers.Replace(edges, ""), normalizers.Replace(runs, " ")]
        if normal.escape_whitespaces:
            steps.append(normalizers.Replace(" ", _SPACE))
        is_legacy = bool(values.get("legacy", True))
        if normal.add_dummy_prefix and is_legacy:
            # Metaspace puts no space in front of one, SentencePiece does.
            steps.append(normalizers.Replace(tokenizers.Regex(rf"\A{_SPACE}"), _SPACE * 2))
        backend.normalizer = normalizers.Sequence(steps)
        splits: list[Any] = []
        if normal.add_dummy_prefix:
            scheme = "always" if is_legacy else "first"
            splits.append(pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=False))
        if own:
            splits.append(_isolating(names, model))
        if splits:
            backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
        joins: list[Any] = [decoders.Replace(_SPACE, " ")]
        if trainer.byte_fallback:
            joins.append(decoders.ByteFallback())
        if normal.add_dummy_prefix or trainer.byte_fallback:
            joins.append(decoders.Fuse())
        if normal.add_dummy_prefix:
            joins.append(decoders.Strip(content=" ", left=1))
        backend.decoder = decoders.Sequence(joins)
    for name, index, piece in (
        ("bos_token", trainer.bos_id, trainer.bos_piece or "<s>"),
        ("eos_token", trainer.eos_id, trainer.eos_piece or "</s>"),
        ("unk_token", trainer.unk_id, trainer.unk_piece or "<unk>"),
    ):
        if index >= 0:
            values.setdefault(name, piece)
    return backend


def _renamed(names: list[str], added: Mapping[int, Any]) -> list[str]:
    """Pieces under the names that the folder's added tokens give to their ids, unless another piece has that name."""
    given = {index: token.content for index, token in added.items()}
    kept = {name for index, name in enumerate(names) if index not in given}
    return [
        given[index] if index in given and given[index] not in kept else name
        for index, name in enumerate(names)
    ]


def _unigram_model(model: Any) -> tokenizers.models.Unigram:  # noqa: ANN401 (a message of protobuf)
    from tokenizers import models

    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    trainer = model.trainer_spec
    return models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)


def _bpe_model(
    model: Any,  # noqa: ANN401 (a message of protobuf)
    names: list[str],
    *,
    with_own: bool,
) -> tokenizers.models.BPE:
    """BPE whose merges are all pairs of normal pieces that make one, the best scores first."""
    from tokenizers import models

    scores = {
        name: (-piece.score, index)
        for index, (name, piece) in enumerate(zip(names, model.pieces, strict=True))
        if piece.type == _NORMAL
    }
    pairs = [
        (*rank, name[:cut], name[cut:])
        for name, rank in scores.items()
        for cut in range(1, len(name))
        if name[:cut] in scores and name[cut:] in scores
    ]
    return models.BPE(
        vocab={name: index for index, name in enumerate(names)},
        merges=[(left, right) for _, _, left, right in sorted(pairs)],
        unk_token=model.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
        ignore_merges=with_own,
    )


def _isolating(names: list[str], model: Any) -> tokenizers.pre_tokenizers.Split:  # noqa: ANN401 (as above)
    """A split that leaves every piece of the user's own whole, the longest first."""
    import re

    import tokenizers

    own = [name for name, piece in zip(names, model.pieces, strict=True) if piece.type == _USER_DEFINED]
    pattern = "|".join(re.escape(name) for name in sorted(own, key=len, reverse=True))
    return tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
