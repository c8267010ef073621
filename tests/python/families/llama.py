"""Llama (Touvron et al. 2023) and those that compute like it: Qwen 2 and 3, Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from .base import DTYPES, Config, Family, Lengths, Normal, Recipe, Shape, Shapes, Tensors
from .rotary import rotary

# Whether config.json ties the head to the embedding, and which of both the files have.
HEADS = ("tied, absent", "tied, equal", "tied, different", "tied, no embedding", "untied")
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
QWEN = ("qwen2", "qwen3")


@dataclass(frozen=True)
class LlamaRecipe(Recipe):
    """One random folder.

    Attributes:
        head: How embedding and head are stored, one of `HEADS`.
        buffers: The files hold frequencies, as older versions of transformers stored them.
    """

    prefix: bool = True
    head: str = "untied"
    buffers: bool = False

    @property
    def is_warned_about(self) -> bool:
        """A head of its own in the file of a tied model is kept, with a warning."""
        return self.head == "tied, different"

    def full_name(self, name: str) -> str:
        """The prefix names the model beside which the head stands."""
        return name if name.startswith("lm_head.") or not self.prefix else f"model.{name}"


def config(
    model_type: str = "llama",
    *,
    heads: int = 4,
    kv_heads: int | None = 2,
    head_dim: int = 12,
    layers: int = 2,
    vocab: int = 97,
    **others: Any,
) -> Config:
    """Returns a config.json with `D = heads * head_dim`; `others` overrides its keys, and `...` leaves a key out."""
    values = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": model_type,
        "bos_token_id": None,
        "eos_token_id": None,
        "hidden_act": "silu",
        "hidden_size": heads * head_dim,
        "head_dim": head_dim,
        "intermediate_size": 2 * heads * head_dim,
        "max_position_embeddings": 64,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "vocab_size": vocab,
        **others,
    }
    return {key: value for key, value in values.items() if value is not ...}


def sizes_of_heads(c: Mapping[str, Any]) -> tuple[int, int, int]:
    """Heads of queries and of keys, and the width of one."""
    kind, heads = c["model_type"], c["num_attention_heads"]
    absent = {"llama": heads, "mistral": 8}.get(kind, 32)
    width = c.get("head_dim") or (128 if kind == "qwen3" else c["hidden_size"] // heads)
    return heads, c.get("num_key_value_heads", absent) or heads, width


def shapes(recipe: LlamaRecipe) -> Shapes:
    """Tensors of the model; matrices are `(outputs, inputs)`."""
    c = recipe.config
    kind, width, inner = c["model_type"], c["hidden_size"], c["intermediate_size"]
    heads, kv_heads, head_dim = sizes_of_heads(c)
    attention_bias = kind in ("llama", "qwen3") and c.get("attention_bias", False)
    mlp_bias = kind == "llama" and c.get("mlp_bias", False)
    named: Shapes = {} if recipe.head == "tied, no embedding" else {EMBEDDING: (c["vocab_size"], width)}
    for layer in range(c["num_hidden_layers"]):
        h = f"layers.{layer}."
        named |= {f"{h}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
        if kind == "qwen3":
            named |= {f"{h}self_attn.{norm}_norm.weight": (head_dim,) for norm in "qk"}
        matrices: dict[str, tuple[Shape, bool]] = {
            "self_attn.q_proj": ((heads * head_dim, width), attention_bias or kind == "qwen2"),
            "self_attn.k_proj": ((kv_heads * head_dim, width), attention_bias or kind == "qwen2"),
            "self_attn.v_proj": ((kv_heads * head_dim, width), attention_bias or kind == "qwen2"),
            "self_attn.o_proj": ((width, heads * head_dim), attention_bias),
            "mlp.gate_proj": ((inner, width), mlp_bias),
            "mlp.up_proj": ((inner, width), mlp_bias),
            "mlp.down_proj": ((width, inner), mlp_bias),
        }
        for name, (shape, biased) in matrices.items():
            named[f"{h}{name}.weight"] = shape
            if biased:
                named[f"{h}{name}.bias"] = shape[:1]
    named["norm.weight"] = (width,)
    if recipe.head in ("tied, different", "tied, no embedding", "untied"):
        named[HEAD] = (c["vocab_size"], width)
    return named


def spread(name: str, shape: Shape, recipe: Recipe) -> tuple[float, float]:
    if len(shape) == 1:
        return float("norm" in name and name.endswith("weight")), 0.1
    return 0.0, 0.5 if name in (EMBEDDING, HEAD) else recipe.spread / shape[1] ** 0.5


def others(recipe: LlamaRecipe, named: Tensors, normal: Normal) -> Tensors:
    """Adds frequencies that nobody reads, and a head that equals the embedding."""
    if recipe.buffers:
        for layer in range(recipe.config["num_hidden_layers"]):
            named[f"layers.{layer}.self_attn.rotary_emb.inv_freq"] = normal((4,), 1.0)
    if recipe.head == "tied, equal":
        named[HEAD] = named[EMBEDDING].clone()
    return named


def windows(draw: st.DrawFn, kind: str, layers: int) -> Config:
    """Draws the keys that say how many keys a row sees."""

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    window = one(None, 2, 3, 5, 15, 16, 17, 4096)
    found: Config
    if kind in ("llama", "mistral"):
        # Llama's attention knows no window, and yet transformers' cache forgets what is in front of one.
        found = one({}, {"sliding_window": None if kind == "llama" else window})
        return found
    chosen: Config = {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": one(0, 1, 28),
    }
    if window is not None and draw(st.booleans()):
        chosen["layer_types"] = [one("full_attention", "sliding_attention") for _ in range(layers)]
    found = one({}, {"sliding_window": window}, {"use_sliding_window": False, "sliding_window": 3}, chosen)
    return found


def head_sizes(draw: st.DrawFn, kind: str) -> Config:
    """Draws the keys that say how many heads there are, and how wide."""

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    heads, kv_heads = one((1, 1), (4, 4), (4, 2), (6, 2), (8, 1), (7, 1), (9, 3), (32, 32), (32, 8))
    head_dim = one(2, 4, 6, 10, 16, 18, 32, 64) if heads < 32 else 2
    width = heads * head_dim
    wider = one(2, 8, 20) if draw(st.booleans()) else head_dim
    spelled: Any = wider
    if wider == head_dim and kind != "qwen3":
        spelled = one(head_dim, ..., None) if kind in ("llama", "mistral") else one(head_dim, ...)
    kv: Any = kv_heads
    if kv_heads == heads and kind != "mistral":
        kv = one(heads, None, ...) if kind == "llama" or heads == 32 else one(heads, None)
    elif kv_heads == 8 and kind == "mistral":
        kv = one(8, ...)
    return {
        "hidden_size": width,
        "head_dim": spelled,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    from reference import ACTIVATIONS

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    kind, head, layers = one("llama", "mistral", *QWEN), one(*HEADS), draw(st.integers(1, 3))
    sizes = head_sizes(draw, kind)
    width = sizes["head_dim"] if isinstance(sizes["head_dim"], int) else None
    biases: Config = {}
    if kind in ("llama", "qwen2", "qwen3"):
        biases["attention_bias"] = one(True, False, ...)
    if kind == "llama":
        biases["mlp_bias"] = one(True, False, ...)
    keys = config(
        kind,
        layers=layers,
        vocab=one(3, 4, 15, 16, 17, 97, 257, 1000),
        **biases,
        **windows(draw, kind, layers),
        **rotary(draw, width or sizes["hidden_size"] // sizes["num_attention_heads"]),
        intermediate_size=one(1, 5, 33, 64, 129),
        hidden_act=one(*ACTIVATIONS, "silu", "silu", "silu"),
        rms_norm_eps=one(1e-6, 1e-5, 1e-2),
        tie_word_embeddings=head != "untied",
    )
    return LlamaRecipe(
        {key: value for key, value in {**keys, **sizes}.items() if value is not ...},
        dtype=one(*DTYPES),
        head=head,
        prefix=draw(st.booleans()),
        shards=one(1, 1, 2, 3),
        buffers=draw(st.booleans()),
        spread=one(0.3, 1.0, 1.5),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


def positions(c: Config) -> int | None:
    """Where frequencies depend on the length, the model ends before they do."""
    scaling = c.get("rope_scaling") or c.get("rope_parameters") or {}
    dynamic = scaling.get("rope_type", scaling.get("type")) == "dynamic"
    return int(c["max_position_embeddings"]) if dynamic else None


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LAWS = {
    "groups of heads": LlamaRecipe(config(), seed=51),
    "windows and odd widths": LlamaRecipe(
        config(
            "mistral", heads=7, kv_heads=1, head_dim=10, vocab=101, intermediate_size=37, sliding_window=19
        ),
        seed=52,
    ),
    "wide": LlamaRecipe(config("qwen3", heads=4, kv_heads=4, head_dim=64, vocab=515), seed=53),
}
GROUPS = LlamaRecipe(config("qwen2", heads=6, kv_heads=2, head_dim=18), seed=55)
GOLDENS = {
    "random-llama": LlamaRecipe(config(rope_scaling=LLAMA3, rope_theta=500000.0), seed=61),
    "random-mistral": LlamaRecipe(
        config("mistral", heads=7, kv_heads=1, head_dim=10, sliding_window=5), dtype="bfloat16", seed=62
    ),
    "random-qwen2": LlamaRecipe(
        config("qwen2", heads=6, kv_heads=2, head_dim=8, tie_word_embeddings=True),
        head="tied, absent",
        seed=63,
    ),
    "random-qwen3": LlamaRecipe(config("qwen3", head_dim=20), dtype="float16", shards=2, seed=64),
}

FAMILY = Family(
    model_types=("llama", "mistral", *QWEN),
    shapes=shapes,
    spread=spread,
    others=others,
    recipes=recipes,
    share=0.3,
    recipe=LlamaRecipe,
    positions=positions,
    laws=LAWS,
    wide="wide",
    chunks=LlamaRecipe(config("mistral", layers=1, sliding_window=257), seed=54),
    groups={
        "300 rows": (GROUPS, [Lengths(300)]),
        "ragged rows": (GROUPS, [Lengths(200), Lengths(90), Lengths(1), Lengths(250)]),
    },
    longest={
        "2,000 tokens of a scaled model": (
            LlamaRecipe(config(head_dim=64, rope_scaling=LLAMA3, rope_theta=500000.0), seed=56),
            Lengths(2000),
        ),
        "700 tokens with windows": (
            LlamaRecipe(config("mistral", head_dim=32, sliding_window=300), seed=57),
            Lengths(700),
        ),
    },
    tables=(
        LlamaRecipe(config(), seed=41),
        LlamaRecipe(
            config("qwen2", heads=5, kv_heads=1, head_dim=14, intermediate_size=33), dtype="bfloat16", seed=42
        ),
        LlamaRecipe(config("qwen3", heads=2, kv_heads=1, head_dim=34, vocab=1000), dtype="float16", seed=44),
    ),
    goldens=GOLDENS,
    sizes={
        "llama-3.2-1b": LlamaRecipe(
            config(
                heads=32,
                kv_heads=8,
                head_dim=64,
                layers=16,
                vocab=128256,
                intermediate_size=8192,
                rms_norm_eps=1e-5,
                rope_theta=500000.0,
                rope_scaling=LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
                max_position_embeddings=131072,
                tie_word_embeddings=True,
            ),
            head="tied, absent",
            seed=1,
        ),
        "qwen2.5-0.5b": LlamaRecipe(
            config(
                "qwen2",
                heads=14,
                kv_heads=2,
                head_dim=64,
                layers=24,
                vocab=151936,
                intermediate_size=4864,
                rope_theta=1000000.0,
                max_position_embeddings=32768,
                tie_word_embeddings=True,
            ),
            head="tied, absent",
            seed=1,
        ),
        "smollm2-135m": LlamaRecipe(
            config(
                heads=9,
                kv_heads=3,
                head_dim=64,
                layers=30,
                vocab=49152,
                intermediate_size=1536,
                rms_norm_eps=1e-5,
                rope_theta=100000.0,
                max_position_embeddings=8192,
                tie_word_embeddings=True,
            ),
            head="tied, absent",
            seed=1,
        ),
        "mistral-7b": LlamaRecipe(
            config(
                "mistral",
                heads=32,
                kv_heads=8,
                head_dim=128,
                layers=32,
                vocab=32000,
                intermediate_size=14336,
                rms_norm_eps=1e-5,
                rope_theta=10000.0,
                sliding_window=4096,
                max_position_embeddings=32768,
            ),
            seed=1,
        ),
    },
    tokenizer=("gpt2-tokenizer", ("tokenizer.json", "vocab.json", "merges.txt")),
    tiny=config(head_dim=8, vocab=320, bos_token_id=0, eos_token_id=0),
)
