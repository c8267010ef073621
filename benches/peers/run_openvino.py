"""OpenVINO GenAI: exported once through optimum's command, precision by INFERENCE_PRECISION_HINT, no prefix cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from worker import serve

# Weights in fewer bits, as the command names them: int4 has groups of 128, and embeddings and head in int8.
FORMS = {"int8": "int8", "int4": "int4"}


class OpenVino:
    @staticmethod
    def version() -> str:
        return f"openvino-genai {openvino_genai.__version__}"

    @staticmethod
    def prepare(folder: Path, cache: Path, precision: str) -> None:
        form = FORMS.get(precision, "fp32")
        target = cache / f"{folder.name}-openvino-{form}"
        if not (target / "openvino_model.bin").exists():
            command = [
                str(Path(sys.executable).parent / "optimum-cli"),
                "export",
                "openvino",
                "--model",
                str(folder),
            ]
            command += ["--task", "text-generation-with-past", "--weight-format", form, str(target)]
            subprocess.run(command, check=True, stdout=sys.stderr)

    def __init__(self, folder: Path, cache: Path, precision: str, threads: int) -> None:
        form = FORMS.get(precision, "fp32")
        # Of weights in fewer bits it takes bfloat16 by itself, where the CPU has its dot.
        hint = "f32" if precision == "f32" else "bf16"
        # The plain backend keeps nothing between calls; the paged one caches prefixes.
        self.pipeline = openvino_genai.LLMPipeline(
            str(cache / f"{folder.name}-openvino-{form}"),
            "CPU",
            ATTENTION_BACKEND="SDPA",
            INFERENCE_NUM_THREADS=threads,
            INFERENCE_PRECISION_HINT=hint,
        )

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new, True, False
        # It wants an end token even where it is told to ignore it, and random models have none.
        config.set_eos_token_id(0)
        result = self.pipeline.generate(inputs, config)
        return [list(row) for row in result.tokens]


if __name__ == "__main__":
    serve(OpenVino)
