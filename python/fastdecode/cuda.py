"""GPUs: which there are, and where CUDA's files lie.

Rust opens the driver and the compiler; here is only what Python knows better, the folders of installed packages.
Nothing of it is looked at before a GPU is asked for.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from . import _core, errors

if TYPE_CHECKING:
    from typing import Any

# Folders in which NVIDIA's packages of PyPI keep NVRTC, below the package `nvidia`: CUDA 13's, then CUDA 12's.
_NVRTC = ("cu13/lib", "cuda_nvrtc/lib")


def cubins() -> str:
    """The folder of the kernels that the package ships, whether it exists or not."""
    return str(Path(__file__).parent / "_cuda" / "cubins")


def nvrtc() -> list[str]:
    """Folders of installed packages in which NVRTC, the compiler of kernels, is."""
    try:
        found = find_spec("nvidia")
    except (ImportError, ValueError):
        return []  # Another module has this name, and is no package.
    places = (found.submodule_search_locations if found else None) or []
    folders = [Path(place) / below for place in places for below in _NVRTC]
    return [str(folder) for folder in folders if folder.is_dir()]


def info() -> dict[str, Any]:
    """What `fastdecode info` says of GPUs: `devices`, and where there are none, the `reason`."""
    try:
        devices: list[Any] = list(_core.cuda_devices())
    except errors.CudaError as error:
        return {"devices": [], "reason": str(error)}
    return {"devices": devices, "reason": None}
