"""Kernels that try the emulated CUDA driver (tests/emu/tries/), and their arguments."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_uint64

import emulated

FILES = sorted((emulated.EMULATOR / "tries").glob("*.cu"))
SOURCE = "\n".join(path.read_text() for path in FILES)


class Lanes(ctypes.Structure):
    _fields_ = (("values", c_uint64), ("out", c_uint64), ("width", c_int), ("by", c_int))


class Block(ctypes.Structure):
    _fields_ = (("out", c_uint64), ("n", c_int), ("how", c_int))


class Product(ctypes.Structure):
    _fields_ = (("a", c_uint64), ("b", c_uint64), ("c", c_uint64))


class Matrix(ctypes.Structure):
    _fields_ = (("w", c_uint64), ("x", c_uint64), ("y", c_uint64), ("outputs", c_int), ("inputs", c_int))
