"""Types of weights in a quality report: which are compared, which are the same, how each is loaded and named."""

from __future__ import annotations

from typing import Any

from fastdecode import CausalLM, quality


def test_the_names_of_types_are_those_that_load_takes() -> None:
    names = quality._names()
    assert {"auto", "float32", "float16", "bfloat16"} <= set(names)
    name: Any
    for name in names:
        assert CausalLM.load("demo-stories", dtype=name).info()["weight_bytes"] > 0
