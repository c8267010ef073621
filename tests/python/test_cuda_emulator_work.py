"""The emulated CUDA driver: memory, streams and graphs, and what is wrong with them."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from ctypes import c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import TYPE_CHECKING

import emulated
import numpy as np
import pytest
import tries
from driver import Driver, DriverError
from tries import Block

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RANDOM = np.random.default_rng(7)


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


def test_the_host_cannot_touch_device_memory(emulator: Path) -> None:
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
    command = [sys.executable, "-c", script, str(emulator), str(emulated.ROOT / "tests" / "python")]
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
        "module": lambda: driver.made("cuModuleLoadData", ctypes.c_char_p(driver.image(tries.SOURCE))),
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
