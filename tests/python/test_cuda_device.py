"""What can go wrong with a GPU, and what a model then does: errors are typed and say what to do, nothing is lost.

Each situation is another driver, so that each is tried in a process of its own.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import emulated
import fastdecode
import pytest
import tiny
from families import FAMILIES
from fastdecode import errors

ROOT = Path(__file__).resolve().parents[2]

# What a child process begins with: it tells what came of loading a folder.
BEGIN = """
import json, sys
import fastdecode
from fastdecode import errors
folder = sys.argv[1]

def told(call):
    try:
        return call()
    except errors.FastdecodeError as error:
        fields = {name: str(getattr(error, name, "")) for name in ("expected", "got")}
        return {"type": type(error).__name__, "text": str(error), **fields}

"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = FAMILIES["gpt2"]
    return family.write(next(iter(family.laws.values())), tmp_path_factory.mktemp("device"))


def child(folder: Path, code: str, variables: dict[str, str]) -> Any:
    """What a process prints as JSON that has the driver of these variables."""
    run = subprocess.run(
        [sys.executable, "-c", BEGIN + code, str(folder)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


LOAD = 'print(json.dumps(told(lambda: fastdecode.load(folder, device="cuda").info()["device"])))'


@pytest.mark.parametrize(
    ("knobs", "got", "expected"),
    [
        ("devices=0", "a driver that sees none", "at least one NVIDIA GPU; see nvidia-smi"),
        ("driver=11080", "one for CUDA 11.8", "a driver for CUDA 12.0 or later (version 525)"),
        ("capability=7.5", "compute capability 7.5", "compute capability 8.0 or later"),
        ("fail=cuDevicePrimaryCtxRetain:1:802", "802", "cuDevicePrimaryCtxRetain to succeed"),
        ("fail=cuDriverGetVersion:1:34", "error 34", "in place of the stub of the toolkit"),
    ],
)
def test_a_gpu_that_cannot_be_used(folder: Path, knobs: str, got: str, expected: str) -> None:
    error = child(folder, LOAD, emulated.environment(knobs))
    assert error["type"] == "CudaError"
    assert got in error["got"], error
    assert expected in error["expected"], error


def test_no_driver(folder: Path, tmp_path: Path) -> None:
    error = child(folder, LOAD, {"FASTDECODE_CUDA_DRIVER": str(tmp_path / "libcuda.so.1")})
    assert error["type"] == "CudaError"
    assert "an NVIDIA driver (libcuda.so.1, version 525 or later)" in error["expected"], error


def test_a_driver_that_lacks_a_function(folder: Path) -> None:
    error = child(folder, LOAD, emulated.environment(without=["cuGraphLaunch"]))
    assert error["type"] == "CudaError"
    assert "cuGraphLaunch" in error["text"], error


def test_no_kernels_and_no_compiler(folder: Path, tmp_path: Path) -> None:
    nowhere = {"FASTDECODE_NVRTC": str(tmp_path / "libnvrtc.so.12"), "XDG_CACHE_HOME": str(tmp_path)}
    error = child(folder, LOAD, emulated.environment("capability=8.7") | nowhere)
    assert error["type"] == "CudaError"
    assert "sm_80" in error["text"], error
    assert 'pip install "fastdecode[cuda]"' in error["expected"], error


def test_a_number_of_no_gpu(folder: Path) -> None:
    code = LOAD.replace('"cuda"', '"cuda:3"')
    error = child(folder, code, emulated.environment("devices=2"))
    assert error["got"] == "cuda:3"
    assert "cuda:0 to cuda:1" in error["expected"], error
    assert child(folder, code.replace("cuda:3", "cuda:1"), emulated.environment("devices=2")) == "cuda:1"


def test_weights_that_do_not_fit(folder: Path) -> None:
    error = child(folder, LOAD, emulated.environment("memory=100000"))
    assert error["type"] == "OutOfMemoryError"
    assert "weights" in error["text"], error
    assert "free" in error["text"], error


CACHE = """
model = fastdecode.load(folder, device="cuda", cache_bytes=1 << 40)
states = []
def fill():
    while True:
        states.append(model.prefill([5] * 60))
error = told(fill)
held = len(states)
states.clear()
again = told(lambda: len(model.run([5, 6], max_new_tokens=4, eos_token_id=None).token_ids))
print(json.dumps({"error": error, "held": held, "again": again}))
"""


def test_a_cache_that_does_not_fit(folder: Path) -> None:
    told = child(folder, CACHE, emulated.environment("memory=14000000"))
    assert told["error"]["type"] == "OutOfMemoryError", told
    assert told["held"] > 0
    assert told["again"] == 4, "what was held is free again"


AUTO = """
import logging
logging.basicConfig(stream=sys.stderr, level=logging.INFO)
model = fastdecode.load(folder, device="auto", **json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))
info = model.info()
print(json.dumps({"device": info["device"], "reason": info["device_reason"]}))
"""


def test_auto_takes_the_cpu_where_there_is_no_gpu(folder: Path) -> None:
    assert child(folder, AUTO, emulated.environment()) == {"device": "cuda:0", "reason": None}
    told = child(folder, AUTO, emulated.environment("devices=0"))
    assert told["device"] == "cpu"
    assert "a driver that sees none" in told["reason"]


def test_types_that_a_gpu_does_not_have(folder: Path, emulated_gpu: Any) -> None:
    del emulated_gpu
    types: Any = ("int8", "int4", "float16", {"default": "bfloat16", "lm_head": "float32"})
    for dtype in types:
        with pytest.raises(errors.OptionError, match='"float32" or "bfloat16" for all of a model on a GPU'):
            fastdecode.load(folder, device="cuda", dtype=dtype)
        assert fastdecode.load(folder, device="auto", dtype=dtype).info()["device"] == "cpu"
    with pytest.raises(errors.OptionError, match="as the weights are"):
        fastdecode.load(folder, device="cuda", dtype="bfloat16", compute_dtype="float32")


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "\udcff", 0, None, True])
def test_what_is_no_device(folder: Path, device: Any) -> None:
    with pytest.raises(errors.OptionError, match="device") as caught:
        fastdecode.load(folder, device=device)
    assert '"cuda:N"' in str(caught.value.expected)


