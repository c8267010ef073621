"""The reference that parity is held against: transformers on a folder, whichever family it is of.

Owns the reference's answers, and the two questions on which laws 4 and 5 rest: how far apart logits may be, and whether
a choice between two tokens was too close to call. It knows nothing of fastdecode. Without the pinned transformers the
import fails, and with it every test that needs the reference.

Shapes: `B` sequences, `S` source tokens, `T` tokens of the prompt, `D` model width, `V` vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from families import Input
from tally import TALLY

try:
    import torch
    import transformers
    from transformers.activations import ACT2CLS
    from transformers.generation import logits_process as processors
except ImportError as missing:
    message = (
        f"the parity tests need their reference, but {missing.name} is absent: pip install 'fastdecode[test]'"
    )
    raise RuntimeError(message) from missing

PINNED = "5.24.0"
if transformers.__version__ != PINNED:
    raise RuntimeError(f"parity is claimed for transformers {PINNED}, got {transformers.__version__}")

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

Ids = list[int]
Array = np.ndarray[Any, np.dtype[np.float32]]

# Those with parameters of their own have no place in a checkpoint.
PARAMETRIC = {"prelu", "xielu"}
ACTIVATIONS = sorted(set(ACT2CLS) - PARAMETRIC)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Reference:
    """transformers' model of a folder, computing in float32.

    Args:
        folder: A Hugging Face folder.
        dtype: Type to which the weights are rounded first, or None for the values in the files.
    """

    auto: Any = transformers.AutoModelForCausalLM

    def __init__(self, folder: Path, dtype: str | None = None) -> None:
        stored = DTYPES[dtype] if dtype else torch.float32
        self.model = self.auto.from_pretrained(folder, dtype=stored).float()
        self.model.eval()

    def answers(self, item: Input, model: Any = None) -> dict[str, Array]:
        """Returns by name what is compared in numbers: the `logits` after every token, float32 `(T, V)`."""
        with torch.no_grad():
            return {"logits": (model or self.model)(torch.tensor([item.prompt])).logits[0].numpy()}

    def own_error(self, item: Input, name: str) -> float:
        """Returns how far one of the reference's float32 answers is from its float64 one, at most."""
        exact = self.answers(item, copy.deepcopy(self.model).double())
        return float(np.abs(exact[name] - self.answers(item)[name]).max())

    def generate(self, prompts: list[Ids], /, *, seed: int | None = None, **options: Any) -> Run:
        """Generates from prompts of one length; `seed` seeds torch's one generator for the whole call."""
        if seed is not None:
            torch.manual_seed(seed)
        out = self.model.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
        rows = [row[len(prompts[0]) :].tolist() for row in out.sequences]
        eos = options.get("eos_token_id")
        cut = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
        copies = options.get("num_return_sequences", 1)
        repeated = [prompt for prompt in prompts for _ in range(copies)]
        return Run(repeated, cut, [step.float() for step in out.logits], seed, options)


