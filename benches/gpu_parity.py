"""Whether a GPU gives what it should: logits beside the CPU's and torch's, ids, and laws that hold to the bit."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastdecode
import gpu_models
import numpy as np
from gpu_report import Part, Skip, variable
from harness import Json

# The part of the largest logit by which a float32 logit of the GPU may differ from the CPU's.
FLOAT32 = 1e-4
# The error of bfloat16, as a multiple of that of torch in bfloat16.
BFLOAT16 = 1.5
# A choice counts where its margin is more than so many errors.
MARGIN = 4

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Lengths:
    """How much is asked of a model.

    Attributes:
        prompt: Tokens that are read at once, by model.
        steps: Tokens behind them that are read one by one.
        sources: Lengths of sources of an encoder-decoder; the last one is the longest.
        repeats: Runs that have to agree.
        new: New tokens of a call.
    """

    prompt: dict[str, int]
    steps: int
    sources: tuple[int, ...]
    repeats: int
    new: int


# All of GPT-2's context; more keys than a chunk of attention has, and than four of them, elsewhere.
FULL = Lengths(
    {"gpt2": 960, "t5-base": 300, "llama-small": 1100, "phi-1.5": 1100}, 64, (1, 100, 400), repeats=20, new=32
)
TINY = Lengths(dict.fromkeys(gpu_models.TINY, 21), 3, (1, 20), repeats=2, new=4)
# Seconds that the parts of a model may take: float32, bfloat16, laws. Of phi-1.5 most are for writing and reading it.
SECONDS = {
    "gpt2": (20, 15, 20),
    "t5-base": (25, 20, 20),
    "llama-small": (20, 15, 20),
    "phi-1.5": (55, 30, 25),
}


# Seconds that compute-sanitizer may take.
SANITIZED = 40


class Case:
    """A model of a run, loaded in as many ways as its parts need, and no longer.

    Args:
        name: One of `gpu_models.SIZES`.
        cache: Where folders are.
        tiny: Whether everything is small.
    """

    def __init__(self, name: str, cache: Path, *, tiny: bool) -> None:
        self.name, self.cache, self.tiny = name, cache, tiny
        self.lengths = TINY if tiny else FULL
        self.has_encoder = gpu_models.has_encoder(name)
        self.prompt = self.lengths.prompt[name]
        start = [0] if self.has_encoder else []
        drawn = gpu_models.ids(name, self.prompt + self.lengths.steps - len(start), 1, tiny=tiny)
        self.ids = [*start, *drawn]

    @functools.cached_property
    def folder(self) -> Path:
        return gpu_models.build(self.name, self.cache, "float32", tiny=self.tiny)

    @functools.cached_property
    def cpu(self) -> Any:
        return fastdecode.load(self.folder)

    @functools.cached_property
    def float32(self) -> Any:
        return self.on_gpu("float32")

    @functools.cached_property
    def bfloat16(self) -> Any:
        return self.on_gpu("bfloat16")

    def on_gpu(self, dtype: Any) -> Any:
        return fastdecode.load(self.folder, dtype=dtype, device="cuda")

    def source(self, length: int) -> list[int]:
        return gpu_models.ids(self.name, length, 2, tiny=self.tiny)

    def logits(self, model: Any, source: int, length: int | None = None) -> Array:
        """Logits behind every token, read at once; of an encoder-decoder with a source of this length."""
        first = [self.source(source)] if self.has_encoder else []
        found: Array = model.logits(*first, self.ids[:length])
        return found

    def prefill(self, model: Any, length: int) -> Any:
        """A state that has read so many tokens, with the longest source."""
        memory = {"memory": model.encode(self.source(self.lengths.sources[-1]))} if self.has_encoder else {}
        return model.prefill(self.ids[:length], **memory)

    def stepped(self, model: Any) -> Array:
        """Logits behind the prompt, and behind every token after it, read one by one."""
        state = self.prefill(model, self.prompt)
        return np.stack([state.logits, *(state.step(token) for token in self.ids[self.prompt :])])

    def run(self, model: Any, lengths: list[int], **options: Any) -> list[Any]:
        """What a call generates from beginnings of the ids of these lengths."""
        prompts = [self.ids[:length] for length in lengths]
        # Sources of other lengths, each the other row's.
        sources = [[self.source(9 + place) for place in range(len(prompts))]] if self.has_encoder else []
        asked = {"max_new_tokens": self.lengths.new, "eos_token_id": None, "do_sample": False, **options}
        found: list[Any] = model.run(*sources, prompts, **asked)
        return found

    def close(self) -> None:
        """Forgets the models, and their folders, which take gigabytes."""
        for name in ("cpu", "float32", "bfloat16"):
            self.__dict__.pop(name, None)
        if self.__dict__.pop("folder", None) is not None:
            shutil.rmtree(self.cache)


def parts(cache: Path, *, tiny: bool) -> list[Part]:
    """All parts, in their order."""
    found = []
    for name in gpu_models.kind(tiny=tiny):
        case = Case(name, cache / name, tiny=tiny)
        run: list[Callable[[Case], Json]] = [in_float32, in_bfloat16, laws]
        for title, check, seconds in zip(("float32", "bfloat16", "laws"), run, SECONDS[name], strict=True):
            last = check is laws
            found.append(Part(f"{name} {title}", 0 if tiny else seconds, _closing(case, check, last=last)))
    return found + [
        Part(
            f"compute-sanitizer {tool}",
            0 if tiny else SANITIZED + 5,
            functools.partial(sanitize, cache, tool),
        )
        for tool in ("memcheck", "racecheck")
    ]


def _closing(case: Case, check: Callable[[Case], Json], *, last: bool) -> Callable[[], Json]:
    def run() -> Json:
        try:
            return check(case)
        finally:
            if last:
                case.close()

    return run


def in_float32(case: Case) -> Json:
    """Logits and ids beside our own on the CPU."""
    found: Json = {}
    worst, ok = 0.0, True
    for source in case.lengths.sources if case.has_encoder else (0,):
        # The longest source goes with the whole of the ids.
        length = None if source in (0, case.lengths.sources[-1]) else 7
        theirs, ours = case.logits(case.cpu, source, length), case.logits(case.float32, source, length)
        apart = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        found[f"prompt, source of {source}" if case.has_encoder else "prompt"] = apart
        worst = max(worst, apart)
    rows, steps = theirs[case.prompt - 1 :], case.stepped(case.float32)
    found["steps"] = float(np.abs(steps - rows).max() / np.abs(theirs).max())
    worst = max(worst, found["steps"])
    choices = compare(steps, rows, float(np.abs(steps - rows).max()))
    ok = worst <= FLOAT32 and choices["wrong"] == 0
    line = f"{worst:.1e} of the largest logit (at most {FLOAT32:.0e}); {in_words(choices)}"
    return found | {"ok": ok, "worst": worst, "choices": choices, "line": line}


def in_bfloat16(case: Case) -> Json:
    """Logits and ids beside those of torch, with the same rounded weights and products in float32."""
    exact, theirs = of_torch(case)
    largest = float(np.abs(exact).max())
    own = {"largest": float(np.abs(theirs - exact).max()), "mean": float(np.abs(theirs - exact).mean())}
    ours = case.logits(case.bfloat16, case.lengths.sources[-1])
    rows, steps = exact[case.prompt - 1 :], case.stepped(case.bfloat16)
    own_of_rows = np.abs(theirs[case.prompt - 1 :] - rows)
    ratios = {
        "prompt, largest": float(np.abs(ours - exact).max()) / own["largest"],
        "prompt, mean": float(np.abs(ours - exact).mean()) / own["mean"],
        "steps, largest": float(np.abs(steps - rows).max() / own_of_rows.max()),
        "steps, mean": float(np.abs(steps - rows).mean() / own_of_rows.mean()),
    }
    choices = compare(steps, rows, float(np.abs(steps - rows).max()))
    worst = max(ratios.values())
    line = f"{worst:.2f} of torch's error (at most {BFLOAT16}), which is {own['largest'] / largest:.1e}"
    line += f"; {in_words(choices)}"
    ok = worst <= BFLOAT16 and choices["wrong"] == 0
    return {"ok": ok, "ratios": ratios, "torch": own, "largest": largest, "choices": choices, "line": line}


def of_torch(case: Case) -> tuple[Array, Array]:
    """Logits of transformers with bfloat16 weights: products in float32, and in bfloat16."""
    import torch

    torch.set_float32_matmul_precision("highest")
    model = gpu_models.peer(case.name, case.folder, "bfloat16").float()
    where = gpu_models.place()
    given = {"input_ids": torch.tensor([case.ids], device=where)}
    if case.has_encoder:
        source = torch.tensor([case.source(case.lengths.sources[-1])], device=where)
        given = {"input_ids": source, "decoder_input_ids": given["input_ids"]}

    def logits() -> Array:
        with torch.inference_mode():
            found: Array = model(**given, use_cache=False).logits[0].float().cpu().numpy()
        return found

    exact = logits()
    model.to(torch.bfloat16)
    rounded = logits()
    if where == "cuda":
        del model, logits
        torch.cuda.empty_cache()
    return exact, rounded


def compare(ours: Array, theirs: Array, error: float) -> Json:
    """Greedy choices of every row, beside those of others; one whose margin is within a few errors may be another."""
    best, mine = theirs.argmax(-1), ours.argmax(-1)
    two = np.partition(theirs, -2, axis=-1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > MARGIN * error
    return {"clear": int(clear.sum()), "of": len(best), "wrong": int((clear & (best != mine)).sum())}


def in_words(choices: Json) -> str:
    """What `compare` found."""
    return f"{choices['wrong']} wrong of {choices['clear']} clear choices ({choices['of']} in all)"


def laws(case: Case) -> Json:
    """What holds to the bit, and beams."""
    found: Json = {}
    with variable("FASTDECODE_CUDA_GRAPH", "0"):
        without = case.on_gpu("bfloat16")
    # Longer than eight tokens, so that prompts go through the same products alone and side by side.
    lengths = [9 + place for place in range(8)]
    together = case.run(case.bfloat16, lengths, logprobs=2)
    found["graphs change nothing"] = bits(together) == bits(case.run(without, lengths, logprobs=2))
    del without
    runs = {_digest(case, case.bfloat16) for _ in range(case.lengths.repeats)}
    found[f"{case.lengths.repeats} runs agree"] = len(runs) == 1
    alone = [_alone(case, place, lengths) for place in range(len(lengths))]
    found["a row alone is the row among 8"] = alone == [bits([output]) for output in together]
    host = [output.token_ids for output in together]
    found["the GPU's choices are the host's"] = host == [
        output.token_ids for output in case.run(case.bfloat16, lengths)
    ]
    found["forks and shorter states"] = _forks(case, case.bfloat16)
    found["beams"] = _beams(case)
    wrong = [name for name, holds in found.items() if holds is False]
    line = f"{'; '.join(wrong)}: do not hold" if wrong else f"{len(found)} hold"
    return {"ok": not wrong, "laws": found, "line": line}


def bits(outputs: list[Any]) -> list[Any]:
    """Ids and log-probabilities, which are equal where every bit is."""
    return [(list(output.token_ids), repr(output.logprobs)) for output in outputs]


def _alone(case: Case, place: int, lengths: list[int]) -> list[Any]:
    """What one row gives by itself."""
    options: Json = {
        "max_new_tokens": case.lengths.new,
        "eos_token_id": None,
        "do_sample": False,
        "logprobs": 2,
    }
    source = [case.source(9 + place)] if case.has_encoder else []
    return bits([case.bfloat16.run(*source, case.ids[: lengths[place]], **options)])


def _digest(case: Case, model: Any) -> str:
    state = case.prefill(model, case.prompt)
    rows = [state.logits, *(state.step(token) for token in case.ids[case.prompt :][:8])]
    outputs = case.run(model, [5, 9], logprobs=2)
    return hashlib.sha256(b"".join(row.tobytes() for row in rows) + repr(bits(outputs)).encode()).hexdigest()


def _forks(case: Case, model: Any) -> bool:
    """Whether forks and shortened states are states that were read anew."""
    length = case.prompt - 3
    state = case.prefill(model, length)
    fork = state.fork()
    left, right = state.step(5), fork.step(6)
    again = case.prefill(model, length)
    holds = np.array_equal(left, again.step(5))
    again.truncate(length)
    return bool(holds and np.array_equal(right, again.step(6)) and not np.array_equal(left, right))


def _beams(case: Case) -> bool:
    """Whether a search finds on the GPU what it finds on the CPU, or something as probable."""
    options: Json = {"num_beams": 4, "num_return_sequences": 2}
    theirs, ours = (case.run(model, [9], **options) for model in (case.cpu, case.float32))
    return all(
        one.token_ids == other.token_ids or abs(one.score - other.score) < 1e-4
        for one, other in zip(theirs, ours, strict=True)
    )


def sanitize(cache: Path, tool: str) -> Json:
    """Runs steps of a tiny model under NVIDIA's compute-sanitizer."""
    found = shutil.which("compute-sanitizer")
    places = [Path(found)] if found else sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))
    if not places:
        raise Skip("no compute-sanitizer on the path or in /usr/local/cuda*/bin")
    folder = gpu_models.build("gpt2", cache / "sanitized", "float32", tiny=True)
    command = [str(places[0]), "--tool", tool, "--error-exitcode", "9", sys.executable, __file__, str(folder)]
    # In a session of its own: the tool starts a process, which must not go on holding the GPU.
    tried = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        text, _ = tried.communicate(timeout=SANITIZED)
    except subprocess.TimeoutExpired:
        os.killpg(tried.pid, signal.SIGKILL)
        tried.communicate()
        raise Skip(f"{SANITIZED} s were not enough") from None
    last = text.strip().splitlines()[-8:]
    return {
        "ok": tried.returncode == 0,
        "last": last,
        "line": last[-1] if last else f"status {tried.returncode}",
    }


def small_steps(folder: str) -> None:
    """Steps of every kind, for a tool that watches them: prompts, single rows, few and many rows."""
    for dtype in ("float32", "bfloat16"):
        model = fastdecode.load(folder, dtype=dtype, device="cuda")
        state = model.prefill(list(range(3, 43)))
        state.step(5)
        for rows in (1, 3, 12):
            prompts = [list(range(3, 10 + place)) for place in range(rows)]
            model.run(prompts, max_new_tokens=4, do_sample=False, eos_token_id=None)


if __name__ == "__main__":
    small_steps(sys.argv[1])
