"""The script for a machine with a GPU, tried on the emulated driver: a lent machine is no place for its mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import emulated
import pytest

BENCHES = Path(__file__).resolve().parents[2] / "benches"


def stage(name: str, out: Path, *more: str, knobs: str = "") -> tuple[int, dict[str, Any], str]:
    """The exit status, the file and the table of a stage with tiny models."""
    done = subprocess.run(
        [sys.executable, str(BENCHES / "gpu.py"), name, "--tiny", "--out", str(out), *more],
        env=os.environ | emulated.environment(knobs),
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    [file] = [*out.glob("*.json"), None][:1]
    return done.returncode, {} if file is None else json.loads(file.read_text()), done.stdout + done.stderr


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {part["name"]: part["status"] for part in report["parts"]}


def test_parity(tmp_path: Path) -> None:
    status, report, shown = stage("parity", tmp_path)
    assert status == 0, shown
    found = statuses(report)
    models = ("gpt2", "t5-base", "llama-small", "phi-1.5")
    for name in (f"{model} {part}" for model in models for part in ("float32", "bfloat16", "laws")):
        assert found.pop(name) == "done", shown
    assert set(found) == {"compute-sanitizer memcheck", "compute-sanitizer racecheck"}
    assert (report["gpu"], report["capability"], report["tiny"]) == ("Emulated GPU", "9.0", True)
    laws = next(part["laws"] for part in report["parts"] if part["name"] == "gpt2 laws")
    assert len(laws) == 6
    assert set(laws.values()) == {True}
    assert "FAILED (0): none" in shown


def test_bench(tmp_path: Path) -> None:
    status, report, shown = stage("bench", tmp_path)
    assert status == 0, shown
    found = statuses(report)
    for name in (
        "gpt2 decode",
        "gpt2 decode of 64",
        "gpt2 prompt",
        "gpt2 steps",
        "t5-base decode",
        "phi-1.5 decode",
    ):
        assert found[name] == "done", shown
    # What needs torch on a GPU is named, not left out.
    for name in (
        "bandwidth",
        "gpt2 kernels",
        "gpt2 transformers",
        "gpt2 by hand",
        "gpt2 transformers, compiled",
    ):
        assert found[name] == "not run", shown
    line = next(line for line in report["table"] if line.startswith("NOT RUN ("))
    assert "phi-1.5 kernels, gpt2 kernels" in line
    decode = next(part for part in report["parts"] if part["name"] == "gpt2 decode")
    assert decode["tokens_per_second"] > 0
    assert (decode["gate"], decode["aim"], decode["reached"]) == (3500, 7000, None)


def test_a_gpu_that_is_wrong_fails(tmp_path: Path) -> None:
    # A GPU that is lost in the middle: the parts behind it fail too, each is written, and the status says so.
    status, report, shown = stage(
        "parity", tmp_path, "--only", "gpt2", knobs="fail=cuStreamSynchronize:9:719"
    )
    assert status == 1, shown
    assert "failed" in statuses(report).values()
    assert "719" in shown


def test_no_gpu(tmp_path: Path) -> None:
    status, report, shown = stage("bench", tmp_path, knobs="devices=0")
    assert (status, report) == (2, {})
    assert "a driver that sees none" in shown


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    import importlib

    monkeypatch.syspath_prepend(str(BENCHES))
    return {
        name: importlib.import_module(name)
        for name in ("gpu_models", "gpu_parity", "gpu_peers", "gpu_report")
    }


def test_parts_without_time_are_named(tmp_path: Path, modules: dict[str, Any]) -> None:
    report = modules["gpu_report"].Report("bench", tmp_path, 100)
    part = modules["gpu_report"].Part
    report.run([part("long", 200, dict), part("short", 1, dict), part("wrong", 1, lambda: {"ok": False})])
    assert report.show() == 1
    long, short, wrong = report.values["parts"]
    assert long["status"] == "not run"
    assert "it may take 200 s" in long["reason"]
    assert (short["status"], wrong["status"]) == ("done", "failed")
    assert json.loads(report.file.read_text()) == report.values


def test_choices_that_are_clear_count(modules: dict[str, Any]) -> None:
    import numpy as np

    theirs = np.array([[0.0, 1.0, 3.0], [0.0, 1.0, 1.1]], np.float32)
    ours = np.array([[0.0, 4.0, 3.0], [0.0, 1.2, 1.1]], np.float32)
    compare = modules["gpu_parity"].compare
    assert compare(ours, theirs, 0.1) == {"clear": 1, "of": 2, "wrong": 1}
    assert compare(theirs, theirs, 0.01) == {"clear": 2, "of": 2, "wrong": 0}


def test_the_step_by_hand_is_the_model(tmp_path: Path, modules: dict[str, Any]) -> None:
    import torch

    models, peers = modules["gpu_models"], modules["gpu_peers"]
    folder = models.build("gpt2", tmp_path, "float32", tiny=True)
    ids = models.ids("gpt2", 9, 3, tiny=True)
    with torch.inference_mode():
        by_hand = peers.HandWritten(folder, 20, "float32")
        by_hand.begin(ids)
        for _ in range(10):
            by_hand.step()
        model = models.peer("gpt2", folder, "float32")
        options = {"max_new_tokens": 11, "min_new_tokens": 11, "do_sample": False, "pad_token_id": 0}
        [expected] = model.generate(torch.tensor([ids], device=models.place()), **options).tolist()
    assert by_hand.chosen[9:20].tolist() == expected[9:]


def test_products_are_those_of_a_step(tmp_path: Path, modules: dict[str, Any]) -> None:
    models = modules["gpu_models"]
    for name in models.TINY:
        folder = models.build(name, tmp_path, "bfloat16", tiny=True)
        found = models.products(folder)
        [head] = [product for product in found if product.is_head]
        assert (head.inputs, head.outputs) == (64, 300), name
        of_layer = {"gpt2": 4, "t5-base": 4 + 2 + 2, "llama-small": 7, "phi-1.5": 6}[name]
        assert len(found) == 2 * of_layer + 1, [product.name for product in found]
        if name == "gpt2":
            shapes = sorted((product.inputs, product.outputs) for product in found[:-1])
            assert shapes == sorted(2 * [(64, 64), (64, 192), (64, 256), (256, 64)])
