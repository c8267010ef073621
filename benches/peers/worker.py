"""The loop of every benchmark worker: one engine in one process, driven by lines of JSON. Standard library only.

A worker lives in its engine's own virtual environment, so that the engines' dependencies never meet. It reads one
request per line from stdin and answers with one line on what was stdout; everything the engine prints goes to stderr.

    {"do": "prepare", "folder": ..., "cache": ..., "precision": ...}   convert, unless that was done before
    {"do": "load", ..., "threads": 2}         -> {"seconds": ..., "version": ...}
    {"do": "generate", "prompts": [[...]], "new": 128}                 -> {"seconds": ...}   ("beams": 4 for seq2seq)
    {"do": "encode", "prompts": [[...]]}      -> {"seconds": ...}   (seq2seq, where the engine has such a call)
    {"do": "limits", "bytes": ...}            -> what the machine can do (fastdecode's worker only)
    {"do": "info"}                            -> what a step reads (fastdecode's worker only)
    {"do": "memory"}                          -> {"peak": bytes}

An answer {"error": ...} says why not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """What a peer's file offers; prompts are lists of token ids of one length."""

    @staticmethod
    def version() -> str: ...

    @staticmethod
    def prepare(folder: Path, cache: Path, precision: str) -> None:
        """Converts the folder for the engine, where it needs that; the result stays in `cache`."""

    def __init__(self, folder: Path, cache: Path, precision: str, threads: int) -> None: ...

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """Generates exactly `new` tokens greedily after each prompt, and returns those alone."""


def peak_memory() -> int:
    """Returns the largest resident size of this process so far, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def answer(kind: type[Engine], state: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Does one request."""
    what = request["do"]
    if what == "prepare":
        kind.prepare(Path(request["folder"]), Path(request["cache"]), request["precision"])
        return {}
    if what == "load":
        start = time.perf_counter()
        engine = kind(
            Path(request["folder"]), Path(request["cache"]), request["precision"], request["threads"]
        )
        state["engine"] = engine
        return {"seconds": time.perf_counter() - start, "version": kind.version()}
    if what == "generate":
        start = time.perf_counter()
        search = {"beams": request["beams"]} if "beams" in request else {}
        rows = state["engine"].generate(request["prompts"], request["new"], **search)
        seconds = time.perf_counter() - start
        lengths = [len(row) for row in rows]
        if lengths != [request["new"]] * len(request["prompts"]):
            return {"error": f"{request['new']} new tokens were asked for, got {lengths}"}
        return {"seconds": seconds, "first": [row[:8] for row in rows]}
    if what == "encode":
        start = time.perf_counter()
        state["engine"].encode(request["prompts"])
        return {"seconds": time.perf_counter() - start}
    if what == "limits":
        limits: dict[str, Any] = state["engine"].limits(request["bytes"])
        return limits
    if what == "info":
        info: dict[str, Any] = state["engine"].info()
        return info
    if what == "memory":
        return {"peak": peak_memory()}
    raise ValueError(f"an unknown request: {what}")


def serve(kind: type[Engine]) -> None:
    """Answers requests until stdin ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    state: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            reply = answer(kind, state, json.loads(line))
        except Exception as error:  # A worker reports whatever its engine raises; the caller decides.
            reply = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()
