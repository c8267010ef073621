"""What a prompt on a model of benches/folders.py computes, as the model's own recorded program counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastdecode
from folders import build


@dataclass(frozen=True)
class Model:
    """A model of real size, as the benchmarks count it.

    Attributes:
        name: The model.
        loaded: It; nothing is computed with it.
    """

    name: str
    loaded: Any

    @property
    def vocab(self) -> int:
        """Token ids."""
        return int(self.loaded.info()["vocab_size"])

    def prompt_flops(self, tokens: int) -> float:
        """FLOPs of a prompt up to the logits of its last token, or of encoding a source."""
        return float(self.loaded._core.flops(tokens, 0 if self.loaded.has_encoder else 1))


def counted(name: str, cache: Path) -> Model:
    """Returns a model by its name in benches/folders.py; its folder with 16-bit weights is made in `cache`."""
    return Model(name, fastdecode.load(build(name, "bf16", cache), num_threads=1))
