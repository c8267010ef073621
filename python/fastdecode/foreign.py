"""Folders that hold something else than what is read: told by their files, with what to do about it.

Looked for before the native side reads a folder, which can only say that a file is missing or a shape is wrong.
Nothing here knows models or options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arrays import brief
from .errors import CheckpointError, ConfigError, FastdecodeError, FileMissingError
from .folder import POINTER, bad_field, is_pointer, optional_json

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = tuple(f"{name}.index.json" for name in _WEIGHTS)

# Files of other programs: pattern, whose it is, what to do.
_LOAD = "load it with AutoModel...from_pretrained(folder, {}) of transformers 4, and"
_SOURCE = "take the repository that it was made from, or"
_OTHERS = (
    (
        "adapter_model.*",
        "an adapter (PEFT) without its adapter_config.json",
        "put that beside it, or",
    ),
    ("tf_model*.h5", "TensorFlow weights", _LOAD.format("from_tf=True")),
    ("flax_model*.msgpack", "Flax weights", _LOAD.format("from_flax=True")),
    ("*.gguf", "a GGUF file of llama.cpp", _SOURCE),
    ("ggml-model*.bin", "a GGML file of llama.cpp", _SOURCE),
    ("*.onnx", "an ONNX graph", "take the repository that it was exported from, or"),
    ("onnx/*.onnx", "an ONNX graph", "take the repository that it was exported from, or"),
    ("model.*.safetensors", "weights of a variant", "rename it to model.safetensors, or"),
    ("pytorch_model.*.bin", "weights of a variant", "rename it to pytorch_model.bin, or"),
    ("openvino_model.*", "an OpenVINO graph", "take the repository that it was exported from, or"),
    ("rust_model.ot", "weights of rust-bert", _SOURCE),
    ("*.ckpt", "a training checkpoint", "load it in the program that wrote it, and"),
    ("model.ckpt*.index", "a TensorFlow checkpoint", "convert it with transformers 4, and"),
    ("*.tflite", "a TensorFlow Lite file", _SOURCE),
)


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights of a model that are read, as one file or as shards."""
    return any((folder / name).exists() for name in (*_WEIGHTS, *_INDEXES))


def refuse_foreign(folder: Path) -> None:
    """Looks at what a folder holds.

    Args:
        folder: A model's folder.

    Raises:
        ConfigError: config.json is what Git LFS leaves in the place of a file, or says that weights are quantized.
        CheckpointError: The same for an index of shards.
        FileMissingError: There are no weights that are read, but others.
    """
    config_file = folder / "config.json"
    if is_pointer(config_file):
        raise bad_field(str(config_file), "", *POINTER)
    for name in _INDEXES:
        if is_pointer(folder / name):
            expected, got = POINTER
            file = str(folder / name)
            raise CheckpointError(
                f"{file}: expected {expected}, got {got}", file=file, expected=expected, got=got
            )
    if not has_weights(folder):
        _refuse_others(folder)
    _refuse_quantized(config_file)


def _refuse_others(folder: Path) -> None:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    names += [f"onnx/{path.name}" for path in (folder / "onnx").glob("*")]
    refuse_others(str(folder), names)


def refuse_others(where: str, names: Collection[str]) -> None:
    """Looks at the names of the files beside which there are no weights that are read.

    Args:
        where: The folder or repository that has the files.
        names: Their paths in it.

    Raises:
        FileMissingError: There are weights of another kind among them.
    """
    from fnmatch import fnmatchcase

    for pattern, what, advice in _OTHERS:
        # A pattern names no folder but its own.
        found = sorted(
            name for name in names if fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
        )
        if not found:
            continue
        shown = found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"
        expected = f"{' or '.join(_WEIGHTS)} (or shards of one)"
        raise FileMissingError(
            f"{where}: no weights that are read: expected {expected}, got {shown}, {what}; "
            f"{advice} save the model as safetensors",
            file=where,
        )


def _refuse_quantized(file: Path) -> None:
    try:
        quantization: Any = optional_json(file).get("quantization_config")
    except FastdecodeError:
        return  # the native side says best what is wrong with the file
    if not quantization:
        return
    got = _method(quantization)
    if got is not None:
        raise _quantized(file, got)


def _quantized(file: Path, got: str) -> ConfigError:
    expected = (
        "none (quantized weights are not read; take the model that it was made from, or let transformers load it, "
        "call model.dequantize() and save that)"
    )
    return bad_field(str(file), "quantization_config", expected, got)


def _method(quantization: Any) -> str | None:  # noqa: ANN401 (what a JSON file holds)
    """How weights are quantized, for people; None where a config of bitsandbytes asks for nothing."""
    if not isinstance(quantization, dict):
        return brief(quantization)
    method = quantization.get("quant_method")
    titles = {"gptq": "GPTQ", "awq": "AWQ"}
    switches = [quantization.get(f"load_in_{bits}bit") for bits in (4, 8)]
    if method in (None, "bitsandbytes") and switches != [None, None]:
        if not any(switches):
            return None
        return f"weights in {4 if switches[0] else 8} bits of bitsandbytes"
    bits = quantization.get("bits", quantization.get("w_bit"))
    of_bits = f" in {bits} bits" if isinstance(bits, int) else ""
    return f"weights{of_bits} of {titles.get(str(method), str(method))}"
