"""A GPU's memory: what the driver itself takes of it, what others capture, what stays on the host."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import child
import emulated
import pytest
import tiny
from families import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

BEGIN = """
import json, os
import fastdecode
from fastdecode import errors

folder = os.environ["FOLDER"]

def ids(model, rows=1):
    prompts = [list(range(3, 14 + row)) for row in range(rows)]
    return [output.token_ids for output in model.run(prompts, max_new_tokens=12, eos_token_id=None)]

"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = FAMILIES["gpt2"]
    return family.write(next(iter(family.laws.values())), tmp_path_factory.mktemp("memory"))


def run(folder: Path, code: str, knobs: str = "", **variables: str) -> Any:
    """What a process prints as JSON that has the emulated driver with these knobs."""
    environment = emulated.environment(knobs) | {"FOLDER": str(folder)} | variables
    return json.loads(child.python(BEGIN + code, **environment))


IDS = 'print(json.dumps(ids(fastdecode.load(folder, device="cuda"), 2)))'


@pytest.mark.parametrize("function", ["cuGraphInstantiateWithFlags", "cuGraphLaunch", "cuLaunchKernelEx"])
def test_memory_that_the_driver_itself_takes(folder: Path, function: str) -> None:
    # A graph that has no room is launched kernel by kernel; whatever else has none is an error, or tried again.
    code = """
model = fastdecode.load(folder, device="cuda")
try:
    first = ids(model, 2)
except errors.OutOfMemoryError as error:
    first = str(error)
print(json.dumps([first, ids(model, 2)]))
"""
    expected = run(folder, IDS)
    first, second = run(folder, code, f"fail={function}:2:2")
    assert second == expected
    assert first == expected or (function == "cuLaunchKernelEx" and "cuda:0" in first), first


def test_the_error_of_a_full_gpu(folder: Path) -> None:
    code = """
try:
    fastdecode.load(folder, device="cuda")
except errors.OutOfMemoryError as error:
    print(json.dumps([str(error), error.bytes]))
"""
    for knobs, what in (
        ("fail=cuDevicePrimaryCtxRetain:1:2", "the context on cuda:0"),
        ("fail=cuModuleLoadData:1:2", "what cuModuleLoadData takes on cuda:0"),
        ("fail=cuStreamCreate:1:2", "what cuStreamCreate takes on cuda:0"),
    ):
        text, size = run(folder, code, knobs)
        assert what in text, text
        assert "expected memory, got none" in text, text
        assert size == 0


def test_a_driver_that_wants_kernels_for_this_very_gpu(folder: Path) -> None:
    code = """
ids(fastdecode.load(folder, device="cuda"))
cache = os.path.join(os.environ["XDG_CACHE_HOME"], "fastdecode", "cubin")
names = sorted({name.split("-")[-1] for _, _, files in os.walk(cache) for name in files})
print(json.dumps(names))
"""
    # Each of the five files is refused once; the sixth call loads it as it was compiled for 8.7.
    refusals = ",".join(f"fail=cuModuleLoadData:{count}:209" for count in range(1, 10, 2))
    assert "sm_87.cubin" in run(folder, code, f"capability=8.7,{refusals}")


def test_a_full_gpu_compiles_nothing(folder: Path) -> None:
    code = """
try:
    fastdecode.load(folder, device="cuda")
except errors.OutOfMemoryError as error:
    driver = __import__("ctypes").CDLL(os.environ["FASTDECODE_CUDA_DRIVER"])
    driver.emu_report.restype = __import__("ctypes").c_char_p
    print(json.dumps(json.loads(driver.emu_report())["calls"].get("cuModuleLoadData")))
"""
    assert run(folder, code, "capability=8.9,fail=cuModuleLoadData:2:2") == 2


