"""A folder's tokenizer files to a `Tokenizer`, put together as transformers 5.24 does it.

The class counts first (`tokenizer_class`), then the files that the class asks for, then the special and added tokens
(`tokenizer_tokens`). A class that is not built here is refused by its name. The generic class takes tokenizer.json as
it is. Nothing here knows models or options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arrays import brief
from .errors import TokenizerError
from .families import TOKENIZER_CLASSES
from .folder import bad_field, optional_json
from .tokenizer import Tokenizer, token_limit
from .tokenizer_backends import LibraryBackend
from .tokenizer_bpe import BYTE_LEVEL, OTHERS, split_as_mistral
from .tokenizer_class import declared_class, tokenizer_class
from .tokenizer_parts import Files, errors_of, find_files, malformed, read_bytes, read_content, refuse_pointer
from .tokenizer_table import GENERIC
from .tokenizer_tokens import ADDED, OLD_EXTRA, add_tokens, content, gather, special_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import tokenizers


# Asks for the pattern of Mistral's newer files, and which folders may ask.
_MISTRAL_SPLIT = "fix_mistral_regex"
_MISTRALS = (None, "mistral", "mistral3", "voxtral", "ministral", "pixtral")
# The file of classes that are made of a SentencePiece model where there is no tokenizer.json.
_PIECES = "tokenizer.model"
_OVER_PIECES = [name for name, entry in TOKENIZER_CLASSES.items() if entry.files == (_PIECES,)]


def read_file(file: Path) -> Tokenizer:
    """The tokenizer of one file, as it is.

    Args:
        file: A tokenizer.json, or a SentencePiece model (`*.model`): T5's, unless it is named tokenizer.model, which
            is followed in its own settings, as in a folder that says nothing.

    Raises:
        TokenizerError: The file is malformed, or needs the sentencepiece package.
    """
    refuse_pointer(file)
    if file.suffix == ".model":
        cls = GENERIC if file.name == _PIECES else "T5Tokenizer"
        return _built(cls, Files(file.parent, None, None, file), {ADDED: {}})
    expected = "a tokenizer.json or a SentencePiece model (*.model); for other files their folder"
    return _built(GENERIC, Files(file.parent, file), {ADDED: {}}, _from_file(file, expected))


def read_folder(folder: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a model's folder, or None where it has none.

    Args:
        folder: Folder with tokenizer.json, or with the files that its class of tokenizers asks for.
        config: Contents of its config.json; empty where there is none.

    Raises:
        TokenizerError: The folder's class of tokenizers is not built here, a file of the tokenizer is malformed, or
            it needs the sentencepiece package.
        ConfigError: tokenizer_config.json is not a JSON object, or a value in it cannot be used.
        FileReadError: A file cannot be read.
    """
    settings = optional_json(folder / "tokenizer_config.json")
    if (side := settings.get("truncation_side")) not in (None, "right", "left"):
        raise bad_field(
            str(folder / "tokenizer_config.json"), "truncation_side", '"right" or "left"', brief(side)
        )
    files = find_files(folder, settings)

    def is_byte_level() -> bool:
        return files.json is not None and '"ByteLevel"' in files.json.read_text(encoding="utf-8")

    cls = tokenizer_class(settings, config, name=str(folder), is_byte_level=is_byte_level)
    name = declared_class(settings, config)
    declared = name is not None
    if cls != GENERIC and cls not in TOKENIZER_CLASSES:
        return _none_for(files, cls, declared=declared)
    if not _has_files(cls, files):
        # transformers finds no vocabulary here. What no file declares may be what the files say.
        found = _by_files(files)
        if cls == GENERIC and name not in (None, GENERIC, found):
            # The rules of that class, which may be code of the folder's own, are not those of the files.
            return _none_for(files, name, declared=True)
        if found is None:
            return _none_for(files, cls, declared=declared) if cls in _OVER_PIECES else None
        if cls != GENERIC and declared:
            raise _other_files(folder, cls, found)
        cls = found
    if not _takes_pieces(cls, files):
        files = files._replace(pieces=None)
    if files.json is None and files.pieces is None and cls in _OVER_PIECES:
        files = files._replace(pieces=folder / _PIECES)
    if files.json is not None:
        refuse_pointer(files.json)
        # What begins and ends a text is then in that file.
        settings = {
            name: value for name, value in settings.items() if name not in ("add_bos_token", "add_eos_token")
        }
        if cls not in (GENERIC, "ByT5Tokenizer"):
            files = files._replace(content=read_content(files.json))
    if not _may_split_as_mistral(folder, config):
        settings = {name: value for name, value in settings.items() if name != _MISTRAL_SPLIT}
    whole = _from_file(files.json) if cls == GENERIC and files.json is not None else None
    listed = _listed(files, whole) if ADDED not in settings and files.json is not None else None
    built = _built(cls, files, gather(folder, settings, listed), whole)
    built.folder = folder
    return built


