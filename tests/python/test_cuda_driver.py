"""What is asked of the CUDA driver before a model is: the list of GPUs, and every way in which there is none."""

from __future__ import annotations

import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import emulated
import pytest
from child import python
from fastdecode import cuda, errors

if TYPE_CHECKING:
    from pathlib import Path

LIST = """
import json
from fastdecode import _core, errors
try:
    print(json.dumps(_core.cuda_devices()))
except errors.CudaError as error:
    print(json.dumps({"what": error.what, "expected": error.expected, "got": error.got}))
"""


def run(code: str, environment: dict[str, str]) -> str:
    return python(code, **environment)


def listed(knobs: str = "", **more: str) -> Any:
    return json.loads(run(LIST, emulated.environment(knobs) | more))


def test_devices_are_listed_with_their_memory() -> None:
    first, second = listed("devices=2,memory=1048576,capability=12.1")
    assert [first["ordinal"], second["ordinal"]] == [0, 1]
    assert first["name"]
    assert first["capability"] == [12, 1]
    assert first["multiprocessors"] > 0
    assert 0 < first["free_bytes"] <= first["total_bytes"] == 1048576
    assert first["reason"] is None


def test_a_device_that_is_too_old_is_listed_with_the_reason() -> None:
    (device,) = listed("capability=7.5")
    assert device["capability"] == [7, 5]
    assert device["free_bytes"] is device["total_bytes"] is None
    assert device["reason"].startswith(f"cuda:0 ({device['name']}): expected compute capability 8.0 or later")
    assert device["reason"].endswith("got compute capability 7.5")


def test_a_device_that_cannot_be_opened_is_listed_with_the_reason() -> None:
    first, second = listed("devices=2,fail=cuDevicePrimaryCtxRetain:1:2")
    assert "the context on cuda:0" in first["reason"]
    assert "expected memory, got none" in first["reason"]
    assert second["reason"] is None


@pytest.mark.parametrize(
    ("knobs", "expected", "got"),
    [
        ("devices=0", "at least one NVIDIA GPU", "a driver that sees none (CUDA_ERROR_NO_DEVICE (100)"),
        ("fail=cuInit:1:100", "CUDA_VISIBLE_DEVICES", "a driver that sees none (CUDA_ERROR_NO_DEVICE (100)"),
        ("driver=11080", "a driver for CUDA 12.0 or later (version 525)", "one for CUDA 11.8"),
        ("fail=cuDriverGetVersion:1:999", "nvidia_uvm", "error 999"),
        ("driver=0", "a driver for CUDA 12.0 or later (version 525)", "one that does not tell its version"),
        ("fail=cuInit:1:802", "nvidia-fabricmanager", "(802)"),
        ("fail=cuInit:1:803", "restart the machine", "(803)"),
        ("fail=cuInit:1:999", "nvidia_uvm", "(999)"),
        ("fail=cuInit:1:3", "the process that opened the GPU", "a forked child of it"),
        ("fail=cuDeviceGetCount:1:1", "cuDeviceGetCount to succeed", "(1)"),
    ],
)
def test_without_a_usable_driver_the_error_says_why(knobs: str, expected: str, got: str) -> None:
    found = listed(knobs)
    assert found["what"] == "CUDA"
    assert expected in found["expected"]
    assert got in found["got"]


def test_no_driver(tmp_path: Path) -> None:
    found = listed(FASTDECODE_CUDA_DRIVER=str(tmp_path / "none.so"))
    assert "an NVIDIA driver (libcuda.so.1, version 525 or later)" in found["expected"]
    assert 'device="cpu"' in found["expected"]
    assert "none.so" in found["got"], "the loader's own words"
    assert "No such file" in found["got"]


@pytest.mark.parametrize("function", ["cuDriverGetVersion", "cuGraphInstantiateWithFlags"])
def test_a_driver_that_lacks_a_function(function: str) -> None:
    found = json.loads(run(LIST, emulated.environment(without=[function])))
    assert f"the function {function};" in found["expected"]
    assert found["got"].endswith("libcuda_emu.so, which has no such function")


