"""The CUDA driver's C interface for tests: calls that raise, memory as numpy arrays, and launches."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any

import emulated
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class DriverError(Exception):
    """A function of the driver returned an error; `code` is its number, `message` the emulator's last complaint."""

    def __init__(self, function: str, code: int, message: str) -> None:
        super().__init__(f"{function}: {code}: {message}")
        self.function, self.code, self.message = function, code, message


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *(
            (name, c_uint)
            for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")
        ),
        ("stream", c_void_p),
        ("attributes", c_void_p),
        ("count", c_uint),
    )


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, with a number as its value."""

    _fields_ = (("id", c_int), ("padding", c_int), ("value", c_int * 16))


# CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, allowed.
EARLY = LaunchAttribute(6, 0, (c_int * 16)(1))


class Driver:
    """An emulated driver in this process, set anew, with a current context, a stream and a module.

    Args:
        path: The library.
        knobs: As FASTDECODE_EMU has them.
        source: Text that names the kernels to load.
    """

    def __init__(self, path: Path, knobs: str = "", source: str = "") -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.emu_message.restype = ctypes.c_char_p
        if self.library.emu_configure(knobs.encode()) != 0:
            raise ValueError(self.message())
        self.call("cuInit", c_uint(0))
        self.context = self.made("cuDevicePrimaryCtxRetain", c_int(0))
        self.call("cuCtxSetCurrent", self.context)
        self.stream = self.made("cuStreamCreate", c_uint(1))
        self.module = self.made("cuModuleLoadData", ctypes.c_char_p(self.image(source))) if source else None

    def message(self) -> str:
        text: bytes = self.library.emu_message()
        return text.decode()

    def call(self, function: str, *arguments: Any) -> None:
        code = getattr(self.library, function)(*arguments)
        if code != 0:
            raise DriverError(function, code, self.message())

    def made(self, function: str, *arguments: Any) -> c_void_p:
        """The handle or address that a function writes through its first argument."""
        handle = c_void_p()
        self.call(function, ctypes.byref(handle), *arguments)
        return handle

    def end_capture(self) -> c_void_p:
        """The graph of the capture that ends."""
        graph = c_void_p()
        self.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        return graph

    def image(self, source: str, architecture: str = "sm_90") -> bytes:
        """What the emulated NVRTC makes of a source."""
        program = self.made("nvrtcCreateProgram", source.encode(), b"try.cu", c_int(0), None, None)
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
        self.call("nvrtcCompileProgram", program, c_int(1), options)
        size = c_size_t()
        self.call("nvrtcGetCUBINSize", program, ctypes.byref(size))
        image = ctypes.create_string_buffer(size.value)
        self.call("nvrtcGetCUBIN", program, image)
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return image.raw

    def alloc(self, size: int) -> int:
        address = self.made("cuMemAlloc_v2", c_size_t(size)).value
        assert address is not None
        return address

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", c_uint64(address))

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        """Page-locked memory as an array; it lives until the process ends."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = self.made("cuMemHostAlloc", c_size_t(size), c_uint(0)).value
        assert address is not None
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def upload(self, values: np.ndarray[Any, Any]) -> int:
        """Device memory with a copy of these values."""
        address = self.alloc(values.nbytes)
        self.to_device(address, values)
        return address

    def to_device(self, address: int, values: np.ndarray[Any, Any]) -> None:
        self.call(
            "cuMemcpyHtoDAsync_v2",
            c_uint64(address),
            c_void_p(values.ctypes.data),
            c_size_t(values.nbytes),
            self.stream,
        )

    def to_host(self, values: np.ndarray[Any, Any], address: int) -> None:
        self.call(
            "cuMemcpyDtoHAsync_v2",
            c_void_p(values.ctypes.data),
            c_uint64(address),
            c_size_t(values.nbytes),
            self.stream,
        )

    def download(self, address: int, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        values = np.zeros(shape, dtype)
        self.to_host(values, address)
        self.synchronize()
        return values

    def synchronize(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def function(self, name: str) -> c_void_p:
        return self.made("cuModuleGetFunction", self.module, name.encode())

    def launch(
        self,
        name: str,
        arguments: ctypes.Structure,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int = 0,
        *,
        early: bool = False,
    ) -> None:
        """Queues a kernel, which may begin early; `grid` and `block` have up to three numbers."""
        x, y = [*grid, 1, 1][:3], [*block, 1, 1][:3]
        config = LaunchConfig(*x, *y, shared, self.stream, ctypes.addressof(EARLY), int(early))
        pointers = (c_void_p * 1)(ctypes.addressof(arguments))
        self.call("cuLaunchKernelEx", ctypes.byref(config), self.function(name), pointers, None)

    def report(self) -> dict[str, Any]:
        return emulated.report(self.library)
