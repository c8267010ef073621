"""Folders of real size with random weights, for every family that tests/python/families lists.

Speed does not depend on the values, so nothing is downloaded. Random float32 values are not exact in 16 bits, so that
no engine may store them narrower than it says.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from fastdecode.tokenizer_table import CLASS_OF_TYPE, GENERIC

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "python"))

from families import FAMILIES  # noqa: E402  (the line above makes the next import possible)

# Every model, by family.
MODELS = {name: family for family in FAMILIES.values() for name in family.sizes}
# Those that take tens of GB with their copies for peers: measured only where they are named.
LARGE = ("mistral-7b",)
STORED = {"f32": "float32", "bf16": "bfloat16"}


def names(*, has_encoder: bool) -> list[str]:
    """Returns the models of one kind."""
    return [name for name, family in MODELS.items() if family.has_encoder == has_encoder]


def build(name: str, kind: str, cache: Path) -> Path:
    """Writes the folder with random weights ("f32" or "bf16"), unless it is there, and returns it."""
    folder, family, recipe = cache / f"{name}-{kind}", MODELS[name], MODELS[name].sizes[name]
    if (folder / "model.safetensors").exists():
        return folder
    family.write(replace(recipe, dtype=STORED[kind]), folder)
    source, files = family.tokenizer
    for file in files:
        shutil.copy(ROOT / "tests" / "golden" / source / file, folder)
    if "tokenizer_config.json" not in files:
        declared = {"tokenizer_class": CLASS_OF_TYPE.get(recipe.config["model_type"], GENERIC)}
        (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    return folder
