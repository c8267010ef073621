"""Tokenizers of folders drawn at random are those of transformers, or their class is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from parity import EXAMPLES
from tokenizer_compare import compare
from tokenizer_folders import draw

FOLDERS = 40 * EXAMPLES


@pytest.mark.parametrize("seed", range(FOLDERS))
def test_any_folder(tmp_path: Path, seed: int) -> None:
    described = draw(tmp_path, seed)
    outcome, differences = compare(tmp_path)
    assert outcome != "different", (described, differences[:3])


def test_most_folders_are_equal(tmp_path: Path) -> None:
    """The test above compares something: few folders are refused here, and few are useless there."""
    outcomes = []
    for seed in range(20):
        (folder := tmp_path / str(seed)).mkdir()
        draw(folder, seed)
        outcomes.append(compare(folder)[0])
    assert outcomes.count("equal") >= 12, outcomes


def test_the_description_of_a_drawn_folder_is_of_its_seed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (draw(tmp_path / name, 7) for name in ("one", "two"))
    assert one == two
    contents = [sorted(path.read_bytes() for path in (tmp_path / name).iterdir()) for name in ("one", "two")]
    assert contents[0] == contents[1]
