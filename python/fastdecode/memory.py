"""What an encoder made of one source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arrays import as_floats

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from . import _core


class Memory:
    """One encoded source, made by `Seq2SeqLM.encode`: what a decoder looks at, computed once.

    Any number of generations, states and scorings of the model may use it, at the same time too. It lives as
    long as one of them does.
    """

    __slots__ = ("core",)

    def __init__(self, core: _core.Memory) -> None:
        self.core = core

    @property
    def hidden(self) -> NDArray[np.float32]:
        """Last hidden states of the encoder: float32, shape `(S, D)`, a fresh array every time."""
        return as_floats(self.core.hidden()).reshape(len(self.core), self.core.width)

    @property
    def source_ids(self) -> list[int]:
        """Token ids that were encoded, the end token included."""
        return self.core.source_ids

    def __len__(self) -> int:
        return len(self.core)

    def __repr__(self) -> str:
        return f"Memory({len(self)} tokens)"
