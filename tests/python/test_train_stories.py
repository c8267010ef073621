"""The demo model's training script: stories cut from books, and runs that can be interrupted.

Runs in this process, with books made here and a model of a few thousand weights.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from _typeshed import DataclassInstance

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on two threads, far slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The training script, imported from tools/."""
    sys.path.insert(0, str(TOOLS))  # as `python tools/train_stories.py` has it
    try:
        return importlib.import_module("train_stories")
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three books of four chapters, made of a few words; `held` is for validation."""
    folder = tmp_path_factory.mktemp("books")
    draw = random.Random(0)
    words = ["a", "the", "fox", "hen", "king", "went", "said", "saw", "old", "red", "home", "wood"]
    for name in ("first", "held", "second"):
        chapters = [
            f"CHAPTER {number}\n\n"
            + "\n\n".join(" ".join(draw.choices(words, k=40)).capitalize() + "." for _ in range(6))
            for number in range(1, 5)
        ]
        (folder / f"{name}.txt").write_text("\n\n".join([f"THE {name.upper()} BOOK", *chapters]))
    return folder


def tiny(script: ModuleType) -> DataclassInstance:
    """Options of a model that trains in milliseconds."""
    options: DataclassInstance = replace(
        script.Options(), vocab_size=270, width=16, layers=2, head_dim=8, context=16, batch=4,
        warmup=2, epochs=0.2, held_out=("held",),
    )  # fmt: skip
    return options


def test_a_resumed_run_equals_an_uninterrupted_one(script: ModuleType, books: Path, tmp_path: Path) -> None:
    options = tiny(script)
    whole = script.Run(books, tmp_path / "whole", options)
    whole.go(stop_after=None, report_every=1000, save_every=1000)
    first = script.Run(books, tmp_path / "parts", options)
    first.go(stop_after=whole.step // 2, report_every=1000, save_every=1000)
    assert 0 < first.step < whole.step
    second = script.Run(books, tmp_path / "parts", options)
    assert second.step == first.step
    second.go(stop_after=None, report_every=1000, save_every=1000)
    assert second.step == whole.step
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_training_lowers_the_loss_and_exports_a_folder(
    script: ModuleType, books: Path, tmp_path: Path
) -> None:
    options = replace(tiny(script), epochs=0.5)
    run = script.Run(books, tmp_path, options)
    before = script.evaluate(run.model, run.held, 8)
    run.go(stop_after=None, report_every=1000, save_every=1000)
    assert script.evaluate(run.model, run.held, 8) < before - 1
    folder = script.export(run, books)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert config["activation_function"] == "gelu_new"
    assert config["dtype"] == "bfloat16"
    assert {"model.safetensors", "tokenizer.json", "generation_config.json", "README.md"} <= {
        file.name for file in folder.iterdir()
    }
    assert "## Sample" in (folder / "README.md").read_text()


def test_a_checkpoint_of_another_shape_is_refused(script: ModuleType, books: Path, tmp_path: Path) -> None:
    options = tiny(script)
    script.Run(books, tmp_path, options).save()
    with pytest.raises(SystemExit, match="width=16, this run asks for 32"):
        script.Run(books, tmp_path, replace(options, width=32))


def test_a_folder_without_books_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no \.txt files"):
        script.Run(tmp_path, tmp_path / "out", tiny(script))


def test_stories_are_cut_at_titles_and_lose_what_is_not_prose(script: ModuleType) -> None:
    split_stories = sys.modules[script.read_books.__module__].split_stories
    prose = "ONCE upon a time\nthere was a \u201cking\u201d -- so old.\n" + "He slept. He slept.\n" * 40
    book = "\n\n".join([
        "THE BOOK", "By Somebody", "PREFACE", "I wrote this.\n" * 60, "THE OLD KING", prose,
        "[Illustration: the king]", "From the Welsh.", "The Frog and the Ox", "A frog sat.\n" * 80,
        "NOTES AND REFERENCES", "THE OLD KING.", "Told by a miller.\n" * 50,
    ])  # fmt: skip
    first, second = split_stories(book)
    assert first.startswith('Once upon a time there was a "king"\u2014so old. He slept.')
    assert first.endswith("He slept.")
    assert second.startswith("A frog sat. A frog sat.")
    assert "miller" not in first + second
