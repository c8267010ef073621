"""What a step on a model of benches/folders.py reads and computes, as the model's own recorded program counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastdecode
from folders import build

# Of the folder that is counted: how weights are stored, and bytes of one.
KIND, ELEMENT = "bf16", 2


@dataclass(frozen=True)
class Model:
    """A model of real size, as the benchmarks count it.

    Attributes:
        name: The model.
        loaded: It, with 16-bit weights; nothing is computed with it.
    """

    name: str
    loaded: Any

    @property
    def vocab(self) -> int:
        """Token ids."""
        return int(self.loaded.info()["vocab_size"])

    def weight_bytes(self, element: int) -> int:
        """Bytes of weights that one step reads, at so many bytes for each."""
        return int(self.loaded.info()["step_weight_bytes"]) // ELEMENT * element

    def cache_bytes(self, context: float) -> float:
        """Bytes of float32 keys and values that a step reads, of a source and of the tokens so far together."""
        return float(self.loaded.info()["cache_bytes_per_token"]) * context

    def prompt_flops(self, tokens: int) -> float:
        """FLOPs of a prompt up to the logits of its last token, or of encoding a source."""
        return float(self.loaded._core.flops(tokens, 0 if self.loaded.has_encoder else 1))


def counted(name: str, cache: Path) -> Model:
    """Returns a model by its name in benches/folders.py, whose folder is in `cache` or made there."""
    return Model(name, fastdecode.load(build(name, KIND, cache), num_threads=1))