def _may_split_as_mistral(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder is one of Mistral's, from before transformers wrote the newer pattern."""
    version = str(config.get("transformers_version") or "0")
    is_new = version.split(".")[0].isdecimal() and int(version.split(".")[0]) >= 5
    is_new &= not version.startswith(("5.0.0.dev", "5.0.0rc"))
    return not is_new and config.get("model_type") in _MISTRALS and (folder / "config.json").is_file()


def _has_files(cls: str, files: Files) -> bool:
    """Whether the folder has what the class asks for; the names of one entry are needed together."""
    if files.json is not None or cls == "ByT5Tokenizer":
        return True
    if _takes_pieces(cls, files):
        return True
    known = TOKENIZER_CLASSES.get(cls)
    if known is None or not known.files:
        return False
    for name in known.files:
        refuse_pointer(files.folder / name)
    return all((files.folder / name).is_file() for name in known.files)


def _takes_pieces(cls: str, files: Files) -> bool:
    """Whether a tokenizer.model counts before the files of the class."""
    return files.pieces is not None and cls in (GENERIC, "T5Tokenizer", *BYTE_LEVEL, *OTHERS)


def _by_files(files: Files) -> str | None:
    """The class that a folder's files may mean by themselves, or None."""
    if files.pieces is not None:
        return None
    return next(
        (cls for cls in ("GPT2Tokenizer", "T5Tokenizer", "BertTokenizer") if _has_files(cls, files)), None
    )


def _none_for(files: Files, cls: str, *, declared: bool) -> Tokenizer | None:
    """Raises for a class that is not built here, unless nothing declares it and it could be made of nothing."""
    folder = files.folder
    told = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    parts = ("tokenizer", "vocab", "merges", "piece", "spm", ".model", ".codes", "dict.txt")
    names = [path.name for path in folder.iterdir() if path.name not in told]
    if not declared and not any(part in name for name in names for part in parts):
        return None
    without = "" if cls not in TOKENIZER_CLASSES else f" without a tokenizer.json or {_PIECES}"
    expected = (
        f"one of {', '.join(sorted(TOKENIZER_CLASSES))}, or a tokenizer.json for PreTrainedTokenizerFast; or give the "
        f"model its tokenizer: load(..., tokenizer=transformers.AutoTokenizer.from_pretrained({str(folder)!r}))"
    )
    raise TokenizerError(
        f"{folder}: the tokenizer's class is {cls}, which is not supported{without}; expected {expected}",
        file=str(folder),
        expected=expected,
        got=cls,
    )


def _other_files(folder: Path, cls: str, other: str) -> TokenizerError:
    def names(of: str) -> str:
        return " and ".join(TOKENIZER_CLASSES[of].files)

    own = f" or {names(cls)}" if TOKENIZER_CLASSES[cls].files else ""
    expected = f"tokenizer.json{own} for a {cls}; or tokenizer_class {other!r} in tokenizer_config.json"
    got = f"{names(other)}, which make a {other}"
    return TokenizerError(
        f"{folder}: expected {expected}, got {got}", file=str(folder), expected=expected, got=got
    )


def _listed(files: Files, whole: tokenizers.Tokenizer | None) -> list[Any]:
    """What tokenizer.json has under added_tokens.

    Args:
        files: Files of the folder.
        whole: What the library has read of that file, which it does faster than Python.
    """
    assert files.json is not None
    if whole is not None:
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        return [
            {"id": index, "content": token.content} | {name: getattr(token, name) for name in flags}
            for index, token in whole.get_added_tokens_decoder().items()
        ]
    held = files.content if files.content is not None else read_content(files.json)
    listed = held.get("added_tokens")
    return listed if isinstance(listed, list) else []


def _from_file(
    file: Path, expected: str = "a tokenizer that the tokenizers library reads"
) -> tokenizers.Tokenizer:
    import tokenizers

    with errors_of(file, expected):
        # The library takes names that are text, and a folder's need not be.
        return tokenizers.Tokenizer.from_buffer(read_bytes(file))
    raise AssertionError  # unreachable: the errors above pass on


def _built(
    cls: str, files: Files, values: dict[str, Any], whole: tokenizers.Tokenizer | None = None
) -> Tokenizer:
    """The tokenizer of a class.

    Args:
        cls: A key of `TOKENIZER_CLASSES`, or `GENERIC`.
        files: Files of the folder.
        values: Its settings and tokens, as `gather` makes them.
        whole: The tokenizer.json for `GENERIC`, where there is one.
    """
    where = files.folder / "tokenizer_config.json"
    defaults = TOKENIZER_CLASSES[cls].tokens if cls in TOKENIZER_CLASSES else {}
    if cls == "ByT5Tokenizer":
        return _byt5(values, defaults, where)
    backend = _backend(cls, files, values) if whole is None else whole
    held = backend if files.content is None else _parts_of(files)
    if (padding := held.padding) is not None and "pad_token" not in defaults:
        values.setdefault("pad_token", padding["pad_token"])
    if (truncation := held.truncation) is not None:
        values.setdefault("truncation_side", truncation["direction"])
    backend.no_padding()
    backend.no_truncation()
    named, extra = special_tokens(values, defaults)
    if cls == "BlenderbotTokenizer" and isinstance(named.get("mask_token"), str):
        from tokenizers import AddedToken

        named["mask_token"] = AddedToken(named["mask_token"], lstrip=True, normalized=False)
    add_tokens(backend, values[ADDED], named, extra)
    if values.get(_MISTRAL_SPLIT):
        split_as_mistral(backend)
    _finish(cls, backend, files, values, named, extra)
    backend.encode_special_tokens = bool(values.get("split_special_tokens"))
    shown = _shown(values, named, extra)
    if values.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"):
        return Tokenizer(LibraryBackend(backend, cleans_bpe=True), given=backend, **shown)
    return Tokenizer(backend, **shown)


def _backend(cls: str, files: Files, values: dict[str, Any]) -> tokenizers.Tokenizer:
    from . import tokenizer_bpe, tokenizer_pieces, tokenizer_wordpiece

    if cls == "T5Tokenizer":
        return tokenizer_pieces.t5(files, values)
    if files.pieces is not None and cls != GENERIC:
        tokenizer_pieces.own_pieces(files.pieces, values)
    if cls in tokenizer_bpe.BYTE_LEVEL:
        return tokenizer_bpe.byte_level(cls, files, values)
    if cls == "BertTokenizer":
        return tokenizer_wordpiece.bert(files, values)
    if cls in tokenizer_bpe.OTHERS:
        return tokenizer_bpe.OTHERS[cls](files, values)
    assert files.pieces is not None
    return tokenizer_pieces.of_pieces(files.pieces, values)


def _finish(
    cls: str,
    backend: tokenizers.Tokenizer,
    files: Files,
    values: Mapping[str, Any],
    named: Mapping[str, Any],
    extra: list[Any],
) -> None:
    """What a text begins and ends with, when the tokens are there."""
    from . import tokenizer_bpe, tokenizer_pieces, tokenizer_wordpiece

    if cls in tokenizer_bpe.BYTE_LEVEL:
        tokenizer_bpe.finish_byte_level(cls, backend, files, values, named, extra)
    elif cls == "T5Tokenizer":
        tokenizer_pieces.finish_t5(backend, files.folder / "tokenizer_config.json", named)
    elif cls == "BertTokenizer":
        tokenizer_wordpiece.finish_bert(backend, named)
    else:
        tokenizer_bpe.keep_or_ask(backend, values, named)


def _parts_of(files: Files) -> tokenizers.Tokenizer:
    """Padding and truncation of a tokenizer.json whose other parts a class replaces."""
    import json

    import tokenizers

    assert files.content is not None
    assert files.json is not None
    parts = {name: files.content.get(name) for name in ("padding", "truncation")}
    model = {"type": "BPE", "vocab": {}, "merges": []}
    with errors_of(files.json):
        text = json.dumps({"version": "1.0", "added_tokens": [], "model": model} | parts)
        return tokenizers.Tokenizer.from_str(text)
    raise AssertionError  # as above


def _byt5(values: dict[str, Any], defaults: Mapping[str, str | None], where: Path) -> Tokenizer:
    from .byt5 import ByT5Backend, cut
    from .tokenizer_pieces import sentinels

    count = values.get("extra_ids", 125)
    if values.get(OLD_EXTRA) is None and isinstance(count, int) and 0 < count < 2**20:
        values[OLD_EXTRA] = sentinels(count)
    named, extra = special_tokens(values, defaults)
    first = [named.get(name) for name in ("pad_token", "eos_token", "unk_token")]
    added = {
        index: cut(token, lstrip=True, rstrip=True) for index, token in enumerate(first) if token is not None
    }
    added |= {index: cut(token) for index, token in values[ADDED].items()}
    if named.get("eos_token") is None or not {0, 1, 2} <= added.keys():
        raise malformed(where, "null", "a pad_token, an eos_token and an unk_token for a ByT5Tokenizer")
    special = [content(token) or "" for token in [*named.values(), *extra]]
    backend = ByT5Backend(
        added,
        list(dict.fromkeys(special)),
        eos_token=content(named["eos_token"]) or "",
        split_special_tokens=bool(values.get("split_special_tokens")),
    )
    return Tokenizer(backend, **_shown(values, named, extra))


def _shown(values: Mapping[str, Any], named: Mapping[str, Any], extra: list[Any]) -> dict[str, Any]:
    """What a `Tokenizer` takes beside its backend."""
    return {
        "all_special_tokens": [content(token) or "" for token in [*named.values(), *extra]],
        "unk_token": content(named.get("unk_token")),
        "bos_token": content(named.get("bos_token")),
        "eos_token": content(named.get("eos_token")),
        "pad_token": content(named.get("pad_token")),
        "clean_up_tokenization_spaces": bool(values.get("clean_up_tokenization_spaces")),
        "model_max_length": token_limit(values.get("model_max_length", values.get("max_len"))),
        "truncation_side": values.get("truncation_side") or "right",
        "special_tokens_map": {
            name: text for name, token in named.items() if (text := content(token)) is not None
        },
    }
