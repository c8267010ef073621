"""Adapters with another vocabulary for a head with a bias: the bias comes with them in that size, or it is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastdecode
import peft_folders as made
import pytest
import torch
from adapter_checks import hold, load
from families import FAMILIES
from families.phi import PhiRecipe
from families.phi import config as phi_config
from fastdecode import errors
from peft_folders import adapter

PHI = FAMILIES["phi"]


def phi(folder: Path, head: str) -> Path:
    recipe = PhiRecipe(phi_config(vocab=50, tie_word_embeddings=head != "untied"), head=head, seed=5)
    return PHI.write(recipe, folder)


@pytest.mark.parametrize("more", [6, -4])
@pytest.mark.parametrize("head", ["tied, absent", "untied"])
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"]},
        {
            "target_modules": ["q_proj", "lm_head"],
            "bias": "lora_only",
            "modules_to_save": ["embed_tokens"],
        },
        {"target_modules": ["q_proj"], "bias": "all"},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
)
def test_another_vocabulary_under_a_head_with_a_bias(
    tmp_path: Path, config: dict[str, Any], head: str, more: int
) -> None:
    base = phi(tmp_path / "base", head)
    one = adapter(base, tmp_path / "one", PHI, more=more, config=config)
    ours = load(base, adapter=one)
    hold(ours, made.reference(PHI, base, [one], more), PHI, 50 + more)
    assert ours.config["vocab_size"] == ours.info()["vocab_size"] == 50 + more


@pytest.mark.parametrize("more", [6, -4])
def test_a_head_whose_bias_is_not_there_in_the_new_size(tmp_path: Path, more: int) -> None:
    base = phi(tmp_path / "base", "tied, absent")
    config = {"target_modules": ["q_proj", "embed_tokens"]}
    one = adapter(base, tmp_path / "one", PHI, more=more, config=config)
    assert not any("bias" in name for name in made.tensors(one))
    message = f"expected {50 + more} values, .*none of them brings a bias of that size"
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        fastdecode.load(base, adapter=one)
    assert caught.value.tensor == "lm_head.bias"


def test_a_bias_of_another_size_alone_is_refused(tmp_path: Path) -> None:
    base = phi(tmp_path / "base", "untied")
    one = adapter(base, tmp_path / "one", PHI, config={"target_modules": ["q_proj"]})
    made.rewrite(one, lambda named: {**named, "base_model.model.lm_head.bias": torch.zeros(55)})
    with pytest.raises(errors.CheckpointError, match="expected 50 values"):
        fastdecode.load(base, adapter=one)
