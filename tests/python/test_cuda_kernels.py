"""Every CUDA kernel compiled for every shipped architecture, without a GPU, and the store that finds it again."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import emulated
import pytest
from child import python
from fastdecode import _core, cuda, errors

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
GOOD = """extern "C" __global__ void good(float* x) { x[threadIdx.x] *= 2.0f; }
"""
BAD = """extern "C" __global__ void bad(float* x) {
  x[0] = unknown;
}
"""
# An index that is known at run time only needs an array in memory.
STACK = """extern "C" __global__ void stacked(float* x, int at) {
  float kept[64];
  for (int i = 0; i < 64; i++) kept[(i * 7 + at) & 63] = x[i * at];
  x[0] = kept[at & 63] + kept[at * 5 & 63];
}
"""
# Sums in flight that 24 registers cannot hold.
SPILLS = """extern "C" __global__ void __maxnreg__(24) spilling(float* x) {
  float sums[64];
  #pragma unroll
  for (int i = 0; i < 64; i++) sums[i] = x[i];
  for (int turn = 0; turn < 8; turn++) {
    #pragma unroll
    for (int i = 0; i < 64; i++) sums[i] = fmaf(sums[i], sums[(i + 1) % 64], sums[(i + 7) % 64]);
  }
  #pragma unroll
  for (int i = 0; i < 64; i++) x[i] = sums[i];
}
"""
WARNED = """extern "C" __global__ void warned(float* x) {
  int unused;
  x[0] = 1.0f;
}
"""


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_cubins", ROOT / "tools" / "build_cubins.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TOOL: Any = _tool()
# The compiler that the tool takes; another one may be installed beside it (torch brings one).
NVRTC = [folder for folder in cuda.nvrtc() if folder.endswith("cuda_nvrtc/lib")]
assert NVRTC, "the tests need nvidia-cuda-nvrtc-cu12: pip install 'fastdecode[test]'"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTDECODE_NVRTC", raising=False)


def _folder(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / f"{name}.cu").write_text(text)
    return path


def _capability(architecture: str) -> tuple[int, int]:
    return int(architecture[3:-1]), int(architecture[-1])


def test_every_kernel_compiles_for_every_architecture_and_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool ends where a kernel spills, needs a stack or takes too many registers; the store knows its names."""
    out = tmp_path / "cubins"
    lines = TOOL.build(out)
    files = sorted(path.name for path in TOOL.KERNELS.glob("*.cu"))
    assert len(lines) == len(list(out.iterdir())) == len(files) * len(TOOL.ARCHITECTURES)
    monkeypatch.setenv("FASTDECODE_NVRTC", str(tmp_path / "none"))
    common = ("common.cuh", (TOOL.KERNELS / "common.cuh").read_text())
    for name in files:
        sources = [common, (name, (TOOL.KERNELS / name).read_text())]
        for architecture in TOOL.ARCHITECTURES:
            found, origin = _core.cuda_cubin(_capability(architecture), sources, str(out), [])
            assert origin == "shipped", (name, architecture)
            assert found[:4] == b"\x7fELF"
    assert not (tmp_path / "cache").exists(), "what is shipped is not kept a second time"


WAIT = "griddepcontrol.wait"
# Offsets of the addresses in LinearArgs that no kernel writes to: weights, bias, and those of the norm.
OF_WEIGHTS = {8, 16, 32, 40}


def _before_the_wait(entry: str) -> list[str]:
    """What a kernel reads before it waits, of memory that is not the weights of a product; and what it writes."""
    name, lines = entry.split("(")[0], entry.split(WAIT)[0].splitlines()
    weights: set[str] = set()
    other: set[str] = set()
    found = []
    for line in lines:
        registers = re.findall(r"%\w+", line)
        if match := re.search(rf"ld\.param\.[bus]64\s+(%\w+), \[(?:{name}_param_0|%\w+)(?:\+(\d+))?\]", line):
            of = weights if name.startswith(("fd_few", "fd_many_bf16", "fd_narrow")) else other
            (of if int(match[2] or 0) in OF_WEIGHTS else other).add(match[1])
        elif re.search(r"\b(st\.global|atom|red|ret)\b", line):
            found.append(line)
        elif re.search(r"\bld\.global|\bcp\.async\.cg", line):
            place = re.findall(r"\[(%\w+)", line)[-1]
            if place in other or place not in weights:
                found.append(line)
        elif registers[1:]:
            for of in (weights, other):
                if of & set(registers[1:]):
                    of.add(registers[0])
    return found


