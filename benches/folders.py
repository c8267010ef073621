"""GPT-2 folders of real size with random weights, and what a step on them costs.

Speed does not depend on the values, so nothing is downloaded. Random float32 values are not exact in 16 bits, so that
no engine may store them narrower than it says.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

TOKENIZER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "gpt2-tokenizer"


@dataclass(frozen=True)
class Shape:
    """A GPT-2 configuration: `D` wide, feed-forward `4 D`, head tied to the embedding."""

    name: str
    width: int
    layers: int
    heads: int
    vocab: int = 50257
    positions: int = 1024

    @property
    def matrices(self) -> int:
        """Weights of the matrices of all blocks: 3 D² + D² + 4 D² + 4 D² a block."""
        return 12 * self.width**2 * self.layers

    def weight_bytes(self, element: int) -> int:
        """Bytes of weights that one step reads: the blocks' matrices and the head."""
        return (self.matrices + self.vocab * self.width) * element

    def cache_bytes(self, context: float) -> float:
        """Bytes of a float32 cache that a step reads at a context of so many tokens."""
        return 2 * self.layers * self.width * context * 4

    def prefill_flops(self, tokens: int) -> float:
        """FLOPs of a prefill: matrices, causal attention (2 D T² a block), the head for the last token only."""
        return (
            2 * self.matrices * tokens
            + 2 * self.layers * self.width * tokens**2
            + 2 * self.vocab * self.width
        )


MODELS = {
    "gpt2": Shape("gpt2", 768, 12, 12),
    "gpt2-medium": Shape("gpt2-medium", 1024, 24, 16),
}


def build(shape: Shape, dtype: str, cache: Path) -> Path:
    """Writes the folder with random weights ("f32" or "bf16"), unless it is there, and returns it."""
    folder = cache / f"{shape.name}-{dtype}"
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(1)
    stored = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]

    def normal(*size: int, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(size, generator=random) * 0.02 + mean).to(stored)

    d = shape.width
    tensors = {"wte.weight": normal(shape.vocab, d), "wpe.weight": normal(shape.positions, d)}
    for layer in range(shape.layers):
        h = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            tensors |= {f"{h}{norm}.weight": normal(d, mean=1.0), f"{h}{norm}.bias": normal(d)}
        sizes = {
            "attn.c_attn": (d, 3 * d),
            "attn.c_proj": (d, d),
            "mlp.c_fc": (d, 4 * d),
            "mlp.c_proj": (4 * d, d),
        }
        for name, size in sizes.items():
            tensors |= {f"{h}{name}.weight": normal(*size), f"{h}{name}.bias": normal(size[1])}
    tensors |= {"ln_f.weight": normal(d, mean=1.0), "ln_f.bias": normal(d)}
    save_file(
        {f"transformer.{name}": t for name, t in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "bos_token_id": 50256,
        "eos_token_id": None,
        "layer_norm_epsilon": 1e-5,
        "n_ctx": shape.positions,
        "n_embd": d,
        "n_head": shape.heads,
        "n_layer": shape.layers,
        "n_positions": shape.positions,
        "vocab_size": shape.vocab,
        "dtype": {"f32": "float32", "bf16": "bfloat16"}[dtype],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / name, folder)
    return folder
