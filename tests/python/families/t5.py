"""T5 (Raffel et al. 2020), T5 1.1, mT5 and UMT5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from .base import DTYPES, Config, Family, Lengths, Normal, Recipe, Shape, Shapes, Tensors

START = 0
# Where the three embeddings and the head may stand to `shared.weight`.
TIES = ("absent", "equal", "different")
STRAY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


@dataclass(frozen=True)
class T5Recipe(Recipe):
    """One random folder.

    Attributes:
        shared: The files have `shared.weight`.
        encoder_tokens: What they have as the encoder's embedding.
        decoder_tokens: What they have as the decoder's embedding.
        head: What they have as the head.
        stray_bias: The files hold the bias of cross-attention that T5's own checkpoints have and nothing reads.
    """

    shared: bool = True
    encoder_tokens: str = "absent"
    decoder_tokens: str = "absent"
    head: str = "absent"
    stray_bias: bool = False

    @property
    def for_transformers(self) -> dict[str, Any]:
        """A decoder deeper than the encoder breaks the cache of transformers 5.24."""
        encoder, decoder = depths(self.config)
        return {"use_cache": False} if decoder > encoder else {}


def config(
    model_type: str = "t5",
    *,
    heads: int = 3,
    d_kv: int = 16,
    d_model: int = 48,
    d_ff: int = 96,
    layers: int = 2,
    vocab: int = 97,
    **others: Any,
) -> Config:
    """Returns a config.json; `others` overrides its keys, and None leaves a key out."""
    values = {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": model_type,
        "d_ff": d_ff,
        "d_kv": d_kv,
        "d_model": d_model,
        "decoder_start_token_id": START,
        "eos_token_id": None,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "num_heads": heads,
        "num_layers": layers,
        "pad_token_id": 0,
        "vocab_size": vocab,
        **others,
    }
    kept = {"eos_token_id", "scale_decoder_outputs", "tie_word_embeddings", "num_decoder_layers"}
    return {key: value for key, value in values.items() if value is not None or key in kept}


def depths(c: Mapping[str, Any]) -> tuple[int, int]:
    """Blocks of encoder and decoder."""
    return c["num_layers"], c.get("num_decoder_layers") or c["num_layers"]


def is_gated(c: Mapping[str, Any]) -> bool:
    """Whether the activation gates a second product."""
    default = "relu" if c["model_type"] == "t5" else "gated-gelu"
    return bool(c.get("is_gated_act", c.get("feed_forward_proj", default).startswith("gated")))


def block_shapes(c: Mapping[str, Any]) -> Shapes:
    """Tensors of encoder and decoder, but for the embeddings and the head; matrices are `(outputs, inputs)`."""
    d, d_ff, heads = c["d_model"], c["d_ff"], c["num_heads"]
    inner = heads * c["d_kv"]
    named: Shapes = {}
    for stack, count in zip(("encoder", "decoder"), depths(c), strict=True):
        kinds = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
        for block in range(count):
            name = f"{stack}.block.{block}.layer"
            for place, kind in enumerate(kinds):
                named |= {f"{name}.{place}.{kind}.{letter}.weight": (inner, d) for letter in "qkv"}
                named |= {
                    f"{name}.{place}.{kind}.o.weight": (d, inner),
                    f"{name}.{place}.layer_norm.weight": (d,),
                }
            if block == 0 or c["model_type"] == "umt5":
                bias = (c.get("relative_attention_num_buckets", 32), heads)
                named[f"{name}.0.SelfAttention.relative_attention_bias.weight"] = bias
            dense = f"{name}.{len(kinds)}.DenseReluDense"
            named |= {
                f"{dense}.{wi}.weight": (d_ff, d) for wi in (("wi_0", "wi_1") if is_gated(c) else ("wi",))
            }
            named |= {f"{dense}.wo.weight": (d, d_ff), f"{name}.{len(kinds)}.layer_norm.weight": (d,)}
        named[f"{stack}.final_layer_norm.weight"] = (d,)
    return named


def shapes(recipe: T5Recipe) -> Shapes:
    c = recipe.config
    named = block_shapes(c)
    if recipe.stray_bias:
        named[STRAY] = (c.get("relative_attention_num_buckets", 32), c["num_heads"])
    return named | {"shared.weight": (c["vocab_size"], c["d_model"])}


def spread(name: str, shape: Shape, recipe: Recipe) -> tuple[float, float]:
    """Scores of attention, which T5 does not scale, get a deviation of about one."""
    if "norm" in name:
        return 1.0, 0.1
    if name == STRAY:
        return 0.0, 0.1
    if "bias" in name:
        return 0.0, 0.7
    if name == "shared.weight":
        return 0.0, 0.5
    scale = recipe.config["d_kv"] ** -0.25 if name.endswith((".q.weight", ".k.weight")) else 1.0
    return 0.0, recipe.spread * scale / shape[-1] ** 0.5


def others(recipe: T5Recipe, named: Tensors, normal: Normal) -> Tensors:
    """Adds embeddings and head beside the shared one; `different` ones share their values, each with its factor."""
    first, second = named["shared.weight"], normal((recipe.vocab, recipe.config["d_model"]), 0.5)
    if not recipe.shared:
        del named["shared.weight"]
    places = {
        "encoder.embed_tokens": (recipe.encoder_tokens, 1.0),
        "decoder.embed_tokens": (recipe.decoder_tokens, -1.0),
        "lm_head": (recipe.head, 0.5),
    }
    for name, (tie, factor) in places.items():
        if tie != "absent":
            named[f"{name}.weight"] = first.clone() if tie == "equal" else second * factor
    return named


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    from reference import ACTIVATIONS

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    def perhaps(key: str, *values: Any) -> dict[str, Any]:
        return {key: one(*values)} if draw(st.booleans()) else {}

    buckets = one(4, 5, 8, 32)
    activation = one("relu", "gelu_new", "silu", *ACTIVATIONS)
    projections = ("relu", "gated-gelu", "gated-silu", "gated-gelu_new", activation, f"gated-{activation}")
    varied: dict[str, Any] = {}
    if draw(st.booleans()):
        varied["relative_attention_num_buckets"] = buckets
        varied["relative_attention_max_distance"] = one(buckets // 2 + 1, buckets, 20, 128)
    varied |= perhaps("num_decoder_layers", 1, 2, 3, None)
    varied |= perhaps("feed_forward_proj", *projections)
    varied |= perhaps("dense_act_fn", activation)
    varied |= perhaps("is_gated_act", True, False)
    varied |= perhaps("scale_decoder_outputs", True, False, None)
    model_type = one("t5", "t5", "mt5", "umt5")
    # The classes of mT5 and UMT5 declare this key, and refuse a null.
    varied |= perhaps("tie_word_embeddings", True, False, *((None,) if model_type == "t5" else ()))
    shared = draw(st.booleans())
    ties = [one(*TIES) for _ in range(3)]
    if not shared and ties == ["absent"] * 3:
        ties[draw(st.integers(0, 2))] = "equal"
    return T5Recipe(
        config(
            model_type,
            heads=one(1, 2, 3, 5),
            d_kv=one(1, 2, 7, 16, 17, 64),
            d_model=one(8, 17, 48, 64),
            d_ff=one(1, 5, 33, 64, 129),
            layers=draw(st.integers(1, 3)),
            vocab=one(3, 4, 15, 16, 17, 97, 257, 1000),
            layer_norm_epsilon=one(1e-6, 1e-5, 1e-3),
            **varied,
        ),
        dtype=one(*DTYPES),
        shared=shared,
        encoder_tokens=ties[0],
        decoder_tokens=ties[1],
        head=ties[2],
        prefix=draw(st.booleans()),
        stray_bias=draw(st.booleans()),
        shards=one(1, 1, 2, 3),
        spread=one(0.3, 1.0, 1.3),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


LAWS = {
    "t5, odd widths": T5Recipe(config(d_kv=17, d_model=33, d_ff=37, num_decoder_layers=3), seed=41),
    "gated, wide": T5Recipe(
        config(heads=4, d_kv=64, d_model=64, d_ff=130, vocab=515, feed_forward_proj="gated-gelu"), seed=42
    ),
    "umt5": T5Recipe(config("umt5", relative_attention_max_distance=20), seed=43),
}
# One folder per member of the family, with the corners of the format spread over them; beams end at different lengths.
GOLDENS = {
    "seq2seq-t5": T5Recipe(config(d_kv=8, d_model=32, num_decoder_layers=1), seed=11, spread=1.4),
    "seq2seq-gated": T5Recipe(
        config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, d_kv=9, d_model=32, d_ff=40),
        dtype="float16",
        head="different",
        shards=2,
        stray_bias=True,
        seed=37,
        spread=1.4,
    ),
    "seq2seq-mt5": T5Recipe(
        config("mt5", layers=1, num_decoder_layers=2, relative_attention_max_distance=20),
        dtype="bfloat16",
        shared=False,
        encoder_tokens="equal",
        decoder_tokens="different",
        seed=23,
        spread=1.4,
    ),
    "seq2seq-umt5": T5Recipe(
        config("umt5", heads=2, d_model=24, d_ff=40, relative_attention_num_buckets=8), seed=30, spread=1.4
    ),
}


def size(heads: int, layers: int, d_ff: int, *, gated: bool, d_kv: int = 64, vocab: int = 32128) -> Recipe:
    """Returns a folder of T5, or (gated) of T5 1.1 and Flan-T5, whose heads stand alone."""
    values = config(
        heads=heads,
        d_kv=d_kv,
        d_model=d_kv * heads,
        d_ff=d_ff,
        layers=layers,
        vocab=vocab,
        eos_token_id=1,
        feed_forward_proj="gated-gelu" if gated else "relu",
        num_decoder_layers=layers,
        relative_attention_max_distance=128,
        relative_attention_num_buckets=32,
        tie_word_embeddings=not gated,
    )
    return T5Recipe(values, head="different" if gated else "absent", seed=1)


FAMILY = Family(
    model_types=("t5", "mt5", "umt5"),
    has_encoder=True,
    shapes=shapes,
    spread=spread,
    others=others,
    recipes=recipes,
    recipe=T5Recipe,
    positions=lambda _: None,
    laws=LAWS,
    wide="gated, wide",
    chunks=T5Recipe(config(layers=1), seed=44),
    groups={
        name: (recipe, [Lengths(270, 150), Lengths(1, 9), Lengths(1, 170)]) for name, recipe in LAWS.items()
    },
    # Past the largest distance of the bias, the chunks of 256 keys and the chunks of 512 rows.
    longest={
        model_type: (
            T5Recipe(config(model_type, layers=1, num_decoder_layers=1), seed=32),
            Lengths(701, 700),
        )
        for model_type in ("t5", "umt5")
    },
    tables=(
        T5Recipe(config(), seed=46),
        T5Recipe(config("mt5", feed_forward_proj="gated-gelu"), dtype="bfloat16", seed=47),
        T5Recipe(
            config("umt5", heads=5, d_kv=7, d_ff=129, feed_forward_proj="gated-silu"),
            dtype="float16",
            seed=48,
        ),
        T5Recipe(config(d_model=17, d_ff=33, d_kv=17, vocab=257), seed=49),
    ),
    goldens=GOLDENS,
    sizes={
        "t5-base": size(12, 12, 3072, gated=False),
        "flan-t5-large": size(16, 24, 2816, gated=True),
        # For trying the benchmark itself.
        "t5-tiny": size(1, 2, 128, gated=False),
        "flan-t5-tiny": size(1, 2, 96, gated=True),
    },
    tokenizer=("t5-tokenizer", ("tokenizer.json", "tokenizer_config.json", "spiece.model")),
    tiny=config(
        d_kv=8,
        d_model=24,
        d_ff=40,
        vocab=320,
        eos_token_id=0,
        pad_token_id=2,
        decoder_start_token_id=1,
    ),
)
