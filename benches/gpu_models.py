"""Models for a GPU: folders of real or of tiny size with random weights, and what their steps read and multiply.

The machine with the GPU has no internet, so that transformers draws the weights there, from a seed. They are drawn wide
enough that logits are not flat: a greedy choice should have a margin, and rounding a size.
"""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Config = dict[str, Any]

# Arguments of transformers' config classes, by the class. What is not named has the class's own value, which is that of
# the model of this name, but for Llama.
SIZES: dict[str, tuple[str, Config]] = {
    "gpt2": ("GPT2Config", {"initializer_range": 0.04}),
    "t5-base": (
        "T5Config",
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "initializer_factor": 1.5}
        | {"decoder_start_token_id": 0},
    ),
    "llama-small": (
        "LlamaConfig",
        {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16}
        | {"num_key_value_heads": 4, "max_position_embeddings": 4096, "initializer_range": 0.04},
    ),
    "phi-1.5": (
        "PhiConfig",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
        | {"max_position_embeddings": 2048, "initializer_range": 0.03},
    ),
}
TINY: dict[str, tuple[str, Config]] = {
    "gpt2": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300, "n_positions": 128}
        | {"initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0},
    ),
    "t5-base": (
        "T5Config",
        {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16, "vocab_size": 300}
        | {"initializer_factor": 1.5, "decoder_start_token_id": 0},
    ),
    "llama-small": (
        "LlamaConfig",
        {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "vocab_size": 300,
            "initializer_range": 0.2,
        },
    ),
    "phi-1.5": (
        "PhiConfig",
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"max_position_embeddings": 128, "vocab_size": 300, "initializer_range": 0.2},
    ),
}
# Tensors of two dimensions that are no matrices of products: rows of them are looked up.
_LOOKED_UP = ("wte", "wpe", "embed_tokens", "shared", "relative_attention_bias")


@dataclass(frozen=True)
class Product:
    """A matrix that a step of the decoder multiplies with."""

    name: str
    inputs: int
    outputs: int
    is_head: bool


def kind(*, tiny: bool) -> dict[str, tuple[str, Config]]:
    """The models of a run."""
    return TINY if tiny else SIZES


def has_encoder(name: str) -> bool:
    """Whether a model reads a source."""
    return name.startswith("t5")


def build(name: str, cache: Path, dtype: str, *, tiny: bool) -> Path:
    """Draws a model's weights, unless it is there, and returns its folder.

    Args:
        name: One of `SIZES`.
        cache: Where folders are.
        dtype: Type of the tensors in the file: "float32" or "bfloat16".
        tiny: Whether it has two layers of width 64.
    """
    import torch
    import transformers

    folder = cache / f"{name}-{dtype}"
    if (folder / "config.json").exists():
        return folder
    transformers.utils.logging.disable_progress_bar()
    kind_of, arguments = kind(tiny=tiny)[name]
    config = getattr(transformers, kind_of)(**arguments)
    auto = transformers.AutoModelForSeq2SeqLM if has_encoder(name) else transformers.AutoModelForCausalLM
    torch.manual_seed(20)
    with torch.device(place()):
        model = auto.from_config(config)
        with torch.no_grad():
            for tensor in model.parameters():
                if tensor.ndim == 1:
                    # Biases are 0 and norms 1 when they are new, and an error in them would not be seen.
                    tensor.add_(torch.randn_like(tensor), alpha=0.1)
    model.generation_config.eos_token_id = None
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def place() -> str:
    """Where torch computes: a GPU where it has one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def peer(name: str, folder: Path, dtype: str) -> Any:
    """The model in transformers, where torch computes."""
    import torch
    import transformers

    auto = transformers.AutoModelForSeq2SeqLM if has_encoder(name) else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.to(place()).eval()


def ids(name: str, count: int, salt: int, *, tiny: bool) -> list[int]:
    """So many random ids; another `salt` gives other ones. None is an end token."""
    draw = random.Random(f"{name} {salt}")
    vocabulary = 300 if tiny else 32000
    return [draw.randrange(3, vocabulary) for _ in range(count)]


def products(folder: Path) -> list[Product]:
    """The matrices of a decoder with its head, once per step each.

    Those of an encoder, and those that make keys and values of a source, are left out.
    """
    config = json.loads((folder / "config.json").read_text())
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(size))
        shapes |= {name: about["shape"] for name, about in header.items() if name != "__metadata__"}
    found = []
    for name, shape in shapes.items():
        of_source = (
            name.startswith("encoder.") or ".EncDecAttention.k." in name or ".EncDecAttention.v." in name
        )
        if len(shape) != 2 or of_source or any(part in name for part in _LOOKED_UP):
            continue
        # GPT-2 stores its matrices the other way round, its head excepted.
        outputs, inputs = shape if config["model_type"] != "gpt2" or "lm_head" in name else reversed(shape)
        found.append(Product(name, inputs, outputs, "lm_head" in name))
    if not any(product.is_head for product in found):
        width, vocabulary = (
            config.get("n_embd") or config.get("d_model") or config["hidden_size"],
            config["vocab_size"],
        )
        found.append(Product("lm_head", width, vocabulary, is_head=True))
    return found


def step_bytes(folder: Path, cache_bytes_per_token: int, tokens: float) -> float:
    """Bytes that a step of one sequence has to read in bfloat16: matrices, and keys and values of so many tokens."""
    return (
        sum(2 * product.inputs * product.outputs for product in products(folder))
        + cache_bytes_per_token * tokens
    )