def test_kernels_that_begin_early_read_weights_alone_before_they_wait() -> None:
    """In the code for GPUs where kernels begin early, which the emulator does not run."""
    compiler = TOOL.Nvrtc(TOOL.find_nvrtc())
    options = [*(TOOL.KERNELS / "options.txt").read_text().split(), "--gpu-architecture=compute_90"]
    names = []
    for file, source in TOOL.sources(TOOL.KERNELS).items():
        ptx, _ = compiler.compile(file, source, options, "nvrtcGetPTX")
        for entry in ptx.decode().split(".entry ")[1:]:
            names.append(entry.split("(")[0])
            assert entry.count(WAIT) == 1, names[-1]
            assert _before_the_wait(entry) == [], names[-1]
            body = entry.split(WAIT)[0]
            reads = len(re.findall(r"\bld\.global|\bcp\.async\.cg", body))
            assert (reads > 0) == names[-1].startswith(("fd_few", "fd_many_bf16", "fd_narrow")), names[-1]
    told = "".join(TOOL.sources(TOOL.KERNELS).values())
    assert sorted(names) == sorted(re.findall(r"^EMU_KERNEL\((\w+),", told, re.MULTILINE))


def test_what_the_tool_makes_is_what_the_store_makes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    TOOL.build(out, _folder(tmp_path / "kernels", good=GOOD), ("sm_90",))
    (made,) = out.iterdir()
    found, origin = _core.cuda_cubin((9, 0), [("good.cu", GOOD)], None, NVRTC)
    assert origin == "compiled"
    assert found == made.read_bytes()
    (kept,) = (tmp_path / "cache" / "fastdecode" / "cubin" / "cuda12").iterdir()
    assert kept.name == made.name
    assert kept.read_bytes() == found


def test_what_was_compiled_once_is_kept_and_a_damaged_file_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = [("good.cu", GOOD)]
    first, origin = _core.cuda_cubin((8, 6), source, None, NVRTC)
    assert origin == "compiled"
    assert _core.cuda_cubin((8, 0), source, None, NVRTC) == (first, "cached"), "sm_80 serves 8.6, too"
    (kept,) = (tmp_path / "cache" / "fastdecode" / "cubin" / "cuda12").iterdir()
    kept.write_bytes(first[: len(first) // 2])
    assert _core.cuda_cubin((8, 6), source, None, NVRTC) == (first, "compiled")
    assert kept.read_bytes() == first
    # A text that differs is another kernel.
    changed = [("good.cu", GOOD.replace("2.0f", "3.0f"))]
    assert _core.cuda_cubin((8, 6), changed, None, NVRTC)[1] == "compiled"
    # A folder that cannot be written to costs time only.
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert _core.cuda_cubin((8, 6), source, None, NVRTC) == (first, "compiled")


def test_a_kernel_that_does_not_compile_is_an_error_with_the_log(tmp_path: Path) -> None:
    sources = [("common.cuh", "// One line.\n// Another line.\n"), ("bad.cu", BAD)]
    with pytest.raises(errors.CudaError) as caught:
        _core.cuda_cubin((9, 0), sources, None, cuda.nvrtc())
    assert caught.value.what == "kernels of bad.cu for sm_90"
    assert caught.value.got is not None
    assert 'bad.cu(2): error: identifier "unknown" is undefined' in caught.value.got, (
        "lines are the file's own"
    )
    assert isinstance(caught.value, RuntimeError)
    assert not (tmp_path / "cache").exists(), "nothing is kept"
    kernels = _folder(tmp_path / "kernels", good=GOOD, bad=BAD)
    with pytest.raises(TOOL.Failure, match=r"bad\.cu\(2\)"):
        TOOL.build(tmp_path / "out", kernels, ("sm_90",))
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_an_architecture_that_the_compiler_does_not_know() -> None:
    with pytest.raises(errors.CudaError) as caught:
        _core.cuda_cubin((77, 7), [("good.cu", GOOD)], None, cuda.nvrtc())
    assert caught.value.what == "kernels of good.cu for sm_777"
    assert "newer NVRTC" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (STACK, "stacked needs a stack of 256 bytes"),
        (SPILLS, "spilling spills [1-9][0-9]* bytes of registers"),
        (WARNED, 'warning.*variable "unused" was declared'),
        ("// Nothing.\n", "tells of no kernel"),
    ],
)
def test_the_tool_refuses_kernels_that_would_be_slow(tmp_path: Path, source: str, complaint: str) -> None:
    with pytest.raises(TOOL.Failure, match=complaint):
        TOOL.build(tmp_path / "out", _folder(tmp_path / "kernels", one=source), ("sm_90",))


