"""How probable given tokens are: pairs and labels on their way to the native module, and its numbers back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .arrays import as_ids, bad_option, brief, is_empty, is_one
from .model import LanguageModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from . import _core
    from .arrays import Prompt
    from .load_options import Dtype, Int4Group
    from .memory import Memory
    from .prefix import Prefix
    from .results import QualityReport, Score

# Among labels, the place of a token that does not count (torch's ignore_index).
IGNORED = -100

# Tokens of windows that are handed over at once: a long text is not held twice.
ROUND = 1 << 16


class Item(NamedTuple):
    """A sequence of which some tokens are scored.

    Attributes:
        ids: What is read.
        targets: The tokens that are scored, one behind each of the last ids; None where none is.
        length: Tokens of the whole sequence, of which the last one is not read where it is only a target.
        source: Of a model with an encoder.
    """

    ids: list[int]
    targets: Sequence[int | None]
    length: int
    source: list[int] | _core.Memory | None = None


class ScoringLM(LanguageModel):
    """A model that says how probable given texts are."""

    def score(
        self, pairs: Iterable[tuple[Prompt | Memory, Prompt]], *, prefix: Prefix | None = None
    ) -> list[Score]:
        """How probable continuations are behind their prompts, all tokens of each from one pass.

        What prompts begin with in common is read once, and a source that several pairs have is encoded once. Each
        pair gives the same bits as alone.

        Args:
            pairs: Prompts with their continuations, strings or token ids each. Of two strings, spaces that the prompt
                ends with belong to the continuation; prompt and continuation are tokenized as one text, and the ids
                behind those of the prompt alone are the continuation's. Ids are joined, and a text beside ids is
                tokenized by itself. An empty prompt stands for the model's bos token. In a model with an encoder the
                prompt is the source (or a `Memory`) and the continuation the target, of which texts get the
                tokenizer's end token.
            prefix: What every prompt stands behind, read by `CausalLM.prefix`; its tokens are not read again.

        Returns:
            One `Score` for each pair.

        Raises:
            OptionError: A prompt or continuation cannot be used, or a continuation has no token.
            ContextLengthError: A pair is longer than the model's context.
            TokenizerMissing: Text is given and the model has no tokenizer.

        Example:
            >>> pairs = [("Good day", " to you"), ("Good day", " to the wolf")]
            >>> scores = model.score(pairs)
            >>> [score.logprob < 0 and len(score.token_ids) > 0 for score in scores]
            [True, True]
            >>> scores[1] == model.score(pairs[1:])[0]
            True
        """
        import numpy as np

        from .results import Score

        known = self._own_prefix(prefix)
        checked = map(_checked_pair, _listed(pairs))
        items = [
            self._pair(prompt if known is None else known.joined(prompt), rest) for prompt, rest in checked
        ]
        found = self._core.score(items, None if known is None else known.core)
        scores = []
        for item, (logprobs, is_greedy) in zip(items, found, strict=True):
            ids = [target for target in item.targets if target is not None]
            rounded: list[float] = np.asarray(logprobs, np.float32).tolist()
            scores.append(Score(math.fsum(logprobs), ids, rounded, is_greedy))
        return scores

    def rank(
        self,
        prompt: Prompt | Memory,
        choices: Iterable[Prompt],
        normalize: Literal["tokens"] | None = None,
    ) -> list[tuple[int, float]]:
        """Orders continuations of one prompt by how probable they are.

        Args:
            prompt: As in `score`.
            choices: Continuations, as in `score`.
            normalize: None for log-probabilities of whole continuations, "tokens" for those divided by their numbers
                of tokens.

        Returns:
            (index, score) of every choice, best first; the lower index first where scores are equal, and scores that
            are not numbers last.

        Raises:
            OptionError: As for `score`, and for another `normalize`.
            ContextLengthError: As for `score`.
            TokenizerMissing: As for `score`.

        Example:
            >>> ranked = model.rank("Good day", [" to you", " to the wolf", " to you"])
            >>> [index for index, _ in ranked].index(0) < [index for index, _ in ranked].index(2)
            True
        """
        if normalize is not None and (not isinstance(normalize, str) or normalize != "tokens"):
            raise bad_option("normalize", 'None or "tokens"', brief(normalize))
        listed = _listed(choices, "choices", "a list of continuations")
        scores = self.score([(prompt, choice) for choice in listed])
        values = [s.logprob if normalize is None else s.logprob / len(s.token_ids) for s in scores]
        order = sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), -values[i], i))
        return [(index, values[index]) for index in order]

    def quality(
        self,
        texts: Prompt | Iterable[Prompt] | Iterable[tuple[Prompt, Prompt]],
        *,
        dtypes: Dtype | Iterable[Dtype] | None = None,
        int4_group: Int4Group | None = None,
        stride: int | None = None,
        window: int | None = None,
        limit: int | None = None,
        progress: bool | None = None,
    ) -> QualityReport:
        """What types of weights make of this model, each held against float32 on the same texts.

        The model's folder is loaded again as float32, and then as one type after the other, with the same adapters
        and number of threads. Beside this model at most the float32 one and one other are in memory, and of logits
        16 MB of each (one row at least). Where this model is of a type that is asked for, it serves itself.
        Types that come to the same weights are measured once, and each has its row.

        Args:
            texts: A text (a string or token ids) or a list of them, which are read in windows as `CausalLM.perplexity`
                reads them. In a model with an encoder pairs of (source, target), as `Seq2SeqLM.loss` takes them.
            dtypes: Types as `load` takes them, each once; float32 is in the report in any case. None stands for the
                type of this model ("auto" by the name of the type that gives the same weights, where there is one),
                bfloat16, and every type of eight bits or fewer that `load` takes; where this model is on a GPU, all
                types run there, and it has no types of eight bits or fewer.
            int4_group: Inputs that share a scale in "int4", as in `load`; None as this model was loaded.
            stride: As in `CausalLM.perplexity`, 512 by default; None in a model with an encoder.
            window: As in `CausalLM.perplexity`; None in a model with an encoder.
            limit: Tokens of the texts that are read, from the first on, at least 2; the rest is left out. In a model
                with an encoder tokens of targets, at least 1, and the pair with the last of these is read whole.
            progress: Whether stderr tells how far it is; None where that is a terminal.

        Returns:
            A `QualityReport`, whose `str` is a table.

        Raises:
            OptionError: An argument cannot be used, a text has fewer than two tokens, or the model was built by
                `from_tensors`, so that there is nothing to load again.
            ModelNotFoundError: The folder that the model was loaded from is gone.
            ConfigError: The folder holds another model by now.
            ContextLengthError: The window is longer than the model's context.
            TokenizerMissing: Text is given and the model has no tokenizer.
            ScoresError: A model gives logits that are not finite; the message names its type.

        Example:
            >>> text = "Once upon a time there was a little girl. She lived in a house by the wood."
            >>> report = model.quality(text, dtypes=["bfloat16"])
            >>> [row.dtype for row in report.rows]
            ['float32', 'bfloat16']
            >>> report.rows[1].kl < 0.01 and report.rows[1].weight_bytes < report.rows[0].weight_bytes
            True
        """
        from .quality import measure

        return measure(
            self,
            texts,
            dtypes=dtypes,
            int4_group=int4_group,
            stride=stride,
            window=window,
            limit=limit,
            progress=progress,
        )

    def _losses(self, items: Sequence[Item]) -> list[float]:
        """Mean cross-entropies of items' targets."""
        return [-math.fsum(found) / len(found) for found, _ in self._core.score(items)]

    def _pair(self, prompt: Any, continuation: Any) -> Item:  # noqa: ANN401 (the class of the model says)
        """A prompt with a continuation whose tokens are all scored."""
        raise NotImplementedError


