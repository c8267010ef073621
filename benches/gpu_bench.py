"""How fast a GPU is: decode and prompts beside gates, the GPU's own bandwidth, torch's products and its decode."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastdecode
import gpu_models
import gpu_peers
from gpu_report import Part, Skip, variable
from harness import Json

# Tokens per second of one sequence: what must be reached, and what is aimed at.
GATES = {"gpt2": (3500, 7000), "t5-base": (2500, 5500), "phi-1.5": (1000, 1300)}
ROWS_GATE = (50_000, 100_000)
# Times of a prompt, as multiples of torch.matmul's for its products.
PROMPT_GATE = (3.0, 2.0)
ROUNDS = 5
# Seconds of a model's part: drawn, written, loaded, and run eight times.
SECONDS = {"gpt2": 20, "t5-base": 25, "phi-1.5": 45}


class Bench:
    """What the parts share: folders, loaded models, and the bandwidth once it is known.

    Args:
        cache: Where folders are.
        tiny: Whether everything is small, and torch has no GPU to measure.
    """

    def __init__(self, cache: Path, *, tiny: bool) -> None:
        self.cache, self.tiny = cache, tiny
        self.prompt, self.new = (12, 20) if tiny else (128, 256)
        self.rounds, self.warm = (1, 0) if tiny else (ROUNDS, 2)
        self.bandwidth: float | None = None
        self._loaded: dict[str, Any] = {}

    def folder(self, name: str) -> Path:
        return gpu_models.build(name, self.cache, "bfloat16", tiny=self.tiny)

    def model(self, name: str) -> Any:
        """A model on the GPU, and no other one beside it."""
        if name not in self._loaded:
            self._loaded.clear()
            self._loaded[name] = fastdecode.load(self.folder(name), device="cuda")
            assert self._loaded[name].info()["compute_dtype"] == "bfloat16"
        return self._loaded[name]

    def ids(self, name: str, count: int, salt: int = 3) -> list[int]:
        return gpu_models.ids(name, count, salt, tiny=self.tiny)

    def median(self, run: Callable[[], float]) -> float:
        return gpu_peers.median(run, self.rounds, self.warm)

    def torch(self) -> None:
        """Sees to it that torch can be measured.

        Raises:
            Skip: It cannot.
        """
        if self.tiny:
            raise Skip("--tiny leaves out what needs torch on a GPU")
        gpu_peers.need_gpu()


def parts(cache: Path, *, tiny: bool) -> list[Part]:
    """All parts, those first that matter most."""
    bench = Bench(cache, tiny=tiny)
    of: list[tuple[str, float, Callable[..., Json], tuple[Any, ...]]] = [
        ("bandwidth", 8, bandwidth, ()),
        ("gpt2 decode", SECONDS["gpt2"], decode, ("gpt2",)),
        ("gpt2 decode of 64", 15, rows, ()),
        ("gpt2 prompt", 12, prompt, ("gpt2",)),
        ("gpt2 steps", 12, steps, ("gpt2",)),
        ("gpt2 transformers", 30, eager, ("gpt2",)),
        ("gpt2 by hand", 20, by_hand, ()),
        ("t5-base decode", SECONDS["t5-base"], decode, ("t5-base",)),
        ("t5-base steps", 12, steps, ("t5-base",)),
        ("t5-base transformers", 45, eager, ("t5-base",)),
        ("phi-1.5 decode", SECONDS["phi-1.5"], decode, ("phi-1.5",)),
        ("phi-1.5 prompt", 15, prompt, ("phi-1.5",)),
        ("phi-1.5 transformers", 45, eager, ("phi-1.5",)),
        ("gpt2 transformers, compiled", 75, compiled, ()),
        # A profiler stays attached to the process, so that nothing is timed after these.
        ("phi-1.5 kernels", 10, kernels, ("phi-1.5",)),
        ("gpt2 kernels", 10, kernels, ("gpt2",)),
        ("t5-base kernels", 10, kernels, ("t5-base",)),
    ]
    return [
        Part(name, 0 if tiny else seconds, functools.partial(run, bench, *arguments))
        for name, seconds, run, arguments in of
    ]


def bandwidth(bench: Bench) -> Json:
    """What torch's kernels read of the GPU's memory."""
    bench.torch()
    found = gpu_peers.bandwidth()
    bench.bandwidth = found["bytes_per_second"]
    return found


def one(bench: Bench, name: str, new: int, length: int | None = None, **options: Any) -> Any:
    """A call of one sequence; of an encoder-decoder the prompt is the source."""
    asked = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None, **options}
    return bench.model(name).run(bench.ids(name, length or bench.prompt), **asked)


def clock(run: Callable[[], object]) -> float:
    """Seconds of one of our calls, which return when the GPU has done everything."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def decode(bench: Bench, name: str) -> Json:
    """Tokens per second of one sequence behind its prompt."""
    seconds = bench.median(lambda: float(one(bench, name, bench.new).timings.decode))
    whole = bench.median(lambda: clock(lambda: one(bench, name, bench.new)))
    rate = (bench.new - 1) / seconds
    info = bench.model(name).info()
    # An encoder-decoder has its source in the cache from the beginning, and starts with one token.
    seen = bench.prompt + bench.new / 2
    read = gpu_models.step_bytes(bench.folder(name), info["cache_bytes_per_token"], seen)
    share = None if bench.bandwidth is None else rate * read / bench.bandwidth
    gate, aim = GATES[name]
    line = f"{rate:,.0f} tokens/s (gate {gate:,}, aim {aim:,}), {read * rate / 1e12:.2f} TB/s"
    line += "" if share is None else f", {share:.0%} of the bandwidth"
    return {
        "tokens_per_second": rate,
        "call_seconds": whole,
        "step_bytes": read,
        "share_of_bandwidth": share,
        "gate": gate,
        "aim": aim,
        "reached": None if bench.tiny else rate >= gate,
        "line": line,
    }


