"""The precisions that the benchmarks compare: how our engines load each, from which folder, and under which limits.

A precision's name says how weights lie in memory: "int8" and "int4" stand for eight and four bits of any scheme. Ours
of "int4" has embeddings and head in eight bits, as OpenVINO's has; llama.cpp's q4_0 has them in six and a
half, so that "fastdecode_int4_head", with four bits there as well, stands on its other side.
"""

from __future__ import annotations

from typing import Any

PRECISIONS = ["f32", "bf16", "int8", "int4"]
# Our engines, and how `load` is asked for each of their precisions.
OPTIONS: dict[str, dict[str, Any]] = {
    "f32": {},
    "bf16": {},
    "bf16 dot": {"compute_dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "int4": {"dtype": "int4"},
    "int4 head": {"dtype": {"default": "int4", "lm_head": "int4"}},
}
# What we are in a run: one file drives them all.
OURS = {
    "fastdecode": {"f32": "f32", "bf16": "bf16", "int8": "int8", "int4": "int4"},
    "fastdecode_bf16": {"bf16": "bf16 dot"},
    "fastdecode_int4_head": {"int4": "int4 head"},
}
# The dots of products that are not formed in float32, as `measure_limits` names them.
DOTS = {"bf16 dot": "bf16_dot_flops_per_second"} | dict.fromkeys(
    ("int8", "int4", "int4 head"), "int8_ops_per_second"
)


def asked(engine: str, precision: str) -> str:
    """Returns the precision as the engine's file takes it."""
    return OURS[engine][precision] if engine in OURS else precision


def stored(engine: str, precision: str) -> str:
    """Returns the precision of the folder that an engine reads or converts."""
    # Peers that convert start from float32, as their users do; ours of fewer bits are quantized while a folder is read.
    return "bf16" if engine in OURS and precision != "f32" else "f32"


def peak_of(kind: str, limits: list[dict[str, Any]]) -> str:
    """Returns the limit of our products by how `load` was asked: a dot's where the CPU does it fast, else float32's."""
    dot = DOTS.get(kind)
    return dot if dot and all(limit.get(dot) for limit in limits) else "f32_flops_per_second"


def sustained(peak: str) -> str:
    """Returns the name of the arithmetic that was sustained beside a peak."""
    return peak.replace("_flops", "_sustained_flops").replace("_ops", "_sustained_ops")
