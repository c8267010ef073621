"""The examples in docstrings run as they are printed, with the bundled demo model."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import fastdecode
import pytest
import tiny
from families import FAMILIES

T5 = FAMILIES["t5"]
MODULES = [
    module.name
    for module in pkgutil.iter_modules(fastdecode.__path__)
    if module.name not in ("__main__", "_core")
]


@pytest.fixture(scope="module")
def demo() -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load("demo-stories", num_threads=2)


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> fastdecode.Seq2SeqLM:
    folder = T5.write_tiny(tmp_path_factory.mktemp("t5"), tokenizer=tiny.with_end())
    return fastdecode.Seq2SeqLM.load(folder, num_threads=2)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, demo: fastdecode.CausalLM, encoder_decoder: fastdecode.Seq2SeqLM) -> None:
    module = importlib.import_module(f"fastdecode.{name}")
    model = encoder_decoder if name in ("memory", "seq2seq") else demo
    outcome = doctest.testmod(module, extraglobs={"fastdecode": fastdecode, "model": model})
    assert outcome.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(f"fastdecode.{name}") for name in MODULES]
    assert sum(len(test.examples) for module in modules for test in finder.find(module)) >= 15
