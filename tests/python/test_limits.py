"""What the machine can do at most: plausible numbers, and a refused buffer is an error."""

from __future__ import annotations

import fastdecode
import pytest
from fastdecode import _core


def test_limits_are_plausible() -> None:
    limits = _core.measure_limits(1 << 22, 1)
    # Any CPU that runs this reads more than 0.1 GB/s and does more than 0.1 GFLOP/s; none does a million times that.
    for name in ("read_bytes_per_second", "f32_flops_per_second", "int8_ops_per_second"):
        assert 1e8 < limits[name] < 1e14, limits
    dot = limits["bf16_dot_flops_per_second"]
    assert dot is None or dot > 1e8
    assert (limits["bf16_dot_sustained_flops_per_second"] is None) == (dot is None)
    # The mean of the runs is at most the best of them.
    assert 1e7 < limits["f32_sustained_flops_per_second"] <= limits["f32_flops_per_second"]
    assert 1e7 < limits["int8_sustained_ops_per_second"] <= limits["int8_ops_per_second"]


def test_a_buffer_that_the_system_refuses_is_an_error() -> None:
    with pytest.raises(fastdecode.errors.OutOfMemoryError, match="bytes of memory"):
        _core.measure_limits(1 << 60)
