"""Adapters as peft makes them: drawn by hypothesis, trained at random, saved, and merged as the reference.

Owns what peft 0.21.2 gives, and knows nothing of fastdecode's own rules. Without the pinned peft the import fails.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from families import FAMILIES, Family
from families.gpt2 import GPT2Recipe
from families.gpt2 import config as gpt2_config
from families.t5 import T5Recipe
from families.t5 import config as t5_config
from hypothesis import strategies as st
from reference import Reference
from reference_seq2seq import Seq2SeqReference

try:
    import peft
    import torch
    from safetensors.torch import load_file, save_file
except ImportError as missing:
    message = f"the tests of adapters need {missing.name}, but it is absent: pip install 'fastdecode[test]'"
    raise RuntimeError(message) from missing

PINNED = "0.21.2"
if peft.__version__ != PINNED:
    raise RuntimeError(f"adapters are claimed to be those of peft {PINNED}, got {peft.__version__}")

CONFIG = "adapter_config.json"
SAFE, BIN = "adapter_model.safetensors", "adapter_model.bin"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one adapter.

    Attributes:
        config: Arguments of `LoraConfig`.
        more: Tokens by which the vocabulary grows first; fewer where it is negative.
        spread: Deviation of what training adds to every value that it changes.
        dtype: Type of the tensors in the file.
        file: Name of the file.
        seed: Seed of the training.
    """

    config: dict[str, Any] = field(default_factory=dict)
    more: int = 0
    spread: float = 0.2
    dtype: str = "float32"
    file: str = SAFE
    seed: int = 0


def base_of(family: Family, folder: Path, more: int = 0) -> Any:
    """The model of a folder in transformers, in float32, with a vocabulary of another size where asked for."""
    auto = (Seq2SeqReference if family.has_encoder else Reference).auto
    return resized(auto.from_pretrained(folder, dtype=torch.float32), more)


def resized(model: Any, more: int) -> Any:
    if more:
        model.resize_token_embeddings(model.config.vocab_size + more, mean_resizing=False)
    return model


def make(model: Any, recipe: Recipe, folder: Path) -> Path:
    """Trains an adapter of a model at random, and saves it to a folder."""
    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(**{"task_type": task, **recipe.config}))
        random = torch.Generator().manual_seed(recipe.seed)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=random) * recipe.spread
        adapted.save_pretrained(str(folder), safe_serialization=recipe.file == SAFE)
    if recipe.dtype != "float32":
        dtype: torch.dtype = getattr(torch, recipe.dtype)
        rewrite(folder, lambda named: {name: tensor.to(dtype) for name, tensor in named.items()})
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's file."""
    if (folder / SAFE).exists():
        named: dict[str, torch.Tensor] = load_file(folder / SAFE)
    else:
        named = torch.load(folder / BIN, weights_only=True)
    return named


def rewrite(folder: Path, change: Any) -> None:
    """Changes the tensors of an adapter's file."""
    named = {name: tensor.contiguous() for name, tensor in change(tensors(folder)).items()}
    if (folder / SAFE).exists():
        save_file(named, folder / SAFE, {"format": "pt"})
    else:
        torch.save(named, folder / BIN)


