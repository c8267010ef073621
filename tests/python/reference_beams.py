"""transformers' beam search as the reference: ids, scores, and whether float32 decides them at all.

A search has many places where two candidates may be too close to call. So a difference is excused only where the
reference itself gives other results when its log-probabilities are shaken by the tolerance of law 4, or where it had to
draw more candidates than have a probability above zero in float32: `torch.multinomial` then takes any of the others.
Such runs are counted and shown like all excused choices. It knows nothing of fastdecode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from reference import TALLY, Ids, tolerance
from transformers.generation import LogitsProcessor, LogitsProcessorList

SHAKES = 12
# transformers marks places that nothing finite reached with -1e9, and fills them in an unspecified order.
NOTHING = -1e8


class Shake(LogitsProcessor):
    """Adds noise of at most `bound` to every score; what is forbidden stays so."""

    def __init__(self, bound: float, seed: int) -> None:
        self.bound = bound
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 (as transformers calls it)
        noise = torch.rand(scores.shape, generator=self.random) * 2 - 1
        return scores + self.bound * noise


@dataclass(frozen=True)
class Found:
    """What a search gave: `B * num_return_sequences` rows of new ids, end token kept, and their scores."""

    ids: list[Ids]
    scores: list[float]
    drawn_from_nothing: bool = (
        False  # the reference took candidates without probability where others had scores
    )


@contextmanager
def watched(model: Any) -> Iterator[list[bool]]:
    """Notes, for every step of a search that draws, whether more was drawn than has a probability."""
    seen: list[bool] = []
    inner = model._get_top_k_continuations

    def note(*args: Any, **kwargs: Any) -> Any:
        scores, count = kwargs["accumulated_log_probs"], kwargs["beams_to_keep"]
        if kwargs["do_sample"]:
            possible = scores.softmax(-1) > 0
            left_out = (~possible & (scores > NOTHING)).any(-1)
            seen.append(bool(((possible.sum(-1) < count) & left_out).any()))
        return inner(*args, **kwargs)

    with mock.patch.object(model, "_get_top_k_continuations", note):
        yield seen


class BeamReference:
    """transformers' beam search over sources of one length.

    Args:
        model: The reference model, computing in float32.
        inputs: Token ids of the prompts (or of an encoder's sources), all of one length.
    """

    def __init__(self, model: Any, inputs: list[Ids]) -> None:
        self.model, self.inputs = model, inputs
        self.skip = 1 if model.config.is_encoder_decoder else len(inputs[0])

    def search(self, *, seed: int | None = None, shake: Shake | None = None, **options: Any) -> Found:
        """Searches; `seed` seeds torch's one generator for the whole call."""
        if seed is not None:
            torch.manual_seed(seed)
        with watched(self.model) as drawn_from_nothing:
            out = self.model.generate(
                torch.tensor(self.inputs),
                attention_mask=torch.ones(len(self.inputs), len(self.inputs[0]), dtype=torch.long),
                return_dict_in_generate=True,
                output_scores=True,
                logits_processor=LogitsProcessorList([shake] if shake else []),
                **options,
            )
        eos = options.get("eos_token_id")
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        rows = [row[self.skip :].tolist() for row in out.sequences]
        # Rows are filled up behind their first end token, and only there.
        last = [next((at for at, token in enumerate(row) if token in ends), len(row)) for row in rows]
        cut = [row[: at + 1] for row, at in zip(rows, last, strict=True)]
        return Found(cut, [float(score) for score in out.sequences_scores], any(drawn_from_nothing))

    def bound(self) -> float:
        """Returns how far log-probabilities may be apart: twice the tolerance of the logits (law 4)."""
        ids = torch.tensor(self.inputs)
        begin = {"decoder_input_ids": ids[:, :1] * 0} if self.model.config.is_encoder_decoder else {}
        with torch.no_grad():
            return 2 * tolerance(self.model(ids, **begin).logits.float().numpy())

    def hold(self, got: Found, what: str, **options: Any) -> None:
        """Holds a search's ids and scores against the reference's (law 5)."""
        want = self.search(**options)
        TALLY.choices += sum(map(len, want.ids))
        bound, penalty = self.bound(), options.get("length_penalty", 1.0)
        if self._same(got, want, bound, penalty):
            return
        # A seed's draws stay the same, so that a shaken run differs by its scores alone.
        shaken = (self.search(shake=Shake(bound, seed), **options) for seed in range(SHAKES))
        determined = not want.drawn_from_nothing and all(other.ids == want.ids for other in shaken)
        assert not determined, f"{what}: {got} instead of {want}"
        TALLY.excused.append(f"{what}: {got} / {want}")

    def _same(self, got: Found, want: Found, bound: float, penalty: float) -> bool:
        if len(got.ids) != len(want.ids):
            return False
        for mine, theirs, score, expected in zip(got.ids, want.ids, got.scores, want.scores, strict=True):
            if expected < NOTHING:
                if score >= NOTHING:
                    return False
            elif mine != theirs or abs(score - expected) > bound * len(mine) ** (1 - penalty):
                return False
        return True
