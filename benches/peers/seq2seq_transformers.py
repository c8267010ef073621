"""transformers with torch on T5 folders: float32 and bfloat16 as they are."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from worker import serve


class Transformers:
    @staticmethod
    def version() -> str:
        return f"{transformers.__version__}, torch {torch.__version__}"

    @staticmethod
    def prepare(folder: Path, cache: Path, precision: str) -> None:
        pass

    def __init__(self, folder: Path, cache: Path, precision: str, threads: int) -> None:  # noqa: ARG002 (all engines alike)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(mode=False)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()

    def generate(self, prompts: list[list[int]], new: int, beams: int = 1) -> list[list[int]]:
        ids = torch.tensor(prompts)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=beams,
            min_new_tokens=new,
            max_new_tokens=new,
        )
        # The start token comes first.
        rows: list[list[int]] = out[:, 1:].tolist()
        return rows

    def encode(self, prompts: list[list[int]]) -> None:
        self.model.get_encoder()(torch.tensor(prompts))


if __name__ == "__main__":
    serve(Transformers)