def test_an_old_driver_is_named_as_such_whatever_it_lacks() -> None:
    found = json.loads(
        run(LIST, emulated.environment("driver=11000", without=["cuGraphInstantiateWithFlags"]))
    )
    assert found["got"] == "one for CUDA 11.0"


def test_what_failed_is_tried_again() -> None:
    code = LIST + LIST
    failed, devices = map(json.loads, run(code, emulated.environment("fail=cuInit:1:802")).splitlines())
    assert "(802)" in failed["got"]
    assert devices[0]["ordinal"] == 0


FORK = """
import os
from fastdecode import _core, errors
{before}
read, write = os.pipe()
child = os.fork()
if child == 0:
    try:
        os.write(write, f"devices {{len(_core.cuda_devices())}}".encode())
    except errors.CudaError as error:
        os.write(write, str(error).encode())
    finally:
        os._exit(0)
os.waitpid(child, 0)
print(os.read(read, 10000).decode())
print(len(_core.cuda_devices()))
"""


def test_a_forked_child_of_a_process_that_used_the_driver_gets_an_error() -> None:
    child, parent = run(FORK.format(before="_core.cuda_devices()"), emulated.environment()).splitlines()
    assert child.startswith("CUDA: expected the process that opened the GPU;")
    assert "spawn" in child
    assert parent == "1", "the parent goes on"


def test_a_forked_child_of_another_process_may_use_the_driver() -> None:
    assert run(FORK.format(before=""), emulated.environment()).splitlines() == ["devices 1", "1"]


def test_the_command_info_shows_devices_or_the_reason() -> None:
    show = "from fastdecode.cli import main; import sys; sys.exit(main(sys.argv[1:] or ['info']))"
    text = run(show, emulated.environment("devices=2,memory=2000000,capability=9.0"))
    lines = text.splitlines()
    at = lines.index("cuda:")
    assert lines[at + 1].startswith("  cuda:0 ")
    assert lines[at + 1].endswith(" 9.0, 2.0 MB free of 2.0 MB")
    assert lines[at + 2].startswith("  cuda:1 ")
    assert "  none             CUDA: expected" in run(show, emulated.environment("devices=0"))
    as_json = show.replace("['info']", "['info', '--json']")
    found = json.loads(run(as_json, emulated.environment("devices=0")))["cuda"]
    assert found["devices"] == []
    assert found["reason"].startswith("CUDA: expected at least one NVIDIA GPU")
    (device,) = json.loads(run(as_json, emulated.environment()))["cuda"]["devices"]
    assert device["ordinal"] == 0


def test_the_error_is_pickled_with_its_fields() -> None:
    error = errors.CudaError("text", what="cuda:0", expected="a", got="b")
    again: errors.CudaError = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.CudaError
    assert (str(again), again.what, again.expected, again.got) == ("text", "cuda:0", "a", "b")


def test_nothing_of_cuda_is_looked_at_before_it_is_asked_for() -> None:
    code = """
import sys, fastdecode
fastdecode.load("demo-stories", num_threads=1).run([1], max_new_tokens=1)
maps = open("/proc/self/maps").read()
print("nvrtc" in maps, "libcuda" in maps, "fastdecode.cuda" in sys.modules)
"""
    assert run(code, {}) == "False False False\n"


def test_folders_of_the_compiler_are_those_of_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("a/nvidia/cu13/lib", "a/nvidia/cuda_nvrtc/include", "b/nvidia/cuda_nvrtc/lib"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "b")])
    assert cuda.nvrtc() == [str(tmp_path / "a/nvidia/cu13/lib"), str(tmp_path / "b/nvidia/cuda_nvrtc/lib")]
    monkeypatch.setattr(sys, "path", [])
    assert cuda.nvrtc() == []