def reference(family: Family, folder: Path, adapters: list[Path], more: int = 0) -> Reference:
    """The reference's model of a folder, with adapters merged into it one after the other."""
    theirs = (Seq2SeqReference if family.has_encoder else Reference)(folder)
    model = resized(theirs.model, more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for adapter in adapters:
            model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    theirs.model = model.eval()
    return theirs


def gpt2(folder: Path, *, head: str = "tied, absent", **changes: Any) -> Path:
    return FAMILIES["gpt2"].write(GPT2Recipe(gpt2_config(vocab=50, **changes), head=head, seed=5), folder)


def t5(folder: Path, model_type: str = "t5") -> Path:
    return FAMILIES["t5"].write(T5Recipe(t5_config(vocab=50) | {"model_type": model_type}, seed=6), folder)


def adapter(base: Path, folder: Path, family: Family = FAMILIES["gpt2"], **recipe: Any) -> Path:
    """An adapter of a folder, by the fields of its recipe."""
    drawn = Recipe(**recipe)
    return make(base_of(family, base, drawn.more), drawn, folder)


def change(folder: Path, file: str = CONFIG, **values: Any) -> None:
    """Changes values of a JSON file."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def has_vocabulary(folder: Path) -> bool:
    """Whether an adapter brings an embedding or a head."""
    tables = ("wte.", "embed_tokens.", "tokens_embed.", "shared.", "lm_head.")
    return any(
        table in name and name.endswith("weight") and "lora" not in name
        for name in tensors(folder)
        for table in tables
    )


def lacks_embedding(base: Any, folder: Path) -> bool:
    """Whether a head came with another vocabulary, and no embedding: peft leaves it out where the head is a target."""
    tables = (".wte.", ".embed_tokens.", ".tokens_embed.")
    return getattr(base, "head", "") == "untied" and not any(
        table in name for name in tensors(folder) for table in tables
    )


def lacks_bias(family: Family, folder: Path) -> bool:
    """Whether another vocabulary came without the head's bias, as from peft where the embedding is a target."""
    return family.name == "phi" and not any(
        name.endswith(("lm_head.bias", "lm_head.base_layer.bias")) for name in tensors(folder)
    )


# What can be a target, by whether it is a linear layer, and what can be saved whole.
_GPT2 = (
    ["c_attn", "c_fc", "attn.c_proj", "mlp.c_proj", "c_proj", "lm_head", "transformer.h.0.mlp.c_fc"],
    ["wte", "wpe"],
    ["lm_head", "wte", "wpe", "ln_f", "mlp", "h.0.ln_1"],
)
_T5 = (
    [
        "q",
        "k",
        "v",
        "o",
        "wo",
        "SelfAttention.q",
        "EncDecAttention.v",
        "lm_head",
        "encoder.block.0.layer.0.SelfAttention.o",
    ],
    ["shared", "embed_tokens", "relative_attention_bias"],
    [
        "lm_head",
        "shared",
        "embed_tokens",
        "final_layer_norm",
        "DenseReluDense",
        "encoder",
        "decoder.block.0.layer.0",
    ],
)
_GPT1 = (
    [name for name in _GPT2[0] if name != "transformer.h.0.mlp.c_fc"],
    ["tokens_embed", "positions_embed"],
    ["lm_head", "tokens_embed", "positions_embed", "ln_2", "mlp", "h.0.ln_1"],
)
_LLAMA = (
    [
        "q_proj",
        "up_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "lm_head",
        "model.layers.0.mlp.down_proj",
    ],
    ["embed_tokens"],
    ["lm_head", "embed_tokens", "norm", "mlp", "layers.0.input_layernorm"],
)
_PHI = (
    ["q_proj", "fc1", "k_proj", "v_proj", "dense", "lm_head", "model.layers.0.mlp.fc2"],
    ["embed_tokens"],
    ["lm_head", "embed_tokens", "final_layernorm", "mlp", "layers.0.input_layernorm"],
)
# Targets and modules to save, a target that every adapter has, another one, and the embedding, by family.
_NAMES = {
    "gpt2": (_GPT2, "c_attn", "c_fc", "wte"),
    "llama": (_LLAMA, "q_proj", "up_proj", "embed_tokens"),
    "phi": (_PHI, "q_proj", "fc1", "embed_tokens"),
    "openai-gpt": (_GPT1, "c_attn", "c_fc", "tokens_embed"),
    "t5": (_T5, "v", "wo", "shared"),
}
_TOKENS = {"lm_head", "wte", "shared", "embed_tokens", "tokens_embed", "encoder"}


@st.composite
def recipes(draw: st.DrawFn, family: Family, vocab: int) -> Recipe:
    """Draws an adapter of a family, for a vocabulary of this size."""

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    (linears, embeddings, saved), sure, other, table = _NAMES[family.name]
    targets = draw(st.lists(st.sampled_from(linears), max_size=3, unique=True))
    targets += draw(st.lists(st.sampled_from(embeddings), max_size=1)) if one(False, False, True) else []
    config: dict[str, Any] = {
        "r": one(1, 2, 3, 8),
        "lora_alpha": one(1, 2, 7, 16),
        "target_modules": sorted({sure, *targets}),
        "use_rslora": draw(st.booleans()),
        "bias": one("none", "none", "all", "lora_only"),
        "lora_dropout": one(0.0, 0.1),
    }
    if one(False, False, True):
        config["fan_in_fan_out"] = draw(st.booleans())
    patterns = [*config["target_modules"], r".*\.0\..*", rf".*{sure}", "^lm_head", "nowhere"]
    for name, values in (("rank_pattern", (1, 4, 5)), ("alpha_pattern", (1, 3, 32))):
        if draw(st.booleans()):
            keys = draw(st.lists(st.sampled_from(patterns), min_size=1, max_size=3, unique=True))
            config[name] = {key: one(*values) for key in sorted(keys)}  # the order in which peft saves them
    if one(False, False, True):
        chosen = draw(st.lists(st.sampled_from(saved), min_size=1, max_size=2, unique=True))
        config["modules_to_save"] = [name for name in chosen if name not in config["target_modules"]] or None
        config["target_modules"] = [name for name in config["target_modules"] if name not in chosen]
    form = one("list", "list", "list", "regex", "all-linear", "layers", "excluded")
    if form == "regex":
        config["target_modules"] = rf".*\.({sure}|{other})"
    elif form == "all-linear":
        config["target_modules"] = "all-linear"
    elif form == "layers":
        config["layers_to_transform"] = one(0, [0])
    elif form == "excluded":
        config["exclude_modules"] = one([f"0.{linears[1]}"], rf".*\.1\..*{linears[1]}")
    whole = set(config.get("modules_to_save") or [])
    aimed = set(config["target_modules"]) if isinstance(config["target_modules"], list) else set()
    tables = {"lm_head", "wte", "wpe", "embed_tokens", "tokens_embed", "positions_embed"}
    without_bias = aimed & tables or not aimed or family.name in ("t5", "llama")
    if not without_bias and one(False, False, True):
        config["lora_bias"] = True
    if one(False, False, True):
        config["ensure_weight_tying"] = True
    if not (whole | aimed) & _TOKENS and one(False, False, True):
        rows = draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=3, unique=True))
        config["trainable_token_indices"] = one(rows, {table: rows})
    resizes = not whole & _TOKENS and "trainable_token_indices" not in config
    return Recipe(
        config,
        more=one(0, 0, 0, 5, -1) if resizes else 0,
        spread=one(0.05, 0.2),
        dtype=one("float32", "float32", "bfloat16", "float16"),
        file=one(SAFE, SAFE, BIN),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


def without_size(recipe: Recipe) -> Recipe:
    """The same for a vocabulary as it is."""
    return replace(recipe, more=0)
