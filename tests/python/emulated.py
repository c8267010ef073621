"""Builds the emulated CUDA driver: tests/emu/ and kernels in one shared library that stands for libcuda and for NVRTC.

`library()` has all kernels of rust/cuda/kernels/. What was built is kept under target/emulated/, by the hash of
whatever went into it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "tests" / "emu"
KERNELS = ROOT / "rust" / "cuda" / "kernels"
CACHE = ROOT / "target" / "emulated"

# Results must not depend on how a compiler contracts products and sums: kernels say fmaf where they mean it.
FLAGS = [
    "-std=c++17",
    "-O2",
    "-march=native",
    "-ffp-contract=off",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
# The checks call functions of the emulator (block.cpp), so that a bad index names the line of the kernel.
KERNEL_FLAGS = [
    *(
        "-O3",
        "-fno-math-errno",
        "-fno-exceptions",
        "-fno-rtti",
        "-fno-strict-aliasing",
        "-fsanitize=bounds,alignment,null",
    ),
    *("-Wno-unknown-pragmas", "-Wno-unused-function"),
]


@functools.cache
def compiler() -> str:
    """The C++ compiler.

    Raises:
        RuntimeError: If there is none; the message says what to install.
    """
    for name in ("c++", "g++"):
        if found := shutil.which(name):
            return found
    raise RuntimeError(
        "the emulated CUDA driver needs a C++17 compiler, and neither c++ nor g++ was found: install g++ "
        "(Debian and Ubuntu: apt-get install g++)"
    )


def _run(command: Sequence[str | Path], text: str | None = None) -> str:
    done = subprocess.run([*map(str, command)], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return done.stdout


@functools.cache
def _machine() -> str:
    """What the compiler is and what it makes of this machine: part of every hash."""
    return _run([compiler(), "-march=native", "-dM", "-E", "-x", "c++", "-"], "")


def _key(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in (_machine(), *parts):
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def _becoming(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` in one step; two processes may make the same file at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _kept(path: Path, command: Sequence[str | Path], text: str | None = None) -> Path:
    """The file, made by the command with `-o` where it is not there yet."""
    if not path.exists():
        with _becoming(path) as made:
            _run([*command, "-o", made], text)
    return path


def _headers() -> str:
    return "\n".join(path.read_text() for path in sorted(EMULATOR.glob("*.h")))


def _emulator_object(source: Path, defines: Sequence[str]) -> Path:
    text = source.read_text()
    included = "".join(path.read_text() for path in EMULATOR.glob("*.h") if f'"{path.name}"' in text)
    flags = [*FLAGS, *(f"-D{name}" for name in defines if name in text + included)]
    key = _key(_headers(), text, *flags)
    return _kept(CACHE / "objects" / f"{source.stem}-{key}.o", [compiler(), *flags, "-c", source])


def _kernel_object(source: Path, common: Path | None) -> Path:
    """A kernel file as a translation unit of its own, in an unnamed namespace, behind what is common."""
    included = [path for path in (common, source) if path is not None]
    stem = source.stem
    begin, end = f"__start_emu_shared_{stem}", f"__stop_emu_shared_{stem}"
    unit = "\n".join(
        [
            f'#define EMU_STEM "{stem}"',
            '#include "emu.h"',
            # The linker sets these at both ends of the section, if the file has one.
            f'extern "C" __attribute__((weak, visibility("hidden"))) char {begin}[], {end}[];',
            f"#define EMU_SHARED {begin}",
            f"#define EMU_SHARED_END {end}",
            "namespace {",
            *(f'#include "{path}"' for path in included),
            "}",
            "",
        ]
    )
    flags = [*FLAGS, *KERNEL_FLAGS, f"-I{EMULATOR}"]
    key = _key(_headers(), unit, *(path.read_text() for path in included), *flags)
    command = [compiler(), *flags, "-x", "c++", "-", "-c"]
    return _kept(CACHE / "objects" / f"{stem}-{key}.o", command, unit)


def build(
    kernels: Iterable[Path],
    *,
    common: Path | None = None,
    without: Sequence[str] = (),
    defines: Sequence[str] = (),
) -> Path:
    """Builds the emulator with these kernel files, without some of its functions.

    Args:
        kernels: Files of kernels; their names without suffixes are identifiers and differ.
        common: What is put in front of each of them.
        without: Exported functions that the library shall lack, like one of an older driver.
        defines: Macros for the emulator's own files.

    Returns:
        The library's path.

    Raises:
        RuntimeError: If there is no compiler, or a file does not compile; the message has the compiler's words.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        emulator = pool.map(lambda source: _emulator_object(source, defines), sorted(EMULATOR.glob("*.cpp")))
        units = pool.map(lambda source: _kernel_object(source, common), sorted(kernels))
        objects = [*emulator, *units]
    exports = f"{{ global: cu*; nvrtc*; emu_*; local: *; {' '.join(f'{name};' for name in without)} }};\n"
    folder = CACHE / _key(exports, *(path.name for path in objects))
    script = folder / "exports.map"
    with _becoming(script) as made:
        made.write_text(exports)
    options = ["-shared", "-pthread", "-Wl,-z,defs", f"-Wl,--version-script={script}"]
    return _kept(folder / "libcuda_emu.so", [compiler(), *options, *objects])


def library(*, without: Sequence[str] = ()) -> Path:
    """The emulated driver with every kernel of the project."""
    return build(KERNELS.glob("*.cu"), common=KERNELS / "common.cuh", without=without)


def environment(knobs: str = "", *, without: Sequence[str] = ()) -> dict[str, str]:
    """Variables by which a process finds the emulated driver and the emulated NVRTC, with FASTDECODE_EMU as given.

    Compiled kernels of the emulator are kept apart from those of the user, who may have a GPU: the names are the same.
    """
    path = library(without=without)
    return {
        "FASTDECODE_CUDA_DRIVER": str(path),
        "FASTDECODE_NVRTC": str(path),
        "FASTDECODE_EMU": knobs,
        "XDG_CACHE_HOME": str(path.parent / "cache"),
    }


def report(loaded: ctypes.CDLL) -> dict[str, Any]:
    """What the emulator in this process counted since its knobs were set.

    `calls` and `launches` by name; `bytes_to_device`, `bytes_to_host`, `bytes_copied`, `bytes_filled`;
    `graph_launches`; `early`, launches of kernels that might begin early; `memory` and `peak_memory` of the device in
    bytes; how many `allocations`, `pinned`, `streams`, `events`, `graphs`, `executables` and `modules` live; `lost`,
    the error that the context was lost by, or 0.
    """
    loaded.emu_report.restype = ctypes.c_char_p
    counted: dict[str, Any] = json.loads(loaded.emu_report())
    return counted


if __name__ == "__main__":
    # For a shell: env $(python tests/python/emulated.py KNOBS) COMMAND
    for variable, value in environment(*sys.argv[1:2]).items():
        print(f"{variable}={value}")
