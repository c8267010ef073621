"""The lesson runs as a script, and its notebook holds the same cells."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
from families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "examples" / "lesson.py"
RANDOM = ROOT / "tests" / "golden" / "pipelines"

OTHERS = {
    "LESSON_CAUSAL": str(RANDOM / "gpt2"),
    "LESSON_TRANSLATOR": str(RANDOM / "t5"),
    "LESSON_INSTRUCT": str(RANDOM / "t5"),
}


def phi(folder: Path) -> Path:
    """A random model of two layers with the files of Phi's tokenizer, over a small vocabulary."""
    FAMILIES["phi"].write_tiny(
        folder, tokenizer=tiny.byte_level(320), max_position_embeddings=2048, eos_token_id=None
    )
    tiny.byte_level(320).model.save(str(folder))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), tiny.END)
    settings = {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["bundled models", "other models"])
def test_the_script_runs(kind: str, tmp_path: Path) -> None:
    models = {} if kind == "bundled models" else {**OTHERS, "LESSON_PHI": str(phi(tmp_path / "phi"))}
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
    assert "after 3 examples:" in done.stdout
    assert ("CausalLM(phi," in done.stdout) == ("LESSON_PHI" in models)


def test_the_folder_of_ci_has_the_tokenizer_of_phi(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder, text = phi(tmp_path), "Question: What do bees make? Answer: honey\n\n  and wax"
    theirs, ours = AutoTokenizer.from_pretrained(folder), fastdecode.load(folder).tokenizer
    assert type(theirs).__name__ == "CodeGenTokenizer"
    assert ours is not None
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.eos_token_id == theirs.eos_token_id == 0


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
