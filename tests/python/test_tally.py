"""The ceiling on excused choices: a run of the tests fails above it, though every test in it passed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tally import ENOUGH, MOST_EXCUSED, Tally

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize(
    ("choices", "excused", "fails"),
    [
        (0, 0, False),
        (ENOUGH - 1, ENOUGH - 1, False),
        (ENOUGH, round(ENOUGH * MOST_EXCUSED), False),
        (ENOUGH, round(ENOUGH * MOST_EXCUSED) + 1, True),
        (100_000, 2000, False),
        (100_000, 2001, True),
    ],
)
def test_the_share_that_may_be_excused(choices: int, excused: int, fails: bool) -> None:
    assert (Tally(choices, ["a choice"] * excused).excess() is not None) == fails


@pytest.mark.parametrize(("excused", "code"), [(20, pytest.ExitCode.OK), (21, pytest.ExitCode.TESTS_FAILED)])
def test_a_run_fails_above_the_ceiling(excused: int, code: pytest.ExitCode, tmp_path: Path) -> None:
    test = f"from tally import TALLY\ndef test_passes():\n    TALLY.choices, TALLY.excused = 1000, ['x'] * {excused}\n"
    (tmp_path / "test_inner.py").write_text(test)
    # The run takes its hooks from the conftest.py beside this file, and its settings from pyproject.toml.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(HERE.parent.parent / "pyproject.toml"),
        "-p",
        "conftest",
    ]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(tmp_path / "test_inner.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code, run.stdout + run.stderr
    assert "1 passed" in run.stdout
    assert ("2.1% of 1000 choices were excused" in run.stdout) == (code != pytest.ExitCode.OK)
