"""What torch does on the same GPU: the bandwidth of memory, products alone, and decode in transformers and by hand."""

from __future__ import annotations

import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import gpu_models
from gpu_report import Skip
from harness import Json

ROUNDS = 5
P = ParamSpec("P")


def need_gpu() -> None:
    """Sees to it that torch has a GPU.

    Raises:
        Skip: It has none.
    """
    import torch

    if not torch.cuda.is_available():
        raise Skip("torch has no GPU here")


def cleared(measure: Callable[P, Json]) -> Callable[P, Json]:
    """The same, behind which torch gives back the memory that it keeps for later."""

    @functools.wraps(measure)
    def run(*arguments: P.args, **options: P.kwargs) -> Json:
        import torch

        try:
            return measure(*arguments, **options)
        finally:
            gc.collect()
            torch.cuda.empty_cache()

    return run


def median(run: Callable[[], float], rounds: int = ROUNDS, warm: int = 2) -> float:
    """The median of several runs behind some that warm up."""
    for _ in range(warm):
        run()
    return statistics.median(run() for _ in range(rounds))


def seconds(run: Callable[[], object]) -> float:
    """Time of something until the GPU has done it."""
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph, so that launching it takes no time of the host for every kernel."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], object] = graph.replay
    return replay


@cleared
def bandwidth() -> Json:
    """Bytes per second that torch's kernels read, and read and write, of far more memory than caches hold."""
    import torch

    need_gpu()
    values = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    other = torch.empty_like(values)
    read = values.nbytes / median(lambda: seconds(values.sum))
    greatest = values.nbytes / median(lambda: seconds(values.max))
    copied = 2 * values.nbytes / median(lambda: seconds(lambda: other.copy_(values)))
    best = max(read, greatest, copied)
    line = (
        f"{best / 1e12:.2f} TB/s (sum {read / 1e12:.2f}, max {greatest / 1e12:.2f}, copy {copied / 1e12:.2f})"
    )
    return {"bytes_per_second": best, "sum": read, "max": greatest, "copy": copied, "line": line}


@cleared
def products(folder: Path, rows: int) -> Json:
    """Seconds of torch.matmul for the products of a prompt: every matrix with all rows, the head with one."""
    import torch

    need_gpu()
    every = gpu_models.products(folder)
    widths = {product.inputs for product in every}
    given = {width: torch.randn(rows, width, dtype=torch.bfloat16, device="cuda") for width in widths}
    pairs = []
    for product in every:
        matrix = torch.randn(product.outputs, product.inputs, dtype=torch.bfloat16, device="cuda").t()
        pairs.append((given[product.inputs][: 1 if product.is_head else rows], matrix))

    def run() -> None:
        for left, right in pairs:
            torch.matmul(left, right)

    one_by_one = median(lambda: seconds(run))
    graph = captured(run)
    of_graph = median(lambda: seconds(graph))
    return {"one by one": one_by_one, "as a graph": of_graph}


@cleared
def transformers_decode(name: str, folder: Path, prompt: int, new: int, *, compiled: bool = False) -> Json:
    """Tokens per second of `generate` for one sequence, its prompt left out."""
    import torch

    need_gpu()
    model = gpu_models.peer(name, folder, "bfloat16")
    ids = torch.tensor([gpu_models.ids(name, prompt, 3, tiny=False)], device=gpu_models.place())
    # With a static cache `generate` compiles the step itself, in the mode "reduce-overhead" (with CUDA graphs).
    asked: Json = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    asked |= {"cache_implementation": "static"} if compiled else {}

    def of(count: int) -> float:
        with torch.inference_mode():
            return seconds(lambda: model.generate(ids, max_new_tokens=count, min_new_tokens=count, **asked))

    # The first of the new tokens is the prompt's.
    first, whole = median(lambda: of(1)), median(lambda: of(new))
    rate = (new - 1) / (whole - first)
    return {"tokens_per_second": rate, "new": new, "seconds": whole, "line": f"{rate:,.0f} tokens/s"}


