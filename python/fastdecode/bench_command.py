"""`fastdecode bench`: what `bench.measure` found, as lines or JSON. Nothing here computes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .bench import measure
from .profile import Profile

if TYPE_CHECKING:
    import argparse

    from .causal import CausalLM
    from .seq2seq import Seq2SeqLM


def show(parsed: argparse.Namespace, model: CausalLM | Seq2SeqLM) -> None:
    """Measures and prints.

    Args:
        parsed: The command line.
        model: The model that it names.

    Raises:
        OptionError: A profile of a model on a GPU is asked for.
    """
    profile = Profile(model) if parsed.profile else None
    values = {"name": parsed.model} | measure(model, rounds=parsed.rounds, profile=profile)
    if profile is not None:
        values["profile"] = profile.as_dict()
    if parsed.json:
        print(json.dumps(values, indent=2))
        return
    _show_rates(values)
    if profile is not None:
        print(profile)


def _show_rates(values: dict[str, Any]) -> None:
    prefill, decode, limits = values["prefill"], values["decode"], values["limits"]
    place = f"{values['num_threads']} threads" if values["device"] == "cpu" else values["device"]
    print(
        f"{values['name']}: {values['parameters']:,} parameters in {values['dtype']}, products in "
        f"{values['compute_dtype']}, {values['isa']}, {place}"
    )

    def share(of: dict[str, Any], name: str, limit: str) -> str:
        return "" if of[name] is None else f", {of[name]:.0%} of the {limit}"

    print(
        f"prefill of {prefill['tokens']} tokens: {prefill['tokens_per_second']:,.0f} tokens/s, "
        f"{prefill['flops_per_second'] / 1e9:,.1f} GFLOP/s{share(prefill, 'share_of_peak', 'peak')}"
    )
    print(
        f"decode after {decode['prompt_tokens']} tokens: {decode['tokens_per_second']:,.1f} tokens/s, "
        f"{decode['bytes_per_second'] / 1e9:,.1f} GB/s{share(decode, 'share_of_bandwidth', 'read bandwidth')}"
    )
    if limits is None:
        print("what this GPU can do at most is not measured")
        return
    print(
        f"this machine at most: {limits['read_bytes_per_second'] / 1e9:,.1f} GB/s, "
        f"{limits['f32_flops_per_second'] / 1e9:,.1f} GFLOP/s in float32"
        f" ({limits['f32_sustained_flops_per_second'] / 1e9:,.1f} sustained)"
        + (f", {limits['int8_ops_per_second'] / 1e9:,.1f} of integers" if "int" in values["dtype"] else "")
    )
