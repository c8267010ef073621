"""Values on their way to and from the native module, prompts, logits, tensors in memory; and in the words of errors.

numpy is imported where it is used, since `import fastdecode` must stay fast.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeGuard

from .errors import CheckpointError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    # A conversation: mappings with role and content.
    Messages = Sequence[Mapping[str, Any]]
    # A text, token ids, or a conversation.
    Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Messages
    # Token ids, of which some may be -100.
    Labels = Sequence[int] | NDArray[np.integer[Any]]

_IN_MEMORY = "tensors in memory"

# numpy's names of element types -> those of safetensors; unsigned 16-bit integers are taken as bits of
# bfloat16.
_ELEMENTS = {
    "bfloat16": "BF16",
    "bool": "BOOL",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "int8": "I8",
    "uint16": "BF16",
    "uint8": "U8",
}


class _Brief(reprlib.Repr):
    """Values that say nothing of themselves, or hold such: integers of more digits than Python writes, for one."""

    def repr_int(self, x: int, level: int) -> str:
        """An integer, or about which power of ten it is."""
        try:
            return super().repr_int(x, level)
        except ValueError:
            digits = math.log10(abs(x))
            return f"{'-' if x < 0 else ''}{10 ** (digits % 1):.3f}e+{int(digits)}"


def brief(value: object) -> str:
    """A value in the words of an error: as `repr` has it, in 80 characters at most, whatever it holds."""
    try:
        text = repr(value)
    except Exception:  # A class of anybody's may raise anything.
        try:
            text = _Brief().repr(value)
        except Exception:
            text = f"a value of type {type(value).__name__}"
    return text[:80]


def spelt(value: object) -> str:
    """The text of a value that may be a name or stand for one: its own, or that of `brief` where it has none."""
    try:
        return str(value)
    except Exception:  # as above
        return brief(value)


def bad_option(option: str, expected: str, got: object) -> OptionError:
    """The error for an argument that cannot be used."""
    return OptionError(
        f"{option}: expected {expected}, got {got}", option=option, expected=expected, got=str(got)
    )


def is_whole(value: object) -> TypeGuard[SupportsIndex]:
    """Whether a value is an integer of any kind, and neither True nor False."""
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:  # Arrays have the method, and most have no integer.
        return False
    return not isinstance(value, bool)


def whole(value: object, option: str, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        OptionError: It is something else.
    """
    if is_whole(value) and (number := operator.index(value)) >= least:
        return number
    raise bad_option(option, f"an integer of at least {least}", brief(value))


def is_empty(prompt: object) -> bool:
    """Whether this is a list of no ids."""
    return not isinstance(prompt, str) and hasattr(prompt, "__len__") and len(prompt) == 0


def is_message(value: object) -> bool:
    """Whether this is a message of a conversation: a mapping, or an object that stands for one."""
    if isinstance(value, Mapping):
        return True
    if isinstance(value, (str, int, list, tuple, type)) or value is None:
        return False
    known = hasattr(type(value), "__dataclass_fields__") or callable(getattr(value, "model_dump", None))
    return known and (hasattr(value, "role") or hasattr(value, "content"))


def is_conversation(value: object) -> bool:
    """Whether this is a list of messages; one without any is no conversation, but a list of no ids."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and is_message(value[0])


def is_one(prompt: object, option: str = "prompt") -> bool:
    """Whether this is one prompt, and not a list of them (an empty list is a list of none).

    A list is told by its first item: ids and messages make one prompt; texts and lists are several.
    """
    if isinstance(prompt, str):
        return True
    unfit = isinstance(prompt, (bytes, bytearray, Mapping, set, frozenset)) or not isinstance(
        prompt, Iterable
    )
    if unfit or getattr(prompt, "ndim", 1) == 0:  # an array of one number alone says that it is iterable
        expected = "a string, a list of token ids or of messages, or a list of such"
        raise bad_option(option, expected, brief(prompt))
    if not isinstance(prompt, Sequence) and not hasattr(prompt, "ndim"):
        return False  # an iterator: of prompts, as its first item cannot be looked at
    items: Any = prompt
    if is_conversation(items):
        return True
    return len(items) > 0 and hasattr(items[0], "__index__") and not getattr(items[0], "ndim", 0)


def as_ids(ids: Iterable[int], vocab_size: int, option: str = "prompt") -> list[int]:
    """Token ids as plain integers.

    Raises:
        OptionError: One of them is not an integer from 0 to `vocab_size` - 1.
    """
    plain = []
    for token in ids:
        try:
            number = -1 if isinstance(token, bool) else operator.index(token)
        except TypeError:
            number = -1
        if not 0 <= number < vocab_size:
            raise bad_option(option, f"token ids (integers from 0 to {vocab_size - 1})", brief(token))
        plain.append(number)
    return plain


def as_floats(values: bytearray, rows: int | None = None) -> NDArray[np.float32]:
    """Floats from the native module as an array of shape `(V,)`, or `(rows, V)`."""
    import numpy as np

    array = np.frombuffer(values, dtype=np.float32)
    return array if rows is None else array.reshape(rows, -1)


def as_tensor(name: str, array: NDArray[Any]) -> tuple[str, str, list[int], memoryview]:
    """A tensor for the native module: name, element type, shape and little-endian bytes.

    Raises:
        CheckpointError: It is not a numpy array of a type that a checkpoint can hold, or its name is no text.
    """
    import numpy as np

    if not isinstance(name, str) or has_lone_surrogate(name):
        raise _bad_tensor(brief(name), "names that are text", brief(name))
    element = _ELEMENTS.get(getattr(getattr(array, "dtype", None), "name", ""))
    if element is None:
        expected = "a numpy array of float32, float16 or bfloat16 (of ml_dtypes, or its bits as uint16)"
        raise _bad_tensor(name, expected, f"{type(array).__name__} of {getattr(array, 'dtype', 'no dtype')}")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    flat = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
    return name, element, list(array.shape), flat.data


def has_lone_surrogate(text: str) -> bool:
    """Whether a text has one, which is no character: a command line has them for bytes that are no UTF-8."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _bad_tensor(name: str, expected: str, got: str) -> CheckpointError:
    return CheckpointError(
        f"{_IN_MEMORY}: tensor {name}: expected {expected}, got {got}",
        file=_IN_MEMORY,
        tensor=name,
        expected=expected,
        got=got,
    )
