"""Makes examples/lesson.ipynb from examples/lesson.py: the same cells, without outputs.

    python tools/make_notebook.py

A line `# %%` begins a cell of code, `# %% [markdown]` one of text in comments.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MARK, TEXT = "# %%", "# %% [markdown]"


def cells(script: str) -> list[dict[str, Any]]:
    """Returns the cells of a script, as a notebook holds them."""
    made: list[dict[str, Any]] = []
    for part in ("\n" + script).split("\n" + MARK)[1:]:
        head, _, body = part.partition("\n")
        kind = "markdown" if MARK + head == TEXT else "code"
        lines = body.strip("\n").split("\n")
        if kind == "markdown":
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        source = [line + "\n" for line in lines[:-1]] + lines[-1:]
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": f"cell-{len(made)}",
            "metadata": {},
            "source": source,
        }
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(cell)
    return made


def notebook(script: str) -> str:
    """Returns the notebook of a script, as JSON."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    content = {"cells": cells(script), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    script = (EXAMPLES / "lesson.py").read_text(encoding="utf-8")
    (EXAMPLES / "lesson.ipynb").write_text(notebook(script), encoding="utf-8")


if __name__ == "__main__":
    main()
