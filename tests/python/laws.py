"""What the laws are asked of: models of the families, types, and lengths around which work is split in other ways."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import fastdecode
import pytest
from families import Family, Input, Lengths, Recipe
from subject import Subject

# Stored type, and the type in which products are formed.
TYPES: list[tuple[Any, Any]] = [
    ("float32", None),
    ("float16", None),
    ("bfloat16", None),
    ("bfloat16", "bfloat16"),
    ("int8", None),
    ("int4", None),
]

# Tokens of prompts, or of sources and of the decoder's prompts.
RAGGED = ([1, 7, 16, 33, 2], [1, 5, 17, 2, 3])
# No sequence longer than a task of attention, so that keys are put by whoever attends.
SHORT = ([1, 7, 16, 20, 2], [1, 5, 8, 2, 3])
# Rows around which the work is split in other ways: private norms, rows packed alone and together, tasks of attention.
BORDERS = [2, 8, 9, 16, 17, 24, 25, 40]
SOURCE_BORDERS = [2, 9, 17, 20, 37]


class Case(NamedTuple):
    """A written model, and what can be asked of it."""

    family: Family
    recipe: Recipe
    folder: Path

    def load(self, **options: Any) -> Subject:
        return Subject(fastdecode.load(self.folder, **options))

    def item(self, length: int, source: int = 21) -> Input:
        """An input with a prompt of so many tokens."""
        return self.items([Lengths(length, source)])[0]

    def items(self, lengths: list[Lengths]) -> list[Input]:
        return self.family.inputs(self.recipe, lengths)

    def batch(self, lengths: tuple[list[int], list[int]] = RAGGED) -> list[Input]:
        """Inputs of different lengths."""
        alone, behind = lengths
        if not self.family.has_encoder:
            return self.items([Lengths(length) for length in alone])
        return self.items([Lengths(*pair) for pair in zip(behind, alone, strict=True)])

    def borders(self) -> list[Input]:
        """Inputs of lengths at which the work is split in other ways."""
        if not self.family.has_encoder:
            return self.items([Lengths(length) for length in BORDERS])
        return self.items([Lengths(length, source) for source in SOURCE_BORDERS for length in BORDERS])


def case_of(families: Iterable[Family]) -> Any:
    """Returns a fixture that is each law model of some families in turn."""
    shapes = [
        pytest.param((family, recipe), id=f"{family.name}: {name}")
        for family in families
        for name, recipe in family.laws.items()
    ]

    @pytest.fixture(scope="module", params=shapes)
    def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
        family, recipe = request.param
        return Case(family, recipe, family.write(recipe, tmp_path_factory.mktemp("laws")))

    return case
