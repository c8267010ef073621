"""A model under test, with the same verbs whether it has an encoder or not, so that a law is written once."""

from __future__ import annotations

from typing import Any

import numpy as np
from families import Input

Array = np.ndarray[Any, np.dtype[np.float32]]


class Subject:
    """A loaded model, asked by `Input`s.

    Args:
        model: A `CausalLM` or `Seq2SeqLM`. A source is encoded once, and what comes of it serves all later questions.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._memories: dict[tuple[int, ...], Any] = {}

    def memory(self, item: Input) -> Any:
        """The input's source, encoded alone."""
        assert item.source is not None, "a model with an encoder is given a source"
        key = tuple(item.source)
        if key not in self._memories:
            self._memories[key] = self.model.encode(item.source)
        return self._memories[key]

    def logits(self, item: Input) -> Array:
        """Logits after every token of the prompt."""
        first = (self.memory(item),) if self.model.has_encoder else ()
        logits: Array = self.model.logits(*first, item.prompt)
        return logits

    def answers(self, item: Input) -> dict[str, Array]:
        """All that is compared in numbers, by the names that the reference gives it."""
        hidden = {"hidden states": self.memory(item).hidden} if self.model.has_encoder else {}
        return hidden | {"logits": self.logits(item)}

    def prefill(self, item: Input, length: int | None = None) -> Any:
        """A state that has read so many tokens of the prompt, or all of them."""
        memory = {"memory": self.memory(item)} if self.model.has_encoder else {}
        return self.model.prefill(item.prompt[:length], **memory)

    def run(self, items: list[Input], **options: Any) -> list[Any]:
        """Generates from all inputs in one call."""
        prompts = [item.prompt for item in items]
        sources = [[item.source for item in items]] if self.model.has_encoder else []
        outputs: list[Any] = self.model.run(*sources, prompts, **options)
        return outputs

    def run_one(self, item: Input, **options: Any) -> Any:
        """Generates from one input alone."""
        sources = [item.source] if self.model.has_encoder else []
        return self.model.run(*sources, item.prompt, **options)


def same_answers(left: dict[str, Array], right: dict[str, Array]) -> bool:
    """Whether all numbers agree in every bit."""
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def same(left: Any, right: Any) -> bool:
    """Whether two outputs agree in ids and in every bit of every reported log-probability."""
    return list(left.token_ids) == list(right.token_ids) and left.logprobs == right.logprobs
