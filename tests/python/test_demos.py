"""The bundled models: within their size, and what transformers makes of their folders, ids by ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import torch
from fastdecode.hub import DEMOS, locate
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 10_000_000  # bytes of weights
SENTENCES = ("I am happy to see you.", "Where is the station?", "We have to go home now.", "Tom is here!")


def folder(name: str) -> Path:
    """Where a bundled model lies."""
    return locate(name).folder


@pytest.mark.parametrize("name", DEMOS)
def test_weights_are_small(name: str) -> None:
    assert (folder(name) / "model.safetensors").stat().st_size <= LARGEST
    assert (folder(name) / "README.md").read_text(encoding="utf-8").startswith("---\n"), "a card"


def test_stories_are_those_of_transformers() -> None:
    place = folder("demo-stories")
    tokenizer = AutoTokenizer.from_pretrained(place)
    theirs = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    torch.manual_seed(5)
    with torch.no_grad():
        wanted: Any = theirs.generate(**prompt, max_new_tokens=40)
    start = prompt["input_ids"].shape[1]
    output = fastdecode.CausalLM.load("demo-stories").run("Once upon a time", max_new_tokens=40, seed=5)
    assert output.token_ids == wanted[0, start:].tolist()
    assert output.text == tokenizer.decode(wanted[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_translations_are_those_of_transformers(num_beams: int) -> None:
    place = folder("demo-en-fr")
    tokenizer = AutoTokenizer.from_pretrained(place)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32)
    sources = [f"translate English to French: {sentence}" for sentence in SENTENCES]
    ours = fastdecode.Seq2SeqLM.load("demo-en-fr").run(sources, num_beams=num_beams)
    for source, output in zip(sources, ours, strict=True):
        with torch.no_grad():
            wanted: Any = theirs.generate(**tokenizer(source, return_tensors="pt"), num_beams=num_beams)
        assert output.token_ids == wanted[0, 1:].tolist(), source
        assert output.text == tokenizer.decode(wanted[0], skip_special_tokens=True)


def test_the_translator_knows_its_task() -> None:
    translator: Any = fastdecode.pipeline("translation_en_to_fr", model="demo-en-fr")
    [answer] = translator(SENTENCES[0])
    model = fastdecode.Seq2SeqLM.load("demo-en-fr")
    wanted = model.generate(f"translate English to French: {SENTENCES[0]}", num_beams=4, early_stopping=True)
    assert answer == {"translation_text": wanted}
