"""How fast a model runs here, beside what the machine can do at most.

Decode is counted in bytes of weights and cache read per step, prefill in floating-point operations of the
matrices, attention and head; the limits are measured around every round, on a buffer of the model's size. With
an encoder the prompt is a source, prefill is its encoding, and every step reads its keys and values too.
"""

from __future__ import annotations

import random
import statistics
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from . import _core
from .profile import Profile, at_peak

if TYPE_CHECKING:
    from .causal import CausalLM
    from .seq2seq import Seq2SeqLM


def measure(
    model: CausalLM | Seq2SeqLM,
    *,
    rounds: int = 5,
    prefill: int = 512,
    prompt: int = 32,
    new: int = 128,
    profile: Profile | None = None,
) -> dict[str, Any]:
    """Times prefill and decode of one sequence.

    Every call gets a fresh prompt of random ids. Lengths shrink to what the model's context holds.

    Args:
        model: The model; its number of threads is used for the limits too.
        rounds: Repetitions, at least 1; the median counts.
        prefill: Tokens of the prompt, or of the source, whose prefill is timed.
        prompt: Tokens of the prompt, or of the source, before the decode that is timed.
        new: New tokens of that decode, the first of which counts as prefill.
        profile: A profile of the model for the calls of all rounds; it takes over the limits.

    Returns:
        `limits` (bytes per second, and operations per second at the peak and as sustained, by the numbers that are
        multiplied), `prefill` and `decode` (tokens, seconds, tokens per second, and the share of the limit that was
        reached; of the peak where each operation has that of its numbers), and what the model and the machine are. The
        limits are those of the CPU: on a GPU they and the shares are None.
    """
    info = model.info()
    context = info["context_length"]
    if context is not None:
        prefill = min(prefill, context - 1)
        prompt = min(prompt, context // 2)
        new = min(new, context - prompt)
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(info["vocab_size"]) for _ in range(count)]

    on_cpu = info["device"] == "cpu"
    limits: list[dict[str, Any]] = [_limits(info)] if on_cpu else []
    seconds: dict[str, list[float]] = {"prefill": [], "decode": []}
    for _ in range(rounds):
        with profile or nullcontext():
            first = model.run(ids(prefill), max_new_tokens=1, do_sample=False, eos_token_id=None)
            long = model.run(ids(prompt), max_new_tokens=new, do_sample=False, eos_token_id=None)
        seconds["prefill"].append(first.timings.prefill)
        seconds["decode"].append(long.timings.decode)
        if on_cpu:
            limits.append(_limits(info))
    # Of what was sustained the mean: that is what other tenants left to the rounds.
    best = {
        name: (statistics.mean if "sustained" in name else max)([found[name] or 0.0 for found in limits])
        for name in (limits[0] if limits else ())
    }
    if profile is not None:
        profile._limits = best
    flops = model._core.flops_by_numbers(prefill, 1)
    steps = new - 1
    read = steps * (info["step_weight_bytes"] + _cache_bytes(info, prompt + new / 2))
    result: dict[str, Any] = {
        name: info[name]
        for name in (
            "architecture",
            "parameters",
            "dtype",
            "compute_dtype",
            "device",
            "isa",
            "num_threads",
            "weight_bytes",
        )
    }
    time = statistics.median(seconds["prefill"])
    result["prefill"] = {
        "tokens": prefill,
        "seconds": time,
        "tokens_per_second": prefill / time,
        "flops_per_second": sum(flops) / time,
        "share_of_peak": at_peak(flops, best) / time if on_cpu else None,
    }
    time = statistics.median(seconds["decode"])
    result["decode"] = {
        "prompt_tokens": prompt,
        "tokens": steps,
        "seconds": time,
        "tokens_per_second": steps / time,
        "bytes_per_second": read / time,
        "share_of_bandwidth": read / time / best["read_bytes_per_second"] if on_cpu else None,
    }
    result["limits"] = best if on_cpu else None
    return result


def _cache_bytes(info: dict[str, Any], tokens: float) -> float:
    """Bytes of the cache that a step reads after so many tokens; layers with a window read no more than that.

    A source's keys and values are as large as those of so many tokens of the decoder.
    """
    seen = tokens
    if info["sliding_window"] is not None:
        share = info["sliding_window_layers"] / info["num_hidden_layers"]
        seen = (1 - share) * tokens + share * min(tokens, info["sliding_window"])
    return float(info["cache_bytes_per_token"] * seen)


def _limits(info: dict[str, Any]) -> dict[str, Any]:
    return _core.measure_limits(info["weight_bytes"], info["num_threads"])
