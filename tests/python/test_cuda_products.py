"""The kernels of products by themselves, on the emulated driver.

They are tried with shapes that no small model has, beside numpy in float64.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import emulated
import numpy as np
import pytest
from driver import Driver
from kernel_args import ACTIVATIONS, NORMS, SOURCE, Array, Linear, Norm, Results, halves, padded, rounded

# Bytes of shared memory that tiles of the kernels take, as rust/cuda/gpu.rs has them.
SHARED = {"many": 4 * (64 * 40 * 4 + 64 * 40 * 2), "narrow": 6 * (64 * 40 * 4 + 16 * 40 * 2)}
ALLOWED = 8


@pytest.fixture
def gpu() -> Driver:
    """A driver with all kernels."""
    return Driver(emulated.library(), "", SOURCE)


@dataclass
class Product:
    """What is multiplied, and what is fused around it."""

    inputs: int
    outputs: int
    rows: int
    norm: str = "none"
    activation: str = "linear"
    bias: bool = False
    residual: bool = False
    gated: bool = False
    parts: int = 1

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.inputs * 31 + self.outputs)

        def draw(*shape: int) -> Array:
            return random.standard_normal(shape).astype(np.float32)

        self.x = draw(self.rows, self.inputs)
        self.w = draw(self.outputs, self.inputs) / np.float32(np.sqrt(self.inputs))
        self.of_bias = draw(self.outputs)
        self.of_residual = draw(self.rows, self.outputs)
        self.gain, self.shift = 1 + draw(self.inputs) / 4, draw(self.inputs) / 4

    def expected(self, bf16: bool) -> Array:
        """The results of all outputs, in float64."""
        x, w = self.x.astype(np.float64), self.w
        if self.norm != "none":
            mean = x.mean(-1, keepdims=True) if self.norm == "layer" else 0.0
            x = (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * self.gain
            x = x + self.shift if self.norm == "layer" else x
        if bf16:
            x, w = rounded(x.astype(np.float32)), rounded(w)
        y = x.astype(np.float64) @ w.astype(np.float64).T
        y = y + self.of_bias if self.bias else y
        if self.gated:
            return np.maximum(y[:, ::2], 0) * y[:, 1::2]
        y = np.maximum(y, 0) if self.activation == "relu" else y
        return y + self.of_residual if self.residual else y

    def run(self, gpu: Driver, kernel: str, bf16: bool, split: int = 1) -> Array:
        """The same, by a kernel."""
        kind = "bf16" if bf16 else "f32"
        weights = np.zeros((self.outputs, self.inputs + -self.inputs % (8 if bf16 else 4)), np.float32)
        weights[:, : self.inputs] = self.w
        if bf16:
            weights = halves(rounded(weights))
        x, residual = padded(self.x, 4), padded(self.of_residual, 4)
        width = self.outputs // 2 if self.gated else self.outputs
        # Results side by side, each with rows of its own.
        firsts = [width * part // self.parts for part in range(self.parts + 1)]
        count = [end - first for first, end in itertools.pairwise(firsts)]
        out = [gpu.upload(np.full((self.rows, size + 3), 7, np.float32)) for size in count]
        args = Linear(
            x=gpu.upload(x),
            w=gpu.upload(weights),
            bias=gpu.upload(self.of_bias) if self.bias else 0,
            residual=gpu.upload(residual) if self.residual else 0,
            x_stride=x.shape[1],
            w_stride=weights.shape[1],
            residual_stride=residual.shape[1],
            rows=self.rows,
            inputs=self.inputs,
            outputs=self.outputs,
            count=self.parts,
            gated=self.gated,
            split=split,
        )
        activation = ACTIVATIONS["relu" if self.gated else self.activation]
        for part, (at, size) in enumerate(zip(out, count, strict=True)):
            args.results[part] = Results(at, size + 3, firsts[part], activation)
        if self.norm != "none":
            gain, shift = (gpu.upload(padded(values, 4)) for values in (self.gain, self.shift))
            args.norm = Norm(gain, shift if self.norm == "layer" else 0, 1e-5, NORMS[self.norm])
        self.launch(gpu, kernel, kind, args)
        found = [
            gpu.download(at, [self.rows, size + 3], np.float32) for at, size in zip(out, count, strict=True)
        ]
        assert all((rows[:, -3:] == 7).all() for rows in found), "nothing is written behind a row"
        return np.concatenate([rows[:, :-3] for rows in found], 1)

    def launch(self, gpu: Driver, kernel: str, kind: str, args: Linear) -> None:
        if kernel == "few":
            which = 1 << (self.rows - 1).bit_length()
            name, tile, block = f"fd_few_{kind}_{which}", [-(-self.outputs // (8 // args.split)), 1], 128
            shared = 32 * 4 * 16 * args.split * which
        else:
            name, down = f"fd_{kernel}_{kind}", -(-self.rows // 64)
            tile = [-(-self.outputs // (16 if kernel == "narrow" else 64)), down]
            block = 128 if kind == "bf16" else 256
            shared = SHARED[kernel] if kind == "bf16" else 0
        if shared > 48 << 10:
            gpu.call("cuFuncSetAttribute", gpu.function(name), ALLOWED, shared)
        gpu.launch(name, args, tile, [block], shared, early=True)


def close(found: Array, expected: Array, inputs: int) -> bool:
    """Whether two results differ by no more than sums in float32 do."""
    return bool(np.abs(found - expected).max() <= 4e-7 * np.sqrt(inputs) * max(np.abs(expected).max(), 1))


EVERY = [
    Product(2500, 21, 3, norm="layer", bias=True, activation="relu"),
    Product(1027, 34, 5, norm="rms", residual=True, parts=3),
    Product(4099, 18, 8, bias=True, residual=True),
    Product(513, 40, 2, gated=True),
    Product(130, 7, 1, norm="layer", parts=2),
    Product(3, 1, 4),
]
SHOWN = [f"{p.inputs} to {p.outputs}" for p in EVERY]


@pytest.mark.parametrize("product", EVERY, ids=SHOWN)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_few_rows(gpu: Driver, product: Product, bf16: bool) -> None:
    expected = product.expected(bf16)
    for split in (1, 2, 4):
        found = product.run(gpu, "few", bf16, split)
        if bf16 and product.norm != "none":
            # The norm of float32 may round to another bfloat16 than that of float64.
            assert np.abs(found - expected).max() < 0.02
        else:
            assert close(found, expected, product.inputs), split


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_row_has_the_same_bits_among_eight(gpu: Driver, bf16: bool) -> None:
    whole = Product(1100, 10, 8, norm="layer", bias=True)
    for split in (1, 4):
        among = whole.run(gpu, "few", bf16, split)
        for rows in (1, 2, 4, 5):
            part = Product(1100, 10, rows, norm="layer", bias=True)
            for name in ("w", "of_bias", "gain", "shift"):
                setattr(part, name, getattr(whole, name))
            part.x = whole.x[:rows]
            assert np.array_equal(part.run(gpu, "few", bf16, split), among[:rows]), (split, rows)


MANY = [
    Product(770, 70, 65, bias=True, activation="relu"),
    Product(1000, 130, 9, residual=True, parts=2),
    Product(35, 66, 130, gated=True, bias=True),
    Product(2, 3, 12),
]


@pytest.mark.parametrize("product", MANY, ids=[f"{p.rows} of {p.inputs} to {p.outputs}" for p in MANY])
@pytest.mark.parametrize("knobs", ["", "reverse=1"])
def test_more_rows(product: Product, knobs: str) -> None:
    # In reverse asynchronous copies come at once, and blocks, warps and lanes run from the last to the first.
    gpu = Driver(emulated.library(), knobs, SOURCE)
    assert close(product.run(gpu, "many", bf16=False), product.expected(bf16=False), product.inputs)
    wide, narrow = (product.run(gpu, kernel, bf16=True) for kernel in ("many", "narrow"))
    assert close(wide, product.expected(bf16=True), product.inputs)
    assert np.array_equal(wide, narrow), "tiles of both sizes form the same sums"


def test_a_row_of_no_numbers_stays_alone(gpu: Driver) -> None:
    for kernel, rows in (("few", 3), ("many", 12), ("narrow", 12)):
        product: Any = Product(70, 20, rows, norm="rms" if kernel == "few" else "none")
        product.x[1, 5] = np.nan
        found = product.run(gpu, kernel, bf16=kernel == "narrow")
        assert np.isnan(found[1]).all(), kernel
        assert np.isfinite(np.delete(found, 1, 0)).all(), kernel
