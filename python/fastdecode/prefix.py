"""A prefix that was read once: what a caller holds of it, and how a prompt is joined to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self

from .arrays import bad_option, brief, is_conversation, is_empty
from .errors import PrefixClosedError

if TYPE_CHECKING:
    from types import TracebackType

    from . import _core
    from .arrays import Prompt

# What a prompt can be made of, as errors name it.
_TEXT, _IDS, _MESSAGES = "text", "token ids", "messages"


class Prefix:
    """What a model has read once, for any number of calls that begin with it; made by `CausalLM.prefix`.

    A call with `prefix=` reads the prefix and its prompt as one: texts are joined and tokenized together, token ids and
    messages are joined as lists, which become one conversation. Only ids behind what the result has in common with
    the prefix are computed. Every bit is that of a call without a prefix.

    Threads may share it, and a forked process goes on using it. It cannot be pickled. Its keys and values count
    towards the model's `cache_bytes` until `close()`, the end of a `with` block, or the last reference to it;
    calls that are running keep what they began with.

    Attributes:
        closed: Whether it has been closed.

    Example:
        >>> with model.prefix("Once upon a time there was a king. ") as prefix:
        ...     story = model.generate("He had", prefix=prefix, seed=1, max_new_tokens=20)
        >>> story == model.generate("Once upon a time there was a king. He had", seed=1, max_new_tokens=20)
        True
    """

    __slots__ = ("_core", "_given")

    def __init__(self, core: _core.Prefix, given: Any) -> None:  # noqa: ANN401 (a prompt of any kind)
        self._core: _core.Prefix | None = core
        self._given = given

    @property
    def core(self) -> _core.Prefix:
        """The native part.

        Raises:
            PrefixClosedError: The prefix is closed.
        """
        core = self._core
        if core is None:
            expected, got = "a prefix that is open; read it again with model.prefix", "a closed one"
            message = f"prefix: expected {expected}, got {got}"
            raise PrefixClosedError(message, expected=expected, got=got)
        return core

    @property
    def tokens(self) -> list[int]:
        """Ids that were read.

        Raises:
            PrefixClosedError: The prefix is closed.
        """
        return self.core.tokens

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._core is None

    def close(self) -> None:
        """Gives its memory back, as soon as no running call uses it. Closing it again does nothing."""
        self._core = None

    def joined(self, prompt: Prompt) -> Any:  # noqa: ANN401 (a prompt of the same kind)
        """The prefix and a prompt as one prompt.

        Args:
            prompt: Text, token ids or messages, as the prefix is; an empty one adds nothing.

        Raises:
            OptionError: The prompt is of another kind than the prefix.
            PrefixClosedError: The prefix is closed.
        """
        _ = self.core
        given: Any = self._given
        if _is_nothing(prompt):
            return given
        if _is_nothing(given):
            return prompt
        kinds = _kind(given), _kind(prompt)
        if kinds[0] != kinds[1]:
            expected = f"{kinds[0]}, as the prefix is made of {kinds[0]} (what is read is both as one)"
            raise bad_option("prompt", expected, kinds[1])
        return given + prompt if isinstance(prompt, str) else [*given, *prompt]

    def __len__(self) -> int:
        return len(self.core)

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Self:
        _ = self.core
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a prefix cannot be pickled or copied, as it is keys and values of one process's model; read it again "
            "with model.prefix"
        )

    def __repr__(self) -> str:
        core = self._core
        return "Prefix(closed)" if core is None else f"Prefix({len(core)} tokens)"


def of_call(prefix: object) -> Prefix | None:
    """The prefix that a call was given.

    Raises:
        OptionError: It is something else.
    """
    if prefix is None or isinstance(prefix, Prefix):
        return prefix
    raise bad_option("prefix", "what model.prefix returns, or None", brief(prefix))


def snapshot(prompt: Prompt) -> Any:  # noqa: ANN401 (a prompt of the same kind)
    """A prompt as it is now, whatever its owner does to it later."""
    if isinstance(prompt, str):
        return prompt
    return [dict(item) if isinstance(item, Mapping) else item for item in prompt]


def _is_nothing(prompt: object) -> bool:
    return is_empty(prompt) or (isinstance(prompt, str) and not prompt)


def _kind(prompt: Any) -> str:  # noqa: ANN401 (a prompt of any kind)
    if isinstance(prompt, str):
        return _TEXT
    return _MESSAGES if is_conversation(prompt) else _IDS
