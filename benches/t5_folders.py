"""T5 and Flan-T5 folders of real size with random weights, and what a step on them costs.

Speed does not depend on the values, so nothing is downloaded. Random float32 values are not exact in 16 bits, so that
no engine may store them narrower than it says.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TOKENIZER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "t5-tokenizer"


@dataclass(frozen=True)
class T5Shape:
    """A T5 configuration: `D` wide, `I` = heads * 64 in attention, feed-forward `F`.

    Attributes:
        gated: T5 1.1 and Flan-T5: two matrices into the feed-forward, and a head of its own.
    """

    name: str
    width: int
    layers: int
    heads: int
    feed_forward: int
    gated: bool
    vocab: int = 32128

    @property
    def inner(self) -> int:
        """`I`."""
        return 64 * self.heads

    @property
    def _feed_forward(self) -> int:
        return (3 if self.gated else 2) * self.width * self.feed_forward

    def weight_bytes(self, element: int) -> int:
        """Bytes of weights that a step reads: self-attention, half of cross-attention, feed-forward, head."""
        block = 6 * self.width * self.inner + self._feed_forward
        return (block * self.layers + self.vocab * self.width) * element

    def cache_bytes(self, source: int, context: float) -> float:
        """Bytes of float32 keys and values that a step reads: all of the source's, and those so far."""
        return 2 * self.layers * self.inner * (source + context) * 4

    def encoder_flops(self, tokens: int) -> float:
        """FLOPs of reading a source: the encoder's matrices and attention, and the decoder's keys and values of it."""
        matrices = (4 * self.width * self.inner + self._feed_forward) * self.layers
        cross = 2 * self.width * self.inner * self.layers
        return 2 * (matrices + cross) * tokens + 4 * self.layers * self.inner * tokens**2


SHAPES = {
    "t5-base": T5Shape("t5-base", 768, 12, 12, 3072, gated=False),
    "flan-t5-large": T5Shape("flan-t5-large", 1024, 24, 16, 2816, gated=True),
    # For trying the benchmark itself.
    "t5-tiny": T5Shape("t5-tiny", 64, 2, 2, 128, gated=False),
    "flan-t5-tiny": T5Shape("flan-t5-tiny", 64, 2, 2, 96, gated=True),
}


def tensors(shape: T5Shape, stored: torch.dtype) -> dict[str, torch.Tensor]:
    """Draws the weights, under the names of a T5ForConditionalGeneration."""
    random = torch.Generator().manual_seed(1)

    def normal(*size: int, deviation: float = 0.02, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(size, generator=random) * deviation + mean).to(stored)

    d, inner, wide = shape.width, shape.inner, shape.feed_forward
    made = {"shared.weight": normal(shape.vocab, d, deviation=0.5)}
    for stack in ("encoder", "decoder"):
        for layer in range(shape.layers):
            block = f"{stack}.block.{layer}.layer."
            attentions = {0: "SelfAttention"} | ({1: "EncDecAttention"} if stack == "decoder" else {})
            for place, attention in attentions.items():
                for name in "qkv":
                    made[f"{block}{place}.{attention}.{name}.weight"] = normal(inner, d)
                made[f"{block}{place}.{attention}.o.weight"] = normal(d, inner)
            if layer == 0:
                made[f"{block}0.SelfAttention.relative_attention_bias.weight"] = normal(32, shape.heads)
            last = len(attentions)
            for name in ("wi_0", "wi_1") if shape.gated else ("wi",):
                made[f"{block}{last}.DenseReluDense.{name}.weight"] = normal(wide, d)
            made[f"{block}{last}.DenseReluDense.wo.weight"] = normal(d, wide)
            for place in range(last + 1):
                made[f"{block}{place}.layer_norm.weight"] = normal(d, mean=1.0)
        made[f"{stack}.final_layer_norm.weight"] = normal(d, mean=1.0)
    if shape.gated:
        made["lm_head.weight"] = normal(shape.vocab, d)
    return made


def build(shape: T5Shape, dtype: str, cache: Path) -> Path:
    """Writes the folder with random weights ("f32" or "bf16"), unless it is there, and returns it."""
    folder = cache / f"{shape.name}-{dtype}"
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    stored = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    save_file(tensors(shape, stored), folder / "model.safetensors", {"format": "pt"})
    config: dict[str, Any] = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_ff": shape.feed_forward,
        "d_kv": 64,
        "d_model": shape.width,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu" if shape.gated else "relu",
        "is_encoder_decoder": True,
        "num_decoder_layers": shape.layers,
        "num_heads": shape.heads,
        "num_layers": shape.layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": not shape.gated,
        "vocab_size": shape.vocab,
        "dtype": {"f32": "float32", "bf16": "bfloat16"}[dtype],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "spiece.model"):
        shutil.copy(TOKENIZER / name, folder)
    return folder
