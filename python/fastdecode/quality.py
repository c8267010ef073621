"""What types of weights make of a model: each is held against float32 on the same texts, window by window.

Types are the outer loop and windows the inner one, so that two models are loaded at a time and a few rows of logits are
alive. The float32 model reads every window once per type for that: to keep its logits takes 200 kB for each token of
GPT-2, and to read a window with all types at once takes the memory of all of them. Nothing here knows which types
there are; `load` does.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from .accepted import of_load, same_types
from .arrays import bad_option, brief, is_one, whole
from .errors import ModelNotFoundError, ScoresError
from .folder import NO_DEFAULTS, bad_field
from .load_options import LOADING, Dtype, DtypeName, as_int4_group
from .quality_logits import Passage, hold_against
from .results import Quality, QualityReport, dtype_name
from .scoring import window_items

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from .scoring import Item, ScoringLM

    # A type as `load` takes it, checked: a name, or names by part.
    AnyDtype = str | Mapping[str, str]

# Decode that is timed: tokens of the prompt, new tokens, repetitions of which the median counts.
PROMPT, NEW, ROUNDS = 32, 64, 3
# Types that are compared only where they are asked for, or where the model is of them: the reference, what stands for
# the file's own type, and what is as large as bfloat16.
_NOT_BY_DEFAULT = ("auto", "float32", "float16")
# Of these, what a GPU runs.
_ON_GPU = ("bfloat16",)
# Arguments of loading that bound what calls share. The models here have one sequence at a time, and no text.
_OF_CALLS = ("cache_bytes", "max_rows", "prefix_cache_bytes", "tokenizer", "compute_dtype")
# What the folder must still say of a model.
_SAME = (
    "architecture",
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


class Passages(NamedTuple):
    """What is read, as often as it is asked for, and how many target tokens it has."""

    each: Callable[[], Iterator[Passage]]
    tokens: int


def measure(
    model: ScoringLM,
    texts: object,
    *,
    dtypes: object,
    int4_group: object,
    stride: int | None,
    window: int | None,
    limit: int | None,
    progress: bool | None,
) -> QualityReport:
    """The report of `ScoringLM.quality`; its arguments are checked here."""
    if progress is not None and not isinstance(progress, bool):
        raise bad_option("progress", "True, False or None", brief(progress))
    own = _own_dtypes(model, by_default=dtypes is None)
    asked = _asked(dtypes, own[0], on_cpu=model.info()["device"] == "cpu")
    group = _asked_group(model, int4_group, asked)
    others = [dtype for dtype in asked if dtype != "float32"]
    if model.has_encoder:
        for name, value in (("stride", stride), ("window", window)):
            if value is not None:
                expected = "None in a model with an encoder, whose targets are read whole"
                raise bad_option(name, expected, brief(value))
        passages = _of_pairs(model, texts, limit)
    else:
        passages = _of_texts(model, texts, 512 if stride is None else stride, window, limit)

    def of_dtype(dtype: AnyDtype) -> ScoringLM:
        is_own = any(same_types(dtype, known) for known in own)
        if is_own and (not _has_int4(dtype) or group == _own_group(model)):
            return model
        other = _loaded(model, dtype, group)
        return model if _digest(other) == _digest(model) else other

    reference = of_dtype("float32")
    # What loads that are equal come to is measured once: the types by what they have loaded, and its rows.
    loads: list[tuple[AnyDtype, int]] = []
    found: dict[int, Quality] = {}
    base: Sums | None = None
    rates: list[float] = []
    with Progress(progress, passages.tokens, len(others) or 1) as shown:

        def compare(dtype: AnyDtype, other: ScoringLM) -> tuple[Sums, Quality]:
            shown.begin(dtype_name(dtype))
            base, sums = _compare(reference, other, passages, dtype, shown)
            rate: list[float] = []
            first = next(passages.each()).item
            for _ in range(ROUNDS):
                # By turns: what the machine is at meanwhile slows both.
                rates.append(_decode_rate(reference, first, "float32"))
                if other is not reference:
                    rate.append(_decode_rate(other, first, dtype))
            return base, sums.row(dtype, other, rate or rates)

        for dtype in others:
            # The model of the type before has gone when the next one is loaded.
            other = of_dtype(dtype)
            digest = _digest(other)
            loads.append((dtype, digest))
            if digest in found or digest == _digest(reference):
                shown.skip()
            else:
                base, found[digest] = compare(dtype, other)
            del other
        if base is None:
            base, _ = compare("float32", reference)
    exact = base.row("float32", reference, rates)
    found[_digest(reference)] = exact
    rows = (
        dataclasses.replace(
            found[digest], dtype=cast("Dtype", dtype), int4_group=group if _has_int4(dtype) else None
        )
        for dtype, digest in loads
    )
    return QualityReport("loss" if model.has_encoder else "perplexity", (exact, *rows))


def _names() -> list[str]:
    """Names of types that `load` takes."""
    return list(get_args(DtypeName))


def _options(model: ScoringLM) -> dict[str, Any]:
    """What the model was loaded with."""
    if model._source is None:
        expected = "a model of a folder or the hub, which is loaded again as float32"
        raise bad_option("model", expected, "one built by from_tensors (save it to a folder and load that)")
    return model._source[1]


def _own_dtypes(model: ScoringLM, *, by_default: bool) -> tuple[AnyDtype, ...]:
    """The type that the model was loaded as, behind another name for that.

    What "auto" has made of a file may be what the type of its matrices makes of it. It is not where something is kept
    more exactly: values beside the matrices, or a matrix that the type would serve badly.

    Args:
        model: The model.
        by_default: Whether a name is worth a load. A report that names its types by itself is to say what the type is.
    """
    own: AnyDtype = _options(model).get("dtype", "auto")
    found: str = model.info()["dtype"]
    if own != "auto" or found not in _names():
        return (own,)
    # What float32 rounds, it keeps.
    same = found == "float32"
    if by_default and not same:
        same = _digest(_loaded(model, found, _own_group(model))) == _digest(model)
    return (found, own) if same else (own,)


def _digest(model: ScoringLM) -> int:
    """What models of one folder have in common where all weights are the same, whatever type was asked for."""
    return model._core.weights_digest


def _has_int4(dtype: AnyDtype) -> bool:
    return "int4" in ([dtype] if isinstance(dtype, str) else dtype.values())


def _own_group(model: ScoringLM) -> int:
    """Inputs of a group of int4, as the model was loaded."""
    group: int = _options(model).get("int4_group", 64)
    return group


def _asked_group(model: ScoringLM, group: object, asked: list[AnyDtype]) -> int:
    """Inputs of a group of int4 in a report, checked."""
    if group is None:
        return _own_group(model)
    if not any(map(_has_int4, asked)):
        raise bad_option("int4_group", 'None where no dtype has "int4"', brief(group))
    return as_int4_group(group)


def _asked(dtypes: object, own: AnyDtype, *, on_cpu: bool) -> list[AnyDtype]:
    """The types of a report, checked."""
    if dtypes is None:
        rest = [name for name in _names() if name not in _NOT_BY_DEFAULT and name != own]
        rest = rest if on_cpu else [name for name in rest if name in _ON_GPU]
        return [own, *rest]
    expected = "a list of types as load takes them, each once"
    if isinstance(dtypes, (str, Mapping)):
        dtypes = [dtypes]
    if not isinstance(dtypes, Iterable):
        raise bad_option("dtypes", expected, brief(dtypes))
    asked: list[AnyDtype] = [of_load({"dtype": dtype}, LOADING)["dtype"] for dtype in dtypes]
    if not asked:
        raise bad_option("dtypes", f"{expected}, at least one", "none")
    for place, dtype in enumerate(asked):
        if any(same_types(dtype, other) for other in asked[:place]):
            raise bad_option("dtypes", expected, f"{dtype_name(dtype)} more than once")
    return asked


def _of_texts(
    model: ScoringLM,
    texts: Any,  # noqa: ANN401 (checked here)
    stride: int,
    window: int | None,
    limit: int | None,
) -> Passages:
    """The windows of texts."""
    causal: Any = model
    stride, size = whole(stride, "stride", 1), causal._window(window)
    left = None if limit is None else whole(limit, "limit", 2)
    every: list[list[int]] = []
    for text in [texts] if is_one(texts, "texts") else texts:
        ids = model._encode_text(text, "texts")
        if len(ids) < 2:
            expected = "at least two tokens in each text (the first has nothing before it)"
            raise bad_option("texts", expected, f"{len(ids)} tokens in text {len(every)}")
        every.append(ids[:left])
        if left is not None:
            left -= len(every[-1])
            if left < 2:
                break
    if not every:
        raise bad_option("texts", "a text or a list of texts, at least one", "none")

    def each() -> Iterator[Passage]:
        for place, ids in enumerate(every):
            for item, weight in window_items(ids, size, stride):
                yield Passage(place, item, weight)

    return Passages(each, sum(len(passage.item.targets) for passage in each()))


def _of_pairs(model: ScoringLM, pairs: object, limit: int | None) -> Passages:
    """Pairs of a source and a target."""
    expected = "a list of pairs (source, target)"
    if isinstance(pairs, (str, Mapping)) or not isinstance(pairs, Iterable):
        raise bad_option("texts", expected, brief(pairs))
    left = None if limit is None else whole(limit, "limit", 1)
    seq2seq: Any = model
    every: list[Passage] = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise bad_option("texts", expected, f"{brief(pair)} among them")
        source, target = pair
        item = seq2seq._labelled(model._source_ids(source), target)
        every.append(Passage(len(every), item, sum(label is not None for label in item.targets)))
        if left is not None:
            left -= every[-1].weight
            if left < 1:
                break
    if not every:
        raise bad_option("texts", f"{expected}, at least one", "none")
    return Passages(lambda: iter(every), sum(passage.weight for passage in every))


def _loaded(model: ScoringLM, dtype: AnyDtype, group: int) -> ScoringLM:
    """The model's folder, loaded again as a type, with so many inputs in a group of int4."""
    assert model._source is not None
    name, kept = model._source
    options = {key: value for key, value in kept.items() if key not in _OF_CALLS}
    options |= {"dtype": dtype, "int4_group": group if _has_int4(dtype) else 64}
    try:
        # Where "auto" was asked for, every type is to run where the model does.
        other = type(model).load(name, **{**options, "device": model.info()["device"]})
    except ModelNotFoundError as error:
        message = f"the model's folder is loaded again as {dtype_name(dtype)}: {error}"
        raise ModelNotFoundError(message, model=error.model, expected=error.expected, got=error.got) from None
    had, has = model.info(), other.info()
    for field in _SAME:
        if had[field] != has[field]:
            expected = f"{had[field]}, as when the model was loaded"
            raise bad_field(name, field, expected, f"{has[field]} (load the model again)")
    return other


class Sums:
    """What a type has come to so far."""

    def __init__(self) -> None:
        self._loss, self._weight = 0.0, 0
        self._kl, self._agreed, self._tokens = 0.0, 0, 0

    def add(self, losses: list[float], divergences: list[float], agreed: int, weight: int) -> None:
        """Adds a passage, by the losses and divergences of its target tokens."""
        self._loss += math.fsum(losses) / len(losses) * weight
        self._weight += weight
        self._kl += math.fsum(divergences)
        self._agreed += agreed
        self._tokens += len(losses)

    def row(self, dtype: AnyDtype, model: ScoringLM, rates: list[float]) -> Quality:
        """The row of a report, which does not say how many inputs are in a group of int4."""
        info = model.info()
        loss = self._loss / self._weight
        return Quality(
            dtype=cast("Dtype", dtype),
            compute_dtype=info["compute_dtype"],
            loss=loss,
            # Beyond that, no float holds the exponential.
            perplexity=math.exp(loss) if loss < 709 else math.inf,
            kl=self._kl / self._tokens,
            agreement=self._agreed / self._tokens,
            tokens=self._tokens,
            weight_bytes=info["weight_bytes"],
            step_weight_bytes=info["step_weight_bytes"],
            tokens_per_second=statistics.median(rates),
        )


