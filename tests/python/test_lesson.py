"""The lesson runs as a script, and its notebook holds the same cells."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "examples" / "lesson.py"
RANDOM = ROOT / "tests" / "golden" / "pipelines"

MODELS = {
    "bundled models": {},
    "other models": {
        "LESSON_CAUSAL": str(RANDOM / "gpt2"),
        "LESSON_TRANSLATOR": str(RANDOM / "t5"),
        "LESSON_INSTRUCT": str(RANDOM / "t5"),
    },
}


@pytest.mark.parametrize("models", MODELS.values(), ids=MODELS)
def test_the_script_runs(models: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", **models},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "translation_text" in done.stdout
    assert "loss:" in done.stdout


def test_the_notebook_holds_the_cells_of_the_script() -> None:
    spec = importlib.util.spec_from_file_location("make_notebook", ROOT / "tools" / "make_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    tool: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = SCRIPT.read_text(encoding="utf-8")
    assert (ROOT / "examples" / "lesson.ipynb").read_text(encoding="utf-8") == tool.notebook(text), (
        "make it again with `make notebook`"
    )
    cells = json.loads(tool.notebook(text))["cells"]
    assert len(cells) > 20
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    compile(program, "lesson.ipynb", "exec")
