"""What the builders of all classes of tokenizers share: the files of a folder, their errors, and templates.

Nothing here knows a class.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .arrays import brief, has_lone_surrogate
from .errors import ConfigError, FileReadError, TokenizerError
from .folder import POINTER, is_pointer, read_json
from .tokenizer_tokens import content

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers
    from tokenizers import processors


# The version of transformers that this package follows.
_REFERENCE = [5, 24, 0]


class Files(NamedTuple):
    """The files from which a tokenizer is made.

    Attributes:
        folder: The folder.
        json: Its tokenizer.json, or None.
        content: What that holds, for classes that take parts of it; None for others.
        pieces: A SentencePiece model that counts before the file of the class, or None.
    """

    folder: Path
    json: Path | None
    content: Mapping[str, Any] | None = None
    pieces: Path | None = None


def find_files(folder: Path, settings: Mapping[str, Any]) -> Files:
    """The files of a folder: which tokenizer.json counts, and whether there is a tokenizer.model.

    Args:
        folder: The folder.
        settings: Contents of tokenizer_config.json, which may list a tokenizer.json for each version.
    """
    name = "tokenizer.json"
    versions = settings.get("fast_tokenizer_files")
    matches = [
        re.search(r"tokenizer\.(.*)\.json", str(v)) for v in (versions if isinstance(versions, list) else [])
    ]
    for match in sorted((match for match in matches if match is not None), key=lambda match: match[1]):
        if not re.fullmatch(r"\d+(\.\d+)*", match[1]) or [int(n) for n in match[1].split(".")] > _REFERENCE:
            break
        name = match.string
    file = folder / name
    # Any name that holds it counts as the file's being there, as in transformers.
    listing = "\n".join(path.name for path in folder.iterdir()) if folder.is_dir() else ""
    pieces = None
    if name not in listing and (
        found := re.search(r"tekken\.json|tokenizer\.model\.*|tiktoken\.model", listing)
    ):
        # A longer name leads to none that is there.
        pieces = folder / found[0] if (folder / found[0]).is_file() else None
    return Files(folder, file if file.is_file() else None, None, pieces)


def malformed(
    file: Path, error: object, expected: str = "a tokenizer that the tokenizers library reads"
) -> TokenizerError:
    """The error for a file that cannot be used.

    Args:
        file: Its path.
        error: What was found.
        expected: What a valid file would hold.
    """
    return TokenizerError(
        f"{file}: expected {expected}, got: {error}", file=str(file), expected=expected, got=str(error)
    )


@contextlib.contextmanager
def errors_of(file: Path, expected: str = "a tokenizer that the tokenizers library reads") -> Iterator[None]:
    """Turns what the tokenizers library raises, which is bare `Exception` and panics, into an error about a file."""
    try:
        yield
    except (TokenizerError, ConfigError, OSError):
        raise
    except BaseException as error:
        # Ctrl-C and its like pass; a panic of the library is no `Exception` either.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise malformed(file, error, expected) from error


def refuse_pointer(file: Path) -> None:
    """Raises where Git LFS has left its own text in the place of a file."""
    if is_pointer(file):
        expected, got = POINTER
        raise malformed(file, got, expected)


def read_bytes(file: Path) -> bytes:
    """The contents of a file.

    Raises:
        FileReadError: The file cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise FileReadError(
            f"cannot read {file}: {error.strerror}", file=str(file), errno=error.errno
        ) from error


def lines_of(file: Path) -> list[str]:
    """The lines of a text file, as the library reads them: without their ends, which are a newline or CR and newline.

    Raises:
        FileReadError: The file cannot be read.
        UnicodeDecodeError: It is not in UTF-8.
    """
    lines = read_bytes(file).decode().split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def takes(*files: Path) -> bool:
    """Whether the library takes the names of files, which need not be text."""
    return not any(has_lone_surrogate(str(file)) for file in files)


def read_content(file: Path) -> dict[str, Any]:
    """The object in a tokenizer.json.

    Raises:
        FileReadError: The file cannot be read.
        TokenizerError: It is not JSON, or not an object.
    """
    try:
        return read_json(file)
    except FileReadError:
        raise
    except ConfigError as error:
        raise malformed(file, error.got, error.expected or "a JSON object") from error


def vocabulary(files: Files) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens by their ids, and merges, of a tokenizer.json of any kind: a list counts by its order.

    Raises:
        TokenizerError: There is no vocabulary.
    """
    assert files.json is not None
    model = (files.content or {}).get("model")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(vocab, (dict, list)) or not vocab:
        raise malformed(files.json, brief(vocab), "a model with a vocabulary")
    with errors_of(files.json):
        if isinstance(vocab, list):
            vocab = {item[0] if isinstance(item, list) else item: place for place, item in enumerate(vocab)}
        merges = []
        for pair in model.get("merges") or []:
            left, right = pair.split(" ") if isinstance(pair, str) else pair
            merges.append((left, right))
        return vocab, merges
    raise AssertionError  # unreachable: the errors above pass on


def post_processor(files: Files) -> processors.PostProcessor | None:
    """The post-processor of a tokenizer.json, or None.

    Raises:
        TokenizerError: The library does not know it.
    """
    import json

    import tokenizers

    assert files.json is not None
    part = (files.content or {}).get("post_processor")
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    with errors_of(files.json):
        text = json.dumps({"version": "1.0", "added_tokens": [], "post_processor": part, "model": empty})
        made: processors.PostProcessor | None = tokenizers.Tokenizer.from_str(text).post_processor
        return made
    raise AssertionError  # as above


def known_id(backend: tokenizers.Tokenizer, token: str) -> int:
    """Id of a token that has been added.

    Raises:
        TokenizerError: There is none, since the token has no characters.
    """
    found = backend.token_to_id(token)
    if found is None:
        expected = "special tokens of at least one character"
        raise TokenizerError(
            f"tokenizer_config.json: expected {expected}, got {brief(token)}",
            file="tokenizer_config.json",
            expected=expected,
            got=brief(token),
        )
    return found


def begin_and_end(backend: tokenizers.Tokenizer, values: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """A template that begins and ends a text with the tokens for it, as far as the settings ask for them.

    Args:
        backend: The tokenizer, with its tokens.
        values: Settings of the folder.
        named: Special tokens by name.
    """
    from tokenizers.processors import TemplateProcessing

    bos, eos = (content(named.get(name)) for name in ("bos_token", "eos_token"))
    before = [bos] if values.get("add_bos_token") and bos else []
    after = [eos] if values.get("add_eos_token") and eos else []
    tokens = [(token, known_id(backend, token)) for token in dict.fromkeys([*before, *after])]
    template = [*before, "$A", *after]
    second = [*(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
    backend.post_processor = TemplateProcessing(
        single=template, pair=[*template, *second], special_tokens=tokens
    )
