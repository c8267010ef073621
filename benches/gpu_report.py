"""A run on a GPU as a list of parts.

Each has a share of the time, is written when it is done, and is named when it was not run.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import Json, save


class Skip(Exception):
    """A part that cannot run here; its text says why."""


@dataclass(frozen=True)
class Part:
    """Something that is tried or timed.

    Attributes:
        name: What the report calls it.
        seconds: How long it should take at most; with less time left it is not run.
        run: Does it, and returns what was found; its key "ok", where there is one, says whether that is what should be.
    """

    name: str
    seconds: float
    run: Callable[[], Json]


class Report:
    """What a run has found so far, in a file.

    Args:
        stage: "parity" or "bench".
        out: Folder of the file.
        limit: Seconds that the run may take; a run that would take longer is ended with what it has.
    """

    def __init__(self, stage: str, out: Path, limit: float) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self.file = out / f"gpu-{now:%Y-%m-%d}-{stage}.json"
        self.end = time.monotonic() + limit
        self.values: Json = {"stage": stage, "date": f"{now:%Y-%m-%d %H:%M} UTC", "parts": []}
        self._running = ""
        self._guard = threading.Timer(limit + 5, self._cut)
        self._guard.daemon = True
        self._guard.start()

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def about(self, values: Json) -> None:
        """Writes what the machine is."""
        self.values |= values
        save(self.values, self.file)

    def run(self, parts: list[Part]) -> None:
        """Runs parts in their order, and writes each when it is done."""
        for part in parts:
            began = time.monotonic()
            if self.left() < part.seconds:
                reason = f"it may take {part.seconds:.0f} s, and {max(self.left(), 0):.0f} s were left"
                self._add(part.name, began, {"status": "not run", "reason": reason})
                continue
            self._running = part.name
            try:
                found = part.run()
                status = "failed" if found.get("ok") is False else "done"
                self._add(part.name, began, {"status": status, **found})
            except Skip as skip:
                self._add(part.name, began, {"status": "not run", "reason": str(skip)})
            except Exception as error:  # (a part that fails does not take the others along)
                trace = traceback.format_exc().splitlines()[-12:]
                self._add(part.name, began, {"status": "failed", "reason": _short(error), "trace": trace})
            self._running = ""

    def show(self) -> int:
        """Prints the table, and returns the status of the process: 1 where anything failed."""
        self._guard.cancel()
        lines = [f"{self.values.get('gpu')}, driver {self.values.get('driver')}, {self.values['date']}"]
        lines += [_line(part) for part in self.values["parts"]]
        absent = [part["name"] for part in self.values["parts"] if part["status"] == "not run"]
        failed = [part["name"] for part in self.values["parts"] if part["status"] == "failed"]
        lines.append(f"NOT RUN ({len(absent)}): {', '.join(absent) or 'none'}")
        lines.append(f"FAILED ({len(failed)}): {', '.join(failed) or 'none'}")
        self.values["table"] = lines
        save(self.values, self.file)
        # The output that is kept of a run is 12,000 characters, and the end of it counts most.
        sys.stdout.write("\n".join(line[:200] for line in lines)[-11000:] + "\n")
        sys.stdout.flush()
        return 1 if failed else 0

    def _add(self, name: str, began: float, found: Json) -> None:
        part = {"name": name, "took": round(time.monotonic() - began, 2), **found}
        self.values["parts"].append(part)
        save(self.values, self.file)
        sys.stderr.write(_line(part)[:200] + "\n")
        sys.stderr.flush()

    def _cut(self) -> None:
        """Ends a run whose part takes longer than it should: a kernel that hangs cannot be interrupted."""
        reason = "it was still at work when the time of the run was over"
        self.values["parts"].append(
            {"name": self._running, "took": 0.0, "status": "failed", "reason": reason}
        )
        self.show()
        os._exit(3)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _line(part: Json) -> str:
    status = {"done": "", "failed": "FAILED ", "not run": "NOT RUN "}[part["status"]]
    words = part.get("line") or part.get("reason") or ""
    return f"{part['name']:<32} {status}{words} [{part['took']:.1f} s]"


def machine(gpu: Json) -> Json:
    """What the machine is: its GPU, driver and versions.

    Args:
        gpu: What `fastdecode.cuda.info` says.

    Raises:
        RuntimeError: There is no GPU that can be used.
    """
    from importlib.metadata import PackageNotFoundError, version

    if not gpu["devices"]:
        raise RuntimeError(f"no GPU to run on: {gpu['reason']}")
    device = gpu["devices"][0]
    if device["reason"] is not None:
        raise RuntimeError(f"{device['name']} cannot be used: {device['reason']}")
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("fastdecode", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "gpu": device["name"],
        "capability": ".".join(map(str, device["capability"])),
        "memory": device["total_bytes"],
        "driver": _driver(),
        "versions": versions,
        "cpus": len(os.sched_getaffinity(0)),
    }


def _driver() -> str | None:
    """The version of the driver, from nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """An environment variable for the time of a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
