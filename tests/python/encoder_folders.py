"""Folders of encoders alone, made from those of encoder-decoders."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import fastdecode
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def change(folder: Path, **values: Any) -> Path:
    """Changes keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def keep(folder: Path, wanted: Callable[[str], bool]) -> Path:
    """Leaves the tensors in a folder whose names are wanted."""
    file = folder / "model.safetensors"
    save_file({name: array for name, array in load_file(file).items() if wanted(name)}, file)
    return folder


def of_encoder(name: str) -> bool:
    """Whether a tensor of this name is one of the encoder's."""
    return name.startswith(("encoder.", "shared."))


def load_quietly(folder: Path, **options: Any) -> Any:
    """Loads a folder; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fastdecode.load(folder, **options)
