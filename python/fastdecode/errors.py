"""The exceptions and warnings of the package: what was got, what was expected and where, as attributes.

Every exception derives from `FastdecodeError` and from the built-in class that it is a case of (`ValueError`,
`OSError`, ...), so that both `except fastdecode.errors.FastdecodeError` and the usual `except ValueError`
work. The native module raises these classes by name. Nothing here knows how an error comes about.
"""

from __future__ import annotations

__all__ = [
    "CancelledError",
    "ChatTemplateError",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "CudaError",
    "EngineError",
    "FastdecodeError",
    "FastdecodeWarning",
    "FileForbiddenError",
    "FileMissingError",
    "FileReadError",
    "IsaError",
    "ModelNotFoundError",
    "OptionError",
    "OutOfMemoryError",
    "ScoresError",
    "StateBusyError",
    "TokenizerError",
    "TokenizerMissing",
    "UnknownOptionError",
    "UnsupportedModelError",
]


def _restore(cls: type[FastdecodeError], message: str, fields: dict[str, object]) -> FastdecodeError:
    return cls(message, **fields)


class FastdecodeError(Exception):
    """Base of all exceptions of this package.

    Args:
        message: One line that says what was got, what was expected and what to do.
        **fields: Values of the attributes that the class declares; the others are None.
    """

    def __init__(self, message: str, /, **fields: object) -> None:
        super().__init__(message)
        self._fields = fields
        for name, value in fields.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), str(self), self._fields)


class CheckpointError(FastdecodeError, ValueError):
    """A weight file or its index is malformed, or a tensor in it is not what the model needs.

    Attributes:
        file: File in which it was found, or "tensors in memory".
        tensor: Name of the tensor, where one is concerned.
        expected: What a valid file would hold.
        got: What it holds.
    """

    file: str | None = None
    tensor: str | None = None
    expected: str | None = None
    got: str | None = None


class ConfigError(FastdecodeError, ValueError):
    """A field of config.json, generation_config.json or tokenizer_config.json cannot be used.

    Attributes:
        file: Path of the file.
        field: Key in the file.
        expected: Accepted values.
        got: Value in the file.
    """

    file: str | None = None
    field: str | None = None
    expected: str | None = None
    got: str | None = None


class UnsupportedModelError(FastdecodeError, ValueError):
    """The folder is sound, but of an architecture that is not supported.

    Attributes:
        file: Path of the configuration file.
        expected: Supported values of `model_type`.
        got: Value in the file.
    """

    file: str | None = None
    expected: str | None = None
    got: str | None = None


class OptionError(FastdecodeError, ValueError):
    """An argument or option of a call cannot be used.

    Attributes:
        option: Name of the option.
        expected: Accepted values, and what to do.
        got: Value given.
    """

    option: str | None = None
    expected: str | None = None
    got: str | None = None


class ChatTemplateError(OptionError):
    """A chat template fails with these messages, takes too long, or there is none.

    Attributes:
        line: Line of the template, where one is known.
        message: What the template or jinja2 says about it.
        option: "chat_template".
        expected: What would have worked, where that is known.
        got: What was found.
    """

    line: int | None = None
    message: str | None = None


class UnknownOptionError(FastdecodeError, TypeError):
    """A call names an option that does not exist.

    Attributes:
        option: Name that was given.
        expected: The option that was probably meant, or the names of all options.
    """

    option: str | None = None
    expected: str | None = None


class ContextLengthError(FastdecodeError, ValueError):
    """A request needs more positions than the model has, or than a call has that asks for no length.

    Attributes:
        limit: Positions that there are.
        requested: Positions asked for, prompt and new tokens together.
        reason: Why there are no more, and what to do.
    """

    limit: int | None = None
    requested: int | None = None
    reason: str | None = None


class ScoresError(FastdecodeError, ValueError):
    """The scores of a sequence leave no token to choose (weights that overflow, options that forbid all).

    Attributes:
        row: The sequence, prompt by prompt.
        expected: What scores must look like.
        got: What was found.
    """

    row: int | None = None
    expected: str | None = None
    got: str | None = None


class OutOfMemoryError(FastdecodeError, MemoryError):
    """The operating system refused memory, or a GPU has not so much.

    Attributes:
        what: What the memory was for; on a GPU, which one, and how much of its memory is free.
        bytes: Size of the refused request in bytes; 0 where only the driver of a GPU knows it.
    """

    what: str | None = None
    bytes: int | None = None


class IsaError(FastdecodeError, RuntimeError):
    """`FASTDECODE_ISA` names an instruction set that this CPU does not have, or that does not exist.

    Attributes:
        expected: Instruction sets that this CPU can run.
        got: Value of the variable.
    """

    expected: str | None = None
    got: str | None = None


class CudaError(FastdecodeError, RuntimeError):
    """A GPU cannot be used: there is no driver, no such GPU, no kernels for it, or what was asked of it failed.

    Where a GPU has too little memory, that is an `OutOfMemoryError`.

    Attributes:
        what: The device, function or kernel file that is concerned.
        expected: What is needed, and what to do.
        got: What was found; the driver's words and the compiler's log where there are any.
    """

    what: str | None = None
    expected: str | None = None
    got: str | None = None


class CancelledError(FastdecodeError, RuntimeError):
    """The step that was running was cancelled from another thread."""


class StateBusyError(FastdecodeError, RuntimeError):
    """A `State` was used while a call of it was running; nothing has changed.

    Attributes:
        expected: How a state may be used.
        got: Who is using it.
    """

    expected: str | None = None
    got: str | None = None


class PrefixClosedError(FastdecodeError, ValueError):
    """A `Prefix` was used after it was closed.

    Attributes:
        expected: What to do.
        got: What it is.
    """

    expected: str | None = None
    got: str | None = None


class EngineError(FastdecodeError, RuntimeError):
    """An internal error: the native code panicked. The process and its threads remain usable.

    Attributes:
        got: Message of the panic.
    """

    got: str | None = None


class FileReadError(FastdecodeError, OSError):
    """The operating system refused to read a file.

    Attributes:
        file: Path of the file or folder.
        errno: Number of the system's error, as in `OSError`.
    """

    file: str | None = None


class FileMissingError(FileReadError, FileNotFoundError):
    """A file that the model needs is not there."""


class FileForbiddenError(FileReadError, PermissionError):
    """A file may not be read by this user."""


class ModelNotFoundError(FastdecodeError, FileNotFoundError):
    """A model is neither a folder, nor bundled, nor to be had from the hub.

    Attributes:
        model: Name or path that was given.
        expected: What would have worked.
        got: What was found instead.
    """

    model: str | None = None
    expected: str | None = None
    got: str | None = None


class TokenizerError(FastdecodeError, ValueError):
    """A tokenizer's file is malformed.

    Attributes:
        file: Path of the file.
        expected: What a valid file would hold.
        got: What it holds, in the tokenizer library's words.
    """

    file: str | None = None
    expected: str | None = None
    got: str | None = None


class TokenizerMissing(FastdecodeError, ValueError):
    """Text was given or asked for, but the model has no tokenizer.

    Attributes:
        expected: What to do.
        got: What needed a tokenizer.
    """

    expected: str | None = None
    got: str | None = None


class FastdecodeWarning(UserWarning):
    """Something in a model's folder or in a call had no effect, or probably not the effect that was meant."""
