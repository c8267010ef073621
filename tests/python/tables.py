"""The tables of kernels by name, and which of them this CPU must have: read from its flags, not asked of fastdecode."""

from __future__ import annotations

import platform
from pathlib import Path

AVX2 = frozenset({"avx2", "fma", "f16c"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
# Every table, the best first, with the flags of /proc/cpuinfo that it needs.
NEEDS = {
    "avx512bf16": AVX512 | {"avx512_vnni", "avx512_bf16"},
    "avx512vnni": AVX512 | {"avx512_vnni"},
    "avx512": AVX512,
    "avxvnni": AVX2 | {"avx_vnni"},
    "avx2": AVX2,
    "portable": frozenset[str](),
}


def flags() -> set[str]:
    """The instruction sets of this CPU that the kernel lets programs use; only x86-64 has tables that need any."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return set()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return set(next(line for line in lines if line.startswith("flags")).split(":", 1)[1].split())


def present() -> list[str]:
    """The tables that this CPU must have, the best first."""
    here = flags()
    return [name for name, needs in NEEDS.items() if needs <= here]
