"""Requests of the soak test, with what comes of each alone, and how results are held against that."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

STORIES = [
    "Once upon a time",
    "The wolf",
    "There was a king who",
    "",
    "She opened the door and",
    "One day, a little",
]
SENTENCES = [
    "The cat is on the table.",
    "I am very happy.",
    "Where are you?",
    "We have a big house.",
    "He eats an apple.",
]


@dataclass(frozen=True)
class Entry:
    """A request of the table.

    Attributes:
        name: What it is.
        items: A prompt or source, or a list of them.
        options: Options of the call.
        expected: What comes of it, sequence by sequence.
    """

    name: str
    items: Any
    options: dict[str, Any]
    expected: list[Any]

    @property
    def streams(self) -> bool:
        """Whether it can be streamed."""
        return "num_beams" not in self.options


def told(output: Any) -> tuple[Any, ...]:
    """What of an output must be the same every time."""
    logprobs = [(one.token_id, one.logprob, one.top) for one in output.logprobs or []]
    return output.text, list(output.token_ids), output.finish_reason, output.score, logprobs


def is_list(items: Any) -> bool:
    """Whether these are several prompts, and not one of text or ids."""
    return isinstance(items, list) and not isinstance(items[0], int)


def run(model: Any, items: Any, options: dict[str, Any]) -> list[Any]:
    outputs = model.run(items, **options)
    return [told(output) for output in (outputs if isinstance(outputs, list) else [outputs])]


def table(model: Any, items: list[Any], draw: random.Random) -> list[Entry]:
    """Returns requests for a model, with what comes of each alone."""

    def some(least: int, most: int) -> list[Any]:
        return [draw.choice(items) for _ in range(draw.randint(least, most))]

    def new() -> dict[str, Any]:
        return {"max_new_tokens": draw.randint(1, 40)}

    def sampled() -> dict[str, Any]:
        return {"do_sample": True, "seed": draw.randrange(1000), "top_k": 20, "temperature": 0.9}

    found: list[tuple[str, Any, dict[str, Any]]] = []
    for _ in range(6):
        seeded = some(2, 8)
        found += [
            ("greedy", draw.choice(items), new()),
            ("stop strings", draw.choice(items), new() | {"stop": draw.choice(["e", ".", [" a", "th"]])}),
            ("sampled", draw.choice(items), new() | sampled() | {"top_p": 0.9}),
            ("several", draw.choice(items), new() | sampled() | {"num_return_sequences": draw.randint(2, 5)}),
            ("beams", draw.choice(items), new() | {"num_beams": draw.randint(2, 4)}),
            (
                "sampled beams",
                draw.choice(items),
                new() | sampled() | {"num_beams": 3, "num_return_sequences": 2},
            ),
            ("log-probabilities", draw.choice(items), new() | {"logprobs": 2}),
            (
                "processors",
                draw.choice(items),
                new() | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
            ),
            ("list", some(2, 12), new()),
            ("list with beams", some(2, 5), new() | {"num_beams": 2}),
            ("list with stop strings", some(2, 12), new() | sampled() | {"stop": ["e", "."]}),
            ("list, one seed", some(2, 12), new() | sampled()),
            ("list, seeds", seeded, new() | sampled() | {"seed": [draw.randrange(1000) for _ in seeded]}),
        ]
    found += [
        ("long list", some(150, 200), {"max_new_tokens": 3}),
        ("long list, one seed", some(150, 200), {"max_new_tokens": 3} | sampled()),
        ("long", draw.choice(items), {"max_new_tokens": 200, "eos_token_id": None}),
    ]
    entries = []
    for name, asked, given in found:
        options = {"do_sample": False} | given
        seeds: Any = options.get("seed")
        if is_list(asked) and (not options.get("do_sample") or isinstance(seeds, list)):
            each = [options | ({"seed": seeds[place]} if seeds else {}) for place in range(len(asked))]
            expected = [one for item, own in zip(asked, each, strict=True) for one in run(model, item, own)]
        else:
            expected = run(model, asked, options)
        entries.append(Entry(name, asked, options, expected))
    return entries


@dataclass
class Subject:
    """A model and what is asked of it."""

    name: str
    model: Any
    entries: list[Entry]


class Wrong(Exception):
    """A result is not what it must be."""


def check(entry: Entry, subject: Subject, got: list[Any]) -> None:
    for place, (one, other) in enumerate(zip(got, entry.expected, strict=True)):
        if one != other:
            raise Wrong(
                f"{subject.name}, {entry.name}: sequence {place} of {entry.items!r} with {entry.options}: "
                f"got {one!r}, alone {other!r}"
            )


class Pieces:
    """What a stream has given so far."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.ids: list[list[int]] = [[] for _ in entry.expected]
        self.texts = ["" for _ in entry.expected]

    def take(self, chunk: Any) -> None:
        self.ids[chunk.index] += chunk.token_ids
        self.texts[chunk.index] += chunk.text

    def check(self, subject: Subject) -> None:
        for place, (text, ids, *_) in enumerate(self.entry.expected):
            if (self.texts[place], self.ids[place]) != (text, ids):
                raise Wrong(
                    f"{subject.name}, {self.entry.name} streamed: sequence {place} of {self.entry.items!r} with "
                    f"{self.entry.options}: got {self.texts[place]!r} {self.ids[place]}, alone {text!r} {ids}"
                )
