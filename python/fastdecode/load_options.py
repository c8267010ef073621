"""Options of loading: their names, and which values those may have that the native module takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

from .accepted import PassedOverInLoading, weight_types
from .arrays import bad_option, brief

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

DtypeName = Literal["auto", "float32", "float16", "bfloat16", "int8", "int4"]
Dtype: TypeAlias = DtypeName | Mapping[str, DtypeName]
Int4Group = Literal[32, 64, 128]
ComputeDtype = Literal["float32", "bfloat16"]


class LoadOptions(TypedDict, total=False):
    """Arguments of `load` beside the model's name; see there."""

    dtype: Dtype
    int4_group: Int4Group
    compute_dtype: ComputeDtype | None
    num_threads: int | None
    cache_bytes: int | None
    max_rows: int | None
    prefix_cache_bytes: int
    device: str
    tokenizer: object
    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    adapter: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


class AnyLoadOptions(LoadOptions, PassedOverInLoading, total=False):
    """The same with those of transformers."""


# Type of what no part names, the parts that have another, and the inputs of a group of int4.
NativeDtype: TypeAlias = tuple[str, list[tuple[str, str]], int]
# A device, the folder of the package's kernels, and folders in which NVRTC may be.
NativeDevice: TypeAlias = tuple[str, str, list[str]]

LOADING = frozenset(LoadOptions.__annotations__)


def as_int4_group(value: object) -> int:
    """Inputs of a group of int4.

    Raises:
        OptionError: There are no such groups.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value not in (32, 64, 128):
        raise bad_option("int4_group", "32, 64 or 128", brief(value))
    return value


def is_profiled() -> bool:
    """Whether `FASTDECODE_PROFILE` asks for a profile of every model: "1"; "0", "" or none for no profile.

    Raises:
        OptionError: It has another value.
    """
    import os

    value = os.environ.get("FASTDECODE_PROFILE", "")
    if value not in ("", "0", "1"):
        raise bad_option("FASTDECODE_PROFILE", "1 for a profile, 0 or nothing for none", brief(value))
    return value == "1"


def load_options(
    dtype: object,
    compute_dtype: str | None,
    num_threads: int | None,
    cache_bytes: int | None,
    max_rows: int | None,
    prefix_cache_bytes: int | None,
    int4_group: object = 64,
    device: object = "cpu",
) -> tuple[NativeDtype, str | None, int | None, int | None, int | None, int, NativeDevice]:
    """Checks the options of loading that the native module takes.

    Raises:
        OptionError: One of them cannot be used.
    """
    types = weight_types("dtype", dtype)
    by_part = {"default": types} if isinstance(types, str) else dict(types)
    group = as_int4_group(int4_group)
    if compute_dtype is not None and not isinstance(compute_dtype, str):
        raise bad_option("compute_dtype", 'None, "float32" or "bfloat16"', brief(compute_dtype))
    if compute_dtype not in (None, "float32", "bfloat16"):
        raise bad_option("compute_dtype", 'None, "float32" or "bfloat16"', brief(compute_dtype))
    # Before anything is read: a mistake is told at once.
    is_profiled()
    for name, value, least, most, expected in (
        ("num_threads", num_threads, 1, 2**31 - 1, "None or an integer of at least 1"),
        ("cache_bytes", cache_bytes, 1, 2**63 - 1, "None or an integer of at least 1 and below 2**63"),
        ("max_rows", max_rows, 1, 2**16, f"None or an integer from 1 to {2**16}"),
        ("prefix_cache_bytes", prefix_cache_bytes, 0, 2**63 - 1, "an integer from 0 to cache_bytes"),
    ):
        known = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        if value is not None and not known:
            raise bad_option(name, expected, brief(value))
    stored = (by_part.pop("default", "auto"), list(by_part.items()), group)
    native = _native_device(device)
    return stored, compute_dtype, num_threads, cache_bytes, max_rows, prefix_cache_bytes or 0, native


def _native_device(device: object) -> NativeDevice:
    """A device with where its kernels are; nothing is looked for where the CPU is meant.

    Raises:
        OptionError: It is no name of a device; which names those are, the native module says.
    """
    if not isinstance(device, str):
        raise bad_option("device", '"cpu", "auto", "cuda" or "cuda:N"', brief(device))
    if device == "cpu":
        return device, "", []
    from . import cuda

    # A lone surrogate is no text for the native module, which would not say which option it is.
    return device.encode("utf-8", "replace").decode(), cuda.cubins(), cuda.nvrtc()


def dtype_of_words(words: Sequence[str]) -> str | dict[str, str]:
    """The types of weights on a command line.

    Args:
        words: What was given, in order: a type, which is the default's, or types by part as NAME=TYPE,NAME=TYPE.

    Raises:
        OptionError: They are not written so, or a part has two.
    """
    by_part: dict[str, str] = {}
    for word in words:
        items = word.split(",") if "=" in word else [f"default={word}"]
        for item in items:
            part, _, name = (text.strip() for text in item.partition("="))
            if not part or not name or "," in name or part in by_part:
                expected = "a type, or types by part as NAME=TYPE,NAME=TYPE, each part once"
                raise bad_option("dtype", expected, brief(" ".join(words)))
            by_part[part] = name
    return by_part["default"] if by_part.keys() == {"default"} else by_part