@pytest.mark.parametrize("count", range(1, 40, 6))
@pytest.mark.parametrize("function", ["cuLaunchKernelEx", "cuStreamSynchronize", "cuMemcpyHtoDAsync_v2"])
def test_a_driver_that_fails_in_the_middle(folder: Path, function: str, count: int) -> None:
    # Wherever it fails, a state is as it was before its step, or one token longer.
    code = """
def all():
    model = fastdecode.load(folder, device="cuda")
    state = model.prefill([3, 1, 4, 1, 5])
    lengths = []
    for token in (9, 2, 6):
        before = len(state)
        error = told(lambda: state.step(token).tolist())
        lengths.append([before, len(state), error["type"] if isinstance(error, dict) else None])
    return lengths
print(json.dumps(told(all)))
"""
    told = child(folder, code, emulated.environment(f"fail={function}:{count}:719"))
    if isinstance(told, dict):  # while it was loaded, or the prompt read
        assert told["type"] == "CudaError"
        assert "719" in told["got"], told
        return
    for before, after, error in told:
        assert after == before + (error is None), told
        assert error in (None, "CudaError"), told


FORK = """
import os
model = fastdecode.load(folder, device="cuda")
state = model.prefill([3, 1, 4])
reader, writer = os.pipe()
if os.fork() == 0:
    tried = [told(lambda: state.step(1).tolist()), told(lambda: model.run([1, 2], max_new_tokens=2).token_ids),
             told(lambda: len(fastdecode.load(folder).run([1, 2], max_new_tokens=2, seed=1).token_ids) == 2)]
    os.write(writer, json.dumps(tried).encode())
    os.close(writer)
    os._exit(0)
os.close(writer)
said = b"".join(iter(lambda: os.read(reader, 65536), b""))
os.wait()
print(json.dumps({"child": json.loads(said), "parent": len(state.step(1))}))
"""


