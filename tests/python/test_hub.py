"""Models by name: folders, bundled models, and the hub as a server on this machine plays it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import sentencepieces
import tiny
from fastdecode import errors
from fastdecode.hub import locate
from hub_server import COMMIT, SECRET, Hub, load, locate_in_process, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tokenizers


@pytest.fixture
def hub(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> Iterator[Hub]:
    repository = tiny.write_folder(tmp_path / "repository", tokenizer=byte_level)
    with serving(repository) as server:
        yield server


def test_a_hub_id_downloads_what_is_needed_once(hub: Hub, tmp_path: Path) -> None:
    expected = fastdecode.load(hub.repository, num_threads=1).run([5, 6], max_new_tokens=5).token_ids
    answer = load(hub, tmp_path / "home")
    assert answer[0] == expected
    assert hub.downloads() == {"config.json", "model.safetensors", "tokenizer.json"}
    hub.requests.clear()
    assert load(hub, tmp_path / "home")[0] == expected
    assert hub.downloads() == set()


def test_offline(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for how in ({"local_files_only": True}, {"variables": {"HF_HUB_OFFLINE": "1"}}):
        kind, message, model, is_os_error = load(hub, home, **how)
        assert (kind, model, is_os_error) == ("ModelNotFoundError", "org/tiny", True)
        assert "download" in message
    assert hub.requests == []
    online = load(hub, home)
    hub.requests.clear()
    for how in ({"local_files_only": True}, {"variables": {"HF_HUB_OFFLINE": "1"}}):
        assert load(hub, home, **how)[0] == online[0]
    assert hub.requests == []


def test_pickling_pins_the_commit(hub: Hub, tmp_path: Path) -> None:
    first, second, source = load(hub, tmp_path / "home", again=True)
    assert first == second
    assert COMMIT in source
    assert "org/tiny" in source


def test_a_server_that_is_gone(hub: Hub, tmp_path: Path) -> None:
    variables = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_ETAG_TIMEOUT": "2"}
    kind, message, _, _ = load(hub, tmp_path / "home", variables=variables)
    assert kind == "ModelNotFoundError"
    assert "the hub to answer" in message
    load(hub, tmp_path / "home")
    assert len(load(hub, tmp_path / "home", variables=variables)[0]) == 5  # from the cache


def test_cache_dir_and_revision(hub: Hub, tmp_path: Path) -> None:
    load(hub, tmp_path / "home", cache_dir=str(tmp_path / "elsewhere"), revision="v1")
    assert any("/revision/v1" in path for _, path, _ in hub.requests)
    assert list((tmp_path / "elsewhere").glob("models--org--tiny/snapshots/*/model.safetensors"))
    assert not list((tmp_path / "home").rglob("model.safetensors"))
    kind, message, _, _ = load(hub, tmp_path / "home", revision="nonsense")
    assert kind == "ModelNotFoundError"
    assert "nonsense" in message


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    kind, message, model, _ = load(hub, tmp_path / "home", cache_dir=str(tmp_path / "file" / "cache"))
    assert (kind, model) == ("ModelNotFoundError", "org/tiny")
    assert "a folder for downloads that can be written to" in message


def test_private_repositories(hub: Hub, tmp_path: Path) -> None:
    hub.private = True
    kind, message, _, _ = load(hub, tmp_path / "home")
    assert kind == "ModelNotFoundError"
    assert "token=" in message
    answer = load(hub, tmp_path / "home", token=SECRET)
    assert len(answer[0]) == 5
    assert SECRET not in answer[2], "a secret in what is pickled"
    assert len(load(hub, tmp_path / "other", variables={"HF_TOKEN": SECRET})[0]) == 5


def test_unknown_repositories(hub: Hub, tmp_path: Path) -> None:
    for name in ("org/other", "gpt2"):
        kind, message, model, _ = load(hub, tmp_path / "home", name=name)
        assert (kind, model) == ("ModelNotFoundError", name)
        assert "no such folder, and no such repository" in message


def pickled(repository: Path, shards: int) -> set[str]:
    """Turns a repository's weights into pytorch_model.bin, in one piece or more; returns the names of the files."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(repository / "model.safetensors")
    (repository / "model.safetensors").unlink()
    (repository / "pytorch_model.bin").unlink()
    if shards == 1:
        torch.save(tensors, repository / "pytorch_model.bin")
        return {"pytorch_model.bin"}
    where: dict[str, str] = {}
    for shard in range(shards):
        name = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = {key: tensors[key] for key in sorted(tensors)[shard::shards]}
        torch.save(part, repository / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": where}
    (repository / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return {"pytorch_model.bin.index.json", *where.values()}


@pytest.mark.parametrize("shards", [1, 3])
def test_bin_weights_are_fetched_when_there_is_nothing_better(hub: Hub, tmp_path: Path, shards: int) -> None:
    expected = fastdecode.load(hub.repository, num_threads=1).run([5, 6], max_new_tokens=5).token_ids
    weights = pickled(hub.repository, shards)
    home = tmp_path / "home"
    assert load(hub, home)[0] == expected
    assert hub.downloads() == {"config.json", "tokenizer.json"} | weights
    hub.requests.clear()
    assert load(hub, home)[0] == expected
    assert hub.downloads() == set()
    hub.requests.clear()
    for how in ({"local_files_only": True}, {"variables": {"HF_HUB_OFFLINE": "1"}}):
        assert load(hub, home, **how)[0] == expected
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "what", "advice"),
    [
        ("tf_model.h5", "TensorFlow weights", "from_tf=True"),
        ("flax_model.msgpack", "Flax weights", "from_flax=True"),
        ("model-q4_0.gguf", "a GGUF file", "made from"),
        ("onnx/model.onnx", "an ONNX graph", "exported from"),
        ("model.fp16.safetensors", "weights of a variant", "model.safetensors"),
        ("rust_model.ot", "rust-bert", "made from"),
    ],
)
def test_a_repository_of_other_weights(hub: Hub, tmp_path: Path, name: str, what: str, advice: str) -> None:
    shutil.rmtree(hub.repository / "onnx")
    for other in ("model.safetensors", "pytorch_model.bin", "tf_model.h5", "64.tflite"):
        (hub.repository / other).unlink()
    (hub.repository / name).parent.mkdir(exist_ok=True)
    (hub.repository / name).write_bytes(b"weights")
    for _ in range(2):
        kind, message, where, is_os_error = load(hub, tmp_path / "home")
        assert (kind, where, is_os_error) == ("FileMissingError", "org/tiny", True)
        for part in (name, what, advice, "model.safetensors"):
            assert part in message
    assert hub.downloads() == {"config.json", "tokenizer.json"}
    # Without the hub there is no list of its files, and what is missing is said of the folder.
    hub.requests.clear()
    kind, message, where, _ = load(hub, tmp_path / "home", local_files_only=True)
    assert kind == "FileMissingError"
    assert "model.safetensors" in message
    assert "snapshots" in where
    assert hub.requests == []