def rows(bench: Bench) -> Json:
    """Tokens per second of 64 sequences of GPT-2 together whose contexts come to 512 tokens."""
    count, length, new = (10, 12, 8) if bench.tiny else (64, 512 - 64, 64)
    prompts = [bench.ids("gpt2", length, 10 + row) for row in range(count)]
    # What the prompts have in the cache is kept from call to call: so all rows begin to decode in the same step.
    model = fastdecode.load(
        bench.folder("gpt2"),
        device="cuda",
        dtype="bfloat16",
        prefix_cache_bytes=4 << 30,
        cache_bytes=16 << 30,
    )

    def of(tokens: int) -> float:
        asked: Json = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None}
        return clock(lambda: model.run(prompts, **asked))

    of(1)
    # The prompts are the same in both, and so is what they take.
    first, whole = bench.median(lambda: of(1)), bench.median(lambda: of(new))
    rate = count * (new - 1) / max(whole - first, 1e-9)
    gate, aim = ROWS_GATE
    line = f"{rate:,.0f} tokens/s of {count} (gate {gate:,}, aim {aim:,}); with prompts {count * new / whole:,.0f}"
    reached = None if bench.tiny else rate >= gate
    found = {"rows": count, "context": length + new, "prompts_seconds": first, "call_seconds": whole}
    return found | {"tokens_per_second": rate, "gate": gate, "aim": aim, "reached": reached, "line": line}


def prompt(bench: Bench, name: str) -> Json:
    """Seconds of a prompt of 512 tokens beside torch.matmul's for the same products."""
    length = 50 if bench.tiny else 512
    ours = bench.median(lambda: float(one(bench, name, 1, length).timings.prefill))
    found: Json = {"seconds": ours, "tokens": length, "gate": PROMPT_GATE[0], "aim": PROMPT_GATE[1]}
    line = f"{ours * 1e3:.2f} ms"
    if bench.tiny:
        return found | {"line": f"{line}; torch.matmul NOT RUN: --tiny"}
    theirs = gpu_peers.products(bench.folder(name), length)
    ratio = ours / theirs["as a graph"]
    line += f", {ratio:.1f}x torch.matmul as a graph (gate {PROMPT_GATE[0]}, aim {PROMPT_GATE[1]}), "
    line += f"{ours / theirs['one by one']:.1f}x one by one"
    return found | {"matmul": theirs, "ratio": ratio, "reached": ratio <= PROMPT_GATE[0], "line": line}


