"""Writes tests/golden/pickle/: files of torch.save, sound and hostile, and what the sound ones hold.

The truth stands beside the sound files as safetensors, with every tensor made contiguous. Run in an
environment with torch and safetensors:  python tools/make_pickle_golden.py
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "pickle"


def block() -> Any:
    """A module whose state_dict carries version numbers as attributes, as those of real models do."""
    module = torch.nn.ModuleDict({"ln_1": torch.nn.LayerNorm(4), "c_attn": torch.nn.Linear(4, 12)})
    module.register_buffer("bias", torch.tril(torch.ones(3, 3, dtype=torch.bool))[None])
    return module


def tensors() -> dict[str, torch.Tensor]:
    """Every dtype that the reader knows, and every way in which a tensor may lie in its storage."""
    matrix = torch.randn(6, 10)
    shared = torch.arange(20, dtype=torch.float32)
    cube = torch.randn(2, 3, 4)
    return {
        "f32": torch.randn(3, 5),
        "f16": torch.randn(4, 2).half(),
        "bf16": torch.randn(7).bfloat16(),
        "f64": torch.randn(2, 2).double(),
        "i64": torch.tensor([-1, 1 << 40]),
        "i32": torch.tensor([-5, 7], dtype=torch.int32),
        "i16": torch.tensor([-5, 7], dtype=torch.int16),
        "i8": torch.tensor([-5, 7], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "c64": torch.tensor([1 + 2j, 3 - 4j]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "tied.a": matrix,
        "tied.b": matrix,
        "slice.rows": matrix[2:4],
        "slice.columns": matrix[:, 3:7],
        "slice.step": shared[1::3],
        "slice.one_row": matrix[3:4, 2:9],
        "transposed": torch.randn(5, 3).t(),
        "transposed.half": torch.randn(3, 4).half().t(),
        "permuted": cube.permute(2, 0, 1),
        "a name with spaces / and é": torch.ones(1),
    }


def write_sound() -> None:
    state = tensors()
    torch.save(state, GOLDEN / "tensors.bin")
    torch.save(state, GOLDEN / "tensors_protocol_4.bin", pickle_protocol=4)
    for name, protocol in (("legacy.bin", 2), ("legacy_protocol_4.bin", 4)):
        torch.save(state, GOLDEN / name, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    plain = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(plain, GOLDEN / "tensors.safetensors")

    module = block().state_dict()
    folder = GOLDEN / "sharded"
    folder.mkdir()
    weight_map = {}
    names = sorted(module)
    for i, part in enumerate((names[:2], names[2:]), start=1):
        shard = f"pytorch_model-{i:05}-of-00002.bin"
        own = block().state_dict()  # An OrderedDict with its attributes.
        for name in names:
            if name in part:
                own[name] = module[name]
                weight_map[name] = shard
            else:
                del own[name]
        torch.save(own, folder / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    save_file({name: t.clone() for name, t in module.items()}, GOLDEN / "sharded.safetensors")


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


def repack(target: str, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Writes tensors.bin again with changed entries, or compressed ones."""
    before, after = GOLDEN / "tensors.bin", GOLDEN / target
    with zipfile.ZipFile(before) as old, zipfile.ZipFile(after, "w") as new:
        for info in old.infolist():
            _, name = info.filename.split("/", 1)
            new.writestr(zipfile.ZipInfo(info.filename), changes.get(name, old.read(info)), compression)


def write_hostile() -> None:
    payloads = (("os_system", Call(os.system, "echo owned > owned"), 2), ("eval", Call(eval, "1 + 1"), 4))
    for name, payload, protocol in payloads:
        program = pickle.dumps({"w": payload}, protocol=protocol)
        repack(f"{name}.bin", {"data.pkl": program})
    repack("compressed.bin", {}, zipfile.ZIP_DEFLATED)
    repack("big_endian.bin", {"byteorder": b"big"})
    repack("short_storage.bin", {"data/0": b"x"})
    torch.save(torch.nn.Linear(2, 2), GOLDEN / "whole_module.bin")
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, GOLDEN / "nested.bin")
    torch.save([torch.ones(2)], GOLDEN / "list.bin")
    torch.save({"w": torch.ones(2), "step": 3}, GOLDEN / "not_a_tensor.bin")
    torch.save({"w": torch.ones(1).expand(1000, 1000)}, GOLDEN / "expanded.bin")
    torch.save({"w": torch.ones(2).to_sparse()}, GOLDEN / "sparse.bin")
    torch.save({"w": torch._neg_view(torch.ones(2))}, GOLDEN / "negated.bin")


def main() -> None:
    torch.manual_seed(0)
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir()
    write_sound()
    write_hostile()
    for path in GOLDEN.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
