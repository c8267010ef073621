"""Compiles the CUDA kernels for every shipped architecture, without a GPU: `python tools/build_cubins.py FOLDER`.

NVRTC does it (PyPI's nvidia-cuda-nvrtc-cu12, in the extra `test`). Files get the names under which
`rust/cuda/driver/store.rs` looks for them. A kernel that spills registers, needs a stack, takes more registers than it
may, or is warned about, ends it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent / "rust" / "cuda" / "kernels"
# One for each major compute capability; each serves the minor ones, too.
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
# What CUDA 12 compiles runs with every driver from 525 on.
MAJOR = 12
# Three blocks of 128 threads find room on a multiprocessor.
REGISTERS = 168


class Failure(Exception):
    """Kernels that do not compile, or not to what they should; its text is the whole report."""


@dataclass(frozen=True)
class Kernel:
    """What the compiler says of a function: its name, and bytes or numbers of what it takes."""

    name: str
    registers: int | None
    stack: int
    spills: int


class Nvrtc:
    """The compiler, by ctypes."""

    def __init__(self, path: Path) -> None:
        for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
            # Some versions do not find their own library.
            ctypes.CDLL(str(builtins))
        self.library = ctypes.CDLL(str(path))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check(self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)

    def check(self, code: int) -> None:
        if code:
            raise Failure(f"NVRTC: {self.library.nvrtcGetErrorString(code).decode()}")

    def compile(
        self, name: str, source: str, options: list[str], result: str = "nvrtcGetCUBIN"
    ) -> tuple[bytes, str]:
        """The cubin of a source, or what another function gives, and the compiler's log.

        Raises:
            Failure: With the log where it does not compile.
        """
        library, program = self.library, ctypes.c_void_p()
        self.check(
            library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        )
        try:
            texts = [option.encode() for option in options]
            code = library.nvrtcCompileProgram(program, len(texts), (ctypes.c_char_p * len(texts))(*texts))
            log = self.bytes(program, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
            if code:
                raise Failure(f"{name} for {options[-1]} does not compile:\n{log}")
            return self.bytes(program, result), log
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def bytes(self, program: ctypes.c_void_p, function: str) -> bytes:
        size = ctypes.c_size_t()
        self.check(getattr(self.library, f"{function}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self.check(getattr(self.library, function)(program, text))
        return text.raw


def find_nvrtc() -> Path:
    """The library that `FASTDECODE_NVRTC` names, or that of the installed package."""
    if path := os.environ.get("FASTDECODE_NVRTC"):
        return Path(path)
    found = find_spec("nvidia")
    for place in (found.submodule_search_locations if found else None) or ():
        path_ = Path(place) / "cuda_nvrtc" / "lib" / f"libnvrtc.so.{MAJOR}"
        if path_.exists():
            return path_
    raise Failure("expected NVRTC, got none; pip install nvidia-cuda-nvrtc-cu12==12.9.86")


def fnv(data: bytes) -> int:
    """FNV-1a with 128 bits, as the store has it."""
    value, prime = 0x6C62272E07BB014262B821756295C58D, (1 << 88) + 0x13B
    for byte in data:
        value = ((value ^ byte) * prime) & ((1 << 128) - 1)
    return value


def sources(folder: Path) -> dict[str, str]:
    """What is compiled as one for each kernel file: common.cuh, then the file."""
    parts = [folder / "common.cuh"] if (folder / "common.cuh").exists() else []
    files = sorted(folder.glob("*.cu"))
    if not files:
        raise Failure(f"expected kernels, got no *.cu in {folder}")
    return {
        file.name: "".join(
            f'#line 1 "{part.name}"\n{part.read_text(encoding="utf-8")}\n' for part in [*parts, file]
        )
        for file in files
    }


def cubin_name(file: str, source: str, architecture: str, options: list[str]) -> str:
    """The name under which the store looks for a cubin."""
    hashed = fnv("\n".join([*options, source]).encode())
    return f"{file.split('.')[0]}-{hashed:032x}-{architecture}.cubin"


def kernels(log: str) -> list[Kernel]:
    """What the log says of every function, kernels and others."""
    pattern = (
        r"Function properties for (\S+)\n"
        r"[^\n]*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r"(?:\nptxas info\s*: Used (\d+) registers)?"
    )
    found = []
    for name, stack, stores, loads, registers in re.findall(pattern, log):
        found.append(
            Kernel(name, int(registers) if registers else None, int(stack), int(stores) + int(loads))
        )
    return found


def complaints(found: list[Kernel], log: str) -> list[str]:
    """What is wrong with compiled kernels."""
    wrong = [] if found else ["the compiler tells of no kernel"]
    for kernel in found:
        if kernel.spills:
            wrong.append(f"{kernel.name} spills {kernel.spills} bytes of registers")
        if kernel.stack:
            wrong.append(f"{kernel.name} needs a stack of {kernel.stack} bytes")
        if kernel.registers is not None and kernel.registers > REGISTERS:
            wrong.append(f"{kernel.name} takes {kernel.registers} registers, and may take {REGISTERS}")
    return wrong + [line for line in log.splitlines() if re.search(r": (warning|error)", line)]


def build(out: Path, folder: Path = KERNELS, architectures: tuple[str, ...] = ARCHITECTURES) -> list[str]:
    """Fills a folder with cubins, and takes old ones out of it.

    Returns:
        A line for every file.

    Raises:
        Failure: Nothing is written then.
    """
    nvrtc = Nvrtc(find_nvrtc())
    if nvrtc.version[0] != MAJOR:
        raise Failure(f"expected NVRTC {MAJOR}, whose kernels run with every driver, got {nvrtc.version}")
    listed = (KERNELS / "options.txt").read_text()

    def one(job: tuple[str, str, str]) -> tuple[str, bytes, str, list[str]]:
        file, source, architecture = job
        options = [*listed.split(), f"--gpu-architecture={architecture}"]
        before = time.perf_counter()
        try:
            cubin, log = nvrtc.compile(file, source, options)
        except Failure as failure:
            return "", b"", "", [str(failure)]
        found = kernels(log)
        seconds, registers = (
            time.perf_counter() - before,
            [f"{kernel.name} {kernel.registers}" for kernel in found],
        )
        line = (
            f"{file} {architecture}: {len(cubin)} bytes, {seconds:.1f} s; registers: {', '.join(registers)}"
        )
        wrong = [f"{file} for {architecture}: {text}" for text in complaints(found, log)]
        return cubin_name(file, source, architecture, options), cubin, line, wrong

    jobs = [
        (file, text, architecture) for file, text in sources(folder).items() for architecture in architectures
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(one, jobs))
    if wrong := [text for *_, texts in done for text in texts]:
        raise Failure("\n".join(wrong))
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.cubin"):
        old.unlink()
    for name, cubin, *_ in done:
        (out / name).write_bytes(cubin)
    return [line for _, _, line, _ in done]


def main() -> int:
    """Runs the tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where the cubins go; older ones there are deleted")
    parser.add_argument("--kernels", type=Path, default=KERNELS, help="folder of the sources")
    arguments = parser.parse_args()
    try:
        lines = build(arguments.folder, arguments.kernels)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