def steps(bench: Bench, name: str) -> Json:
    """Where the time of a step goes: several at once, one whose logits come to the host, without what hides waiting."""
    new = bench.new
    several = bench.median(lambda: float(one(bench, name, new).timings.decode)) / (new - 1)
    host = bench.median(lambda: float(one(bench, name, new, logprobs=0).timings.decode)) / (new - 1)
    by_hand = bench.median(lambda: _stepped(bench, name))
    found = {
        "several at once": several,
        "one by one, logits to the host": host,
        "a state's steps from Python": by_hand,
        "several at once, no graphs": _without(bench, name, "FASTDECODE_CUDA_GRAPH"),
        "several at once, no kernel begins early": _without(bench, name, "FASTDECODE_CUDA_EARLY"),
    }
    line = "; ".join(f"{what} {value * 1e6:,.0f} us" for what, value in found.items())
    return {"seconds": found, "line": line}


def _without(bench: Bench, name: str, switch: str) -> float:
    """Seconds of a step, several at once, of a model that was loaded without something."""
    with variable(switch, "0"):
        model = fastdecode.load(bench.folder(name), device="cuda")
    asked: Json = {"max_new_tokens": bench.new, "do_sample": False, "eos_token_id": None}
    ids = bench.ids(name, bench.prompt)
    return bench.median(lambda: float(model.run(ids, **asked).timings.decode)) / (bench.new - 1)


def _stepped(bench: Bench, name: str) -> float:
    """Seconds of one step of a state."""
    model, ids = bench.model(name), bench.ids(name, bench.prompt)
    state = model.prefill(memory=model.encode(ids)) if model.has_encoder else model.prefill(ids)
    count = 8 if bench.tiny else 64
    return clock(lambda: [state.step(5) for _ in range(count)]) / count


def kernels(bench: Bench, name: str) -> Json:
    """Time of the kernels of decode, by name, as CUPTI tells torch."""
    bench.torch()
    new = 65
    # A prompt of one token, so that nearly all is decode.
    found = gpu_peers.kernels(lambda: one(bench, name, new, 1))
    ours = [line for line in found if line["name"].startswith("fd_")]
    if not ours:
        raise Skip("torch's profiler saw none of our kernels")
    busy = sum(line["microseconds"] for line in ours) / new
    longest = ", ".join(f"{line['name']} {line['microseconds'] / new:.1f}" for line in ours[:6])
    return {"kernels": found[:30], "tokens": new, "line": f"{busy:.0f} us busy a token: {longest}"}


def eager(bench: Bench, name: str) -> Json:
    """`generate` of transformers as it is."""
    bench.torch()
    return gpu_peers.transformers_decode(name, bench.folder(name), bench.prompt, 64)


def by_hand(bench: Bench) -> Json:
    """A captured step of GPT-2 in plain torch."""
    bench.torch()
    found = gpu_peers.by_hand(bench.folder("gpt2"), bench.prompt, bench.new)
    ours = one(bench, "gpt2", bench.new).token_ids
    # Both round to bfloat16, in other orders: they part where a choice is close.
    same = next((i for i, (a, b) in enumerate(zip(ours, found["ids"], strict=True)) if a != b), len(ours))
    found["line"] += f"; its first {same} ids are ours"
    return found | {"same_ids": same}


def compiled(bench: Bench) -> Json:
    """`generate` with a static cache and torch.compile, in a process of its own."""
    bench.torch()
    bench._loaded.clear()
    command = [sys.executable, gpu_peers.__file__, str(bench.folder("gpt2"))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=70)
    except subprocess.TimeoutExpired:
        raise Skip("70 s were not enough to compile and run") from None
    if done.returncode:
        raise Skip(f"it does not run here: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    found: Json = json.loads(done.stdout.strip().splitlines()[-1])
    return found
