"""The registries of families agree: the package's, the native module's, the tests', and what transformers has."""

from __future__ import annotations

import fastdecode
import pytest
import transformers
from families import FAMILIES as RECIPES
from fastdecode import errors, families
from fastdecode.families import FAMILIES, TOKENIZER_CLASSES
from fastdecode.tokenizer_table import CLASS_OF_TYPE, GENERIC

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def test_every_family_has_a_recipe() -> None:
    assert set(FAMILIES) == {name for recipe in RECIPES.values() for name in recipe.model_types}
    for recipe in RECIPES.values():
        for name in recipe.model_types:
            assert FAMILIES[name].has_encoder == recipe.has_encoder


def test_the_native_module_knows_the_same_model_types() -> None:
    with pytest.raises(errors.UnsupportedModelError) as caught:
        fastdecode.CausalLM.from_tensors({"model_type": "no such type"}, {})
    assert caught.value.expected == ", ".join(sorted(FAMILIES))


@pytest.mark.parametrize(
    ("model_type", "near"),
    [("mixtral", "mistral"), ("qwen2_moe", "qwen2"), ("gpt_neox", None), ("bart", None)],
)
def test_the_nearest_model_type_is_named(model_type: str, near: str | None) -> None:
    with pytest.raises(errors.UnsupportedModelError, match=f"got {model_type}") as caught:
        fastdecode.CausalLM.from_tensors({"model_type": model_type}, {})
    hint = f"the nearest is {near}, which computes something else"
    assert str(caught.value).endswith(hint) if near else "nearest" not in str(caught.value)
    assert caught.value.got == model_type


@pytest.mark.parametrize("model_type", FAMILIES)
def test_special_tokens_are_those_of_transformers(model_type: str) -> None:
    config = transformers.CONFIG_MAPPING[model_type]()
    theirs = {name: value for name in TOKENS if (value := getattr(config, name, None)) is not None}
    if model_type == "gpt2":  # families.py says why it names none
        assert theirs == {"bos_token_id": 50256, "eos_token_id": 50256}
        theirs = {}
    assert FAMILIES[model_type].special_tokens == theirs


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_has_a_tokenizer(model_type: str) -> None:
    # A type that transformers does not list takes tokenizer.json as it is.
    assert CLASS_OF_TYPE.get(model_type, GENERIC) in {*TOKENIZER_CLASSES, GENERIC}


def test_texts_name_every_family() -> None:
    assert families.titles() == "GPT-2, Llama, Mistral, Qwen 2, Qwen 3, Phi, GPT-1, T5, mT5 and UMT5"
    assert (
        families.tokenizer_files()
        == "tokenizer.json, vocab.json and merges.txt, spiece.model, vocab.txt, or tokenizer.model"
    )
    assert families.model_types(has_encoder=True) == "t5, mt5, umt5"
    assert families.model_types(has_encoder=False) == "gpt2, llama, mistral, qwen2, qwen3, phi, openai-gpt"
