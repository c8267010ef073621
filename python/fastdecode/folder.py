"""The JSON files of a model's folder: how they are read, and what they say about generation.

Nothing here knows which values are sensible; `options` does, and the native side for the model's sizes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .arrays import brief
from .errors import ConfigError, FileReadError
from .families import family

if TYPE_CHECKING:
    from pathlib import Path


# How a file begins that Git LFS leaves in the place of one that has not been fetched.
_POINTER_START = b"version https://git-lfs.github.com/spec/v1"
# What is said of such a file: expected, got.
POINTER = (
    "the file's contents; fetch them with `git lfs pull`",
    "a text file, as Git LFS leaves in their place",
)


class Config(Mapping[str, Any]):
    """The contents of config.json, by key (`config["n_layer"]`) or as attributes (`config.n_layer`)."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 (values of a JSON file)
        return self._values[key]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (as above)
        if name.startswith("__") or name == "_values" or name not in self._values:
            raise AttributeError(f"config.json has no {name!r}")
        return self._values[name]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a loaded model's config is fixed, got {name} = {brief(value)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[Any, ...]:
        return Config, (self._values,)

    def __repr__(self) -> str:
        return f"Config({self._values!r})"


class Defaults(NamedTuple):
    """What a model's folder asks for.

    Attributes:
        values: Keys of the file that are not null.
        file: The file that they are from, for error messages.
        bos_token_id: Token that an empty prompt starts from, or None.
        decoder_start_token_id: Token that a decoder with an encoder starts from, or None.
    """

    values: Mapping[str, Any]
    file: str
    bos_token_id: int | None
    decoder_start_token_id: int | None = None


# What a model without a decoder is asked for: it generates nothing.
NO_DEFAULTS = Defaults({}, "", None)


def is_pointer(path: Path) -> bool:
    """Whether Git LFS has left its own text in the place of a file; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER_START)) == _POINTER_START
    except OSError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileReadError: The file cannot be read.
        ConfigError: It is not JSON, or not an object.
    """
    import json

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileReadError(
            f"cannot read {path}: {error.strerror}", file=str(path), errno=error.errno
        ) from error
    except UnicodeDecodeError as error:
        raise bad_field(str(path), "", "a JSON object in UTF-8", str(error)) from error
    if text.startswith(_POINTER_START.decode()):
        raise bad_field(str(path), "", *POINTER)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_field(str(path), "", "a JSON object", str(error)) from error
    if not isinstance(value, dict):
        raise bad_field(str(path), "", "a JSON object", type(value).__name__)
    return value


def optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`; empty where there is no such file."""
    return read_json(path) if path.is_file() else {}


def bad_field(file: str, field: str, expected: str, got: object) -> ConfigError:
    """The error for a value in a JSON file."""
    where = f"{file}: {field}" if field else file
    return ConfigError(
        f"{where}: expected {expected}, got {got}", file=file, field=field, expected=expected, got=str(got)
    )


def as_whole(value: Any) -> Any:  # noqa: ANN401 (values of a JSON file)
    """A whole float as the integer that it stands for, as transformers takes it; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def with_class_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the special tokens that its model type has by itself."""
    return {**family(config.get("model_type")).special_tokens, **config}


def folder_defaults(folder: Path, config: Mapping[str, Any]) -> Defaults:
    """What the folder's generation_config.json asks for, or config.json where there is none.

    Args:
        folder: Folder of the model.
        config: Contents of its config.json.

    Raises:
        ConfigError: generation_config.json is not a JSON object, or its bos_token_id is not an integer.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        # transformers does not read from there what the configuration's class would add, such as an end token.
        return _defaults(config, str(folder / "config.json"), config)
    return _defaults(read_json(file), str(file), config)


def config_defaults(config: Mapping[str, Any], file: str) -> Defaults:
    """What a configuration in memory asks for by itself, with the special tokens of its class.

    Args:
        config: What config.json would hold.
        file: Its name, for error messages.
    """
    return _defaults(with_class_defaults(config), file, config)


def _defaults(values: Mapping[str, Any], file: str, config: Mapping[str, Any]) -> Defaults:
    kept = {key: value for key, value in values.items() if value is not None}
    bos = _token(kept, config, file, "bos_token_id")
    start = _token(kept, {}, file, "decoder_start_token_id")
    if start is None and "bos_token_id" not in kept:  # transformers takes the bos token in its place
        start = _token({}, with_class_defaults(config), file, "decoder_start_token_id")
    return Defaults(kept, file, bos, bos if start is None else start)


def _token(values: Mapping[str, Any], config: Mapping[str, Any], file: str, field: str) -> int | None:
    value = values.get(field)
    if value is None:
        value = config.get(field)
    if value is None:
        return None
    try:
        # One token for each sequence of a batch; a list of one serves any batch.
        return operator.index(as_whole(value[0] if isinstance(value, list) and len(value) == 1 else value))
    except TypeError:
        raise bad_field(file, field, "an integer or null", brief(value)) from None
