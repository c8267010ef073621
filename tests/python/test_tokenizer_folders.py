"""Tokenizers of folders drawn at random are those of transformers, or their class is refused by its name."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from fastdecode.errors import FastdecodeError
from fastdecode.folder import optional_json
from fastdecode.tokenizer_files import read_folder
from parity import EXAMPLES
from tokenizer_compare import compare
from tokenizer_folders import OF_PIECES, draw

FOLDERS = 40 * EXAMPLES


@pytest.mark.parametrize("seed", range(FOLDERS))
def test_any_folder(tmp_path: Path, seed: int) -> None:
    described = draw(tmp_path, seed)
    outcome, differences = compare(tmp_path)
    assert outcome != "different", (described, differences[:3])


@pytest.mark.parametrize("seed", range(30 * EXAMPLES))
def test_any_folder_with_a_sentencepiece_model_alone(tmp_path: Path, seed: int) -> None:
    described = draw(tmp_path, seed, OF_PIECES)
    outcome, differences = compare(tmp_path)
    assert outcome in ("equal", "theirs raises"), (described, differences[:3])


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


_VALUES: list[Any] = [None, 3, -1, 1.5, True, "x", "", [], {}, [1], {"a": 1}, ["a", None], "\ud800", 10**30]


def damaged(value: Any, chooser: random.Random, depth: int = 0) -> Any:
    """Returns a value of a JSON file with one of its inner values taken away or made another."""
    if isinstance(value, dict) and value and depth < 6 and chooser.random() < 0.8:
        key = chooser.choice(list(value))
        kept = {name: item for name, item in value.items() if name != key}
        return kept if chooser.random() < 0.2 else value | {key: damaged(value[key], chooser, depth + 1)}
    if isinstance(value, list) and value and depth < 6 and chooser.random() < 0.8:
        place = chooser.randrange(len(value))
        return [*value[:place], damaged(value[place], chooser, depth + 1), *value[place + 1 :]]
    return chooser.choice(_VALUES)


@pytest.mark.parametrize("seed", range(60 * EXAMPLES))
def test_damaged_folders_raise_nothing_but_errors_of_the_package(tmp_path: Path, seed: int) -> None:
    chooser = random.Random(seed)
    draw(tmp_path, seed)
    for file in sorted(tmp_path.glob("*.json")):
        if chooser.random() < 0.7:
            file.write_text(json.dumps(damaged(json.loads(file.read_text(encoding="utf-8")), chooser)))
    if chooser.random() < 0.1:
        file = chooser.choice(sorted(tmp_path.iterdir()))
        file.write_bytes(file.read_bytes()[: chooser.randrange(200)])
    use(tmp_path)


@pytest.mark.parametrize("seed", range(40 * EXAMPLES))
def test_damaged_sentencepiece_models_raise_nothing_else(tmp_path: Path, seed: int) -> None:
    chooser = random.Random(seed)
    draw(tmp_path, seed, OF_PIECES)
    file = tmp_path / "tokenizer.model"
    held = bytearray(file.read_bytes())
    for _ in range(chooser.choice([1, 1, 3, 20])):
        held[chooser.randrange(len(held))] = chooser.randrange(256)
    file.write_bytes(bytes(held) if seed % 5 else bytes(held[: chooser.randrange(len(held))]))
    use(tmp_path)


def use(folder: Path) -> None:
    """Reads a folder and makes ids and text; an error of the package may end that."""
    with contextlib.suppress(FastdecodeError):
        tokenizer = read_folder(folder, optional_json(folder / "config.json"))
        if tokenizer is not None:
            ids = tokenizer.encode("Hello <s> wolf")
            pieces = tokenizer.detokenizer(skip_special_tokens=True)
            joined = "".join(pieces.push([token]) for token in ids) + pieces.finish()
            assert joined == tokenizer.decode(ids, skip_special_tokens=True)
