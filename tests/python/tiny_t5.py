"""Small models of the T5 family for the tests: names and shapes of their tensors, random weights, folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import tiny
from safetensors.numpy import save_file
from tokenizers.processors import TemplateProcessing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import tokenizers
    from numpy.typing import NDArray

Shapes = dict[str, tuple[int, ...]]


def is_gated(config: Mapping[str, Any]) -> bool:
    """Whether the activation gates a second product."""
    default = "relu" if config["model_type"] == "t5" else "gated-gelu"
    return bool(config.get("is_gated_act", config.get("feed_forward_proj", default).startswith("gated")))


def layers(config: Mapping[str, Any]) -> tuple[int, int]:
    """Blocks of encoder and decoder."""
    return config["num_layers"], config.get("num_decoder_layers") or config["num_layers"]


def block_shapes(config: Mapping[str, Any]) -> Shapes:
    """Tensors of encoder and decoder by their names in a checkpoint, but for the embeddings and the head."""
    d, d_ff, heads = config["d_model"], config["d_ff"], config["num_heads"]
    inner = heads * config["d_kv"]
    shapes: Shapes = {}
    for stack, count in zip(("encoder", "decoder"), layers(config), strict=True):
        kinds = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
        for block in range(count):
            name = f"{stack}.block.{block}.layer"
            for place, kind in enumerate(kinds):
                shapes |= {f"{name}.{place}.{kind}.{letter}.weight": (inner, d) for letter in "qkv"}
                shapes |= {
                    f"{name}.{place}.{kind}.o.weight": (d, inner),
                    f"{name}.{place}.layer_norm.weight": (d,),
                }
            if block == 0 or config["model_type"] == "umt5":
                bias = (config.get("relative_attention_num_buckets", 32), heads)
                shapes[f"{name}.0.SelfAttention.relative_attention_bias.weight"] = bias
            dense = f"{name}.{len(kinds)}.DenseReluDense"
            shapes |= {
                f"{dense}.{wi}.weight": (d_ff, d)
                for wi in (("wi_0", "wi_1") if is_gated(config) else ("wi",))
            }
            shapes |= {f"{dense}.wo.weight": (d, d_ff), f"{name}.{len(kinds)}.layer_norm.weight": (d,)}
        shapes[f"{stack}.final_layer_norm.weight"] = (d,)
    return shapes


def config(**changes: object) -> dict[str, Any]:
    """A T5 config of a few thousand parameters."""
    values = {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": 320,
        "d_model": 24,
        "d_kv": 8,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 3,
        "eos_token_id": 0,
        "pad_token_id": 2,
        "decoder_start_token_id": 1,
    }
    return values | changes


def weights(config: dict[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights for a config, tied ones once."""
    rng = np.random.default_rng(seed)
    shapes = block_shapes(config) | {"shared.weight": (config["vocab_size"], config["d_model"])}
    tensors = {}
    for name, shape in shapes.items():
        values = np.asarray(rng.normal(0.0, 1.0 if name == "shared.weight" else 0.4, shape))
        tensors[name] = (1.0 + 0.1 * values if "norm" in name else values).astype(np.float32)
    return tensors


def write_folder(
    folder: Path,
    *,
    tokenizer: tokenizers.Tokenizer | None = None,
    generation: dict[str, Any] | None = None,
    seed: int = 0,
    **changes: object,
) -> Path:
    """A Hugging Face folder with random weights; `tokenizer` and `generation` only where given."""
    folder.mkdir(parents=True, exist_ok=True)
    values = config(**changes)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    save_file(weights(values, seed), folder / "model.safetensors")
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tiny.END}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def with_end(vocab_size: int = 320) -> tokenizers.Tokenizer:
    """A byte-level tokenizer that ends every text with id 0, as T5's does with its own end token."""
    tokenizer = tiny.byte_level(vocab_size)
    tokenizer.post_processor = TemplateProcessing(single=f"$A {tiny.END}", special_tokens=[(tiny.END, 0)])
    return tokenizer
