"""What a call gives back: frozen values, nothing that computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .load_options import Dtype

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable a new token was, by the log-softmax of the raw logits.

    Attributes:
        token_id: The token.
        logprob: Natural logarithm of its probability, 0 or below.
        top: The most probable tokens at its place, best first, as (token id, log-probability).
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one sequence.

    Attributes:
        prompt_tokens: Tokens in the prompt, with the start token that an empty prompt gets; in a model with an
            encoder those of the source and of the decoder's prompt.
        completion_tokens: New tokens, an end token included.
        cached_tokens: Tokens among those of the prompt that were not computed again, because a `Prefix` or the
            model's cache of prefixes had them.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds of the clock on the wall.

    Attributes:
        load: Loading the model, once for all calls.
        prefill: From the beginning of the call to the first new token of this sequence; where it waited for others
            to end, with that.
        decode: From its first new token to its last; with beams to the end of the search.
        tokens_per_second: New tokens after the first, per second of decode; 0 with fewer than two new tokens.
            Sequences that run side by side share the machine, and each has its own rate.
    """

    load: float
    prefill: float
    decode: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Output:
    """One generated sequence.

    Attributes:
        text: New text only: what the new ids add to the prompt's text, so that the two join to the text of all ids;
            cut before a stop string. Where the prompt ends within a character, the whole character is in it. None
            without a tokenizer.
        token_ids: New ids only, an end token included.
        finish_reason: "eos" (an end token), "stop" (a stop string or stop token) or "length".
        logprobs: With `logprobs=N`, one entry per new token; None otherwise.
        score: With beams, the sum of the new tokens' log-probabilities over their number to the power of
            `length_penalty` (transformers' `sequences_scores`); None otherwise. A score of about -1e9 marks a
            repetition of the best sequence: the options left fewer than were asked for.
        usage: Numbers of tokens.
        timings: Seconds and rate.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    score: float | None
    usage: Usage
    timings: Timings

    def __str__(self) -> str:
        return self.text or ""


@dataclass(frozen=True, slots=True)
class Score:
    """How probable a given continuation is.

    Attributes:
        logprob: Natural logarithm of its probability: the sum over its tokens, formed in double precision.
        token_ids: The continuation's tokens.
        token_logprobs: For each of them the log-softmax of the model's logits, computed in double precision and
            rounded to float32.
        is_greedy: Whether every token is the most probable one at its place, the first of equals: greedy decoding
            would write the continuation.
    """

    logprob: float
    token_ids: list[int]
    token_logprobs: list[float]
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Quality:
    """What a type of weights makes of a model, held against float32 on given texts.

    Attributes:
        dtype: The type, as `load` takes it.
        compute_dtype: How products are formed with it.
        loss: Nats per target token; its exponential is the perplexity. Of texts, windows are weighted as `perplexity`
            weights them; of pairs, every target token counts the same.
        perplexity: The exponential of `loss`.
        kl: Mean over the target tokens of the Kullback-Leibler divergence KL(float32 || type) in nats, over the whole
            vocabulary; 0 where both give the same probabilities.
        agreement: Share of target tokens, from 0 to 1, at whose places both hold the same token for the most probable.
        tokens: Target tokens that were counted.
        weight_bytes: Bytes of the weights in memory, as in `info`.
        step_weight_bytes: Those of them that a step of decoding reads.
        tokens_per_second: Greedy decode of one sequence, the first token not counted; 0 where the context has no
            room for two new tokens. A rate of this machine at this moment, unlike all others here.
        int4_group: Inputs that share a scale in int4; None of a type without it.
    """

    dtype: Dtype
    compute_dtype: str
    loss: float
    perplexity: float
    kl: float
    agreement: float
    tokens: int
    weight_bytes: int
    step_weight_bytes: int
    tokens_per_second: float
    int4_group: int | None = None


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Types of weights beside each other; `str` of it is a table.

    Attributes:
        measure: "perplexity" (of texts) or "loss" (of targets): what the table shows of the two.
        rows: One for each type, float32 first and then the others in the order in which they were asked for.
    """

    measure: Literal["perplexity", "loss"]
    rows: tuple[Quality, ...]

    def __str__(self) -> str:
        heads = (
            "dtype",
            "products",
            self.measure,
            "change",
            "KL",
            "agreement",
            "weights",
            "per step",
            "tokens/s",
        )
        lines = [heads, *(self._cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def _cells(self, row: Quality) -> tuple[str, ...]:
        value, base = (
            (found.perplexity if self.measure == "perplexity" else found.loss)
            for found in (row, self.rows[0])
        )
        group = "" if row.int4_group is None else f" by {row.int4_group}"
        return (
            dtype_name(row.dtype) + group,
            row.compute_dtype,
            f"{value:,.4f}" if value < 1e6 else f"{value:.4g}",
            f"{value / base - 1:+.2%}" if 0 < base < float("inf") else "",
            f"{row.kl:.3g}",
            f"{row.agreement:.2%}",
            f"{row.weight_bytes / 1e6:,.1f} MB",
            f"{row.step_weight_bytes / 1e6:,.1f} MB",
            f"{row.tokens_per_second:,.1f}",
        )


def dtype_name(dtype: str | Mapping[str, str]) -> str:
    """A type of weights as people read it: its name, or for a choice by part what each part gets."""
    if isinstance(dtype, str):
        return dtype
    return ",".join(f"{part}={name}" for part, name in dtype.items())


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next piece of a generated sequence.

    Attributes:
        text: New text, as in `Output`; the texts of a sequence join to all of it. None without a tokenizer.
        token_ids: The new ids since the chunk before, an end token included.
        index: Which sequence of the call it belongs to, prompt by prompt.
        finish_reason: None until the last chunk of the sequence; then as in `Output`.
    """

    text: str | None
    token_ids: list[int]
    index: int
    finish_reason: FinishReason | None

    def __str__(self) -> str:
        return self.text or ""
