"""CTranslate2: converted through its own converter, which needs torch and transformers; float32 and int8."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
from worker import serve

TYPES = {"f32": "float32", "int8": "int8"}


class CTranslate2:
    @staticmethod
    def version() -> str:
        return str(ctranslate2.__version__)

    @staticmethod
    def prepare(folder: Path, cache: Path, precision: str) -> None:
        target = cache / f"{folder.name}-ctranslate2-{precision}"
        if not (target / "model.bin").exists():
            converter = ctranslate2.converters.TransformersConverter(str(folder))
            converter.convert(str(target), quantization=TYPES[precision], force=True)

    def __init__(self, folder: Path, cache: Path, precision: str, threads: int) -> None:
        target = cache / f"{folder.name}-ctranslate2-{precision}"
        self.generator = ctranslate2.Generator(
            str(target), compute_type=TYPES[precision], inter_threads=1, intra_threads=threads
        )
        # It takes and gives tokens as strings.
        self.tokens: list[str] = json.loads((target / "vocabulary.json").read_text())

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        results = self.generator.generate_batch(
            [[self.tokens[token] for token in prompt] for prompt in prompts],
            beam_size=1,
            sampling_topk=1,
            min_length=new,
            max_length=new,
            include_prompt_in_result=False,
        )
        return [list(result.sequences_ids[0]) for result in results]


if __name__ == "__main__":
    serve(CTranslate2)
