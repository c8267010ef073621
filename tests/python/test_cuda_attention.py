"""The kernels of attention by themselves, on the emulated driver.

They are tried with heads and lengths that no small model has, beside numpy in float64.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import emulated
import numpy as np
import pytest
from driver import Driver
from kernel_args import SOURCE, Array, Attend, Cache, Heads, Look, halves, rounded

BLOCK = 16
CHUNK = 256
ALLOWED = 8


@dataclass
class Sequence:
    """Keys and values of a sequence, and queries at some of its positions.

    Args:
        keys: How many there are.
        rows: Positions of the queries.
    """

    keys: int
    rows: list[int]


@dataclass
class Attention:
    """What attends, and how."""

    d: int
    sequences: list[Sequence]
    heads: int = 2
    group: int = 1
    causal: bool = True
    window: int = 0
    bias: bool = False
    bf16: bool = False

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.d * 7 + self.heads)

        def draw(*shape: int) -> Array:
            values = random.standard_normal(shape).astype(np.float32)
            return rounded(values) if self.bf16 else values

        kept = self.heads // self.group
        self.keys = [draw(s.keys, kept, self.d) for s in self.sequences]
        self.values = [draw(s.keys, kept, self.d) for s in self.sequences]
        self.queries = random.standard_normal((self.count, self.heads, self.d)).astype(np.float32)
        self.scale = float(np.float32(self.d**-0.5))
        # A value for each of 4 buckets, of distances up to 20 on both sides.
        self.of_bias = random.standard_normal((self.heads, 4)).astype(np.float32)
        self.buckets = random.integers(0, 4, 41).astype(np.uint32)

    @property
    def count(self) -> int:
        return sum(len(s.rows) for s in self.sequences)

    def expected(self) -> Array:
        """Rows of all heads, in float64."""
        out, row = np.zeros((self.count, self.heads, self.d)), 0
        for sequence, keys, values in zip(self.sequences, self.keys, self.values, strict=True):
            for position in sequence.rows:
                end = min(position + 1, sequence.keys) if self.causal else sequence.keys
                first = max(end - self.window, 0) if self.causal and self.window else 0
                for head in range(self.heads):
                    k, v = (of[first:end, head // self.group].astype(np.float64) for of in (keys, values))
                    scores = k @ self.queries[row, head].astype(np.float64) * self.scale
                    if self.bias:
                        distances = np.clip(np.arange(first, end) - position, -20, 20) + 20
                        scores += self.of_bias[head, self.buckets[distances]]
                    weights = np.exp(scores - scores.max())
                    out[row, head] = weights @ v / weights.sum()
                row += 1
        return out

    def _blocks(self, gpu: Driver) -> tuple[list[int], list[int]]:
        """Addresses of all blocks, and each sequence's first one. What nobody wrote is no number."""
        addresses: list[int] = []
        firsts = []
        for keys, values in zip(self.keys, self.values, strict=True):
            firsts.append(len(addresses))
            for start in range(0, len(keys), BLOCK):
                block = np.full((2, keys.shape[1], BLOCK, self.d), np.nan, np.float32)
                for place, of in enumerate((keys, values)):
                    some = of[start : start + BLOCK]
                    block[place, :, : len(some)] = some.transpose(1, 0, 2)
                addresses.append(gpu.upload(halves(block) if self.bf16 else block))
        return addresses, firsts

    def run(self, gpu: Driver, *, tiled: bool) -> Array:
        """The same by a kernel: a block for each row, or tiles of rows."""
        addresses, firsts = self._blocks(gpu)
        looks: list[tuple[int, ...]] = []
        tiles = []
        for sequence, block in zip(self.sequences, firsts, strict=True):
            of_tiles = range(0, len(sequence.rows), BLOCK)
            tiles += [(len(looks) + first, min(BLOCK, len(sequence.rows) - first)) for first in of_tiles]
            for position in sequence.rows:
                # Results go to rows in another order than queries.
                looks.append((len(looks), self.count - 1 - len(looks), position, sequence.keys, block))
        chunks = max(-(-s.keys // CHUNK) for s in self.sequences)
        size = BLOCK * self.d * (2 if self.bf16 else 4)
        width = self.heads * self.d
        out = gpu.upload(np.full((self.count, width + 1), 7, np.float32))
        args = Attend(
            looks=gpu.upload(np.array(looks, np.int32)),
            cache=Cache(
                gpu.upload(np.array(addresses, np.uint64)), 0, size * (self.heads // self.group), size
            ),
            queries=Heads(gpu.upload(self.queries), width),
            bias=gpu.upload(self.of_bias) if self.bias else 0,
            buckets=gpu.upload(self.buckets),
            out=out,
            partial=gpu.alloc(self.count * self.heads * chunks * (self.d + 2) * 4),
            tickets=gpu.upload(np.zeros(self.count * self.heads, np.uint32)),
            tiles=gpu.upload(np.array(tiles, np.int32)),
            scale=self.scale,
            out_stride=width + 1,
            rows=self.count,
            heads=self.heads,
            group=self.group,
            d=self.d,
            causal=self.causal,
            window=self.window,
            reach=20,
            bucket_count=4,
            chunks=chunks,
        )
        kind = "bf16" if self.bf16 else "f32"
        if tiled:
            line = self.d + -self.d % 4
            shared = 4 * (16 * line + 16 * (line + 4) + 16 * line + 16 * 16)
            gpu.call("cuFuncSetAttribute", gpu.function(f"fd_attend_tile_{kind}"), ALLOWED, shared)
            gpu.launch(f"fd_attend_tile_{kind}", args, [len(tiles), self.heads], [128], shared, early=True)
        else:
            grid = [self.count, self.heads, chunks]
            gpu.launch(f"fd_attend_rows_{kind}", args, grid, [128], early=True)
        found = gpu.download(out, [self.count, width + 1], np.float32)
        assert (found[:, -1] == 7).all(), "nothing is written behind a row"
        tickets = gpu.download(args.tickets, [self.count * self.heads], np.uint32)
        assert not tickets.any(), "counters are zero afterwards"
        return found[::-1, :-1].reshape(self.count, self.heads, self.d)


def distance(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max())


# Widths with whole pieces of sixteen bytes and without, of one lane, of all, and of two pieces for each.
WIDTHS = [4, 8, 7, 30, 64, 80, 96, 128, 130, 256]


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiles"])
def test_widths_of_heads(d: int, bf16: bool, tiled: bool) -> None:
    gpu = Driver(emulated.library(), "", SOURCE)
    rows = list(range(40)) if tiled else [5, 39]
    case = Attention(d, [Sequence(40, rows), Sequence(3, [2])], bf16=bf16)
    assert distance(case.run(gpu, tiled=tiled), case.expected()) < 2e-6


KINDS: dict[str, dict[str, Any]] = {
    "groups": {"heads": 6, "group": 3},
    "a window": {"window": 30},
    "a bias": {"bias": True},
    "a source": {"causal": False, "bias": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize("knobs", ["", "reverse=1"])
def test_kinds_of_attention_over_chunks(kind: str, tiled: bool, knobs: str) -> None:
    gpu = Driver(emulated.library(), knobs, SOURCE)
    rows = list(range(560, 600)) if tiled else [599, 256, 255]
    case = Attention(16, [Sequence(600, rows), Sequence(17, [16, 3] if not tiled else [3])], **KINDS[kind])
    assert distance(case.run(gpu, tiled=tiled), case.expected()) < 2e-6


@pytest.mark.parametrize("d", [64, 30])
@pytest.mark.parametrize("tiled", [False, True], ids=["rows", "tiles"])
def test_keys_that_are_no_numbers_reach_only_rows_that_see_them(d: int, tiled: bool) -> None:
    gpu = Driver(emulated.library(), "", SOURCE)
    case = Attention(d, [Sequence(40, list(range(40)))])
    case.keys[0][21, 1] = np.nan
    case.values[0][9, 0, 3] = np.inf
    found = case.run(gpu, tiled=tiled)
    assert np.isfinite(found[:21, 1]).all()
    assert np.isnan(found[21:, 1]).all()
    assert np.isfinite(found[:9, 0]).all()
    assert not np.isfinite(found[9:, 0, 3]).any()
    assert np.isfinite(np.delete(found[:, 0], 3, -1)).all()


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_row_has_the_same_bits_in_any_company(bf16: bool) -> None:
    gpu = Driver(emulated.library(), "", SOURCE)
    whole = Attention(64, [Sequence(300, [299]), Sequence(21, [20])], bf16=bf16)
    alone = Attention(64, [Sequence(300, [299])], bf16=bf16)
    alone.keys, alone.values, alone.queries = whole.keys[:1], whole.values[:1], whole.queries[:1]
    assert np.array_equal(alone.run(gpu, tiled=False)[0], whole.run(gpu, tiled=False)[0])


def test_the_structures_are_those_of_the_kernels() -> None:
    assert ctypes.sizeof(Look) == 20
    assert ctypes.sizeof(Cache) == 32
