"""Every code block of README.md and docs/*.md runs as it is printed, in order, offline, with the bundled demo model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from families import FAMILIES

T5 = FAMILIES["t5"]
ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Languages that are shown and not run.
SHOWN = {"text", "diff"}
# Set-up is what continuous integration does first; the lines must be the same there.
SET_UP = ("python3 -m venv", "make ", "git clone")


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(page.read_text()) if found == language]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_every_block_has_a_language_that_is_run_or_only_shown() -> None:
    for page in PAGES:
        found = {language for language, _ in BLOCK.findall(page.read_text())}
        assert found <= {"python", "bash"} | SHOWN, f"{name(page)} has blocks in {found}"


def test_the_readme_shows_code() -> None:
    assert blocks(PAGES[0], "python")
    assert blocks(PAGES[0], "bash")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    # One program per page: later blocks go on from earlier ones, as a reader does.
    run("\n".join(blocks(page, "python")), page, tmp_path)


def test_blocks_that_name_a_model_of_the_hub_run_with_another(tmp_path: Path) -> None:
    page = ROOT / "docs" / "encoder-decoder.md"
    folder = T5.write_tiny(tmp_path / "m", tokenizer=tiny.with_end(), generation={"max_new_tokens": 9})
    program = "\n".join(blocks(page, "text"))
    assert program.count('"google/flan-t5-base"') == 1
    run(program.replace('"google/flan-t5-base"', repr(str(folder))), page, tmp_path)


def run(source: str, page: Path, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text(source)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{name(page)}:\n{done.stderr}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")], ids=name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    set_up = (ROOT / ".ci" / "run").read_text() + (ROOT / "Makefile").read_text()
    for line in "\n".join(blocks(page, "bash")).splitlines():
        command = line.split("  #")[0].strip()
        if not command or command.startswith("#"):
            continue
        if command.startswith(SET_UP):
            for part in command.removeprefix("make ").split() if command.startswith("make ") else ["pip"]:
                assert part in set_up, f"{name(page)}: continuous integration does not run {command}"
            continue
        assert command.startswith("fastdecode "), f"{name(page)}: nothing checks {command}"
        words = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"{name(page)}: {command}:\n{done.stderr}"
        assert done.stdout.strip(), f"{name(page)}: {command} printed nothing"
