"""The emulated CUDA driver: what threads of a kernel do together, mistakes that are found, and how it is built."""

from __future__ import annotations

import ctypes
import json
from typing import TYPE_CHECKING, Any

import emulated
import numpy as np
import pytest
import tries
from driver import Driver, DriverError
from tries import Block, Lanes, Matrix, Product

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RANDOM = np.random.default_rng(7)


def bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The upper halves of floats; exact for small integers."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


# ---- Lanes


def test_a_tensor_product_is_a_plain_product_of_fragments_as_the_isa_lays_them(driver: Driver) -> None:
    a = RANDOM.integers(-8, 9, (2, 16, 16)).astype(np.float32)
    b = RANDOM.integers(-8, 9, (2, 16, 8)).astype(np.float32)
    c = RANDOM.integers(-8, 9, (2, 16, 8)).astype(np.float32)
    columns = np.ascontiguousarray(b.transpose(0, 2, 1))
    at = driver.upload(c)
    driver.launch(
        "try_product", Product(driver.upload(bfloat16(a)), driver.upload(bfloat16(columns)), at), [1], [64]
    )
    assert np.array_equal(driver.download(at, c.shape, np.float32), c + a @ b)


@pytest.mark.parametrize("width", [32, 16, 8, 2])
@pytest.mark.parametrize("by", [0, 1, 5, 16, 31])
@pytest.mark.parametrize("knobs", ["", "reverse=1"])
def test_shuffles_take_from_the_lane_that_the_isa_says(
    begin: Callable[..., Driver], width: int, by: int, knobs: str
) -> None:
    driver, n = begin(knobs), 64
    values = RANDOM.integers(0, 2**32, n, dtype=np.uint32)
    out = driver.alloc(5 * n * 4)
    driver.launch("try_shuffles", Lanes(driver.upload(values), out, width, by), [1], [n])
    expected = np.empty((5, n), np.uint32)
    for thread in range(n):
        warp, lane = divmod(thread, 32)
        first, last = lane // width * width, lane // width * width + width - 1
        sources = [
            first + by % width,
            lane ^ by if lane ^ by <= last else lane,
            lane + by if lane + by <= last else lane,
            lane - by if lane - by >= first else lane,
        ]
        expected[:4, thread] = values[[warp * 32 + source for source in sources]]
        expected[4, thread] = sum(int(values[warp * 32 + i] & 1) << i for i in range(32))
    assert np.array_equal(driver.download(out, expected.shape, np.uint32), expected)


def test_shuffles_carry_eight_bytes_and_floats(driver: Driver) -> None:
    values = RANDOM.normal(size=32).astype(np.float32)
    bits, out = values.view(np.uint32), driver.alloc(64 * 4)
    driver.launch("try_wide", Lanes(driver.upload(values), out, 0, 0), [1], [32])
    other = np.arange(32) ^ 1
    expected = np.stack([bits[other] ^ other.astype(np.uint32), bits[[*range(1, 32), 31]]])
    assert np.array_equal(driver.download(out, (2, 32), np.uint32), expected)


