"""The emulated CUDA driver: processes and threads, errors on demand, modules and NVRTC, limits of launches."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
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


def test_a_machine_without_devices(emulator: Path) -> None:
    with pytest.raises(DriverError) as error:
        Driver(emulator, "devices=0")
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
    "knobs",
    ["device=1", "devices=x", "fail=cuInit:0:1", "fail=cuInit", "fail=cuMemAloc:1:2", "eager=yes", "eager"],
)
def test_a_knob_that_means_nothing_is_refused(emulator: Path, knobs: str) -> None:
    with pytest.raises(ValueError, match="means nothing"):
        Driver(emulator, knobs)


def test_the_environment_is_read(emulator: Path) -> None:
    script = (
        "import ctypes, sys\n"
        "library, number = ctypes.CDLL(sys.argv[1]), ctypes.c_int()\n"
        "library.cuDriverGetVersion(ctypes.byref(number))\n"
        "print(number.value, library.cuInit(0))"
    )
    environment = {**os.environ, "FASTDECODE_EMU": "driver=11080,devices=0"}
    command = [sys.executable, "-c", script, str(emulator)]
    assert subprocess.check_output(command, env=environment, text=True).split() == ["11080", "100"]


def test_a_library_may_lack_a_function(emulator: Path) -> None:
    lacking = emulated.build(tries.FILES, without=["cuGraphLaunch", "cuLaunchKernelEx"])
    library = ctypes.CDLL(str(lacking))
    assert lacking != emulator
    for name in ("cuGraphLaunch", "cuLaunchKernelEx"):
        assert hasattr(ctypes.CDLL(str(emulator)), name)
        assert not hasattr(library, name)
    assert library.cuInit(0) == 0


def test_nothing_but_the_interfaces_is_exported(emulator: Path) -> None:
    listed = subprocess.check_output(["nm", "-D", "--defined-only", emulator], text=True)
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
    image = ctypes.c_char_p(driver.image(tries.SOURCE, architecture))
    assert driver.library.cuModuleLoadData(ctypes.byref(c_void_p()), image) == code


def test_other_bytes_are_no_module(driver: Driver) -> None:
    for image in (b"PTX" + bytes(100), b"\x7fELF" + bytes(100)):
        assert driver.library.cuModuleLoadData(ctypes.byref(c_void_p()), image) == 200


@pytest.mark.parametrize(("version", "flags"), [(7, 0x005A055A), (8, 0x06005A04)])
def test_real_cubins_are_read(driver: Driver, version: int, flags: int) -> None:
    """Of both versions of the format that NVRTC 12 and 13 write; only the header differs."""
    image = bytearray(driver.image(tries.SOURCE, "sm_80"))
    image[8], image[48:52] = version, flags.to_bytes(4, "little")
    module = driver.made("cuModuleLoadData", ctypes.c_char_p(bytes(image)))
    driver.made("cuModuleGetFunction", module, b"try_race")


@pytest.mark.parametrize(
    ("knobs", "source", "words"),
    [
        ("", b"int x;\n#error not today\n", b"few.cu: #error not today"),
        ("fail=nvrtcCompileProgram:1:6", b"int x;\n", b"few.cu(1): error: FASTDECODE_EMU"),
    ],
)
def test_a_source_with_an_error_has_a_log(emulator: Path, knobs: str, source: bytes, words: bytes) -> None:
    driver = Driver(emulator, knobs)
    program = driver.made("nvrtcCreateProgram", source, b"few.cu", c_int(0), None, None)
    options = (ctypes.c_char_p * 1)(b"-arch=sm_90")
    assert driver.library.nvrtcCompileProgram(program, c_int(1), options) == 6
    size = c_size_t()
    driver.call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    driver.call("nvrtcGetProgramLog", program, log)
    assert words in log.value


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
