"""The translator's training script: pairs split without leaks, runs that can be interrupted."""

from __future__ import annotations

import importlib
import json
import random
import shutil
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
    sys.path.insert(0, str(TOOLS))  # as `python tools/train_translator.py` has it
    try:
        return importlib.import_module("train_translator")
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a language whose translation is word by word."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.txt"
    draw = random.Random(0)
    words = {"red": "rouge", "cat": "chat", "dog": "chien", "sees": "voit", "big": "grand", "and": "et"}
    lines = []
    for _ in range(400):
        english = draw.choices(list(words), k=draw.randint(3, 9))
        lines.append(f"{' '.join(english)}.\t{' '.join(words[word] for word in english)}.\tby somebody")
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def tiny(script: ModuleType) -> DataclassInstance:
    """Options of a model that trains in milliseconds."""
    options: DataclassInstance = replace(
        script.Options(), vocab_size=60, width=16, heads=2, head_dim=8, feed_forward=16, encoder_layers=1,
        decoder_layers=1, batch=8, warmup=2, epochs=1.0, held_out=30,
    )  # fmt: skip
    return options


def test_a_resumed_run_equals_an_uninterrupted_one(
    script: ModuleType, pairs_file: Path, tmp_path: Path
) -> None:
    options = tiny(script)
    whole = script.Run(pairs_file, tmp_path / "whole", options)
    before = whole.held_out_loss()
    whole.go(stop_after=None, report_every=1000, save_every=1000)
    assert whole.held_out_loss() < before - 0.5
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole" / "tokenizer.json", tmp_path / "parts")
    first = script.Run(pairs_file, tmp_path / "parts", options)
    first.go(stop_after=whole.step // 2, report_every=1000, save_every=1000)
    assert 0 < first.step < whole.step
    second = script.Run(pairs_file, tmp_path / "parts", options)
    second.go(stop_after=None, report_every=1000, save_every=1000)
    assert second.step == whole.step
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_exported_folder_translates_in_transformers(
    script: ModuleType, pairs_file: Path, tmp_path: Path
) -> None:
    run = script.Run(pairs_file, tmp_path, tiny(script))
    folder = script.export(run)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "t5"
    assert config["dense_act_fn"] == "gelu_new"
    assert config["dtype"] == "bfloat16"
    assert config["scale_decoder_outputs"] is True
    assert config["task_specific_params"]["translation_en_to_fr"]["prefix"] == script.PREFIX
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] != "T5Tokenizer"
    first, second, again = script.translate(folder, ["red cat.", "big dog.", "red cat."], beams=1)
    assert first == again
    assert isinstance(second, str)


def test_no_sentence_is_on_both_sides(script: ModuleType) -> None:
    draw = random.Random(1)
    pairs = list({(f"e{draw.randrange(300)}", f"f{draw.randrange(300)}"): None for _ in range(200)})
    train, held = script.hold_out(pairs, 20, seed=0)
    assert sorted(train + held) == sorted(pairs)
    assert len({english for english, _ in held}) >= 20
    for side in (0, 1):
        assert not {pair[side].lower() for pair in train} & {pair[side].lower() for pair in held}


def test_sentences_are_brought_to_one_spelling(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text("Go.\tL\u2019ami\u202f!\tsource\nGo.\tL'ami !\nHi.\tSa\u00adlut.\n", encoding="utf-8")
    assert script.read_pairs(file) == [("Go.", "L'ami !"), ("Hi.", "Salut.")]


def test_a_line_without_a_tab_is_refused_with_its_number(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text("Go.\tVa !\nno tab here\n")
    with pytest.raises(SystemExit, match=r"pairs\.txt:2: expected English, a tab and French"):
        script.read_pairs(file)