@pytest.mark.parametrize("threads", [32, 256, 1024])
def test_a_matrix_times_a_vector(driver: Driver, threads: int) -> None:
    w, x = RANDOM.normal(size=(2304, 768)).astype(np.float32), RANDOM.normal(size=768).astype(np.float32)
    y = driver.alloc(2304 * 4)
    arguments = Matrix(driver.upload(w), driver.upload(x), y, 2304, 768)
    driver.launch("try_matrix", arguments, [2304 * 32 // threads], [threads])
    exact = w.astype(np.float64) @ x
    assert np.abs(driver.download(y, [2304], np.float32) - exact).max() < 1e-4


# ---- Blocks


@pytest.mark.parametrize("threads", [1, 31, 32, 64, 256])
@pytest.mark.parametrize("knobs", ["", "reverse=1"])
def test_barriers_order_what_threads_share(begin: Callable[..., Driver], threads: int, knobs: str) -> None:
    driver, blocks = begin(knobs), 3
    out = driver.alloc(blocks * 3 * threads * 4)
    driver.launch("try_shared", Block(out, 0, 0), [blocks], [threads], shared=threads * 4)
    opposite = np.arange(threads - 1, -1, -1)
    rounds = np.stack([opposite * 1001 + 2 * r for r in range(3)])
    assert np.array_equal(driver.download(out, (blocks, 3, threads), np.uint32), np.stack([rounds] * blocks))


def test_a_missing_barrier_shows_in_either_order(begin: Callable[..., Driver]) -> None:
    results = []
    for knobs in ["", "reverse=1"]:
        driver = begin(knobs)
        out = driver.alloc(64 * 4)
        driver.launch("try_race", Block(out, 0, 0), [1], [64])
        results.append(driver.download(out, [64], np.uint32))
        assert not np.array_equal(results[-1], np.arange(63, -1, -1))
    assert not np.array_equal(results[0], results[1])


def test_shared_memory_is_poisoned_for_every_block(driver: Driver) -> None:
    out = driver.alloc(64 * 4)
    driver.launch("try_unwritten", Block(out, 0, 0), [3], [32], shared=128)
    assert (driver.download(out, [64], np.uint32) == 0xFFFFFFFF).all()


def test_places_in_three_dimensions(driver: Driver) -> None:
    grid, block = (3, 2, 4), (5, 3, 2)
    out = driver.alloc(24 * 30 * 4)
    driver.launch("try_places", Block(out, 0, 0), grid, block)
    expected = np.arange(24)[:, None] * 10000 + np.arange(30)
    assert np.array_equal(driver.download(out, (24, 30), np.uint32), expected)


def test_the_block_that_comes_last_sees_all_tickets(driver: Driver) -> None:
    out = driver.upload(np.zeros(2, np.uint32))
    driver.launch("try_tickets", Block(out, 0, 0), [17], [64])
    assert driver.download(out, [2], np.uint32).tolist() == [17, 17]


def test_fibers_of_other_processors() -> None:
    """Where no assembly is at hand the C library switches."""
    other = emulated.build(tries.FILES, defines=["EMU_UCONTEXT"])

    def begin(knobs: str = "") -> Driver:
        return Driver(other, knobs, tries.SOURCE)

    test_barriers_order_what_threads_share(begin, 256, "reverse=1")
    test_shuffles_take_from_the_lane_that_the_isa_says(begin, 16, 5, "")
    test_kernels_run_after_one_that_ended_early(begin)


MISTAKES = {
    "a barrier that some have left": (0, 64, 719, "40 of 64 threads wait in __syncthreads"),
    "a warp's barrier that some have left": (
        1,
        64,
        719,
        "20 lanes of a warp wait in __syncwarp for 12 that have ended",
    ),
    "two meetings at once": (
        2,
        64,
        719,
        "lanes of a warp meet in __syncwarp and in __ballot_sync at the same time",
    ),
    "a mask of half a warp": (3, 64, 719, "__shfl_sync with the mask 0xffff"),
    "a word behind, at a page's end": (4, 64, 700, "thread (5, 0, 0): address"),
    "a word behind, in the poison": (4, 60, 700, "something wrote behind the allocation of 240 bytes"),
    "a word in front": (5, 64, 700, "something wrote in front of the allocation of 256 bytes"),
    "far away": (6, 64, 700, "kernel try_mistake, block (0, 0, 0), thread (5, 0, 0): address"),
    "an index of a shared array": (7, 60, 700, "blocks.cu:"),
    "an address between two words": (8, 64, 716, "is no multiple of 4"),
    "too much stack": (9, 64, 719, "bytes of stack"),
    "barriers of different reach": (10, 64, 719, "wait in __syncthreads"),
    "behind the dynamic shared memory": (11, 60, 700, "thread (4, 0, 0)"),
    "a null pointer": (12, 64, 700, "a null pointer"),
    "an asynchronous copy to half of sixteen bytes": (14, 64, 716, "an asynchronous copy of 16 bytes at"),
    "an asynchronous copy to the GPU's memory": (15, 64, 700, "which is no shared memory of the block"),
    "an asynchronous copy of too much": (16, 64, 719, "an asynchronous copy of 17 of 16 bytes"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_kernel_with_a_mistake_ends_with_its_error(
    driver: Driver, mistake: str, capfd: pytest.CaptureFixture[str]
) -> None:
    how, n, code, words = MISTAKES[mistake]
    driver.launch("try_mistake", Block(driver.alloc(n * 4), n, how), [1], [64], shared=256)
    with pytest.raises(DriverError) as error:
        driver.synchronize()
    assert error.value.code == code
    assert words in error.value.message
    assert "try_mistake" in error.value.message
    assert error.value.message in capfd.readouterr().err
    # The context is lost.
    with pytest.raises(DriverError) as again:
        driver.alloc(4)
    assert again.value.code == code


def test_kernels_run_after_one_that_ended_early(begin: Callable[..., Driver]) -> None:
    driver = begin()
    driver.launch("try_mistake", Block(driver.alloc(256), 64, 2), [1], [64])
    with pytest.raises(DriverError):
        driver.synchronize()
    test_barriers_order_what_threads_share(begin, 256, "")


def test_a_kernel_that_may_begin_early_waits_for_the_one_before(begin: Callable[..., Driver]) -> None:
    driver = begin()
    out = driver.alloc(256)
    driver.launch("try_early", Block(out, 64, 0), [1], [64], early=True)
    driver.launch("try_early", Block(out, 63, 0), [1], [64])
    driver.synchronize()
    assert driver.report()["early"] == 1
    driver.launch("try_early", Block(out, 63, 0), [1], [64], early=True)
    with pytest.raises(DriverError, match=r"thread \(63, 0, 0\).* never waited for the kernel before"):
        driver.synchronize()


def test_asynchronous_copies_come_when_their_thread_waits(begin: Callable[..., Driver]) -> None:
    values, poison = np.arange(1, 33, dtype=np.uint32), np.full(4, 0xFFFFFFFF, np.uint32)
    first, second = values[:4], np.array([5, 6, 0, 0], np.uint32)
    seen = {"": [(poison, poison), (first, poison), (first, second)], "reverse=1": [(first, second)] * 3}
    for knobs, expected in seen.items():
        driver = begin(knobs)
        out = driver.upload(values)
        driver.launch("try_copies", Block(out, 8, 0), [1], [1], shared=32)
        got = driver.download(out, [32], np.uint32)[8:].reshape(3, 2, 4)
        assert np.array_equal(got, np.array(expected)), knobs


# ---- Building


def test_without_a_compiler_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    emulated.compiler.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"apt-get install g\+\+"):
            emulated.compiler()
    finally:
        emulated.compiler.cache_clear()


def test_a_kernel_file_that_does_not_compile_shows_the_compilers_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.cu"
    broken.write_text('extern "C" __global__ void broken(const int a) { missing(a); }\n')
    with pytest.raises(RuntimeError, match="missing"):
        emulated.build([broken])


def test_the_report_is_json_with_every_call(driver: Driver) -> None:
    driver.alloc(1)
    text = ctypes.CFUNCTYPE(ctypes.c_char_p)(("emu_report", driver.library))()
    assert json.loads(text) == driver.report()
    assert driver.report()["calls"]["cuMemAlloc_v2"] == 1
