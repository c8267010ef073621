"""transformers' beam search as the reference: ids, scores, and whether float32 decides them at all.

A search has many places where two candidates may be too close to call. So a source's results may differ from the
reference's where the reference itself gives ours

- when its log-probabilities are shaken by the tolerance of law 4, or by a part of it; or
- scores that are as good: each of ours, scored anew by the reference, is within the tolerance of its own result of that
  rank. (Drawn candidates are sorted by their scores, too, so that equal ones decide which beams a draw goes on from; a
  draw that went another way for another reason comes to other scores.)

Where the reference had to draw more candidates than have a probability above zero in float32, `torch.multinomial` takes
any of the others, so that the ids of that source are arbitrary. What is asked of them is asked of every result that
differs: that the search allows these ids, and that they come with the score that the reference gives to them. Such
results are counted and shown like all excused choices. It knows nothing of fastdecode.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from reference import Ids, tolerance
from tally import TALLY
from transformers.generation import LogitsProcessor, LogitsProcessorList

# Parts of the tolerance by which the reference is shaken, so many times each. Float32 errs by far less than the
# tolerance: a shake by all of it also turns choices that were not close, and so hides the one that was.
SHAKEN_BY = (1.0, 1e-1, 1e-2, 1e-3)
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


class Toward(LogitsProcessor):
    """Adds `bound` to the score of each row's next token of `rows`, and takes as much from all others."""

    def __init__(self, rows: torch.Tensor, bound: float) -> None:
        self.rows, self.bound, self.step = rows, bound, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 (as transformers calls it)
        token = self.rows[:, self.step : self.step + 1]
        self.step += 1
        return (scores - self.bound).scatter(1, token, scores.gather(1, token) + self.bound)


@dataclass(frozen=True)
class Found:
    """What a search gave: `B * num_return_sequences` rows of new ids, end token kept, and their scores."""

    ids: list[Ids]
    scores: list[float]
    # Sources for which the reference took candidates without probability where others had a score of any size.
    drawn_from_nothing: frozenset[int] = field(default=frozenset(), compare=False)


class ProcessorsMade(Exception):
    """Ends a call of `generate` as soon as its processors are there."""


