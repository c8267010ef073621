"""GPT-1 (Radford et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from .base import DTYPES, Config, Family, Lengths, Normal, Recipe, Shape, Shapes, Tensors

HEADS = ("tied, absent", "tied, equal", "tied, different", "tied, no embedding", "untied")
EMBEDDINGS = ("tokens_embed.weight", "positions_embed.weight", "lm_head.weight")


@dataclass(frozen=True)
class GPT1Recipe(Recipe):
    """One random folder.

    Attributes:
        head: Whether config.json ties it to the embedding, and which of both the files have.
        buffers: The files hold the masks that older versions of transformers stored.
    """

    prefix: bool = True
    head: str = "tied, absent"
    buffers: bool = False

    @property
    def is_warned_about(self) -> bool:
        """A head of its own in the file of a tied model is kept, with a warning."""
        return self.head == "tied, different"

    def full_name(self, name: str) -> str:
        """The prefix names the model beside which the head stands."""
        return name if name == "lm_head.weight" else super().full_name(name)


def config(
    *,
    heads: int = 3,
    head_dim: int = 16,
    layers: int = 2,
    vocab: int = 97,
    positions: int = 64,
    **others: Any,
) -> Config:
    """Returns a config.json with `D = heads * head_dim`; `others` overrides its keys."""
    return {
        "architectures": ["OpenAIGPTLMHeadModel"],
        "model_type": "openai-gpt",
        "afn": "gelu",
        "bos_token_id": None,
        "eos_token_id": None,
        "layer_norm_epsilon": 1e-5,
        "n_embd": heads * head_dim,
        "n_head": heads,
        "n_layer": layers,
        "n_positions": positions,
        "vocab_size": vocab,
        **others,
    }


def shapes(recipe: GPT1Recipe) -> Shapes:
    """Tensors of an OpenAIGPTLMHeadModel; matrices are `(inputs, outputs)`, but for embeddings and head."""
    c = recipe.config
    width = c["n_embd"]
    named: Shapes = {"tokens_embed.weight": (c["vocab_size"], width)}
    if recipe.head == "tied, no embedding":
        named = {}
    named["positions_embed.weight"] = (c["n_positions"], width)
    for layer in range(c["n_layer"]):
        h = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            named |= {f"{h}{norm}.weight": (width,), f"{h}{norm}.bias": (width,)}
        matrices = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
        matrices |= {"mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}
        for name, shape in matrices.items():
            named |= {f"{h}{name}.weight": shape, f"{h}{name}.bias": (shape[1],)}
    if recipe.head in ("tied, different", "tied, no embedding", "untied"):
        named["lm_head.weight"] = (c["vocab_size"], width)
    return named


def spread(name: str, shape: Shape, recipe: Recipe) -> tuple[float, float]:
    if len(shape) == 1:
        return float("ln_" in name and name.endswith("weight")), 0.1
    return 0.0, 0.5 if name in EMBEDDINGS else recipe.spread / shape[0] ** 0.5


def others(recipe: GPT1Recipe, named: Tensors, normal: Normal) -> Tensors:  # noqa: ARG001 (as it is called)
    """Adds the masks, and a head that equals the embedding."""
    import torch

    if recipe.buffers:
        n = recipe.config["n_positions"]
        for layer in range(recipe.config["n_layer"]):
            named[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(n, n)).reshape(1, 1, n, n)
    if recipe.head == "tied, equal":
        named["lm_head.weight"] = named["tokens_embed.weight"].clone()
    return named


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    head = one(*HEADS)
    return GPT1Recipe(
        config(
            heads=one(1, 2, 3, 5),
            head_dim=one(1, 2, 7, 16, 17, 32, 64),
            layers=draw(st.integers(1, 3)),
            vocab=one(3, 4, 15, 16, 17, 97, 257, 1000),
            positions=one(24, 64, 80),
            afn=one("gelu", "relu", "silu", "swish"),
            layer_norm_epsilon=one(1e-5, 1e-6, 1e-3),
            tie_word_embeddings=head != "untied",
        ),
        dtype=one(*DTYPES),
        head=head,
        prefix=draw(st.booleans()),
        shards=one(1, 1, 2, 3),
        buffers=draw(st.booleans()),
        spread=one(0.3, 1.0, 1.5),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


GROUPS = GPT1Recipe(config(heads=2, head_dim=17, positions=520), seed=25)

FAMILY = Family(
    model_types=("openai-gpt",),
    shapes=shapes,
    spread=spread,
    others=others,
    recipes=recipes,
    share=0.2,
    recipe=GPT1Recipe,
    positions=lambda c: int(c["n_positions"]),
    laws={
        "odd widths": GPT1Recipe(config(head_dim=17, vocab=101), seed=22),
        "wide": GPT1Recipe(config(heads=4, head_dim=64, vocab=515), seed=23),
    },
    wide="wide",
    chunks=GPT1Recipe(config(layers=1, positions=520), seed=24),
    groups={"ragged rows": (GROUPS, [Lengths(200), Lengths(90), Lengths(1), Lengths(250)])},
    longest={"300 tokens": (GPT1Recipe(config(layers=1, head_dim=32, positions=320), seed=11), Lengths(300))},
    tables=(
        GPT1Recipe(config(), seed=41),
        GPT1Recipe(config(heads=5, head_dim=7), dtype="bfloat16", seed=42),
    ),
    goldens={
        "random-gpt1": GPT1Recipe(config(), spread=1.5, seed=61),
        "random-gpt1-untied": GPT1Recipe(
            config(vocab=100, tie_word_embeddings=False), "bfloat16", head="untied", spread=1.5, seed=62
        ),
        "random-gpt1-sharded": GPT1Recipe(
            config(vocab=257), dtype="float16", prefix=False, shards=3, buffers=True, spread=1.5, seed=63
        ),
        "random-gpt1-relu": GPT1Recipe(config(head_dim=17, layers=3, afn="relu"), spread=1.5, seed=64),
    },
    sizes={
        "openai-gpt": GPT1Recipe(
            config(heads=12, head_dim=64, layers=12, vocab=40478, positions=512), seed=1
        ),
    },
    tokenizer=("gpt2-tokenizer", ("tokenizer.json", "vocab.json", "merges.txt")),
    tiny=config(head_dim=8, vocab=320, bos_token_id=0, eos_token_id=0),
)
