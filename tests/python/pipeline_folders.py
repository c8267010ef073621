"""The golden folders of pipelines, and copies of them with other settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "pipelines"
DE, FR = "translate English to German: ", "translate English to French: "


def plain(value: Any) -> Any:
    """Returns an answer with arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def edited(tmp: Path, name: str, tasks: Any, **generation: Any) -> Path:
    """Returns a copy of a golden folder with other task_specific_params and further generation defaults."""
    shutil.copytree(GOLDEN / name, tmp, dirs_exist_ok=True)
    config = json.loads((tmp / "config.json").read_text())
    (tmp / "config.json").write_text(json.dumps(config | {"task_specific_params": tasks}))
    values = json.loads((tmp / "generation_config.json").read_text())
    (tmp / "generation_config.json").write_text(json.dumps(values | generation))
    return tmp


def with_settings(folder: Path, **settings: Any) -> Path:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder
