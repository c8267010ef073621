"""`Profile`: where the time of a model's calls goes, by kind of phase, beside what the machine can do at most.

The native module counts; here are rates, shares and the table, and what `FASTDECODE_PROFILE` shows when a process ends.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from . import _core
from .arrays import bad_option, brief
from .errors import FastdecodeError, FastdecodeWarning
from .model import LanguageModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

# What is counted of a line, in the native module's order; behind these are operations by the numbers they multiply.
_CALLS, _ROWS, _NANOS, _BYTES, _FLOPS = range(5)
# The names of these numbers, and what limits say of the peak of each.
_PEAKS = {
    "float32": "f32_flops_per_second",
    "bfloat16": "bf16_dot_flops_per_second",
    "int8": "int8_ops_per_second",
}
_NOTHING = (0,) * (_FLOPS + len(_PEAKS))
# Most bytes of the buffer that reading is measured on: more than caches hold, and no second copy of a large model.
_MOST_READ = 1 << 30

_STEPS = {
    "source": "sources: steps of the encoder",
    "prompt": "prompts: steps with more rows than sequences",
    "decode": "decode: steps with one row of every sequence",
}


class ProfileLine(NamedTuple):
    """Phases of one kind, at one place of the model, in steps of one kind.

    Attributes:
        steps: "source" (an encoder's), "prompt" (of a decoder, with more than one row of a sequence), "decode" (one row
            of every sequence), or "" for what is no part of a step.
        kind: "embedding", "attention product", "attention", "feed-forward", "norm", "keep" (of a source, for the
            decoder) or "head"; "rest" for what steps do beside their phases; "choosing" for everything from logits
            to tokens; "outside" for what is left: Python, tokenizers, waiting.
        place: The modules in any layer, such as `h.*.mlp.c_fc`; "" where there are none.
        calls: Phases; of "rest" steps, of "choosing" how often.
        rows: Rows that were computed, all together.
        seconds: Time, of phases until the slowest thread was done.
        share: The part of the profile's time; those of all lines have the sum 1.
        bytes: Bytes of matrices, each counted once per step, and of keys and values that were attended to.
        bytes_per_second: None without time.
        share_of_bandwidth: The same as a part of what the machine reads; None without time or without limits.
        flops: Floating-point operations of products and attention.
        flops_per_second: None without time.
        share_of_peak: The part of `seconds` that they would take at the machine's peak, each at that of the numbers
            it multiplies: float32, bfloat16 (by its dot) or integers; None as above.
    """

    steps: Literal["source", "prompt", "decode", ""]
    kind: str
    place: str
    calls: int
    rows: int
    seconds: float
    share: float
    bytes: int
    bytes_per_second: float | None
    share_of_bandwidth: float | None
    flops: int
    flops_per_second: float | None
    share_of_peak: float | None


class Profile:
    """Where the time of a model's calls goes.

    Counted is everything that the model computes within the `with` block, whichever thread or call it is for; one that
    is entered again goes on. Profiles of a model may overlap. A forked child has counts of its own, from its first
    step on. Results are the same bits as without a profile, and traces are not counted.

    Args:
        model: A loaded model of any kind.

    Raises:
        OptionError: It is something else, or on a GPU.

    Example:
        >>> with fastdecode.Profile(model) as profile:
        ...     text = model.generate("Once upon a time", max_new_tokens=8)
        >>> sum(line.calls for line in profile.lines() if line.kind == "head")
        8
    """

    def __init__(self, model: LanguageModel) -> None:
        if not isinstance(model, LanguageModel):
            raise bad_option("model", "a model that fastdecode.load gives", brief(model))
        info = model.info()
        if info["device"] != "cpu":
            # What a GPU does meanwhile, the host does not see: there would be no line to show.
            expected = 'a model on the CPU, where phases are timed; load it with device="cpu"'
            raise bad_option("model", expected, f"one on {info['device']}")
        self._name = str(info["architecture"] if model._source is None else model._source[0])
        self._about = {name: info[name] for name in ("dtype", "compute_dtype", "isa", "num_threads")}
        self._read_bytes = min(info["weight_bytes"], _MOST_READ)
        # It holds counts and no weights, and so does a profile.
        self._core = model._core.profile()
        self._names = self._core.lines()
        self._process = _core.process_number()
        self._before: list[tuple[int, ...]] | None = None
        self._kept = self._none()
        self._limits: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        if self._before is not None:
            raise bad_option(
                "profile", "one that is not in use (Profile(model) makes another)", "one that is"
            )
        self._kept = self._counts()
        self._core.start()
        self._before = list(self._core.counts())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept, self._before = self._counts(), None
        self._core.stop()

    def __repr__(self) -> str:
        return f"Profile({self._name})"

    def __str__(self) -> str:
        return table(self)

    @property
    def limits(self) -> Mapping[str, Any] | None:
        """What the machine can do at most with the model's threads; None where the memory to measure it is refused.

        It is measured when it is first asked for, which takes about half a second: bytes per second that are read of
        as much memory as the weights take (1 GiB at most), and floating-point operations per second.
        """
        if self._limits is None:
            try:
                self._limits = _core.measure_limits(self._read_bytes, self._about["num_threads"])
            except FastdecodeError:
                return None
        return self._limits

    def lines(self) -> list[ProfileLine]:
        """All lines in the order of the phases; the seconds of all have the sum of the profile's time.

        That is the time within its blocks. Where several threads step at once, which happens with `num_threads=1`
        alone, it is the sum of theirs, if that is more. Without steps there is "outside" alone.
        """
        return self._lines()[0]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, which JSON can hold.

        Returns:
            `name`, `dtype`, `compute_dtype`, `isa`, `num_threads`, `seconds` (of the profile), `limits` (or None),
            `steps` (what all lines of a kind of steps come to, with the steps as `calls`) and `lines`, each with
            the attributes of `ProfileLine`.
        """
        lines, sums = self._lines()
        return {
            "name": self._name,
            **self._about,
            "seconds": sum(line.seconds for line in lines),
            "limits": None if self._limits is None else dict(self._limits),
            "steps": {line.steps: line._asdict() for line in sums},
            "lines": [line._asdict() for line in lines],
        }

    def _lines(self) -> tuple[list[ProfileLine], list[ProfileLine]]:
        """All lines, and the sum of each kind of steps."""
        *counts, choosing, whole = self._counts()
        spent = sum(count[_NANOS] for count in counts) + choosing[_NANOS]
        outside = (0, 0, max(whole[_NANOS] - spent, 0), *_NOTHING[_BYTES:])
        nanos = max(spent + outside[_NANOS], 1)
        limits = self.limits if spent else None
        lines: list[ProfileLine] = []
        sums: dict[Any, tuple[int, ...]] = {}
        for (steps, kind, place), count in zip(self._names, counts, strict=True):
            if count[_CALLS]:
                lines.append(self._line(steps, kind or "rest", place, count, nanos, limits))
                known = sums.get(steps, _NOTHING)
                # Calls and rows of all are those of the steps, which the rest has.
                steps_too = count if not kind else (0, 0, *count[_NANOS:])
                sums[steps] = tuple(a + b for a, b in zip(known, steps_too, strict=True))
        if choosing[_CALLS]:
            lines.append(self._line("", "choosing", "", choosing, nanos, limits))
        lines.append(self._line("", "outside", "", outside, nanos, limits))
        return lines, [self._line(steps, "all", "", count, nanos, limits) for steps, count in sums.items()]

    def _none(self) -> list[tuple[int, ...]]:
        """Counts of nothing: of every line, of choosing tokens, of the time of everything."""
        return [_NOTHING] * (len(self._names) + 2)

    def _counts(self) -> list[tuple[int, ...]]:
        """What was counted in the blocks so far."""
        if self._process != (process := _core.process_number()):
            # A forked child, in which the parent's counts are not there.
            self._process, self._kept = process, self._none()
            self._before = None if self._before is None else self._none()
        if self._before is None:
            return self._kept
        now = self._core.counts()
        return [
            tuple(kept + new - old for kept, new, old in zip(*numbers, strict=True))
            for numbers in zip(self._kept, now, self._before, strict=True)
        ]

    def _line(
        self,
        steps: Literal["source", "prompt", "decode", ""],
        kind: str,
        place: str,
        count: tuple[int, ...],
        nanos: int,
        limits: Mapping[str, Any] | None,
    ) -> ProfileLine:
        calls, rows, own, size, *by_numbers = count
        flops = sum(by_numbers)
        seconds, share = own / 1e9, own / nanos
        rates = [None if own == 0 else amount / seconds for amount in (size, flops)]
        shares: list[float | None] = [None, None]
        if own and limits is not None:
            shares = [size / seconds / limits["read_bytes_per_second"], at_peak(by_numbers, limits) / seconds]
        return ProfileLine(
            steps,
            kind,
            place,
            calls,
            rows,
            seconds,
            share,
            size,
            rates[0],
            shares[0],
            flops,
            rates[1],
            shares[1],
        )


def at_peak(flops: Sequence[int], limits: Mapping[str, Any]) -> float:
    """Seconds that operations take where each is done at the peak of the numbers that it multiplies.

    Args:
        flops: Operations in float32, by the dot of bfloat16, and by that of integers.
        limits: What the machine can do at most.
    """
    names = _PEAKS.values()
    return math.fsum(count / limits[peak] for count, peak in zip(flops, names, strict=True) if count)


def peaks(flops: Sequence[int], limits: Mapping[str, Any]) -> str:
    """The peaks of the numbers that such operations multiply, as text."""
    shown = [
        f"{limits[peak] / 1e9:,.1f} GFLOP/s in {name}"
        for count, (name, peak) in zip(flops, _PEAKS.items(), strict=True)
        if count
    ]
    return ", ".join(shown)


def table(profile: Profile) -> str:
    """A profile as lines of text."""
    lines, sums = profile._lines()
    about = profile._about
    seconds = sum(line.seconds for line in lines)
    title = (
        f"profile of {profile._name}: {seconds:.3f} s; {about['dtype']}, products in {about['compute_dtype']}, "
        f"{about['isa']}, {about['num_threads']} threads"
    )
    limits = profile._limits
    if limits is not None:
        flops = [sum(counts) for counts in zip(*profile._counts(), strict=True)][_FLOPS:]
        title += f"; this machine at most {limits['read_bytes_per_second'] / 1e9:,.1f} GB/s, {peaks(flops, limits)}"
    rows: list[tuple[str, ...]] = [
        ("", "", "calls", "seconds", "share", "GB", "GB/s", "of limit", "GFLOP", "GFLOP/s", "of peak")
    ]
    for whole in sums:
        rows.append((f"{_STEPS[whole.steps]} ({whole.rows:,} rows)",))
        rows.extend(_cells(line) for line in lines if line.steps == whole.steps)
        rows.append(_cells(whole))
    rows.append(("beside the steps",))
    rows.extend(_cells(line) for line in lines if not line.steps)
    rows.append(("whole", "", "", f"{seconds:.4f}", "100.0%"))
    cells = [row for row in rows if len(row) > 1]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(len(rows[0]))]
    shown = [title]
    for row in rows:
        if len(row) == 1:
            shown.append(row[0])
            continue
        words = [cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        shown.append(("  " + "  ".join(words)).rstrip())
    return "\n".join(shown)


def _cells(line: ProfileLine) -> tuple[str, ...]:
    def rates(amount: int, rate: float | None, share: float | None) -> tuple[str, str, str]:
        if not amount:
            return "", "", ""
        return (
            f"{amount / 1e9:,.3f}",
            "" if rate is None else f"{rate / 1e9:,.1f}",
            "" if share is None else f"{share:.0%}",
        )

    return (
        line.kind,
        line.place,
        f"{line.calls:,}" if line.calls else "",
        f"{line.seconds:.4f}",
        f"{line.share:.1%}",
        *rates(line.bytes, line.bytes_per_second, line.share_of_bandwidth),
        *rates(line.flops, line.flops_per_second, line.share_of_peak),
    )


# Profiles of this process's models, to be shown at its end.
_AT_EXIT: list[Profile] = []
_registered = False


def show_at_exit(model: LanguageModel) -> None:
    """Profiles a model from now on, and shows the table on stderr when the process ends; its forked children do too."""
    global _registered
    if (device := model.info()["device"]) != "cpu":
        message = (
            f'FASTDECODE_PROFILE: a model on {device} is not profiled: expected one on the CPU (device="cpu")'
        )
        warnings.warn(message, FastdecodeWarning, stacklevel=5)
        return
    if not _registered:
        import atexit
        import multiprocessing.util as processes

        # A child of multiprocessing ends without `atexit`, and has finalizers of its own only.
        def in_a_child(_: object = None) -> None:
            processes.Finalize(None, _show, exitpriority=0)

        atexit.register(_show)
        in_a_child()
        processes.register_after_fork(_show, in_a_child)
        _registered = True
    profile = Profile(model)
    profile.__enter__()
    _AT_EXIT.append(profile)


def _show() -> None:
    while _AT_EXIT:
        profile = _AT_EXIT.pop(0)
        # A process that computed nothing with a model, such as a server's parent, says nothing of it.
        if sys.stderr is None or not any(count[_CALLS] for count in profile._counts()):
            continue
        try:
            print(f"process {os.getpid()}, {profile}", file=sys.stderr, flush=True)
        except (OSError, ValueError):
            return
