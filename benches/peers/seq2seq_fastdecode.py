"""fastdecode on T5 folders: the folder in every precision, and the machine's limits as its kernels measure them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fastdecode
from fastdecode import _core
from worker import serve

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from precisions import OPTIONS


class Fastdecode:
    @staticmethod
    def version() -> str:
        return fastdecode.__version__

    @staticmethod
    def prepare(folder: Path, cache: Path, precision: str) -> None:
        pass

    def __init__(self, folder: Path, cache: Path, precision: str, threads: int) -> None:  # noqa: ARG002 (all engines alike)
        self.model = fastdecode.Seq2SeqLM.load(folder, num_threads=threads, **OPTIONS[precision])
        self.threads = threads

    def generate(self, prompts: list[list[int]], new: int, beams: int = 1) -> list[list[int]]:
        outputs: Any = self.model.run(
            prompts, num_beams=beams, min_new_tokens=new, max_new_tokens=new, do_sample=False
        )
        return [list(output.token_ids) for output in outputs]

    def encode(self, prompts: list[list[int]]) -> None:
        self.model.encode(prompts)

    def info(self) -> dict[str, Any]:
        """What a step reads: bytes of weights, and of the cache for each token."""
        found = self.model.info()
        return {name: found[name] for name in ("step_weight_bytes", "cache_bytes_per_token")}

    def limits(self, size: int) -> dict[str, Any]:
        """Measures bytes per second read from a buffer of `size` bytes, and FLOP per second of each compute type."""
        return dict(_core.measure_limits(size, num_threads=self.threads))


if __name__ == "__main__":
    serve(Fastdecode)