def moved_spaces(prompt: str, continuation: str) -> tuple[str, str]:
    """The same with the spaces that the prompt ends with in front of the continuation, as tokenizers split words."""
    kept = prompt.rstrip()
    return kept, prompt[len(kept) :] + continuation


def as_labels(labels: Any, vocab_size: int, option: str) -> list[int | None]:  # noqa: ANN401 (checked here)
    """Labels as ids, and None for those that do not count.

    Raises:
        OptionError: One of them is neither an id nor -100.
    """
    if isinstance(labels, str) or not (is_empty(labels) or is_one(labels, option)):
        raise bad_option(option, f"one list of token ids, or {IGNORED}", brief(labels))
    counts = [label != IGNORED for label in labels]
    known = iter(as_ids([label for label in labels if label != IGNORED], vocab_size, option))
    return [next(known) if count else None for count in counts]


def _listed(
    given: object, option: str = "pairs", expected: str = "a list of (prompt, continuation)"
) -> list[Any]:
    """A list that a caller gave in any form."""
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise bad_option(option, expected, brief(given))
    return list(given)


def _checked_pair(pair: Any) -> tuple[Any, Any]:  # noqa: ANN401 (checked here)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise bad_option("pairs", "a list of (prompt, continuation)", f"{brief(pair)} among them")
    return pair[0], pair[1]


class Window(NamedTuple):
    """Some tokens of a text that are read together, and how many of the last of them are held against the model."""

    begin: int
    end: int
    scored: int

    @property
    def labels(self) -> int:
        """Labels of the window, the one that the model's shift leaves out in the first window included."""
        return min(self.scored, self.end - self.begin)


def windows(count: int, size: int, stride: int) -> Iterator[Window]:
    """The windows of a text of so many tokens, without those of which nothing is counted."""
    before = 0
    for begin in range(0, count, stride):
        end = min(begin + size, count)
        window = Window(begin, end, end - before)
        if window.labels > 1:
            yield window
        before = end
        if end == count:
            return


def window_items(ids: list[int], size: int, stride: int) -> Iterator[tuple[Item, int]]:
    """The windows of a text as what is scored, each with the weight of its mean loss: its labels less one."""
    for window in windows(len(ids), size, stride):
        begin, end, scored = window
        targets = ids[max(begin + 1, end - scored) : end]
        yield Item(ids[begin : end - 1], targets, end - begin), window.labels - 1


def windowed_losses(
    ids: list[int], size: int, stride: int, losses: Callable[[list[Item]], list[float]]
) -> float:
    """Mean of the losses of a text's windows, each weighted by its labels less one."""
    total, weight = 0.0, 0
    several = max(1, ROUND // size)
    remaining = window_items(ids, size, stride)
    while batch := list(itertools.islice(remaining, several)):
        for (_, share), loss in zip(batch, losses([item for item, _ in batch]), strict=True):
            total += loss * share
            weight += share
    return total / weight
