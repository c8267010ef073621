"""The examples in docstrings run as they are printed, with the bundled demo model."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import fastdecode
import pytest

MODULES = [
    module.name
    for module in pkgutil.iter_modules(fastdecode.__path__)
    if module.name not in ("__main__", "_core")
]


@pytest.fixture(scope="module")
def demo() -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load("demo-stories", num_threads=2)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, demo: fastdecode.CausalLM) -> None:
    module = importlib.import_module(f"fastdecode.{name}")
    outcome = doctest.testmod(module, extraglobs={"fastdecode": fastdecode, "model": demo})
    assert outcome.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    modules = [importlib.import_module(f"fastdecode.{name}") for name in MODULES]
    assert sum(len(test.examples) for module in modules for test in finder.find(module)) >= 15
