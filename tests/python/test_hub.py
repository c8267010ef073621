"""Models by name: folders, bundled models, and the hub as a server on this machine plays it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import fastdecode
import pytest
import sentencepieces
import tiny
from fastdecode import errors
from fastdecode.hub import locate

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tokenizers

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_secret"


class Hub(ThreadingHTTPServer):
    """Answers what huggingface_hub asks for one repository or several, and remembers the questions."""

    daemon_threads = True

    def __init__(self, repository: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository = repository
        self.repositories = {"org/tiny": repository}
        self.private = False
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> set[str]:
        """Names of the files whose contents were sent."""
        found = (
            re.search(r"/resolve/[^/]+/(.+)$", path) for method, path, _ in self.requests if method == "GET"
        )
        return {match[1] for match in found if match}


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("authorization")
        self.server.requests.append((self.command, path, authorization))
        if self.server.private and authorization != f"Bearer {SECRET}":
            return self.send(401, b"", {"X-Error-Code": "RepoNotFound"})
        named = re.match(r"/(?:api/models/)?(org/[a-z]+)/", path)
        name = named[1] if named else ""
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        files = sorted(file for file in repository.rglob("*") if file.is_file())
        names = {str(file.relative_to(repository)): file.read_bytes() for file in files}
        if match := re.fullmatch(r"/api/models/org/[a-z]+/revision/(.+)", path):
            if match[1] not in ("main", "v1", COMMIT):
                return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": file} for file in names]
            return self.send_json({"id": name, "sha": COMMIT, "siblings": siblings})
        if re.match(r"/api/models/org/[a-z]+/tree/", path):
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in names.items()
            ]
            return self.send_json(entries)
        match = re.fullmatch(r"/org/[a-z]+/resolve/([^/]+)/(.+)", path)
        if match and match[2] in names:
            data = names[match[2]]
            etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.send(200, data, etag)
        code = "EntryNotFound" if match else "RepoNotFound"
        return self.send(404, b"", {"X-Error-Code": code})

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> Iterator[Hub]:
    repository = tiny.write_folder(tmp_path / "repository", tokenizer=byte_level)
    for name in ("pytorch_model.bin", "tf_model.h5", "README.md", "onnx/model.onnx", "64.tflite"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(b"not wanted")
    server = Hub(repository)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import json, sys, fastdecode
from fastdecode import errors
try:
    model = fastdecode.load({name!r}, num_threads=1, **json.loads({options!r}))
    import pickle
    again = pickle.loads(pickle.dumps(model)) if {again} else model
    answer = [model.run([5, 6], max_new_tokens=5).token_ids, again.run([5, 6], max_new_tokens=5).token_ids]
    answer.append(str(model._source))
except errors.FastdecodeError as error:
    named = getattr(error, "model", getattr(error, "file", None))
    answer = [type(error).__name__, str(error), named, isinstance(error, OSError)]
print(json.dumps(answer))
"""


def load(hub: Hub, home: Path, name: str = "org/tiny", *, again: bool = False, **changes: Any) -> list[Any]:
    """Loads in a process of its own, since huggingface_hub reads its settings when it is imported."""
    variables = changes.pop("variables", {})
    script = SCRIPT.format(name=name, options=json.dumps(changes), again=again)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment = kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | variables,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer: list[Any] = json.loads(done.stdout)
    return answer


def locate_in_process(hub: Hub, home: Path) -> None:
    """Downloads a repository without loading it."""
    script = "from fastdecode.hub import locate; print(locate('org/tiny').folder)"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=kept | environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_dir()


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
