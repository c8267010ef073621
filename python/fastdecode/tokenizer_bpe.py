"""Classes of tokenizers over BPE, as transformers 5.24 builds them: GPT-2's and its kin over bytes, and three others.

Each takes vocabulary and merges from tokenizer.json, from a SentencePiece model, or from vocab.json and merges.txt, and
sets everything else by itself; most keep the post-processor of a tokenizer.json. (models/gpt2, roberta, deberta,
blenderbot, codegen, gpt_neox, qwen2, llama, gemma and openai there, each in its tokenization_*.py.)
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from .arrays import brief
from .errors import ConfigError, FileReadError, TokenizerError
from .folder import read_json
from .tokenizer_parts import (
    begin_and_end,
    errors_of,
    known_id,
    lines_of,
    malformed,
    post_processor,
    read_content,
    takes,
    vocabulary,
)
from .tokenizer_tokens import content

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import tokenizers

    from .tokenizer_parts import Files


class _Class(NamedTuple):
    """How a class differs from the others over bytes.

    Attributes:
        prefix_space: Whether a text gets a space in front where the folder does not say.
        pattern: How a text is split, or None for GPT-2's own way.
        composes: Whether characters are composed first (NFC).
    """

    prefix_space: bool = False
    pattern: str | None = None
    composes: bool = False


# Qwen's: contractions, words with one other character in front, single digits, marks, line ends, spaces.
_QWEN2 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

# Mistral's, for vocabularies of more than this: a word begins anew with a capital letter, and has marks in it.
_MISTRAL_SIZE = 100_000
_LARGE, _SMALL = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_MISTRAL = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_LARGE}]*[{_SMALL}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_LARGE}]+[{_SMALL}]*",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

BYTE_LEVEL = {
    "GPT2Tokenizer": _Class(),
    "RobertaTokenizer": _Class(),
    "BlenderbotTokenizer": _Class(prefix_space=True),
    "DebertaTokenizer": _Class(),
    "CodeGenTokenizer": _Class(),
    "GPTNeoXTokenizer": _Class(composes=True),
    "Qwen2Tokenizer": _Class(pattern=_QWEN2, composes=True),
}


def byte_level(cls: str, files: Files, values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The backend of a class over bytes, without its added tokens.

    Args:
        cls: Name of the class, a key of `BYTE_LEVEL`.
        files: Files of the folder.
        values: Settings of the folder.

    Raises:
        TokenizerError: A file is malformed.
    """
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    how = BYTE_LEVEL[cls]
    backend = tokenizers.Tokenizer(
        _model(files, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    )
    prefix_space = values.get("add_prefix_space")
    prefix_space = how.prefix_space if "add_prefix_space" not in values else bool(prefix_space)
    if how.composes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        if how.pattern is None
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(how.pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False),
            ]
        )
    )
    backend.decoder = decoders.ByteLevel()
    if files.json is not None:
        backend.post_processor = post_processor(files)
    return backend


def finish_byte_level(
    cls: str,
    backend: tokenizers.Tokenizer,
    files: Files,
    values: Mapping[str, Any],
    named: Mapping[str, Any],
    extra: list[Any],
) -> None:
    """What follows when the tokens are there: what a text begins and ends with.

    Args:
        cls: Name of the class.
        backend: Its backend.
        files: Files of the folder.
        values: Settings of the folder.
        named: Special tokens by name.
        extra: Special tokens without names.

    Raises:
        TokenizerError: The class needs a token that the folder takes away.
    """
    from tokenizers import AddedToken, processors

    keep_or_ask(backend, values, named)
    if cls == "GPTNeoXTokenizer":
        begin_and_end(backend, values, named)
    elif cls in ("RobertaTokenizer", "DebertaTokenizer"):
        sep, first = (content(named.get(name)) for name in ("sep_token", "cls_token"))
        if sep is None or first is None:
            expected = f"a sep_token and a cls_token for a {cls}"
            raise malformed(files.folder / "tokenizer_config.json", "null", expected)
        ends = (sep, known_id(backend, sep)), (first, known_id(backend, first))
        backend.post_processor = (
            processors.RobertaProcessing(*ends)
            if cls == "RobertaTokenizer"
            else processors.TemplateProcessing(
                single=[first, "$A", sep], pair=[first, "$A", sep, sep, "$B", sep], special_tokens=[*ends]
            )
        )
    elif cls == "Qwen2Tokenizer":
        # The class names its special tokens once more, so that flags of theirs are lost.
        again = dict.fromkeys(content(token) or "" for token in [*named.values(), *extra])
        backend.add_tokens([AddedToken(token, special=True) for token in again])


