"""Small models and tokenizers for the tests: random weights, made in a moment."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

END = "<|endoftext|>"

# Enough text for a few hundred merges, with characters of one to four bytes.
TEXT = [
    "Once upon a time there was a little girl who lived in a house by the wood.",
    "The wolf said: 'Good day, little one. Where are you going so early?'",
    "Il était une fois, à l'orée d'un bois, une chère petite fille. Où vas-tu?",
    "Großmutter, was hast du für große Ohren! Damit ich dich besser hören kann.",
    "昔々、ある所にお爺さんとお婆さんがいました。🙂 🐺 naïve café",
]


def hear_ctrl_c() -> None:
    """Gives a child process the usual Ctrl-C: one that was started in the background would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def byte_level(vocab_size: int = 400) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer as GPT-2's, with `<|endoftext|>` as id 0."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


def config(**changes: object) -> dict[str, Any]:
    """A GPT-2 config of a few thousand parameters."""
    values = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "vocab_size": 320,
        "n_positions": 64,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return values | changes


def weights(config: dict[str, Any], seed: int = 0, scale: float = 0.4) -> dict[str, NDArray[np.float32]]:
    """Random weights for a config, under the names of a GPT2LMHeadModel."""
    rng = np.random.default_rng(seed)
    width, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config["vocab_size"], width),
        "wpe.weight": (config["n_positions"], width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    for layer in range(config["n_layer"]):
        for name, shape in {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (width, inner),
            "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, width),
            "mlp.c_proj.bias": (width,),
        }.items():
            shapes[f"h.{layer}.{name}"] = shape
    tensors = {}
    for name, shape in shapes.items():
        values = rng.normal(0.0, scale, shape)
        if "ln_" in name and name.endswith("weight"):
            values = 1.0 + 0.1 * values
        tensors[f"transformer.{name}"] = values.astype(np.float32)
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
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder
