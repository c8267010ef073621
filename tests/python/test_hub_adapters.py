"""Adapters by name: what is fetched of them and of their bases from the hub, as a server on this machine plays it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import fastdecode
import pytest
import tiny
from hub_server import COMMIT, SECRET, Hub, load, locate_in_process, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tokenizers


@pytest.fixture
def hub(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> Iterator[Hub]:
    repository = tiny.write_folder(tmp_path / "repository", tokenizer=byte_level)
    with serving(repository) as server:
        yield server


def test_an_adapter_is_fetched_and_what_is_beside_it(hub: Hub, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        (hub.repository / name).write_text(name)  # alike files are fetched once
    locate_in_process(hub, tmp_path / "home")
    wanted = {"config.json", "tokenizer.json", "model.safetensors"}
    wanted |= {"adapter_config.json", "adapter_model.safetensors"}
    assert hub.downloads() == wanted
    hub.requests.clear()
    (hub.repository / "adapter_model.safetensors").unlink()
    locate_in_process(hub, tmp_path / "other")
    assert hub.downloads() == wanted - {"adapter_model.safetensors"} | {"adapter_model.bin"}


def test_an_adapter_alone(hub: Hub, tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin", "config.json"):
        (hub.repository / name).unlink()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (hub.repository / name).write_text(name)  # alike files are fetched once
    locate_in_process(hub, tmp_path / "home")
    assert hub.downloads() == {"tokenizer.json", "adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture
def adapted(hub: Hub, tmp_path: Path) -> list[int]:
    """A repository with an adapter of the other one, org/adapter; returns the ids that both give together."""
    import peft_folders as made

    folder = tmp_path / "adapter"
    made.adapter(hub.repository, folder, spread=0.5)
    made.change(folder, base_model_name_or_path="org/tiny")
    hub.repositories["org/adapter"] = folder
    both = fastdecode.load(hub.repository, adapter=folder, num_threads=1).run([5, 6], max_new_tokens=5)
    assert (
        both.token_ids
        != fastdecode.load(hub.repository, num_threads=1).run([5, 6], max_new_tokens=5).token_ids
    )
    return list(both.token_ids)


ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
MODEL = {"config.json", "model.safetensors", "tokenizer.json"}


def test_an_adapter_and_its_base_are_downloaded(hub: Hub, adapted: list[int], tmp_path: Path) -> None:
    first, second, source = load(hub, tmp_path / "home", name="org/adapter", again=True)
    assert first == second == adapted
    assert f"org/adapter@{COMMIT}" in source
    assert "'org/tiny'" in source
    assert hub.downloads() == ADAPTER | MODEL
    hub.requests.clear()
    for how in ({"local_files_only": True}, {"variables": {"HF_HUB_OFFLINE": "1"}}):
        assert load(hub, tmp_path / "home", name="org/adapter", **how)[0] == adapted
    assert hub.requests == []


def test_revisions_of_an_adapter_and_of_its_base(hub: Hub, adapted: list[int], tmp_path: Path) -> None:
    import peft_folders as made

    def asked() -> set[str]:
        found = {path for _, path, _ in hub.requests if "/revision/" in path}
        hub.requests.clear()
        return {path.removeprefix("/api/models/org/") for path in found}

    home = tmp_path / "home"
    assert load(hub, home, name="org/adapter", revision="v1")[0] == adapted
    assert asked() == {"adapter/revision/v1", "tiny/revision/main"}
    made.change(tmp_path / "adapter", revision="v1")
    assert load(hub, tmp_path / "other", name="org/adapter")[0] == adapted
    assert asked() == {"adapter/revision/main", "tiny/revision/v1"}
    local = str(tmp_path / "adapter")
    assert load(hub, home, name=local)[0] == adapted
    assert asked() == {"tiny/revision/v1"}
    assert load(hub, home, name=local, revision="main")[0] == adapted
    assert asked() == {"tiny/revision/main"}
    assert load(hub, home, name=str(hub.repository), adapter="org/adapter@v1")[0] == adapted
    assert asked() == {"adapter/revision/v1"}
    kind, message, _, _ = load(hub, home, adapter="org/adapter@v9")
    assert kind == "ModelNotFoundError"
    assert "adapter" in message
    assert "v9" in message


def test_of_an_adapter_only_its_own_weights_are_downloaded(
    hub: Hub, adapted: list[int], tmp_path: Path
) -> None:
    import peft_folders as made
    import torch

    folder = hub.repositories["org/adapter"]
    for name in ("model.safetensors", "pytorch_model.bin", "adapter_model.bin"):
        (folder / name).write_bytes(b"not wanted")
    name = str(hub.repository)
    assert load(hub, tmp_path / "home", name=name, adapter=["org/adapter"])[0] == adapted
    assert hub.downloads() == ADAPTER
    torch.save(made.tensors(folder), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    hub.requests.clear()
    assert load(hub, tmp_path / "other", name=name, adapter=["org/adapter"])[0] == adapted
    assert hub.downloads() == {"adapter_config.json", "adapter_model.bin"}


def test_weights_beside_an_adapter_of_the_hub_are_not_its_base(
    hub: Hub, adapted: list[int], tmp_path: Path
) -> None:
    folder = hub.repositories["org/adapter"]
    shutil.copy(hub.repository / "config.json", folder)
    (folder / "model.safetensors").write_bytes(b"not read")
    assert load(hub, tmp_path / "home", name="org/adapter")[0] == adapted


def test_an_adapter_whose_base_is_private_or_gone(hub: Hub, adapted: list[int], tmp_path: Path) -> None:
    hub.private = True
    assert load(hub, tmp_path / "home", name="org/adapter", token=SECRET)[0] == adapted
    hub.private = False
    del hub.repositories["org/tiny"]
    kind, message, model, _ = load(hub, tmp_path / "other", name="org/adapter")
    assert (kind, model) == ("ModelNotFoundError", "org/tiny")
    assert "base_model_name_or_path" in message
    assert "adapter=" in message
