"""Phi 1, 1.5 and 2 (Gunasekar et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from .base import DTYPES, Config, Family, Lengths, Normal, Recipe, Shape, Shapes, Tensors
from .llama import EMBEDDING, HEAD, HEADS, LlamaRecipe, positions
from .rotary import rotary


@dataclass(frozen=True)
class PhiRecipe(LlamaRecipe):
    """One random folder; embedding, head and old frequencies are stored as Llama's are."""


def config(
    *,
    heads: int = 4,
    kv_heads: int | None = None,
    head_dim: int = 12,
    layers: int = 2,
    vocab: int = 97,
    **others: Any,
) -> Config:
    """Returns a config.json with `D = heads * head_dim`; `others` overrides its keys, and `...` leaves a key out."""
    values = {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_act": "gelu_new",
        "hidden_size": heads * head_dim,
        "intermediate_size": 4 * heads * head_dim,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 64,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
        "vocab_size": vocab,
        **others,
    }
    return {key: value for key, value in values.items() if value is not ...}


def shapes(recipe: PhiRecipe) -> Shapes:
    """Tensors of a PhiForCausalLM; matrices are `(outputs, inputs)`."""
    c = recipe.config
    width, inner, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    kv_heads, head_dim = c.get("num_key_value_heads") or heads, c.get("head_dim", width // heads)
    named: Shapes = {} if recipe.head == "tied, no embedding" else {EMBEDDING: (c["vocab_size"], width)}
    for layer in range(c["num_hidden_layers"]):
        h = f"layers.{layer}."
        norms = {"input_layernorm": width}
        if c["qk_layernorm"]:
            norms |= {"self_attn.q_layernorm": head_dim, "self_attn.k_layernorm": head_dim}
        for name, size in norms.items():
            named |= {f"{h}{name}.weight": (size,), f"{h}{name}.bias": (size,)}
        matrices = {
            "self_attn.q_proj": (heads * head_dim, width),
            "self_attn.k_proj": (kv_heads * head_dim, width),
            "self_attn.v_proj": (kv_heads * head_dim, width),
            "self_attn.dense": (width, heads * head_dim),
            "mlp.fc1": (inner, width),
            "mlp.fc2": (width, inner),
        }
        for name, shape in matrices.items():
            named |= {f"{h}{name}.weight": shape, f"{h}{name}.bias": shape[:1]}
    named |= {"final_layernorm.weight": (width,), "final_layernorm.bias": (width,)}
    named["lm_head.bias"] = (c["vocab_size"],)
    if recipe.head in ("tied, different", "tied, no embedding", "untied"):
        named[HEAD] = (c["vocab_size"], width)
    return named


def spread(name: str, shape: Shape, recipe: Recipe) -> tuple[float, float]:
    if len(shape) == 1:
        return float("norm" in name and name.endswith("weight")), 0.1
    return 0.0, 0.5 if name in (EMBEDDING, HEAD) else recipe.spread / shape[1] ** 0.5


def others(recipe: PhiRecipe, named: Tensors, normal: Normal) -> Tensors:
    """Adds frequencies that nobody reads, and a head that equals the embedding."""
    if recipe.buffers:
        for layer in range(recipe.config["num_hidden_layers"]):
            named[f"layers.{layer}.self_attn.rotary_emb.inv_freq"] = normal((4,), 1.0)
    if recipe.head == "tied, equal":
        named[HEAD] = named[EMBEDDING].clone()
    return named


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    from reference import ACTIVATIONS

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    head, normed = one(*HEADS), draw(st.booleans())
    heads, kv_heads = one((1, 1), (4, 4), (4, 2), (6, 2), (7, 1))
    head_dim = one(4, 10, 16, 20, 32, 64)
    wider = head_dim if normed else one(head_dim, head_dim, 8)
    # Half of a head turns where no key says how much.
    named: Config = {"head_dim": wider} if wider != head_dim else {}
    keys = rotary(draw, wider, partial=wider % 4 != 0 or draw(st.booleans()))
    drawn = config(
        heads=heads,
        kv_heads=one(kv_heads, None, ...) if kv_heads == heads else kv_heads,
        head_dim=head_dim,
        layers=draw(st.integers(1, 3)),
        vocab=one(3, 4, 15, 16, 17, 97, 257, 1000),
        **keys,
        intermediate_size=one(1, 5, 33, 64, 129),
        hidden_act=one(*ACTIVATIONS, "gelu_new", "gelu_new"),
        layer_norm_eps=one(1e-6, 1e-5, 1e-2),
        qk_layernorm=normed,
        tie_word_embeddings=head != "untied",
    )
    return PhiRecipe(
        drawn | named,
        dtype=one(*DTYPES),
        head=head,
        prefix=draw(st.booleans()),
        shards=one(1, 1, 2, 3),
        buffers=draw(st.booleans()),
        spread=one(0.3, 1.0, 1.5),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


GROUPS = PhiRecipe(config(heads=2, head_dim=20), seed=55)

FAMILY = Family(
    model_types=("phi",),
    shapes=shapes,
    spread=spread,
    others=others,
    recipes=recipes,
    share=0.2,
    recipe=PhiRecipe,
    positions=positions,
    laws={
        "groups and norms of heads": PhiRecipe(config(kv_heads=2, qk_layernorm=True), seed=51),
        "wide": PhiRecipe(config(head_dim=64, vocab=515), seed=53),
    },
    wide="wide",
    chunks=PhiRecipe(config(layers=1), seed=54),
    groups={"ragged rows": (GROUPS, [Lengths(200), Lengths(90), Lengths(1), Lengths(250)])},
    longest={
        "1,000 tokens": (
            PhiRecipe(config(heads=8, head_dim=64, partial_rotary_factor=0.5), seed=56),
            Lengths(1000),
        )
    },
    tables=(
        PhiRecipe(config(), seed=41),
        PhiRecipe(config(kv_heads=1, head_dim=20, intermediate_size=33), dtype="bfloat16", seed=42),
        PhiRecipe(config(hidden_act="gelu", qk_layernorm=True), dtype="float16", seed=43),
    ),
    goldens={
        "random-phi": PhiRecipe(config(), spread=1.5, seed=61),
        "random-phi-tied": PhiRecipe(
            config(tie_word_embeddings=True, kv_heads=2, qk_layernorm=True),
            dtype="bfloat16",
            head="tied, absent",
            spread=1.5,
            seed=62,
        ),
        "random-phi-part": PhiRecipe(
            config(head_dim=20, partial_rotary_factor=0.4), dtype="float16", spread=1.5, seed=63
        ),
        "random-phi-sharded": PhiRecipe(
            config(layers=3, rope_theta=100.0), shards=2, prefix=False, spread=1.5, seed=64
        ),
    },
    sizes={
        "phi-1.5": PhiRecipe(
            config(
                heads=32,
                head_dim=64,
                layers=24,
                vocab=51200,
                max_position_embeddings=2048,
                partial_rotary_factor=0.5,
            ),
            seed=1,
        ),
    },
    tokenizer=("gpt2-tokenizer", ("tokenizer.json", "vocab.json", "merges.txt")),
    tiny=config(head_dim=8, vocab=320, bos_token_id=0, eos_token_id=0),
)
