"""Ways in which config.json asks for rotary positions: old keys and new ones, both at once, and none."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from .base import Config


def scaling(draw: st.DrawFn) -> Config:
    """Draws an object of `rope_scaling` or `rope_parameters`; test_longrope.py has longrope."""

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    kind = one("default", "linear", "llama3", "yarn", "dynamic")
    found: Config = {one("rope_type", "type"): kind}
    if draw(st.integers(0, 9)) == 0:
        found = {"rope_type": kind, "type": one("linear", "default")}
    if kind != "default":
        found["factor"] = one(1.0, 2.0, 4, 8.0)
    if kind in ("llama3", "yarn") and draw(st.booleans()):
        found["original_max_position_embeddings"] = one(8, 16, 32)
    if kind == "llama3":
        low, high = one((1.0, 4.0), (1, 2), (0.5, 8.0))
        found |= {"low_freq_factor": low, "high_freq_factor": high}
    if kind == "yarn":
        found |= one({}, {"attention_factor": 1.5}, {"mscale": 1.0, "mscale_all_dim": 0.5}, {"mscale": 0.7})
        found |= one({}, {"beta_fast": 16, "beta_slow": 2.0}, {"beta_fast": None})
        found |= one({}, {"truncate": False}, {"truncate": True})
        found |= one({}, {}, {"factor": None})
    if draw(st.booleans()):
        found["rope_theta"] = one(100.0, 10000, 1e6)
    return found


def rotary(draw: st.DrawFn, head_dim: int, *, partial: bool = False) -> Config:
    """Draws the keys of a config that say how positions turn heads of this width."""

    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    found: Config = {}
    part = 0.5  # Phi's, where no key says how much
    if draw(st.booleans()):
        found["rope_theta"] = one(50.0, 10000.0, 500000)
    names = one((), (), ("rope_scaling",), ("rope_parameters",), ("rope_scaling", "rope_parameters"))
    found |= {name: one(scaling(draw), scaling(draw), {}, None) for name in names}
    if partial:
        part = one(
            *(
                part
                for part in (0.25, 0.4, 0.5, 1.0)
                if int(head_dim * part) % 2 == 0 and head_dim * part >= 2
            )
        )
        for name in names:
            if found[name] and draw(st.booleans()):
                found[name]["partial_rotary_factor"] = part
        found["partial_rotary_factor"] = part
    for name in names:
        # transformers divides by the width of what turns, less two.
        if found[name] and "dynamic" in (found[name].get("rope_type"), found[name].get("type")):
            found[name] = found[name] if int(head_dim * part) > 2 else None
    if draw(st.integers(0, 5)) == 0:
        found["original_max_position_embeddings"] = one(16, 32)
    return found
