"""What a call gives back: frozen values, nothing that computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
