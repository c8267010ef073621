"""The families of models that tests, golden files and benchmarks run over.

A new one is a file here and one line below.
"""

from __future__ import annotations

from . import gpt2, llama, openai_gpt, phi, t5
from .base import DTYPES, Config, Family, Ids, Input, Lengths, Recipe

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        gpt2.FAMILY,
        llama.FAMILY,
        phi.FAMILY,
        openai_gpt.FAMILY,
        t5.FAMILY,
    )
}

__all__ = ["DTYPES", "FAMILIES", "Config", "Family", "Ids", "Input", "Lengths", "Recipe"]
