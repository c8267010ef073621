"""What a step on a model of benches/folders.py reads and computes, as the model's own recorded program counts it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fastdecode
from folders import build
from precisions import OPTIONS

# How weights are stored in the folder that is counted.
KIND = "bf16"


@dataclass(frozen=True)
class Model:
    """A model of real size, as the benchmarks count it.

    Attributes:
        name: The model.
        folder: Its folder with 16-bit weights.
        loaded: It, as the folder holds it; nothing is computed with it.
    """

    name: str
    folder: Path
    loaded: Any

    @property
    def vocab(self) -> int:
        """Token ids."""
        return int(self.loaded.info()["vocab_size"])

    def weight_bytes(self, kind: str) -> int:
        """Bytes of weights that one step reads, in one of `precisions.OPTIONS`."""
        return read_by_step(self.folder, kind)[0]

    def step_bytes(self, kind: str, context: float) -> float:
        """Bytes of weights and cache that a step of one sequence reads, of source and tokens so far together."""
        weights, each = read_by_step(self.folder, kind)
        return weights + each * context

    def prompt_flops(self, tokens: int) -> float:
        """FLOPs of a prompt up to the logits of its last token, or of encoding a source."""
        return float(self.loaded._core.flops(tokens, 0 if self.loaded.has_encoder else 1))


@cache
def read_by_step(folder: Path, kind: str) -> tuple[int, int]:
    """Returns the bytes of weights that a step reads, and those of the cache for each token, as a loaded model says."""
    options = {"dtype": "float32"} if kind == "f32" else OPTIONS[kind]
    info = fastdecode.load(folder, num_threads=1, **options).info()
    return int(info["step_weight_bytes"]), int(info["cache_bytes_per_token"])


def counted(name: str, place: Path) -> Model:
    """Returns a model by its name in benches/folders.py, whose folder is in `place` or made there."""
    folder = build(name, KIND, place)
    return Model(name, folder, fastdecode.load(folder, num_threads=1))