def _compare(
    reference: ScoringLM, other: ScoringLM, passages: Passages, dtype: AnyDtype, shown: Progress
) -> tuple[Sums, Sums]:
    """Reads all passages with both models; what the reference comes to, and the other one."""
    base, sums = Sums(), Sums()
    for passage in passages.each():
        found = hold_against(reference, other, passage, ("float32", dtype_name(dtype)))
        counted = len(found.ours)
        base.add(found.ours, [0.0] * counted, counted, passage.weight)
        sums.add(found.theirs, found.divergences, found.agreed, passage.weight)
        shown.add(counted)
    return base, sums


def _decode_rate(model: ScoringLM, item: Item, dtype: AnyDtype) -> float:
    """New tokens per second behind the first one, of one greedy sequence that begins as an item does.

    What the folder asks for (beams, penalties, draws) does not count: all types are to do the same.
    """
    from .decoding import Decoding
    from .options import resolve

    context = model._core.context_limit
    begin = item.ids[: PROMPT if context is None else max(1, min(PROMPT, context // 2))]
    new = NEW if context is None else min(NEW, context - len(begin))
    if new < 2:
        return 0.0
    call = {"do_sample": False, "eos_token_id": None, "max_new_tokens": new}
    prompts = model._core.prompts()
    prompts.push(begin, item.source)
    options = resolve(call, NO_DEFAULTS, 1, context)
    try:
        [output] = Decoding(model._core, prompts, options, None, 0.0).outputs()
    except ScoresError as error:
        got = f"{error.got} with dtype={dtype_name(dtype)}"
        raise ScoresError(f"{error} ({got})", row=error.row, expected=error.expected, got=got) from None
    return output.timings.tokens_per_second


class Progress:
    """How far a report is, on stderr: one line that changes on a terminal, a line for each tenth elsewhere.

    Args:
        asked: Whether it is shown; None where stderr is a terminal.
        tokens: Target tokens that are read with every type.
        passes: How many types there are.
    """

    def __init__(self, asked: bool | None, tokens: int, passes: int) -> None:  # noqa: FBT001 (as `quality` takes it)
        # A program without a console has no stderr.
        stream = cast("Any", sys.stderr)
        self._terminal = stream is not None and stream.isatty()
        shown = self._terminal if asked is None else asked
        self._stream = stream if shown else None
        self._tokens, self._passes = tokens, passes
        self._name, self._pass, self._done, self._tenth = "", 0, 0, -1

    def begin(self, name: str) -> None:
        """A type is begun."""
        self._name, self._done, self._tenth = name, 0, -1
        # Where all types are skipped, the reference is read alone.
        self._pass = min(self._pass + 1, self._passes)
        self.add(0)

    def skip(self) -> None:
        """A type need not be read."""
        self._pass += 1

    def add(self, tokens: int) -> None:
        """So many more target tokens have been read."""
        self._done += tokens
        tenth = 10 * self._done // self._tokens
        if self._stream is None or (not self._terminal and tenth == self._tenth):
            return
        self._tenth = tenth
        line = f"quality: {self._name} ({self._pass} of {self._passes}): "
        line += f"{self._done:,} of {self._tokens:,} tokens"
        # On a terminal the line is written over, up to its end.
        self._stream.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None and self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