def test_the_tool_refuses_too_many_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOOL, "REGISTERS", 4)
    with pytest.raises(TOOL.Failure, match=r"good takes \d+ registers, and may take 4"):
        TOOL.build(tmp_path / "out", _folder(tmp_path / "kernels", good=GOOD), ("sm_90",))


def test_the_tool_takes_old_files_away_and_needs_kernels(tmp_path: Path) -> None:
    out = tmp_path / "out"
    kernels = _folder(tmp_path / "kernels", good=GOOD)
    TOOL.build(out, kernels, ("sm_80",))
    (first,) = out.iterdir()
    (kernels / "good.cu").write_text(GOOD.replace("2.0f", "3.0f"))
    TOOL.build(out, kernels, ("sm_80",))
    (second,) = out.iterdir()
    assert first.name != second.name
    with pytest.raises(TOOL.Failure, match="expected kernels"):
        TOOL.build(out, _folder(tmp_path / "none"), ("sm_80",))
    assert second.exists()


COMPILE = f"""
from fastdecode import _core, cuda, errors
try:
    print(_core.cuda_cubin((9, 0), [("good.cu", {GOOD!r})], None, cuda.nvrtc())[1])
except errors.CudaError as error:
    print(error)
"""


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path) -> None:
    text = python(COMPILE, FASTDECODE_NVRTC=str(tmp_path / "none.so"))
    assert text.startswith("kernels of good.cu for sm_90: expected compiled ones, or NVRTC to compile them;")
    assert 'pip install "fastdecode[cuda]"' in text
    assert f"FASTDECODE_NVRTC={tmp_path / 'none.so'}: " in text
    assert "No such file" in text


def test_a_file_that_is_no_compiler(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    assert "text.so: file too short" in python(COMPILE, FASTDECODE_NVRTC=str(tmp_path / "text.so"))
    other = next(Path(_core.__file__).parent.glob("_core*.so"))
    assert "it has no function nvrtcVersion" in python(COMPILE, FASTDECODE_NVRTC=str(other))


def test_a_compiler_is_taken_where_the_driver_runs_what_it_makes() -> None:
    """The package torch brings NVRTC 13, the extra `cuda` brings 12; a driver of CUDA 12 runs what the second makes."""
    (newer,) = {path for folder in cuda.nvrtc() for path in Path(folder).glob("libnvrtc.so.13")}
    assert python(COMPILE, FASTDECODE_NVRTC=str(newer)) == "compiled\n"
    assert python(COMPILE, FASTDECODE_NVRTC=str(newer)) == "cached\n"
    begin = "from fastdecode import _core; _core.cuda_devices()\n"
    driver = {
        name: emulated.environment("driver=12080")[name]
        for name in ("FASTDECODE_CUDA_DRIVER", "FASTDECODE_EMU")
    }
    text = python(begin + COMPILE, **driver, FASTDECODE_NVRTC=str(newer))
    assert f"FASTDECODE_NVRTC={newer}: NVRTC 13." in text, (
        "what the newer one has left in the cache does not serve"
    )
    assert "needs a driver for CUDA 13, and this one is for CUDA 12" in text
    assert python(begin + COMPILE, **driver) == "compiled\n"
    later = driver | {"FASTDECODE_EMU": "driver=13000"}
    assert python(begin + COMPILE, **later) == "cached\n"