@contextmanager
def watched(model: Any) -> Iterator[set[int]]:
    """Notes the sources for which, at some step of a search that draws, more was drawn than has a probability.

    What `torch.multinomial` takes then is unspecified. It changes nothing where all that is left is forbidden, but
    continuations of beams that do not count (-1e9) are more than that: divided by their length they fill places among
    the finished ones, and so end a search.
    """
    seen: set[int] = set()
    inner = model._get_top_k_continuations

    def note(*args: Any, **kwargs: Any) -> Any:
        scores, count = kwargs["accumulated_log_probs"], kwargs["beams_to_keep"]
        if kwargs["do_sample"]:
            possible = scores.softmax(-1) > 0
            left_out = (~possible & (scores > -math.inf)).any(-1)
            seen.update(((possible.sum(-1) < count) & left_out).nonzero().flatten().tolist())
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
            out = self._generate([shake] if shake else [], options)
        eos = options.get("eos_token_id")
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        rows = [row[self.skip :].tolist() for row in out.sequences]
        # Rows are filled up behind their first end token, and only there.
        last = [next((at for at, token in enumerate(row) if token in ends), len(row)) for row in rows]
        cut = [row[: at + 1] for row, at in zip(rows, last, strict=True)]
        return Found(cut, [float(score) for score in out.sequences_scores], frozenset(drawn_from_nothing))

    def _generate(self, processors: list[LogitsProcessor], options: dict[str, Any]) -> Any:
        return self.model.generate(
            torch.tensor(self.inputs),
            attention_mask=torch.ones(len(self.inputs), len(self.inputs[0]), dtype=torch.long),
            return_dict_in_generate=True,
            output_scores=True,
            logits_processor=LogitsProcessorList(processors),
            **options,
        )

    def _processors(self, own: LogitsProcessor, options: dict[str, Any]) -> LogitsProcessorList:
        """Returns the processors that a search by these options runs, `own` ahead of the filters of a draw."""
        made: list[LogitsProcessorList] = []
        inner = self.model._get_logits_processor

        def keep(*args: Any, **kwargs: Any) -> LogitsProcessorList:
            made.append(inner(*args, **kwargs))
            raise ProcessorsMade

        with mock.patch.object(self.model, "_get_logits_processor", keep), suppress(ProcessorsMade):
            self._generate([own], options)
        return made[0]

    def scores_of(
        self, rows: list[Ids], *, toward: float = 0.0, length_penalty: float = 1.0, **options: Any
    ) -> list[float]:
        """Returns the scores that the reference gives to rows of new ids, equally many for each source.

        Args:
            rows: New ids, source by source.
            toward: How far log-probabilities are moved in favour of these ids, so that filters let them pass.
            length_penalty: As in a search.
            **options: Options of the search.
        """
        options.pop("seed", None)
        steps, copies = max(map(len, rows)), len(rows) // len(self.inputs)
        new = torch.tensor([row + [0] * (steps - len(row)) for row in rows])
        sources = torch.tensor(self.inputs).repeat_interleave(copies, 0)
        if self.model.config.is_encoder_decoder:
            begin = torch.full((len(rows), 1), self.model.config.decoder_start_token_id)
            given = {"input_ids": sources, "decoder_input_ids": torch.cat([begin, new], 1)}
        else:
            begin = sources
            given = {"input_ids": torch.cat([begin, new], 1)}
        with torch.no_grad():
            logits = self.model(**given, use_cache=False).logits[:, begin.shape[1] - 1 : -1].float()
        processors = self._processors(Toward(new, toward), options)
        sums = torch.zeros(len(rows))
        for step, log_probs in enumerate(logits.log_softmax(-1).unbind(1)):
            scores = processors(torch.cat([begin, new[:, :step]], 1), log_probs)
            chosen = scores.gather(1, new[:, step : step + 1])[:, 0]
            sums += torch.where(torch.tensor([step < len(row) for row in rows]), chosen, 0.0)
        return [
            float(total) / max(1, len(row)) ** length_penalty for total, row in zip(sums, rows, strict=True)
        ]

    def bound(self) -> float:
        """Returns how far log-probabilities may be apart: twice the tolerance of the logits (law 4)."""
        ids = torch.tensor(self.inputs)
        begin = {"decoder_input_ids": ids[:, :1] * 0} if self.model.config.is_encoder_decoder else {}
        with torch.no_grad():
            return 2 * tolerance(self.model(ids, **begin).logits.float().numpy())

    def hold(self, got: Found, what: str, **options: Any) -> None:
        """Holds a search's ids and scores against the reference's (law 5)."""
        want = self.search(**options)
        assert len(got.ids) == len(want.ids), f"{what}: {len(got.ids)} rows instead of {len(want.ids)}"
        near, copies = Near(self.bound(), options), len(want.ids) // len(self.inputs)
        rows = [range(first, first + copies) for first in range(0, len(want.ids), copies)]
        parted = {at for at, own in enumerate(rows) if not near.same(got, want, own)}
        TALLY.choices += sum(
            len(want.ids[row]) for at, own in enumerate(rows) if at not in parted for row in own
        )
        if not parted:
            return
        true = self._hold_scores(got, [row for at in sorted(parted) for row in rows[at]], near, what, options)

        def as_good(own: range) -> bool:
            good = (near.score(true[row], want.scores[row], len(got.ids[row])) for row in own)
            return all(good)

        still = {at for at in parted - want.drawn_from_nothing if not as_good(rows[at])}
        # A seed's draws stay the same, so that a shaken run differs by its scores alone.
        for part, seed in itertools.product(SHAKEN_BY, range(SHAKES)):
            if not still:
                break
            shaken = self.search(shake=Shake(part * near.bound, seed), **options)
            still = {at for at in still if not near.same(got, shaken, rows[at], 2.0)}
        assert not still, f"{what}, sources {sorted(still)}: {got} instead of {want}"
        for row in (row for at in sorted(parted) for row in rows[at]):
            TALLY.choices += 1
            ours, theirs = (f"{one.ids[row]} of {one.scores[row]}" for one in (got, want))
            TALLY.excused.append(f"{what}, row {row}: {ours} / {theirs}")

    def _hold_scores(
        self, got: Found, rows: list[int], near: Near, what: str, options: dict[str, Any]
    ) -> list[float]:
        """Holds the scores of `rows` against those that the reference gives to their ids, and returns these."""
        true = self.scores_of(got.ids, **options)
        lifted = self.scores_of(got.ids, toward=near.bound, **options)
        for row in rows:
            length = len(got.ids[row])
            fits = got.scores[row] < NOTHING or near.score(got.scores[row], true[row], length)
            # Where a filter hangs on less than the tolerance, the ids pass when lifted, and score higher by as much.
            if true[row] == -math.inf:
                fits |= near.score(got.scores[row], lifted[row], length, 2.0)
            assert fits, (
                f"{what}, row {row}: {got}, but the reference scores these ids {true[row]}, lifted {lifted[row]}"
            )
        return true


class Near:
    """How far scores of one search by `options` may be apart, when log-probabilities may be by `bound`."""

    def __init__(self, bound: float, options: dict[str, Any]) -> None:
        self.bound, self.penalty = bound, options.get("length_penalty", 1.0)

    def score(self, score: float, expected: float, length: int, times: float = 1.0) -> bool:
        """Says whether scores of so many tokens are as near; places that nothing reached have none."""
        if expected < NOTHING or score < NOTHING:
            return expected < NOTHING and score < NOTHING
        return bool(abs(score - expected) <= times * self.bound * max(1, length) ** (1 - self.penalty))

    def same(self, got: Found, want: Found, rows: range, times: float = 1.0) -> bool:
        """Says whether two searches have the same ids in `rows`, with scores as near."""
        return all(
            (want.scores[row] < NOTHING or got.ids[row] == want.ids[row])
            and self.score(got.scores[row], want.scores[row], len(got.ids[row]), times)
            for row in rows
        )