def test_the_files_of_every_tokenizer_are_fetched(hub: Hub, tmp_path: Path) -> None:
    files = {
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/rag.jinja",
    }
    (hub.repository / "additional_chat_templates").mkdir()
    for name in (*files, "tokenizer.model", "tekken.json"):
        (hub.repository / name).write_text(name)  # alike files are fetched once
    locate_in_process(hub, tmp_path / "home")
    # The last two count only where there is no tokenizer.json.
    assert hub.downloads() == files | {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_sentencepiece_model_is_fetched_where_it_is_the_tokenizer(
    hub: Hub, tmp_path: Path, weights: str
) -> None:
    expected = fastdecode.load(hub.repository, num_threads=1).run([5, 6], max_new_tokens=5).token_ids
    (hub.repository / "tokenizer.json").unlink()
    (hub.repository / "tokenizer.model").write_bytes(sentencepieces.trained("bpe"))
    (hub.repository / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    if weights != "model.safetensors":
        assert pickled(hub.repository, 1) == {weights}
    home = tmp_path / "home"
    assert load(hub, home)[0] == expected
    assert hub.downloads() == {"config.json", "tokenizer_config.json", "tokenizer.model", weights}
    hub.requests.clear()
    for how in ({"local_files_only": True}, {"variables": {"HF_HUB_OFFLINE": "1"}}):
        assert load(hub, home, **how)[0] == expected
    assert hub.requests == []
    assert fastdecode.load(hub.repository).tokenizer.encode("a", add_special_tokens=False)


def test_the_pieces_of_a_tokenizer_are_fetched(hub: Hub, tmp_path: Path) -> None:
    (hub.repository / "tokenizer.json").unlink()
    pieces = Path(__file__).resolve().parent.parent / "golden" / "t5-tokenizer" / "spiece.model"
    shutil.copy(pieces, hub.repository)
    load(hub, tmp_path / "home")
    assert "spiece.model" in hub.downloads()


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/folder",
        "./nothing",
        "../nothing",
        "a/b/c",
        "a b",
        "~/nothing-here",
        "C:\\models\\x",
        ".",
        "-x",
    ],
)
def test_paths_are_no_hub_ids(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    expected = errors.ModelNotFoundError if name != "." else errors.FileMissingError
    with pytest.raises(expected) as caught:
        fastdecode.load(name)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(errors.ModelNotFoundError, match="got a file"):
        fastdecode.load(file)


@pytest.mark.parametrize("bad", [None, 3, b"gpt2", "", ["gpt2"]])
def test_names_that_are_none(bad: Any) -> None:
    with pytest.raises(errors.OptionError, match="model: expected"):
        fastdecode.load(bad)


def test_a_demo_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-stories").mkdir()
    bundled = locate("demo-stories")
    assert (bundled.name, bundled.revision) == ("demo-stories", None)
    assert bundled.folder != tmp_path / "demo-stories"
    assert locate("./demo-stories").folder == tmp_path / "demo-stories" or locate(
        "./demo-stories"
    ).folder.samefile(tmp_path / "demo-stories")
    assert locate(tmp_path / "demo-stories").name == str((tmp_path / "demo-stories").resolve())


def test_a_cache_whose_path_is_no_text(hub: Hub, tmp_path: Path) -> None:
    cache = str(tmp_path / os.fsdecode(b"cach\xe9"))
    for where in ({"cache_dir": cache}, {"cache_dir": cache, "local_files_only": True}):
        assert isinstance(load(hub, tmp_path / "home", **where)[0], list)
    assert any(Path(cache).iterdir())
    assert isinstance(load(hub, Path(cache) / "home")[0], list)


def test_a_cache_whose_path_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What fetches large files takes names that are text, and says so in its own way."""
    import huggingface_hub

    cache = tmp_path / os.fsdecode(b"cach\xe9")

    def fetch(*_: object, cache_dir: Path, **__: object) -> None:
        str(cache_dir).encode()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(errors.ModelNotFoundError, match="whose path is UTF-8") as caught:
        locate("org/tiny", cache_dir=cache)
    assert "cach\\udce9" in str(caught.value.got)


@pytest.mark.parametrize(
    ("option", "value", "shown"),
    [
        ("revision", "main\udce9", "'main\\udce9'"),
        ("revision", 5, "5"),
        ("revision", b"main", "b'main'"),
        pytest.param("revision", 10**5000, "1.000e+5000", id="huge"),
        ("token", "hf_\udce9", "others"),
        ("token", "hf_\u20ac", "others"),
        ("cache_dir", 5, "5"),
        ("cache_dir", b"/cache", "b'/cache'"),
        ("cache_dir", "/a\0b", "'/a\\x00b'"),
    ],
)
def test_options_of_the_hub_that_cannot_be(option: str, value: Any, shown: str) -> None:
    """Before anything is asked of it."""
    given: Any = {option: value}
    with pytest.raises(errors.OptionError) as caught:
        fastdecode.load("org/tiny", **given)
    assert (caught.value.option, caught.value.got) == (option, shown)
    assert "hf_" not in str(caught.value)
