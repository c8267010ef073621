"""Windows of one key, and of none: a row of a window W sees the W last keys, its own included.

transformers' cache forgets nothing with a window of 1, so that its cached `generate` differs there from its own
forward. The formula is what that forward computes without a cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastdecode
import pytest
import torch
from families import FAMILIES, Input
from families.llama import LlamaRecipe, config
from fastdecode import errors
from reference import Reference, assert_close, tolerance
from subject import Subject

SLIDING: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 1}
MODELS: dict[str, dict[str, Any]] = {
    "mistral": {"layers": 3},
    "qwen2": {"layers": 3, **SLIDING},
    "qwen3": {"layers": 3, **SLIDING},
    "qwen2, by layer": {
        "layers": 2,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}


def recipe(name: str, **changes: Any) -> LlamaRecipe:
    keys: dict[str, Any] = {"head_dim": 16, "vocab": 257, **MODELS[name], **changes}
    return LlamaRecipe(config(name.partition(",")[0], **keys), spread=1.5, seed=13)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_ids_are_those_of_forwards_without_a_cache(name: str, window: int, tmp_path: Path) -> None:
    made = recipe(name, sliding_window=window)
    folder = FAMILIES["llama"].write(made, tmp_path)
    reference, ours = Reference(folder), fastdecode.load(folder)
    prompts, compared = made.ids(3, 21), 0
    for ids in prompts:
        want = list(ids)
        for _ in range(20):
            with torch.no_grad():
                logits = reference.model(torch.tensor([want]), use_cache=False).logits[0, -1]
            best = torch.topk(logits, 2).values
            if best[0] - best[1] < 4 * tolerance(logits.numpy()):
                break  # too close to call
            want.append(int(logits.argmax()))
        compared += len(want) - len(ids)
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None}
        assert ours.run(ids, **options).token_ids[: len(want) - len(ids)] == want[len(ids) :]
    assert compared > 30
    assert_close(Subject(ours).answers(Input(prompts[0])), reference, Input(prompts[0]))


def test_a_window_of_one_key_is_its_own_value(tmp_path: Path) -> None:
    """With no other key to look at, what was before changes nothing in a model of windows alone."""
    made = recipe("mistral", sliding_window=1)
    ours = fastdecode.load(FAMILIES["llama"].write(made, tmp_path))
    first, second = made.ids(2, 8)
    assert (ours.logits(first)[:-1] != ours.logits([*second[:7], first[7]])[:-1]).any()
    assert (ours.logits(first)[-1] == ours.logits([*second[:7], first[7]])[-1]).all()


@pytest.mark.parametrize("window", [0, -1, -4096])
@pytest.mark.parametrize("name", MODELS)
def test_a_window_of_no_key_is_refused(name: str, window: int) -> None:
    with pytest.raises(errors.ConfigError, match="an integer from 1 to") as caught:
        fastdecode.CausalLM.from_tensors(recipe(name, sliding_window=window).config, {})
    assert caught.value.field == "sliding_window"
    assert caught.value.got == str(window)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": False, "sliding_window": 0},
        {"use_sliding_window": False, "sliding_window": -1},
        {"use_sliding_window": True, "max_window_layers": 28, "sliding_window": 0},
        {"sliding_window": 0},
    ],
)
def test_a_window_that_no_layer_has_may_be_any_number(changes: dict[str, Any], tmp_path: Path) -> None:
    made = LlamaRecipe(config("qwen2", **changes), seed=12)
    folder = FAMILIES["llama"].write(made, tmp_path)
    item = Input(made.ids(1, 9)[0])
    ours = fastdecode.load(folder)
    assert ours.info()["sliding_window"] is None
    assert_close(Subject(ours).answers(item), Reference(folder), item)


def test_one_that_is_no_number_is_refused_even_there() -> None:
    with pytest.raises(errors.ConfigError, match="sliding_window"):
        fastdecode.CausalLM.from_tensors(config("qwen2", sliding_window="4096"), {})
