"""Decoding by hand: a sequence, its cache, and the logits after its last token."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from .arrays import as_floats, as_ids, bad_option, brief

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from . import _core


class State:
    """A sequence that a model has read, ready for the next token; made by `model.prefill`.

    The cache is shared between forks and copied only where they differ.

    One call at a time: `step`, `truncate` and `logits` that are still to be computed raise `StateBusyError` while
    another thread is in one of them; `fork`, `tokens`, `len` and logits that are known wait for it. Nothing is
    lost: the tokens are those of the calls that returned. Threads that work side by side take forks. In a process
    that was forked meanwhile, the state that was in use raises `StateBusyError` for ever.

    Example:
        >>> state = model.prefill("Once upon a")
        >>> for _ in range(3):
        ...     logits = state.step(int(state.logits.argmax()))
        >>> len(state.tokens) == len(model.tokenizer.encode("Once upon a")) + 3
        True
    """

    __slots__ = ("_core", "_vocab_size")

    def __init__(self, core: _core.State, vocab_size: int) -> None:
        self._core = core
        self._vocab_size = vocab_size

    @property
    def tokens(self) -> list[int]:
        """Ids of the sequence, the prompt included; -1 where a row was given as an embedding."""
        return self._core.tokens

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits after the last token: float32, shape `(V,)`, a fresh array every time."""
        return as_floats(self._core.logits())

    def step(self, token_id: int) -> NDArray[np.float32]:
        """Appends a token.

        Args:
            token_id: Id from 0 to `V` - 1.

        Returns:
            The logits after it: float32, shape `(V,)`.

        Raises:
            OptionError: It is not an id of the vocabulary.
            ContextLengthError: The sequence fills the model's context.
            StateBusyError: Another thread is in a call of this state.
        """
        return as_floats(self._core.append(as_ids([token_id], self._vocab_size, "token_id")))

    def fork(self) -> State:
        """A second sequence with the same tokens and logits, independent of this one from here on."""
        return State(self._core.fork(), self._vocab_size)

    def truncate(self, n: int) -> None:
        """Keeps the first `n` tokens; the logits are then what they were after the last of these.

        Args:
            n: From 1 to `len(state)`.

        Raises:
            OptionError: `n` is out of range.
            StateBusyError: Another thread is in a call of this state.
        """
        try:
            self._core.truncate(operator.index(n))
        except (OverflowError, TypeError):
            raise bad_option("n", f"a number of tokens from 1 to {len(self)}", brief(n)) from None

    def __len__(self) -> int:
        return len(self._core)

    def __repr__(self) -> str:
        return f"State({len(self)} tokens)"
