"""The real GPT-2 tokenizer through the package: every golden of three other projects, both forms of file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fastdecode
import pytest

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
TOKENIZER = GOLDEN / "gpt2-tokenizer"
CASES: list[dict[str, Any]] = json.loads((TOKENIZER / "expected.json").read_text())["cases"]


def folder(tmp: Path, form: str) -> Path:
    """Returns a loadable folder with GPT-2's tokenizer in the given form of file."""
    shutil.copytree(GOLDEN / "ortgenai-tiny-random-gpt2", tmp, dirs_exist_ok=True)
    if form == "vocab.json and merges.txt":
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(TOKENIZER / name, tmp)
    else:
        content = json.loads((TOKENIZER / "tokenizer.json").read_text())
        if form == "tokenizer.json, merges as pairs":  # as tokenizers >= 0.20 writes them
            content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]
        (tmp / "tokenizer.json").write_text(json.dumps(content))
    return tmp


@pytest.fixture(
    scope="module", params=["tokenizer.json", "tokenizer.json, merges as pairs", "vocab.json and merges.txt"]
)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fastdecode.load(folder(tmp_path_factory.mktemp("gpt2"), request.param)).tokenizer


def cleaned(text: str) -> str:
    """What transformers.js does to decoded text by default, and transformers 5 no longer does."""
    for mark in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {mark}", mark)
    return text.replace(" ' ", "'")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['source']}-{case['name']}")
def test_ids_and_text(tokenizer: Any, case: dict[str, Any]) -> None:
    assert list(tokenizer.encode(case["text"])) == case["ids"]
    text = tokenizer.decode(case["ids"], skip_special_tokens=False)
    assert text == case["text"]
    assert (cleaned(text) if case["source"] == "transformers.js" else text) == case["decoded"]