CAPTURE = """
import ctypes, threading
driver = ctypes.CDLL(os.environ["FASTDECODE_CUDA_DRIVER"])

def call(function, *arguments):
    code = getattr(driver, function)(*arguments)
    assert code == 0, (function, code)

def handle():
    return ctypes.c_void_p()

# Another part of the program captures a stream of its own, in the mode in which others must not allocate.
call("cuInit", 0)
context, stream, graph = handle(), handle(), handle()
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuStreamCreate", ctypes.byref(stream), 1)
call("cuStreamBeginCapture_v2", stream, 0)
mode = ctypes.c_int(0)
refused = driver.cuMemAlloc_v2(ctypes.byref(handle()), ctypes.c_size_t(16)) if os.environ.get("PROVE") else None

found = []
def work():
    model = fastdecode.load(folder, device="cuda")
    found.extend(ids(model, 3))
    del model

work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
ended = driver.cuStreamEndCapture(stream, ctypes.byref(graph))
call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
print(json.dumps({"found": found, "ended": ended, "mode": mode.value, "refused": refused}))
"""


def test_what_others_capture_goes_on(folder: Path) -> None:
    expected = run(folder, 'print(json.dumps(ids(fastdecode.load(folder, device="cuda"), 3)))')
    told = run(folder, CAPTURE)
    assert told["found"] == expected * 2
    assert told["ended"] == 0, "nothing that was done has ended the capture"
    assert told["mode"] == 0, "and the thread captures as it did before"
    proof = run(folder, CAPTURE, PROVE="1")
    assert (proof["refused"], proof["ended"]) == (900, 901), "an allocation as it is would have"


def test_weights_leave_the_hosts_memory(tmp_path: Path) -> None:
    # 77 MB, which an emulated GPU has in this process, too.
    folder = tiny.write_folder(tmp_path / "wide", vocab_size=200_000, n_embd=96)
    code = """
def held():
    with open("/proc/self/smaps_rollup") as smaps:
        return next(int(line.split()[1]) for line in smaps if line.startswith("Rss:")) * 1024

fastdecode.load(folder, device=os.environ["DEVICE"]) if os.environ["DEVICE"] == "cpu" else None
before = held()
model = fastdecode.load(folder, device=os.environ["DEVICE"])
after = held()
print(json.dumps([model.info()["weight_bytes"], after - before]))
"""
    weights, _ = run(folder, code, DEVICE="cpu")
    assert weights > 20 << 20
    of_gpu, grown = run(folder, code, "memory=200000000", DEVICE="cuda")
    assert of_gpu == weights
    # Once on the emulated GPU, and not a second time; the code of kernels and staging are less than half of it.
    assert grown < 1.6 * weights, f"{grown} bytes more for weights of {weights}"


def test_kernels_begin_early_where_the_gpu_and_its_driver_can(folder: Path) -> None:
    code = """
import ctypes
found = ids(fastdecode.load(folder, device="cuda"), 9)
driver = ctypes.CDLL(os.environ["FASTDECODE_CUDA_DRIVER"])
driver.emu_report.restype = ctypes.c_char_p
print(json.dumps([found, json.loads(driver.emu_report())["early"]]))
"""
    found, early = run(folder, code)
    assert early > 100, "and the emulator has seen that each thread waits"
    for knobs, variables in (
        ("capability=8.0", {}),
        ("driver=12020", {}),
        ("", {"FASTDECODE_CUDA_EARLY": "0"}),
    ):
        assert run(folder, code, knobs, **variables) == [found, 0], (knobs, variables)


def test_the_number_of_multiprocessors_changes_no_bit(folder: Path) -> None:
    code = """
import ctypes
model = fastdecode.load(folder, device="cuda", dtype="bfloat16")
outputs = model.run([list(range(3, 40)), list(range(9, 30))], max_new_tokens=4, eos_token_id=None, logprobs=3)
driver = ctypes.CDLL(os.environ["FASTDECODE_CUDA_DRIVER"])
driver.emu_report.restype = ctypes.c_char_p
launches = json.loads(driver.emu_report())["launches"]
print(json.dumps([[[output.token_ids, repr(output.logprobs)] for output in outputs],
                  [name in launches for name in ("fd_many_bf16", "fd_narrow_bf16")]]))
"""
    # Products of many rows take tiles of other sizes.
    one, few = run(folder, code, "multiprocessors=1")
    other, many = run(folder, code, "multiprocessors=1000")
    assert one == other
    assert (few, many) == ([True, False], [False, True])
