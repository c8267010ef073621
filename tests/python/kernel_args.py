"""The structures that CUDA kernels take (rust/cuda/args.rs), for tests that launch one by itself."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_uint64
from typing import Any

import emulated
import numpy as np

# Text that names every kernel, and the file that numbers activations.
SOURCE = "\n".join(path.read_text() for path in sorted(emulated.KERNELS.glob("*.cu")))


class Norm(ctypes.Structure):
    _fields_ = (("weight", c_uint64), ("bias", c_uint64), ("eps", c_float), ("kind", c_int))


class Results(ctypes.Structure):
    _fields_ = (("at", c_uint64), ("stride", c_int), ("first", c_int), ("activation", c_int))


class Linear(ctypes.Structure):
    _fields_ = (
        *((name, c_uint64) for name in ("x", "w", "bias", "residual")),
        ("norm", Norm),
        ("results", Results * 4),
        *((name, c_int) for name in ("x_stride", "w_stride", "residual_stride", "rows", "inputs", "outputs")),
        *((name, c_int) for name in ("count", "gated", "split")),
    )


class Look(ctypes.Structure):
    _fields_ = tuple((name, c_int) for name in ("row", "out", "position", "keys", "block"))


class Heads(ctypes.Structure):
    _fields_ = (("at", c_uint64), ("stride", c_int))


class Preparation(ctypes.Structure):
    _fields_ = (("norm", Norm), ("angles", c_uint64), ("pairs", c_int))


class Cache(ctypes.Structure):
    _fields_ = (("blocks", c_uint64), ("keys", c_int64), ("values", c_int64), ("head", c_int64))


class Attend(ctypes.Structure):
    _fields_ = (
        ("looks", c_uint64),
        ("cache", Cache),
        ("queries", Heads),
        ("prepare", Preparation),
        *((name, c_uint64) for name in ("bias", "buckets", "out", "partial", "tickets", "tiles")),
        ("scale", c_float),
        *((name, c_int) for name in ("out_stride", "rows", "heads", "group", "d", "causal", "window")),
        *((name, c_int) for name in ("reach", "bucket_count", "chunks")),
    )


# What the kernels assert, too.
assert [ctypes.sizeof(kind) for kind in (Norm, Results, Linear, Attend)] == [24, 24, 192, 192]

NORMS = {"none": 0, "layer": 1, "rms": 2}
ACTIVATIONS = {"linear": 0, "relu": 1}

Array = np.ndarray[Any, np.dtype[Any]]


def rounded(values: Array) -> Array:
    """To the nearest bfloat16, ties to even, as float32."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return (upper << 16).astype(np.uint32).view(np.float32)


def halves(values: Array) -> Array:
    """The bits of values that are bfloat16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def padded(rows: Array, to: int) -> Array:
    """Rows with more columns, up to a multiple of `to`, which are no numbers: nobody may use them."""
    extra = -rows.shape[-1] % to
    return np.concatenate([rows, np.full((*rows.shape[:-1], extra), np.nan, rows.dtype)], -1)
