"""CTranslate2 on T5 folders: converted through its own converter, which needs torch and transformers.

With transformers 5 the converter takes every T5 for one whose outputs are scaled by `D^-0.5` (transformers sets
tie_word_embeddings there); for T5 1.1 and Flan-T5 that is wrong, and spoils beams. What config.json says counts here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
from ctranslate2.converters import TransformersConverter
from ctranslate2.specs import model_spec
from worker import serve

TYPES = {"f32": "float32", "int8": "int8"}


class Converter(TransformersConverter):
    """The package's converter, with the scale of the outputs as the folder has it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.scaled = json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is not False

    def _load(self) -> Any:
        spec = super()._load()
        if not self.scaled:
            spec.decoder.scale_outputs = model_spec.OPTIONAL
        return spec


class CTranslate2:
    @staticmethod
    def version() -> str:
        return str(ctranslate2.__version__)

    @staticmethod
    def prepare(folder: Path, cache: Path, precision: str) -> None:
        target = cache / f"{folder.name}-ctranslate2-{precision}"
        if not (target / "model.bin").exists():
            Converter(folder).convert(str(target), quantization=TYPES[precision], force=True)

    def __init__(self, folder: Path, cache: Path, precision: str, threads: int) -> None:
        target = cache / f"{folder.name}-ctranslate2-{precision}"
        self.translator = ctranslate2.Translator(
            str(target), compute_type=TYPES[precision], inter_threads=1, intra_threads=threads
        )
        # It takes and gives tokens as strings.
        self.tokens: list[str] = json.loads((target / "shared_vocabulary.json").read_text())
        self.ids = {token: place for place, token in enumerate(self.tokens)}

    def generate(self, prompts: list[list[int]], new: int, beams: int = 1) -> list[list[int]]:
        results = self.translator.translate_batch(
            [[self.tokens[token] for token in prompt] for prompt in prompts],
            beam_size=beams,
            min_decoding_length=new,
            max_decoding_length=new,
        )
        return [[self.ids[token] for token in result.hypotheses[0]] for result in results]


if __name__ == "__main__":
    serve(CTranslate2)
