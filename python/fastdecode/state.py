"""Decoding by hand: a sequence, its cache, and the logits after its last token."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from .arrays import as_floats, as_ids, bad_option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from . import _core

# In `State.tokens`, the place of a row that was given as an embedding.
EMBEDDING = -1


class State:
    """A sequence that a model has read, ready for the next token; made by `model.prefill`.

    The cache is shared between forks and copied only where they differ.

    Example:
        >>> state = model.prefill("Once upon a")
        >>> for _ in range(3):
        ...     logits = state.step(int(state.logits.argmax()))
        >>> len(state.tokens) == len(model.tokenizer.encode("Once upon a")) + 3
        True
    """

    __slots__ = ("_core", "_logits", "_rows", "_tokens", "_vocab_size")

    def __init__(
        self,
        core: _core.State,
        tokens: list[int],
        rows: dict[int, NDArray[np.float32]],
        logits: NDArray[np.float32] | None,
        vocab_size: int,
    ) -> None:
        self._core = core
        self._tokens = tokens
        self._rows = rows  # embeddings by position, to compute the logits there again after a truncation
        self._vocab_size = vocab_size
        self._logits = logits  # None until they are asked for after a truncation

    @property
    def tokens(self) -> list[int]:
        """Ids of the sequence, the prompt included; -1 where a row was given as an embedding."""
        return list(self._tokens)

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits after the last token: float32, shape `(V,)`, a fresh array every time."""
        if self._logits is None:
            last = len(self._tokens) - 1
            self._core.truncate(last)
            if self._tokens[last] == EMBEDDING:
                self._logits = as_floats(self._core.append_embeddings(self._rows[last].data))
            else:
                self._logits = as_floats(self._core.append([self._tokens[last]]))
        return self._logits.copy()

    def step(self, token_id: int) -> NDArray[np.float32]:
        """Appends a token.

        Args:
            token_id: Id from 0 to `V` - 1.

        Returns:
            The logits after it: float32, shape `(V,)`.

        Raises:
            OptionError: It is not an id of the vocabulary.
            ContextLengthError: The sequence fills the model's context.
        """
        [token] = as_ids([token_id], self._vocab_size, "token_id")
        self._logits = as_floats(self._core.append([token]))
        self._tokens.append(token)
        return self._logits.copy()

    def fork(self) -> State:
        """A second sequence with the same tokens and logits, independent of this one from here on."""
        return State(self._core.fork(), list(self._tokens), dict(self._rows), self._logits, self._vocab_size)

    def truncate(self, n: int) -> None:
        """Keeps the first `n` tokens; the logits are then what they were after the last of these.

        Args:
            n: From 1 to `len(state)`.

        Raises:
            OptionError: `n` is out of range.
        """
        length = operator.index(n)
        if not 1 <= length <= len(self._tokens):
            raise bad_option("n", f"a number of tokens from 1 to {len(self._tokens)}", length)
        if length == len(self._tokens):
            return
        self._core.truncate(length)
        del self._tokens[length:]
        self._rows = {place: row for place, row in self._rows.items() if place < length}
        self._logits = None

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        return f"State({len(self._tokens)} tokens)"