def test_a_forked_child(folder: Path) -> None:
    told = child(folder, FORK, emulated.environment())
    of_state, of_call, of_cpu = told["child"]
    for error in (of_state, of_call):
        assert error["type"] == "CudaError", told
        assert "forked child" in error["got"], told
    assert of_cpu is True, "the child may use the CPU"
    assert told["parent"] > 0, "and the parent its GPU"


BUSY_FORK = """
import os, threading, time
model = fastdecode.load(folder, device="cuda")
state = model.prefill([3, 1, 4])
stopped = threading.Event()

def work():
    while not stopped.is_set():
        model.run([1, 2, 3], max_new_tokens=8, eos_token_id=None)

thread = threading.Thread(target=work)
thread.start()
time.sleep(0.3)
said = []
for _ in range(6):
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            tried = told(lambda: state.step(1).tolist())
            os.write(writer, json.dumps([tried, model.info()["activation_bytes"]]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    said.append(json.loads(b"".join(iter(lambda: os.read(reader, 65536), b""))))
    os.wait()
    time.sleep(0.05)
stopped.set()
thread.join()
print(json.dumps(said))
"""


def test_a_child_that_is_forked_in_the_middle_of_a_step(folder: Path) -> None:
    for error, _ in child(folder, BUSY_FORK, emulated.environment()):
        assert error["type"] == "CudaError", error
        assert "forked child" in error["got"], error


SIDE_BY_SIDE = """
import os, signal, threading
on_gpu = fastdecode.load(folder, device="cuda")
on_cpu = fastdecode.load(os.environ["LONG"], num_threads=2)
within, done, seen = threading.Event(), threading.Event(), {}

def work():
    within.wait()
    seen["ids"] = on_gpu.run([1, 2, 3], max_new_tokens=3, eos_token_id=None).token_ids
    done.set()

def handle(number, frame):
    within.set()
    seen["waited"], seen["returned"] = done.wait(60), "state" in seen

signal.signal(signal.SIGALRM, handle)
thread = threading.Thread(target=work)
thread.start()
signal.setitimer(signal.ITIMER_REAL, 0.2)
# One step, which has the team's turn until the handler that interrupts it returns.
seen["state"] = len(on_cpu.prefill([5] * 2**14))
thread.join()
print(json.dumps([seen["waited"], seen["returned"], len(seen["ids"])]))
"""


def test_a_gpu_does_not_wait_for_steps_on_the_cpu(folder: Path, tmp_path: Path) -> None:
    sizes: Any = {"n_positions": 2**14, "n_embd": 64, "n_layer": 4, "n_head": 2}
    variables = {"LONG": str(tiny.write_folder(tmp_path / "long", **sizes))}
    told = child(folder, SIDE_BY_SIDE, emulated.environment() | variables)
    assert told == [True, False, 3], "the GPU's steps ran, while that of the CPU was interrupted"


def test_pickling_keeps_the_device(folder: Path, emulated_gpu: Any) -> None:
    del emulated_gpu
    model = fastdecode.load(folder, device="cuda")
    again = pickle.loads(pickle.dumps(model))
    assert again.info()["device"] == "cuda:0"


def test_what_only_the_cpu_does(folder: Path, emulated_gpu: Any) -> None:
    del emulated_gpu
    model = fastdecode.load(folder, device="cuda")
    with pytest.raises(errors.OptionError, match="activations are traced where the CPU computes them"):
        model.trace([1, 2, 3])


def test_a_profile_is_of_the_cpu(folder: Path, emulated_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    del emulated_gpu
    model = fastdecode.load(folder, device="cuda")
    with pytest.raises(errors.OptionError, match="a model on the CPU, where phases are timed"):
        fastdecode.Profile(model)
    monkeypatch.setenv("FASTDECODE_PROFILE", "1")
    with pytest.warns(errors.FastdecodeWarning, match="a model on cuda:0 is not profiled"):
        fastdecode.load(folder, device="cuda")
