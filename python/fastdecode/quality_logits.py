"""The logits of two models on one text, held against each other: losses, divergences, agreement of the best tokens.

A few rows are alive at a time, and are reduced to their numbers in double precision. Nothing here knows what the models
are beside each other for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .arrays import as_floats
from .errors import ScoresError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from .scoring import Item, ScoringLM

# Bytes of float32 logits of each model that are asked for at once, unless one row has more. The native side holds twice
# as many while it hands them over.
LOGITS_BYTES = 16 << 20
# Bytes of a block of them in double precision: a few blocks stay in a core's cache.
BLOCK_BYTES = 1 << 20


class Passage(NamedTuple):
    """What is read at once.

    Attributes:
        text: The place of its text or pair among all.
        item: What is read, and the tokens that are held against it.
        weight: How much its mean loss counts.
    """

    text: int
    item: Item
    weight: int


class Held(NamedTuple):
    """What a passage comes to: losses and divergences of its target tokens, and at how many the best tokens agree.

    Attributes:
        ours: Losses with the reference.
        theirs: Losses with the other model.
        divergences: KL(reference || other).
        agreed: At how many both have the same best token.
    """

    ours: list[float]
    theirs: list[float]
    divergences: list[float]
    agreed: int


def hold_against(reference: ScoringLM, other: ScoringLM, passage: Passage, names: tuple[str, str]) -> Held:
    """Reads a passage with two models, which may be one.

    Args:
        reference: The model that the other one is held against.
        other: The other one, of the same vocabulary.
        passage: What is read.
        names: What the two are called in an error.

    Raises:
        ScoresError: Logits are not finite.
    """
    parts = []
    for part in _slices(reference, other, passage.item):
        for name, logits in zip(names, (part.ours, part.theirs), strict=True):
            _check_finite(logits, name, passage.text, part.first)
        parts.append(_held(part))
        # The next rows are computed when these have gone.
        del part, logits
    return Held(
        [loss for found in parts for loss in found.ours],
        [loss for found in parts for loss in found.theirs],
        [divergence for found in parts for divergence in found.divergences],
        sum(found.agreed for found in parts),
    )


class Slice(NamedTuple):
    """Some rows of logits of two models, float32 of shape `(R, V)`, with the tokens that follow them.

    Attributes:
        first: The place of the first row in what is read.
        ours: Those of the reference.
        theirs: Those of the other model.
        targets: Token ids; None where nothing is held against a row.
    """

    first: int
    ours: NDArray[np.float32]
    theirs: NDArray[np.float32]
    targets: Sequence[int | None]


def _slices(reference: ScoringLM, other: ScoringLM, item: Item) -> Iterator[Slice]:
    """The rows of an item whose targets count, as many at a time as may be alive."""
    rows = max(1, LOGITS_BYTES // (4 * reference._core.vocab_size))
    models = [reference] if other is reference else [reference, other]
    states = [model._core.start(item.length, item.source) for model in models]
    before = len(item.ids) - len(item.targets)
    for state in states:
        if before:
            state.append(item.ids[:before], "last", item.length)
    for first in range(before, len(item.ids), rows):
        ids = item.ids[first : first + rows]
        found = [as_floats(state.append(ids, "every", item.length), len(ids)) for state in states]
        yield Slice(first, found[0], found[-1], item.targets[first - before : first - before + rows])
        del found


def _check_finite(logits: NDArray[np.float32], name: str, text: int, first: int) -> None:
    import numpy as np

    # A row at a time: a mask of all of them would be a quarter as large as the logits.
    for row, values in enumerate(logits):
        if not np.isfinite(values).all():
            wrong = values[~np.isfinite(values)][0]
            expected = "finite scores"
            got = f"{wrong} with dtype={name} behind token {first + row} of text {text}"
            message = f"scores of sequence {text}: expected {expected}, got {got}"
            raise ScoresError(message, row=text, expected=expected, got=got)


def _held(part: Slice) -> Held:
    """What some rows come to, a few at a time in double precision."""
    import numpy as np

    counted = [row for row, target in enumerate(part.targets) if target is not None]
    ours, theirs, divergences = [], [], []
    agreed = 0
    several = max(1, BLOCK_BYTES // (8 * part.ours.shape[1]))
    for begin in range(0, len(counted), several):
        rows = counted[begin : begin + several]
        places = np.arange(len(rows)), np.asarray([part.targets[row] for row in rows])
        a, b = part.ours[rows], part.theirs[rows]
        agreed += int((a.argmax(-1) == b.argmax(-1)).sum())
        p, log_p = _softmax(a)
        _, log_q = _softmax(b)
        ours.append(-log_p[places])
        theirs.append(-log_q[places])
        log_p -= log_q
        p *= log_p
        # A divergence is never below 0; a rounded sum may be.
        divergences.append(np.maximum(p.sum(-1), 0.0))
    return Held(_flat(ours), _flat(theirs), _flat(divergences), agreed)


def _flat(arrays: list[NDArray[np.float64]]) -> list[float]:
    return [value for array in arrays for value in array.tolist()]


def _softmax(logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of each row, and their logarithms."""
    import numpy as np

    logs = logits.astype(np.float64)
    logs -= logs.max(-1, keepdims=True)
    p = np.exp(logs)
    total = p.sum(-1, keepdims=True)
    p /= total
    logs -= np.log(total)
    return p, logs
