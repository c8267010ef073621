"""Many callers at once against one call: threads of one sequence each, and streams for asyncio.

    python benches/threads.py                        two minutes on two cores
    python benches/threads.py --rounds 3 --new 32

On gpt2's shape with random weights in bfloat16 (benches/folders.py). A round is one call with all prompts, then the
same prompts from as many callers at once, and the other way round in every second round. Seconds run from the moment
when all callers set out to the end of the last one, prompts included. The ratio of a round is the seconds of the one
call over those of the many: 1 where nothing is lost. Printed are medians over the rounds. Every result of a thread
equals that of the one call.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastdecode
from folders import build

THREADS, STREAMS, PROMPT, LEAST_RATIO = 8, 16, 16, 0.85
Ids = list[list[int]]
Timed = tuple[float, Ids]


def one_call(model: Any, prompts: Ids, options: dict[str, Any]) -> Timed:
    """Returns the seconds of one call with all prompts, and its ids."""
    start = time.perf_counter()
    outputs = model.run(prompts, **options)
    return time.perf_counter() - start, [output.token_ids for output in outputs]


def by_threads(model: Any, prompts: Ids, options: dict[str, Any]) -> Timed:
    """Returns the seconds of threads with one prompt each, and their ids."""
    ids: Ids = [[] for _ in prompts]
    barrier = threading.Barrier(len(prompts) + 1)

    def work(place: int) -> None:
        barrier.wait()
        ids[place] = model.run(prompts[place], **options).token_ids

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(prompts))]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, ids


def by_streams(model: Any, prompts: Ids, options: dict[str, Any]) -> Timed:
    """Returns the seconds of streams for asyncio with one prompt each, and their ids."""

    async def work(prompt: list[int]) -> list[int]:
        return [token async for chunk in model.astream(prompt, **options) for token in chunk.token_ids]

    async def all_of_them() -> Timed:
        start = time.perf_counter()
        ids = await asyncio.gather(*(work(prompt) for prompt in prompts))
        return time.perf_counter() - start, list(ids)

    return asyncio.run(all_of_them())


def compare(
    name: str,
    many: Callable[[Any, Ids, dict[str, Any]], Timed],
    count: int,
    model: Any,
    options: argparse.Namespace,
) -> None:
    """Prints the medians of many callers and of one call, over interleaved rounds."""
    draw = random.Random(count)
    given: dict[str, Any] = {"max_new_tokens": options.new, "do_sample": False, "eos_token_id": None}
    found: list[tuple[float, float]] = []
    for turn in range(options.rounds + 1):
        vocab = model.info()["vocab_size"]
        prompts = [[draw.randrange(vocab) for _ in range(PROMPT)] for _ in range(count)]
        order = (one_call, many) if turn % 2 else (many, one_call)
        results = {work: work(model, prompts, given) for work in order}
        assert results[one_call][1] == results[many][1], "many callers got other tokens than one call"
        if turn:  # the first one warms up
            found.append((results[one_call][0], results[many][0]))
    tokens = count * options.new
    ratio = statistics.median(alone / together for alone, together in found)
    each = ", ".join(f"{alone / together:.2f}" for alone, together in found)
    sys.stdout.write(
        f"{count} {name}: {tokens / statistics.median(together for _, together in found):.1f} tokens/s, one call with "
        f"{count} prompts {tokens / statistics.median(alone for alone, _ in found):.1f}; ratio {ratio:.3f} "
        f"(aim: at least {LEAST_RATIO}); rounds {each}\n"
    )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="of the model")
    parser.add_argument(
        "--cache", type=Path, default=Path(".peers/models"), help="folder for models made here"
    )
    options = parser.parse_args()
    model = fastdecode.load(build(options.model, "bf16", options.cache), num_threads=options.threads)
    compare("threads", by_threads, THREADS, model, options)
    compare("streams", by_streams, STREAMS, model, options)


if __name__ == "__main__":
    main()
