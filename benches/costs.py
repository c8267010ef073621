"""What a step on a model of benches/folders.py reads and computes, counted by hand from its config.

The only place under benches that knows how an architecture is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from folders import MODELS


@dataclass(frozen=True)
class Model:
    """A model of real size, as the benchmarks count it.

    Attributes:
        name: The model.
        vocab: Token ids.
        step_weights: Weights that one step reads: the head, and the blocks' matrices without those that read a source.
        prompt_weights: Weights that every token of a prompt, or of a source, is multiplied by.
        inner: Width of queries, keys and values of all heads.
        layers: Blocks of the decoder; with an encoder as many there.
        head: Weights of the head where a prompt is followed by it; 0 where a source is only encoded.
    """

    name: str
    vocab: int
    step_weights: int
    prompt_weights: int
    inner: int
    layers: int
    head: int

    def weight_bytes(self, element: int) -> int:
        """Bytes of weights that one step reads."""
        return self.step_weights * element

    def cache_bytes(self, context: float) -> float:
        """Bytes of float32 keys and values that a step reads, of a source and of the tokens so far together."""
        return 2 * self.layers * self.inner * context * 4

    def prompt_flops(self, tokens: int) -> float:
        """FLOPs of a prompt (causal attention, the head for the last token only), or of encoding a source."""
        attention = (2 if self.head else 4) * self.layers * self.inner * tokens**2
        return 2 * self.prompt_weights * tokens + attention + 2 * self.head


def counted(name: str) -> Model:
    """Returns a model by its name in benches/folders.py."""
    config: dict[str, Any] = MODELS[name].sizes[name].config
    if MODELS[name].has_encoder:
        width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
        gated, layers = config["feed_forward_proj"].startswith("gated"), config["num_layers"]
        feed_forward = (3 if gated else 2) * width * config["d_ff"]
        return Model(
            name=name,
            vocab=config["vocab_size"],
            # Self-attention, half of cross-attention, feed-forward.
            step_weights=layers * (6 * width * inner + feed_forward) + config["vocab_size"] * width,
            # The encoder, and the decoder's keys and values of the source.
            prompt_weights=layers * (4 * width * inner + feed_forward + 2 * width * inner),
            inner=inner,
            layers=layers,
            head=0,
        )
    width, layers = config["n_embd"], config["n_layer"]
    matrices, head = 12 * width**2 * layers, config["vocab_size"] * width
    return Model(
        name=name,
        vocab=config["vocab_size"],
        step_weights=matrices + head,
        prompt_weights=matrices,
        inner=width,
        layers=layers,
        head=head,
    )