@dataclass
class Run:
    """What the reference generated: `B` rows, and what is needed to judge how close each choice was."""

    prompts: list[Ids]
    ids: list[Ids]
    logits: list[torch.Tensor]  # one (B, V) per step
    seed: int | None
    options: dict[str, Any] = field(default_factory=dict)

    def choices(self, step: int, nudge: torch.Tensor | None = None) -> torch.Tensor:
        """Returns what `B` rows choose at a step (-1: row had ended), with `nudge` added to the raw logits."""
        raw = self.logits[step] if nudge is None else self.logits[step] + nudge
        given = torch.tensor(
            [p + (i + [0] * step)[:step] for p, i in zip(self.prompts, self.ids, strict=True)]
        )
        scores = self._processors()(given, raw)
        if not self.options.get("do_sample"):
            return scores.argmax(-1)
        # torch.multinomial of one sample is the argmax of p / e with e drawn from Exp(1) for every entry of every row.
        assert self.seed is not None, "a sampled run has a seed"
        torch.manual_seed(self.seed)
        for _ in range(step):
            torch.empty_like(raw).exponential_()
        return (scores.softmax(-1) / torch.empty_like(raw).exponential_()).argmax(-1)

    def close_call(self, row: int, step: int, other: int) -> bool:
        """Says whether logits within the tolerance of the reference's would have made it choose `other` here."""
        chosen = self.ids[row][step]
        bound = tolerance(self.logits[step][row].numpy())
        nudge = torch.zeros_like(self.logits[step])
        nudge[row, other], nudge[row, chosen] = bound, -bound
        return int(self.choices(step, nudge)[row]) == other

    def _processors(self) -> processors.LogitsProcessorList:
        """Returns transformers' own processors for the run's options, in transformers' order."""
        get, length = self.options.get, len(self.prompts[0])
        listed: list[Any] = []
        if get("repetition_penalty"):
            listed.append(processors.RepetitionPenaltyLogitsProcessor(get("repetition_penalty")))
        if get("min_new_tokens") and get("eos_token_id") is not None:
            listed.append(
                processors.MinNewTokensLengthLogitsProcessor(
                    length, get("min_new_tokens"), get("eos_token_id")
                )
            )
        if get("do_sample"):
            if get("temperature", 1.0) != 1.0:
                listed.append(processors.TemperatureLogitsWarper(get("temperature")))
            if get("top_k", 50):
                listed.append(processors.TopKLogitsWarper(get("top_k", 50)))
            if get("top_p", 1.0) < 1.0:
                listed.append(processors.TopPLogitsWarper(get("top_p")))
            if get("min_p") is not None:
                listed.append(processors.MinPLogitsWarper(get("min_p")))
        return processors.LogitsProcessorList(listed)


def assert_same_ids(run: Run, got: list[Ids], what: str) -> None:
    """Holds generated ids against the reference's (law 5).

    A row may differ only from a choice on that was too close to call; such rows are counted and shown at the end of
    the test run.
    """
    assert len(got) == len(run.ids), f"{what}: {len(got)} rows, transformers gives {len(run.ids)}"
    for row, (mine, theirs) in enumerate(zip(got, run.ids, strict=True)):
        if mine == theirs:
            TALLY.choices += len(theirs)
            continue
        parted = [step for step, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]]
        assert parted, f"{what}, row {row}: one is cut short: {mine} instead of {theirs}"
        close = run.close_call(row, parted[0], mine[parted[0]])
        assert close, f"{what}, row {row}: parts at new token {parted[0]}: {mine} instead of {theirs}"
        TALLY.choices += parted[0] + 1  # what follows was given other tokens, and is not compared
        TALLY.excused.append(
            f"{what}, row {row}, new token {parted[0]}: {mine[parted[0]]} / {theirs[parted[0]]}"
        )


def assert_close(got: dict[str, Array], reference: Reference, item: Input, what: str = "") -> None:
    """Holds all answers to an input against the reference's (law 4)."""
    want = reference.answers(item)
    assert got.keys() == want.keys()
    for name in want:

        def own_error(name: str = name) -> float:
            return reference.own_error(item, name)

        assert_near(got[name], want[name], own_error, f"{name} {what}")


def assert_near(
    got: np.ndarray[Any, np.dtype[np.float32]],
    want: np.ndarray[Any, np.dtype[np.float32]],
    own_error: Callable[[], float],
    what: str,
) -> None:
    """Holds numbers against the reference's (law 4).

    Where a configuration is so ill-conditioned that float32 does not determine the reference's own numbers to the
    tolerance (a norm over two nearly equal values), twice its own error is allowed beside it.
    """
    assert got.shape == want.shape, f"{what} of shape {got.shape}, transformers gives {want.shape}"
    assert np.isfinite(got).all(), f"{what} that are not finite"
    apart, bound = float(np.abs(got - want).max()), tolerance(want)
    if apart > bound:
        bound += 2 * own_error()
    assert apart <= bound, f"{what} differ by {apart:.2e}, allowed are {bound:.2e}"


def tolerance(logits: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """Returns the largest allowed difference from these reference logits: 1e-4 of the largest, at least 1e-4."""
    return 1e-4 * max(1.0, float(np.abs(logits).max()))
