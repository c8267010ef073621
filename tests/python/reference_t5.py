"""transformers on folders of random T5, T5 1.1, mT5 and UMT5 models: how they are drawn and written, and its answers.

The laws themselves are `reference`'s. It knows nothing of fastdecode.

Shapes: `S` source tokens, `T` decoder tokens, `D` model width, `V` vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reference
import tiny_t5
import torch
import transformers
from hypothesis import strategies as st
from reference import ACTIVATIONS, DTYPES, Ids, Run, Tensors

Array = np.ndarray[Any, np.dtype[np.float32]]

START = 0
# Where the three embeddings and the head may stand to `shared.weight`.
TIES = ("absent", "equal", "different")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one random folder; `config` is written as it is."""

    config: dict[str, Any]
    dtype: str = "float32"
    shared: bool = True
    encoder_tokens: str = "absent"
    decoder_tokens: str = "absent"
    head: str = "absent"
    prefix: bool = False
    stray_bias: bool = False
    shards: int = 1
    spread: float = 1.0
    seed: int = 0

    @property
    def vocab(self) -> int:
        """Token ids."""
        size: int = self.config["vocab_size"]
        return size

    @property
    def uncached(self) -> dict[str, Any]:
        """What `generate` of transformers 5.23 needs: a decoder deeper than the encoder breaks its cache."""
        encoder, decoder = tiny_t5.layers(self.config)
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
) -> dict[str, Any]:
    """Returns a config.json of the T5 family; `others` overrides its keys, and None leaves a key out."""
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


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Draws folders over everything that the family's configs and files may vary."""

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    def perhaps(key: str, *values: Any) -> dict[str, Any]:
        return {key: one(*values)} if draw(st.booleans()) else {}

    buckets = one(4, 5, 8, 32)
    activation = one("relu", "gelu_new", "silu", *ACTIVATIONS)
    projections = ("relu", "gated-gelu", "gated-silu", "gated-gelu_new", activation, f"gated-{activation}")
    others: dict[str, Any] = {}
    if draw(st.booleans()):
        others["relative_attention_num_buckets"] = buckets
        others["relative_attention_max_distance"] = one(buckets // 2 + 1, buckets, 20, 128)
    others |= perhaps("num_decoder_layers", 1, 2, 3, None)
    others |= perhaps("feed_forward_proj", *projections)
    others |= perhaps("dense_act_fn", activation)
    others |= perhaps("is_gated_act", True, False)
    others |= perhaps("scale_decoder_outputs", True, False, None)
    model_type = one("t5", "t5", "mt5", "umt5")
    # The classes of mT5 and UMT5 declare this key, and refuse a null.
    others |= perhaps("tie_word_embeddings", True, False, *((None,) if model_type == "t5" else ()))
    shared = draw(st.booleans())
    ties = [one(*TIES) for _ in range(3)]
    if not shared and ties == ["absent"] * 3:
        ties[draw(st.integers(0, 2))] = "equal"
    return Recipe(
        config=config(
            model_type,
            heads=one(1, 2, 3, 5),
            d_kv=one(1, 2, 7, 16, 17, 64),
            d_model=one(8, 17, 48, 64),
            d_ff=one(1, 5, 33, 64, 129),
            layers=draw(st.integers(1, 3)),
            vocab=one(3, 4, 15, 16, 17, 97, 257, 1000),
            layer_norm_epsilon=one(1e-6, 1e-5, 1e-3),
            **others,
        ),
        dtype=one(*sorted(DTYPES)),
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


def tensors(recipe: Recipe) -> Tensors:
    """Draws the recipe's weights, named and shaped as the checkpoint wants them, in its dtype.

    Activations keep their size from layer to layer, and scores of attention, which T5 does not scale, have a deviation
    of about one: where they grow without bounds, float32 itself is far from the exact result.
    """
    c, random = recipe.config, torch.Generator().manual_seed(recipe.seed)
    bias = (c.get("relative_attention_num_buckets", 32), c["num_heads"])

    def normal(shape: tuple[int, ...], deviation: float = 0.1, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(shape, generator=random) * deviation + mean

    named: Tensors = {}
    for name, shape in tiny_t5.block_shapes(c).items():
        if "norm" in name:
            named[name] = normal(shape, mean=1.0)
        elif "bias" in name:
            named[name] = normal(shape, 0.7)
        else:
            scale = c["d_kv"] ** -0.25 if name.endswith((".q.weight", ".k.weight")) else 1.0
            named[name] = normal(shape, recipe.spread * scale / shape[-1] ** 0.5)
    if recipe.stray_bias:
        named["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = normal(bias)
    table = (recipe.vocab, c["d_model"])
    named |= embeddings(recipe, normal(table, 0.5), normal(table, 0.5))
    if recipe.prefix:
        named = {f"transformer.{name}": tensor for name, tensor in named.items()}
    return {name: tensor.to(DTYPES[recipe.dtype]) for name, tensor in named.items()}


def embeddings(recipe: Recipe, first: torch.Tensor, second: torch.Tensor) -> Tensors:
    """Returns the embeddings and the head that the file has; `different` ones hold `second`, and each its own sign."""
    named = {"shared.weight": first} if recipe.shared else {}
    places = {
        "encoder.embed_tokens": (recipe.encoder_tokens, 1.0),
        "decoder.embed_tokens": (recipe.decoder_tokens, -1.0),
        "lm_head": (recipe.head, 0.5),
    }
    for name, (tie, factor) in places.items():
        if tie != "absent":
            named[f"{name}.weight"] = first.clone() if tie == "equal" else second * factor
    return named


def write(recipe: Recipe, folder: Path) -> Path:
    """Writes the recipe as a Hugging Face folder and returns it."""
    reference.save({**recipe.config, "dtype": recipe.dtype}, tensors(recipe), recipe.shards, folder)
    return folder


class Seq2SeqReference:
    """transformers' model of a folder, computing in float32, with the attention mask given explicitly.

    Args:
        folder: A Hugging Face folder.
        dtype: Type to which the weights are rounded first, or None for the values in the files.
    """

    def __init__(self, folder: Path, dtype: str | None = None) -> None:
        stored = DTYPES[dtype] if dtype else torch.float32
        self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=stored).float()
        self.model.eval()

    def answers(self, source: Ids, decoder_ids: Ids, model: Any = None) -> tuple[Array, Array]:
        """Returns the encoder's last hidden states `(S, D)`, and the logits after every decoder token `(T, V)`."""
        with torch.no_grad():
            out = (model or self.model)(
                input_ids=torch.tensor([source]),
                attention_mask=torch.ones(1, len(source), dtype=torch.long),
                decoder_input_ids=torch.tensor([decoder_ids]),
                use_cache=False,
            )
        return out.encoder_last_hidden_state[0].numpy(), out.logits[0].numpy()

    def own_errors(self, source: Ids, decoder_ids: Ids) -> tuple[float, float]:
        """Returns how far the reference's float32 answers are from its float64 ones, at most."""
        exact = self.answers(source, decoder_ids, copy.deepcopy(self.model).double())
        pairs = zip(exact, self.answers(source, decoder_ids), strict=True)
        hidden, logits = (float(np.abs(left - right).max()) for left, right in pairs)
        return hidden, logits

    def generate(
        self, sources: list[Ids], *, prompts: list[Ids] | None = None, seed: int | None = None, **options: Any
    ) -> Run:
        """Generates from sources of one length; `seed` seeds torch's one generator for the whole call.

        Args:
            sources: Ids for the encoder.
            prompts: Ids for the decoder, of one length, the start token first; the start token alone otherwise.
            seed: Seed of the draws.
            **options: Options of transformers.
        """
        if seed is not None:
            torch.manual_seed(seed)
        begin = prompts or [[START]] * len(sources)
        out = self.model.generate(
            torch.tensor(sources),
            attention_mask=torch.ones(len(sources), len(sources[0]), dtype=torch.long),
            decoder_input_ids=torch.tensor(begin),
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
        rows = [row[len(begin[0]) :].tolist() for row in out.sequences]
        eos = options.pop("eos_token_id", None)
        cut = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
        repeated = [prompt for prompt in begin for _ in range(options.get("num_return_sequences", 1))]
        judged = options if eos is None else options | {"eos_token_id": eos}
        return Run(repeated, cut, [step.float() for step in out.logits], seed, judged)