class HandWritten:
    """A step of GPT-2's decoder in plain torch, over a cache of one size, captured as a CUDA graph.

    Args:
        folder: A folder of GPT-2.
        most: Tokens of the cache.
        dtype: Type of weights and cache.
    """

    def __init__(self, folder: Path, most: int, dtype: str = "bfloat16") -> None:
        import torch

        model = gpu_models.peer("gpt2", folder, dtype)
        place, kind = gpu_models.place(), getattr(torch, dtype)
        self.core, self.heads = model.transformer, model.config.n_head
        width, layers = model.config.n_embd, model.config.n_layer
        shape = (layers, 2, 1, self.heads, most, width // self.heads)
        self.cache = torch.zeros(shape, dtype=kind, device=place)
        self.token = torch.zeros(1, dtype=torch.long, device=place)
        self.position = torch.zeros(1, dtype=torch.long, device=place)
        self.places = torch.arange(most, device=place)
        self.chosen = torch.zeros(most + 1, dtype=torch.long, device=place)

    def step(self) -> None:
        """Reads a token at a position, and chooses the next one."""
        import torch
        from torch.nn import functional

        core, width = self.core, self.core.wte.weight.shape[1]
        hidden = (core.wte.weight[self.token] + core.wpe.weight[self.position]).view(1, width)
        seen = (self.places <= self.position).view(1, 1, 1, -1)
        for block, cache in zip(core.h, self.cache, strict=True):
            query, key, value = (
                part.view(1, self.heads, 1, -1)
                for part in block.attn.c_attn(block.ln_1(hidden)).split(width, -1)
            )
            cache[0].index_copy_(2, self.position, key)
            cache[1].index_copy_(2, self.position, value)
            mixed = functional.scaled_dot_product_attention(query, cache[0], cache[1], attn_mask=seen)
            hidden = hidden + block.attn.c_proj(mixed.reshape(1, width))
            hidden = hidden + block.mlp.c_proj(block.mlp.act(block.mlp.c_fc(block.ln_2(hidden))))
        logits = functional.linear(core.ln_f(hidden), core.wte.weight)
        self.token.copy_(torch.argmax(logits, -1))
        self.position.add_(1)
        self.chosen.index_copy_(0, self.position, self.token)

    def begin(self, ids: list[int]) -> None:
        """Reads a prompt, token by token, with steps as they are."""
        self.position.zero_()
        for token in ids:
            self.token.fill_(token)
            self.step()


@cleared
def by_hand(folder: Path, prompt: int, new: int) -> Json:
    """Tokens per second of a captured step of GPT-2, which chooses its tokens itself and never waits for the host."""
    import torch

    need_gpu()
    ids = gpu_models.ids("gpt2", prompt, 3, tiny=False)
    with torch.inference_mode():
        model = HandWritten(folder, prompt + new)
        model.begin(ids[:4])
        replay = captured(model.step)

        def run() -> float:
            model.begin(ids)

            def steps() -> None:
                for _ in range(new - 1):
                    replay()

            return seconds(steps)

        whole = median(run)
        ours = model.chosen[prompt : prompt + new].tolist()
    rate = (new - 1) / whole
    return {"tokens_per_second": rate, "new": new, "ids": ours, "line": f"{rate:,.0f} tokens/s"}


def kernels(run: Callable[[], object]) -> list[Json]:
    """Time of every kernel that something makes the GPU do, whoever launches it, the longest first."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    need_gpu()
    run()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    lines = [
        {"name": event.key[:60], "calls": event.count, "microseconds": event.self_device_time_total}
        for event in found.key_averages()
    ]
    return sorted(lines, key=lambda line: -line["microseconds"])


if __name__ == "__main__":
    # In a process of its own, since compiling may take longer than there is time.
    import json

    print(json.dumps(transformers_decode("gpt2", Path(sys.argv[1]), 128, 256, compiled=True)))