def keep_or_ask(backend: tokenizers.Tokenizer, values: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Keeps the post-processor of tokenizer.json unless the settings ask for tokens around a text."""
    if backend.post_processor is None or "add_bos_token" in values or "add_eos_token" in values:
        begin_and_end(backend, values, named)


def split_as_mistral(backend: tokenizers.Tokenizer) -> None:
    """Splits texts as the large vocabularies of Mistral want it, whose older files have another pattern.

    Args:
        backend: The backend, with its added tokens; one with a small vocabulary stays as it is.
    """
    import tokenizers
    from tokenizers import pre_tokenizers

    old = backend.pre_tokenizer
    if old is None or backend.get_vocab_size() <= _MISTRAL_SIZE:
        return
    split = pre_tokenizers.Split(tokenizers.Regex(_MISTRAL), behavior="isolated")
    if isinstance(old, pre_tokenizers.Sequence):
        old[0] = split
        backend.pre_tokenizer = old
        return
    if isinstance(old, pre_tokenizers.Metaspace):
        old = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, old])


def _unknown(values: Mapping[str, Any]) -> str:
    """Name of the token for what is unknown; these classes make "None" of a null, which no vocabulary has."""
    return str(content(values["unk_token"])) if "unk_token" in values else "<unk>"


def llama(files: Files, values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The backend of a LlamaTokenizer, as `byte_level`."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    backend = tokenizers.Tokenizer(_model(files, fuse_unk=True, byte_fallback=True))
    given = values.get("add_prefix_space")
    prefix = True if given is None else bool(given)
    scheme = "never" if not prefix else "always" if values.get("legacy") else "first"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)
    if files.json is not None:
        backend.post_processor = post_processor(files)
    return backend


def gemma(files: Files, values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The backend of a GemmaTokenizer, as `byte_level`."""
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    unknown = _unknown(values)
    backend = tokenizers.Tokenizer(_model(files, fuse_unk=True, unk_token=unknown, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    if files.json is not None:
        backend.post_processor = post_processor(files)
    return backend


def openai_gpt(files: Files, values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The backend of an OpenAIGPTTokenizer, as `byte_level`."""
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers

    unknown = _unknown(values)
    backend = tokenizers.Tokenizer(
        _model(
            files,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=unknown,
        )
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    if files.json is not None:
        backend.post_processor = post_processor(files)
    return backend


# Classes over other alphabets than bytes.
OTHERS = {"LlamaTokenizer": llama, "GemmaTokenizer": gemma, "OpenAIGPTTokenizer": openai_gpt}


def _model(files: Files, **settings: Any) -> tokenizers.models.BPE:  # noqa: ANN401 (those of the library)
    from tokenizers import models

    if files.json is not None:
        vocab, merges = vocabulary(files)
        with errors_of(files.json):
            return models.BPE(vocab=vocab, merges=merges, **settings)
    if files.pieces is not None:
        from .tokenizer_pieces import merges_of_pieces

        vocab, merges = merges_of_pieces(files.pieces)
        with errors_of(files.pieces):
            return models.BPE(vocab=vocab, merges=merges, **settings)
    vocab_file, merges_file = files.folder / "vocab.json", files.folder / "merges.txt"
    if not takes(vocab_file, merges_file):
        vocab = _ids(vocab_file)
        with errors_of(merges_file):
            return models.BPE(vocab=vocab, merges=_merges(merges_file), **settings)
    try:
        with errors_of(merges_file):
            return models.BPE.from_file(str(vocab_file), str(merges_file), **settings)
    except TokenizerError as error:
        # The library does not say in which of the two files it was.
        if _is_sound(vocab_file):
            raise
        raise malformed(vocab_file, error.got) from error
    raise AssertionError  # unreachable: the errors above pass on


def _ids(file: Path) -> dict[str, int]:
    """The tokens of a vocab.json by their ids."""
    vocab = read_content(file)
    for token, index in vocab.items():
        if not _is_id(index):
            raise malformed(
                file, f"{brief(index)} for {brief(token)}", "a vocabulary of ids that are whole numbers"
            )
    return vocab


def _merges(file: Path) -> list[tuple[str, str]]:
    """The pairs of a merges.txt, whose lines that begin with "#version" are none."""
    pairs: list[tuple[str, str]] = []
    for line in lines_of(file):
        if line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            got = f"{len(parts)} in merge {len(pairs) + 1}"
            raise malformed(file, got, "merges of two tokens with a space between")
        pairs.append((parts[0], parts[1]))
    return pairs


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _is_sound(vocab_file: Path) -> bool:
    with contextlib.suppress(ConfigError, FileReadError):
        return all(map(_is_id, read_json(vocab_file).values()))
    return False
