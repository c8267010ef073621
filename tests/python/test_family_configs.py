"""Values of a config.json that Llama, Qwen, Mistral, Phi and GPT-1 cannot have: errors that name the field.

transformers refuses them, too: when it reads the config, builds the model or runs it.
"""

from __future__ import annotations

import copy
from typing import Any

import fastdecode
import pytest
import torch
import transformers
from families import FAMILIES, Input, Recipe, llama, openai_gpt, phi
from fastdecode import errors
from parity import both
from reference import assert_close
from subject import Subject

YARN = {"rope_type": "yarn", "factor": 2.0}
ORIGINAL = "original_max_position_embeddings"
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
NESTED = {"full_attention": {"rope_type": "linear", "factor": 2.0}}
CASES: list[tuple[dict[str, Any], str]] = [
    (llama.config(kv_heads=3), "num_key_value_heads"),
    (llama.config("mistral", kv_heads=None), "num_key_value_heads"),
    (llama.config(hidden_size=50), "num_attention_heads"),
    (llama.config("qwen3", num_attention_heads=4) | {"head_dim": None}, "head_dim"),
    (llama.config("qwen2") | {"head_dim": None}, "head_dim"),
    (llama.config() | {"head_dim": 7}, "head_dim"),
    (llama.config(hidden_act="no such"), "hidden_act"),
    (llama.config(rms_norm_eps="1e-6"), "rms_norm_eps"),
    (llama.config(num_hidden_layers=2.0), "num_hidden_layers"),
    (llama.config(tie_word_embeddings=None), "tie_word_embeddings"),
    (llama.config(rope_scaling={"rope_type": "ntk", "factor": 2.0}), "rope_scaling.rope_type"),
    (llama.config(rope_scaling={"type": "mrope"}), "rope_scaling.type"),
    (llama.config(rope_scaling={"type": "linear"}), "rope_scaling.factor"),
    (llama.config(rope_parameters={"rope_type": "yarn"}), "rope_parameters.factor"),
    (llama.config(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "rope_scaling.low_freq_factor"),
    (llama.config("qwen2", layer_types=["sliding_attention", "full_attention"]), "layer_types"),
    (llama.config(rms_norm_eps=0), "rms_norm_eps"),
    (llama.config("qwen2", sliding_window=4.0), "sliding_window"),
    (llama.config(layer_types=["full_attention"]), "layer_types"),
    (llama.config(layer_types=["sliding_attention"] * 2), "layer_types"),
    (llama.config("qwen3", rope_parameters=NESTED), "rope_parameters.full_attention"),
    (llama.config("qwen3", rope_scaling=YARN, rope_parameters="linear"), "rope_parameters"),
    (llama.config(rope_scaling={**YARN, ORIGINAL: 32}) | {ORIGINAL: None}, ORIGINAL),
    (
        llama.config(rope_scaling={**YARN, "partial_rotary_factor": None}),
        "rope_scaling.partial_rotary_factor",
    ),
    (llama.config(rope_scaling=YARN, rope_theta=1), "rope_theta"),
    (llama.config(rope_scaling={**LONG, ORIGINAL: 1}), "rope_scaling.rope_type"),
    (phi.config(kv_heads=3), "num_key_value_heads"),
    (phi.config(layer_norm_eps=1), "layer_norm_eps"),
    (phi.config(layer_types=["full_attention", "sliding_attention"]), "layer_types"),
    (phi.config(hidden_act="no such"), "hidden_act"),
    (phi.config(qk_layernorm=True) | {"head_dim": 8}, "head_dim"),
    (phi.config(partial_rotary_factor=None), "partial_rotary_factor"),
    (openai_gpt.config(n_head=5), "n_head"),
    (openai_gpt.config(layer_norm_epsilon=0), "layer_norm_epsilon"),
    (openai_gpt.config(afn="gelu_new"), "afn"),
]
# What would compute something else here, or nothing at all, is refused although transformers goes on.
OURS: list[tuple[dict[str, Any], str]] = [
    (llama.config("mistral", layer_types=["full_attention"] * 2), "layer_types"),
    (llama.config(rope_scaling=YARN, partial_rotary_factor=0.5), "partial_rotary_factor"),
    (
        llama.config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}) | {"head_dim": 2},
        "rope_scaling.rope_type",
    ),
    (llama.config("mistral", sliding_window=0), "sliding_window"),
    (llama.config(rope_parameters=NESTED), "rope_parameters.full_attention"),
    (llama.config(rope_theta=1e-40), "rope_theta"),
    (llama.config(rope_scaling={"type": "linear", "factor": 1e-300}), "rope_scaling.type"),
    (llama.config(rope_scaling={**YARN, "attention_factor": 1e39}), "rope_scaling.rope_type"),
    (openai_gpt.config(n_positions=0), "n_positions"),
]


def name(case: object) -> str | None:
    return case if isinstance(case, str) else None


@pytest.mark.parametrize(("config", "field"), CASES + OURS, ids=name)
def test_the_field_is_named(config: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        fastdecode.CausalLM.from_tensors(config, {})
    assert caught.value.field == field, caught.value
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(("config", "field"), CASES, ids=name)
def test_transformers_refuses_them_too(config: dict[str, Any], field: str) -> None:
    try:
        read = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
        model = transformers.AutoModelForCausalLM.from_config(read)
        model(torch.tensor([[1, 2, 3]]))
    except Exception:  # of many types, by where it fails
        return
    pytest.fail(f"transformers takes {field} as it is")


# Values that look wrong, and that transformers takes or does not look at.
TAKEN: dict[str, Recipe] = {
    "no part of a head": llama.LlamaRecipe(llama.config(partial_rotary_factor=None), seed=1),
    "no part, and a scaled rope": llama.LlamaRecipe(
        llama.config("mistral", partial_rotary_factor=None, rope_scaling=YARN), seed=2
    ),
    "a part that nobody reads": llama.LlamaRecipe(llama.config("qwen2", partial_rotary_factor="x"), seed=3),
    "a part by the rope, and none beside it": phi.PhiRecipe(
        phi.config(partial_rotary_factor=None, rope_scaling={**YARN, "partial_rotary_factor": 0.5}), seed=4
    ),
    "no truncation": llama.LlamaRecipe(llama.config(rope_scaling={**YARN, "truncate": None}), seed=5),
    "a length that is a float": llama.LlamaRecipe(
        llama.config("qwen3", rope_scaling={**YARN, ORIGINAL: 8}) | {ORIGINAL: 20.0}, seed=6
    ),
    "full attention by name": llama.LlamaRecipe(llama.config(layer_types=["full_attention"] * 2), seed=7),
    "a negative window that is not used": llama.LlamaRecipe(llama.config("qwen2", sliding_window=-1), seed=8),
}


@pytest.mark.parametrize("recipe", TAKEN.values(), ids=TAKEN)
def test_transformers_takes_these_and_so_do_we(recipe: Recipe) -> None:
    family = FAMILIES["phi" if isinstance(recipe, phi.PhiRecipe) else "llama"]
    theirs, ours = both(family, recipe)
    item = Input(recipe.ids(1, 40)[0])
    assert_close(Subject(ours).answers(item), theirs, item, f"of {recipe}")
