"""The hub as a server on this machine plays it, and loads in processes that ask it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextmanager
def serving(repository: Path) -> Iterator[Hub]:
    """A hub with this folder as its repository, in which there are files besides that nobody wants."""
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
