"""GPT-2 (Radford et al. 2019), and whatever else its config class can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from .base import DTYPES, Config, Family, Lengths, Normal, Recipe, Shape, Shapes, Tensors

HEADS = ("tied, absent", "tied, equal", "tied, different", "untied")


@dataclass(frozen=True)
class GPT2Recipe(Recipe):
    """One random folder.

    Attributes:
        head: Whether config.json ties it to the embedding, and whether the files have one all the same.
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
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "bos_token_id": None,
        "eos_token_id": None,
        "layer_norm_epsilon": 1e-5,
        "n_embd": heads * head_dim,
        "n_head": heads,
        "n_inner": None,
        "n_layer": layers,
        "n_positions": positions,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "vocab_size": vocab,
        **others,
    }


def shapes(recipe: GPT2Recipe) -> Shapes:
    """Tensors of a GPT2LMHeadModel; matrices are `(inputs, outputs)`, but for embeddings and head."""
    c = recipe.config
    width, inner = c["n_embd"], c.get("n_inner") or 4 * c["n_embd"]
    named: Shapes = {"wte.weight": (c["vocab_size"], width), "wpe.weight": (c["n_positions"], width)}
    for layer in range(c["n_layer"]):
        h = f"h.{layer}."
        for norm in ("ln_1", "ln_2"):
            named |= {f"{h}{norm}.weight": (width,), f"{h}{norm}.bias": (width,)}
        matrices = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width)}
        matrices |= {"mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width)}
        for name, shape in matrices.items():
            named |= {f"{h}{name}.weight": shape, f"{h}{name}.bias": (shape[1],)}
    named |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    if recipe.head in ("tied, different", "untied"):
        named["lm_head.weight"] = (c["vocab_size"], width)
    return named


def spread(name: str, shape: Shape, recipe: Recipe) -> tuple[float, float]:
    if len(shape) == 1:
        return float("ln_" in name and name.endswith("weight")), 0.1
    return 0.0, 0.5 if name in ("wte.weight", "wpe.weight", "lm_head.weight") else recipe.spread / shape[
        0
    ] ** 0.5


def others(recipe: GPT2Recipe, named: Tensors, normal: Normal) -> Tensors:  # noqa: ARG001 (as it is called)
    """Adds the masks, and a head that equals the embedding."""
    import torch

    if recipe.buffers:
        n = recipe.config["n_positions"]
        for layer in range(recipe.config["n_layer"]):
            named[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(n, n)).reshape(1, 1, n, n)
            named[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if recipe.head == "tied, equal":
        named["lm_head.weight"] = named["wte.weight"].clone()
    return named


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    from reference import ACTIVATIONS

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    head = one(*HEADS)
    return GPT2Recipe(
        config(
            heads=one(1, 2, 3, 5),
            head_dim=one(1, 2, 7, 16, 17, 32, 64),
            layers=draw(st.integers(1, 3)),
            vocab=one(3, 4, 15, 16, 17, 97, 257, 1000),
            positions=one(24, 64, 80),
            activation_function=one(*ACTIVATIONS),
            layer_norm_epsilon=one(1e-5, 1e-6, 1e-3),
            n_inner=one(None, 1, 5, 33, 64, 129),
            scale_attn_by_inverse_layer_idx=draw(st.booleans()),
            scale_attn_weights=draw(st.booleans()),
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


LAWS = {
    "widths of 48": GPT2Recipe(config(), seed=21),
    "odd widths": GPT2Recipe(config(head_dim=17, vocab=101, n_inner=37), seed=22),
    "wide": GPT2Recipe(config(heads=4, head_dim=64, vocab=515), seed=23),
}
GROUPS = GPT2Recipe(config(heads=2, head_dim=17, positions=520), seed=25)
LONGEST = {
    f"{heads} heads of {head_dim}, vocabulary of {vocab}": (
        GPT2Recipe(config(heads=heads, head_dim=head_dim, layers=1, vocab=vocab, positions=320), seed=11),
        Lengths(300),
    )
    for heads, head_dim in ((3, 16), (12, 32), (1, 1), (4, 17))
    for vocab in (50257, 5003)
}
# One folder per corner of the format; together about half a megabyte.
GOLDENS = {
    "random-plain": GPT2Recipe(config(), spread=1.5, seed=49),
    "random-f16-sharded": GPT2Recipe(
        config(vocab=257), dtype="float16", prefix=False, shards=3, buffers=True, spread=1.5, seed=40
    ),
    "random-bf16-untied": GPT2Recipe(
        config(vocab=100, tie_word_embeddings=False), "bfloat16", head="untied", spread=1.5, seed=45
    ),
    "random-tied-different": GPT2Recipe(
        config(heads=2, head_dim=32, layers=1), head="tied, different", spread=1.5, seed=2
    ),
    "random-odd": GPT2Recipe(
        config(
            head_dim=17,
            layers=3,
            activation_function="relu2",
            n_inner=1,
            scale_attn_by_inverse_layer_idx=True,
            scale_attn_weights=False,
            layer_norm_epsilon=1e-3,
        ),
        spread=1.5,
        seed=16,
    ),
    "random-smallest": GPT2Recipe(
        config(heads=2, head_dim=1, vocab=3, positions=24, n_inner=5), spread=1.5, seed=2
    ),
}
REAL: Config = {"vocab": 50257, "positions": 1024, "bos_token_id": 50256, "head_dim": 64}

FAMILY = Family(
    model_types=("gpt2",),
    shapes=shapes,
    spread=spread,
    others=others,
    recipes=recipes,
    recipe=GPT2Recipe,
    positions=lambda c: int(c["n_positions"]),
    laws=LAWS,
    wide="wide",
    chunks=GPT2Recipe(config(layers=1, positions=520), seed=24),
    groups={
        "300 rows": (GROUPS, [Lengths(300)]),
        "513 rows": (GROUPS, [Lengths(513)]),
        "ragged rows": (GROUPS, [Lengths(200), Lengths(90), Lengths(1), Lengths(250)]),
    },
    longest=LONGEST,
    tables=(
        GPT2Recipe(config(), seed=41),
        GPT2Recipe(config(heads=5, head_dim=7, n_inner=33), dtype="bfloat16", seed=42),
        GPT2Recipe(config(activation_function="gelu"), dtype="float16", seed=43),
        GPT2Recipe(config(heads=2, head_dim=17, vocab=1000, positions=320), seed=44),
        GPT2Recipe(config(head_dim=1, vocab=17, activation_function="mish"), seed=45),
    ),
    goldens=GOLDENS,
    sizes={
        "gpt2": GPT2Recipe(config(heads=12, layers=12, **REAL), seed=1),
        "gpt2-medium": GPT2Recipe(config(heads=16, layers=24, **REAL), seed=1),
    },
    tokenizer=("gpt2-tokenizer", ("tokenizer.json", "vocab.json", "merges.txt")),
    tiny=config(head_dim=8, vocab=320, bos_token_id=0, eos_token_id=0),
)
