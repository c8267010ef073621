"""The emulated CUDA driver itself, with kernels of its own: what other tests rely on, and that mistakes are found."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from ctypes import c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any

import emulated
import numpy as np
import pytest
from driver import Driver, DriverError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRIES = sorted((emulated.EMULATOR / "tries").glob("*.cu"))
SOURCE = "\n".join(path.read_text() for path in TRIES)
RANDOM = np.random.default_rng(7)


class Lanes(ctypes.Structure):
    _fields_ = (("values", c_uint64), ("out", c_uint64), ("width", c_int), ("by", c_int))


class Block(ctypes.Structure):
    _fields_ = (("out", c_uint64), ("n", c_int), ("how", c_int))


class Product(ctypes.Structure):
    _fields_ = (("a", c_uint64), ("b", c_uint64), ("c", c_uint64))


class Matrix(ctypes.Structure):
    _fields_ = (("w", c_uint64), ("x", c_uint64), ("y", c_uint64), ("outputs", c_int), ("inputs", c_int))


@pytest.fixture(scope="module")
def path() -> Path:
    return emulated.build(TRIES)


@pytest.fixture
def begin(path: Path) -> Callable[..., Driver]:
    return lambda knobs="": Driver(path, knobs, SOURCE)


@pytest.fixture
def driver(begin: Callable[..., Driver]) -> Driver:
    return begin()


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
    other = emulated.build(TRIES, defines=["EMU_UCONTEXT"])

    def begin(knobs: str = "") -> Driver:
        return Driver(other, knobs, SOURCE)

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


# ---- Memory


def test_memory_is_poisoned(driver: Driver) -> None:
    assert np.isnan(driver.download(driver.alloc(40), [10], np.float32)).all()
    assert (driver.pinned([4], np.uint8) == 0xFF).all()


def test_memory_is_counted_and_ends(begin: Callable[..., Driver]) -> None:
    driver = begin("memory=1048576")
    free, total = c_size_t(), c_size_t()

    def free_now() -> int:
        driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    before = free_now()
    assert total.value == 1048576
    half = driver.alloc(524288)
    assert half % 256 == 0
    assert before - free_now() == 524288
    with pytest.raises(DriverError) as error:
        driver.alloc(before)
    assert error.value.code == 2
    driver.free(half)
    assert free_now() == before
    assert driver.report()["peak_memory"] - driver.report()["memory"] == 524288


def test_addresses_are_checked(driver: Driver) -> None:
    values, at = np.zeros(4, np.float32), driver.alloc(16)
    short = driver.made("cuMemHostAlloc", c_size_t(12), c_uint(0))
    wrong: list[Callable[[], object]] = [
        lambda: driver.to_device(at + 4, values),
        lambda: driver.to_device(at - 4, values),
        lambda: driver.to_host(values, at + 4),
        lambda: driver.to_device(values.ctypes.data, values),
        lambda: driver.call("cuMemsetD8Async", c_uint64(at), ctypes.c_ubyte(0), c_size_t(17), driver.stream),
        lambda: driver.call(
            "cuMemcpyDtoDAsync_v2", c_uint64(at), c_uint64(at + 4), c_size_t(8), driver.stream
        ),
        lambda: driver.call(
            "cuMemcpyDtoDAsync_v2", c_uint64(at), c_uint64(at + 16), c_size_t(8), driver.stream
        ),
        lambda: driver.call("cuMemcpyDtoHAsync_v2", short, c_uint64(at), c_size_t(16), driver.stream),
        lambda: driver.free(at + 4),
        lambda: driver.call("cuMemFreeHost", c_void_p(values.ctypes.data)),
    ]
    for attempt in wrong:
        with pytest.raises(DriverError) as error:
            attempt()
        assert error.value.code == 1
    driver.free(at)
    with pytest.raises(DriverError, match="was freed"):
        driver.free(at)
    with pytest.raises(DriverError, match="was freed"):
        driver.to_device(at, values)


def test_a_kernel_that_uses_freed_memory_is_found(driver: Driver) -> None:
    out = driver.alloc(64 * 4)
    driver.free(out)
    driver.launch("try_race", Block(out, 0, 0), [1], [64])
    with pytest.raises(DriverError, match=r"an allocation of 256 bytes that was freed") as error:
        driver.synchronize()
    assert error.value.code == 700


def test_damage_far_in_front_is_found_when_memory_is_freed(driver: Driver) -> None:
    at = driver.alloc(256)
    driver.launch("try_mistake", Block(at, 64, 13), [1], [64])
    with pytest.raises(DriverError, match="something wrote in front of the allocation of 256 bytes"):
        driver.free(at)


def test_the_host_cannot_touch_device_memory(path: Path) -> None:
    script = (
        "import ctypes, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from driver import Driver\n"
        "import numpy as np\n"
        "driver = Driver(Path(sys.argv[1]))\n"
        "at = driver.upload(np.ones(4))\n"
        "assert driver.download(at, [4], np.float64).tolist() == [1, 1, 1, 1]\n"
        "print('before', flush=True)\n"
        "ctypes.string_at(at, 1)\n"
        "print('after', flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(path), str(emulated.ROOT / "tests" / "python")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "before\n")


def test_copies_and_fills(driver: Driver) -> None:
    values = RANDOM.integers(0, 256, 1000).astype(np.uint8)
    a, b = driver.upload(values), driver.alloc(1000)
    driver.call("cuMemcpyDtoDAsync_v2", c_uint64(b), c_uint64(a), c_size_t(1000), driver.stream)
    driver.call("cuMemsetD8Async", c_uint64(b + 10), ctypes.c_ubyte(3), c_size_t(5), driver.stream)
    values[10:15] = 3
    assert np.array_equal(driver.download(b, [1000], np.uint8), values)
    report = driver.report()
    assert [report[f"bytes_{name}"] for name in ("to_device", "copied", "filled", "to_host")] == [
        1000,
        1000,
        5,
        1000,
    ]


# ---- Streams


def test_work_waits_until_somebody_waits_for_it(driver: Driver) -> None:
    source, result = driver.pinned([4], np.uint32), driver.pinned([4], np.uint32)
    at = driver.alloc(16)
    source[:] = 1
    driver.to_device(at, source)
    driver.to_host(result, at)
    # Whoever writes the source or reads the result without waiting gets it wrong.
    source[:] = 2
    assert (result == 0xFFFFFFFF).all()
    driver.synchronize()
    assert (result == 2).all()


def test_eager_work_runs_at_once(begin: Callable[..., Driver]) -> None:
    driver = begin("eager=1")
    source, result = driver.pinned([4], np.uint32), driver.pinned([4], np.uint32)
    at = driver.alloc(16)
    source[:] = 1
    driver.to_device(at, source)
    source[:] = 2
    driver.to_host(result, at)
    assert (result == 1).all()


def test_pageable_memory_is_read_at_once_and_written_before_the_call_returns(driver: Driver) -> None:
    values = np.array([1, 2, 3], np.uint32)
    at = driver.upload(values)
    values[:] = 0
    driver.to_host(values, at)
    assert values.tolist() == [1, 2, 3]


def test_events_order_streams(driver: Driver) -> None:
    other = driver.made("cuStreamCreate", c_uint(1))
    event = driver.made("cuEventCreate", c_uint(2))
    source, result = driver.pinned([1], np.uint32), driver.pinned([1], np.uint32)
    source[:] = 5
    at = driver.alloc(4)
    driver.to_device(at, source)
    driver.call("cuEventRecord", event, driver.stream)
    driver.call("cuMemsetD8Async", c_uint64(at), ctypes.c_ubyte(0), c_size_t(4), driver.stream)
    driver.call("cuStreamWaitEvent", other, event, c_uint(0))
    first, driver.stream = driver.stream, other
    driver.to_host(result, at)
    driver.synchronize()
    # The first stream went as far as the event, and no further.
    assert result.tolist() == [5]
    driver.call("cuCtxSynchronize")
    driver.to_host(result, at)
    driver.synchronize()
    assert result.tolist() == [0]
    driver.call("cuEventSynchronize", event)
    driver.call("cuEventDestroy_v2", event)
    driver.call("cuStreamDestroy_v2", first)
    with pytest.raises(DriverError) as error:
        driver.call("cuStreamSynchronize", first)
    assert error.value.code == 400


# ---- Graphs


def capture(driver: Driver) -> c_void_p:
    graph = driver.end_capture()
    executable = driver.made("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
    driver.call("cuGraphDestroy", graph)
    return executable


def test_a_graph_replays_what_was_recorded(driver: Driver) -> None:
    tickets = driver.upload(np.zeros(2, np.uint32))
    result = driver.pinned([2], np.uint32)
    driver.synchronize()
    driver.call("cuStreamBeginCapture_v2", driver.stream, c_int(1))
    arguments = Block(tickets, 0, 0)
    driver.launch("try_tickets", arguments, [3], [64])
    # What the arguments were is part of the graph.
    arguments.out = 0
    driver.to_host(result, tickets)
    executable = capture(driver)
    driver.synchronize()
    assert (result == 0xFFFFFFFF).all()
    for _ in range(3):
        driver.call("cuGraphLaunch", executable, driver.stream)
    driver.synchronize()
    assert result.tolist() == [9, 3]
    assert driver.report()["graph_launches"] == 3
    assert driver.report()["launches"] == {"try_tickets": 3}
    driver.call("cuGraphExecDestroy", executable)
    assert driver.report()["executables"] == driver.report()["graphs"] == 0
    with pytest.raises(DriverError) as error:
        driver.call("cuGraphLaunch", executable, driver.stream)
    assert error.value.code == 400


def forbidden(driver: Driver) -> dict[str, Callable[[], object]]:
    at, free, values = driver.alloc(16), driver.alloc(16), np.zeros(4, np.float32)
    pinned = driver.made("cuMemHostAlloc", c_size_t(16), c_uint(0))
    return {
        "alloc": lambda: driver.alloc(4),
        "free": lambda: driver.free(free),
        "host alloc": lambda: driver.pinned([1], np.uint32),
        "host free": lambda: driver.call("cuMemFreeHost", pinned),
        "synchronize": driver.synchronize,
        "synchronize all": lambda: driver.call("cuCtxSynchronize"),
        "pageable source": lambda: driver.to_device(at, values),
        "pageable result": lambda: driver.to_host(values, at),
        "module": lambda: driver.made("cuModuleLoadData", ctypes.c_char_p(driver.image(SOURCE))),
    }


@pytest.mark.parametrize(
    "what",
    [
        "alloc",
        "free",
        "host alloc",
        "host free",
        "synchronize",
        "synchronize all",
        "pageable source",
        "pageable result",
        "module",
    ],
)
def test_a_capture_forbids_what_waits_or_allocates(driver: Driver, what: str) -> None:
    attempt = forbidden(driver)[what]
    driver.call("cuStreamBeginCapture_v2", driver.stream, c_int(0))
    with pytest.raises(DriverError) as error:
        attempt()
    assert error.value.code == 900
    with pytest.raises(DriverError) as end:
        driver.end_capture()
    assert end.value.code == 901
    # The stream works again.
    assert driver.download(driver.upload(np.ones(1)), [1], np.float64) == 1


def test_a_relaxed_capture_lets_others_allocate(driver: Driver) -> None:
    attempts = forbidden(driver)
    driver.call("cuStreamBeginCapture_v2", driver.stream, c_int(2))
    for what in ("alloc", "free", "host alloc", "host free", "synchronize all", "module"):
        attempts[what]()
    for what in ("pageable source", "synchronize"):
        with pytest.raises(DriverError) as error:
            attempts[what]()
        assert error.value.code == 900
    with pytest.raises(DriverError) as end:
        driver.end_capture()
    assert end.value.code == 901


def test_a_capture_begins_once_and_ends_once(driver: Driver) -> None:
    with pytest.raises(DriverError) as error:
        driver.end_capture()
    assert error.value.code == 401
    driver.call("cuStreamBeginCapture_v2", driver.stream, c_int(0))
    with pytest.raises(DriverError) as error:
        driver.call("cuStreamBeginCapture_v2", driver.stream, c_int(0))
    assert error.value.code == 401
    driver.call("cuGraphExecDestroy", capture(driver))


# ---- Processes, threads, knobs


def test_a_forked_child_is_told(driver: Driver) -> None:
    child = ctypes.CDLL(None).fork()
    if child == 0:
        codes = [
            driver.library.cuInit(0),
            driver.library.cuMemAlloc_v2(ctypes.byref(c_uint64()), c_size_t(4)),
        ]
        os._exit(codes == [3, 3])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    driver.alloc(4)


def test_a_thread_needs_a_context(driver: Driver) -> None:
    codes = []

    def attempt() -> None:
        codes.append(driver.library.cuMemAlloc_v2(ctypes.byref(c_uint64()), c_size_t(4)))
        driver.call("cuCtxSetCurrent", driver.context)
        codes.append(driver.library.cuMemAlloc_v2(ctypes.byref(c_uint64()), c_size_t(4)))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert codes == [201, 0]


def test_nothing_works_before_cuinit(driver: Driver) -> None:
    assert driver.library.emu_configure(b"") == 0
    assert driver.library.cuDeviceGetCount(ctypes.byref(c_int())) == 3


def test_a_machine_without_devices(path: Path) -> None:
    with pytest.raises(DriverError) as error:
        Driver(path, "devices=0")
    assert error.value.code == 100


def test_devices_drivers_and_capabilities(begin: Callable[..., Driver]) -> None:
    driver, number = begin("devices=3,driver=11080,capability=9.0"), c_int()
    driver.call("cuDeviceGetCount", ctypes.byref(number))
    assert number.value == 3
    driver.call("cuDriverGetVersion", ctypes.byref(number))
    assert number.value == 11080
    with pytest.raises(DriverError) as error:
        driver.call("cuDeviceGet", ctypes.byref(number), c_int(3))
    assert error.value.code == 101
    driver.library.emu_configure(b"capability=7.5")
    driver.call("cuInit", c_uint(0))
    attributes = []
    for attribute in (75, 76):
        driver.call("cuDeviceGetAttribute", ctypes.byref(number), c_int(attribute), c_int(0))
        attributes.append(number.value)
    assert attributes == [7, 5]


def test_a_call_fails_where_a_knob_says_so(begin: Callable[..., Driver]) -> None:
    driver = begin("fail=cuMemAlloc:2:2,fail=cuStreamSynchronize:1:999")
    driver.alloc(4)
    with pytest.raises(DriverError) as error:
        driver.alloc(4)
    assert error.value.code == 2
    driver.alloc(4)
    with pytest.raises(DriverError) as error:
        driver.synchronize()
    assert error.value.code == 999
    driver.synchronize()


def test_a_failure_that_loses_the_context_stays(begin: Callable[..., Driver]) -> None:
    driver = begin("fail=cuStreamSynchronize:2:700")
    driver.synchronize()
    for attempt in (driver.synchronize, driver.synchronize, lambda: driver.alloc(4)):
        with pytest.raises(DriverError) as error:
            attempt()
        assert error.value.code == 700
    assert driver.report()["lost"] == 700


@pytest.mark.parametrize(
    "knobs", ["device=1", "devices=x", "fail=cuInit:0:1", "fail=cuInit", "eager=yes", "eager"]
)
def test_a_knob_that_means_nothing_is_refused(path: Path, knobs: str) -> None:
    with pytest.raises(ValueError, match="means nothing"):
        Driver(path, knobs)


def test_the_environment_is_read(path: Path) -> None:
    script = (
        "import ctypes, sys\n"
        "library, number = ctypes.CDLL(sys.argv[1]), ctypes.c_int()\n"
        "library.cuDriverGetVersion(ctypes.byref(number))\n"
        "print(number.value, library.cuInit(0))"
    )
    environment = {**os.environ, "FASTDECODE_EMU": "driver=11080,devices=0"}
    command = [sys.executable, "-c", script, str(path)]
    assert subprocess.check_output(command, env=environment, text=True).split() == ["11080", "100"]


def test_a_library_may_lack_a_function(path: Path) -> None:
    lacking = emulated.build(TRIES, without=["cuGraphLaunch", "cuLaunchKernelEx"])
    library = ctypes.CDLL(str(lacking))
    assert lacking != path
    for name in ("cuGraphLaunch", "cuLaunchKernelEx"):
        assert hasattr(ctypes.CDLL(str(path)), name)
        assert not hasattr(library, name)
    assert library.cuInit(0) == 0


def test_nothing_but_the_interfaces_is_exported(path: Path) -> None:
    listed = subprocess.check_output(["nm", "-D", "--defined-only", path], text=True)
    names = {line.split()[-1] for line in listed.splitlines()}
    assert all(name.startswith(("cu", "nvrtc", "emu_")) for name in names)
    assert len([name for name in names if name.startswith("cu")]) >= 40


# ---- Modules and NVRTC


def test_a_module_has_the_kernels_that_its_source_mentions(driver: Driver) -> None:
    module = driver.made("cuModuleLoadData", ctypes.c_char_p(driver.image("a text with try_race in it")))
    driver.made("cuModuleGetFunction", module, b"try_race")
    for name in (b"try_matrix", b"unknown"):
        with pytest.raises(DriverError) as error:
            driver.made("cuModuleGetFunction", module, name)
        assert error.value.code == 500
    driver.call("cuModuleUnload", module)


@pytest.mark.parametrize(("architecture", "code"), [("sm_90", 0), ("sm_80", 209), ("sm_100", 209)])
def test_a_module_is_for_an_architecture(driver: Driver, architecture: str, code: int) -> None:
    image = ctypes.c_char_p(driver.image(SOURCE, architecture))
    assert driver.library.cuModuleLoadData(ctypes.byref(c_void_p()), image) == code


def test_other_bytes_are_no_module(driver: Driver) -> None:
    for image in (b"PTX" + bytes(100), b"\x7fELF" + bytes(100)):
        assert driver.library.cuModuleLoadData(ctypes.byref(c_void_p()), image) == 200


@pytest.mark.parametrize(("version", "flags"), [(7, 0x005A055A), (8, 0x06005A04)])
def test_real_cubins_are_read(driver: Driver, version: int, flags: int) -> None:
    """Of both versions of the format that NVRTC 12 and 13 write; only the header differs."""
    image = bytearray(driver.image(SOURCE, "sm_80"))
    image[8], image[48:52] = version, flags.to_bytes(4, "little")
    module = driver.made("cuModuleLoadData", ctypes.c_char_p(bytes(image)))
    driver.made("cuModuleGetFunction", module, b"try_race")


def test_a_source_with_an_error_has_a_log(driver: Driver) -> None:
    program = driver.made(
        "nvrtcCreateProgram", b"int x;\n#error not today\n", b"few.cu", c_int(0), None, None
    )
    options = (ctypes.c_char_p * 1)(b"-arch=sm_90")
    assert driver.library.nvrtcCompileProgram(program, c_int(1), options) == 6
    size = c_size_t()
    driver.call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    driver.call("nvrtcGetProgramLog", program, log)
    assert b"few.cu: #error not today" in log.value


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [([0], [32], 0), ([1, 70000], [32], 0), ([1], [2000], 0), ([1], [1, 1, 65], 0), ([1], [32], 50000)],
)
def test_launches_have_limits(driver: Driver, grid: list[int], block: list[int], shared: int) -> None:
    with pytest.raises(DriverError, match="a launch of try_race with") as error:
        driver.launch("try_race", Block(0, 0, 0), grid, block, shared)
    assert error.value.code == 1


def test_more_shared_memory_must_be_allowed(driver: Driver) -> None:
    driver.call("cuFuncSetAttribute", driver.function("try_shared"), c_int(8), c_int(200000))
    out = driver.alloc(3 * 32 * 4)
    driver.launch("try_shared", Block(out, 0, 0), [1], [32], shared=200000)
    driver.synchronize()
    with pytest.raises(DriverError) as error:
        driver.call("cuFuncSetAttribute", driver.function("try_shared"), c_int(8), c_int(300000))
    assert error.value.code == 1


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
