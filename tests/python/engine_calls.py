"""What tests of one engine share: a model with room and one without, calls that begin together, what comes of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastdecode

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastdecode.decoding import Decoding

GREEDY: Any = {"eos_token_id": None, "do_sample": False}
SAMPLED: Any = {"eos_token_id": None, "do_sample": True, "temperature": 1.5, "top_k": 0}
# Tokens that a row runs ahead of its reader, and tokens of prompts that one step reads, at most.
AHEAD, CHUNK = 8, 512


def known(output: Any) -> Any:
    """What of an output is the same bits, whatever ran beside it."""
    usage = (output.usage.prompt_tokens, output.usage.completion_tokens)
    return output.text, output.token_ids, output.finish_reason, output.logprobs, output.score, usage


def streamed(chunks: Any) -> dict[int, tuple[str, list[int]]]:
    """Text and ids of each sequence of a stream."""
    found: dict[int, tuple[str, list[int]]] = {}
    for chunk in chunks:
        text, ids = found.get(chunk.index, ("", []))
        found[chunk.index] = (text + str(chunk), ids + chunk.token_ids)
    return found


def all_at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What calls return that begin at the same time, each in a thread of its own."""
    barrier = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        barrier.wait(60)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def read(decoding: Decoding, count: int) -> list[int]:
    """Ids of the next pieces of a decoding of one sequence: at least so many, or all."""
    ids: list[int] = []
    while len(ids) < count and (chunks := decoding.advance()) is not None:
        ids += [token for chunk in chunks for token in chunk.token_ids]
    return ids


def block_bytes(model: Any) -> int:
    return 16 * int(model.info()["cache_bytes_per_token"])


def thread_count() -> int:
    """Threads of this process, those of the native side counted where the system tells."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()


class Pair:
    """A model with room for everything, and the same one with room for hardly one request."""

    def __init__(self, folder: Path, blocks: int) -> None:
        self.wide = fastdecode.load(folder, num_threads=2, max_rows=1000)
        self.tight = fastdecode.load(
            folder, num_threads=2, max_rows=2, cache_bytes=blocks * block_bytes(self.wide)
        )
