"""Rotary positions that count otherwise in long sequences (longrope): each length against a forward of its own.

transformers decides by the length of a call, and its cache keeps keys of the other side of the border. The formula is
what its forward without a cache computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import torch
from families import FAMILIES
from families.llama import LlamaRecipe, config
from fastdecode import errors
from reference import Reference, tolerance

BORDER = 40
FACTORS = {"short_factor": [1.0, 1.5, 1.0, 2.0], "long_factor": [1.0, 4.0, 8.0, 3.0]}
RECIPE = LlamaRecipe(
    config(
        head_dim=8,
        max_position_embeddings=4 * BORDER,
        rope_scaling={"rope_type": "longrope", "original_max_position_embeddings": BORDER, **FACTORS},
    ),
    seed=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["llama"].write(RECIPE, tmp_path_factory.mktemp("longrope"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return fastdecode.load(folder)


@pytest.mark.parametrize("length", [1, BORDER - 1, BORDER, BORDER + 1, 3 * BORDER, 600])
def test_logits_are_those_of_the_length(folder: Path, model: Any, length: int) -> None:
    reference = Reference(folder, None)
    [ids] = RECIPE.ids(1, length)
    with torch.no_grad():
        want = reference.model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    got = model.logits(ids)
    assert np.abs(got - want).max() <= tolerance(want)


@pytest.mark.parametrize("length", [BORDER - 6, BORDER - 1, BORDER, BORDER + 1])
def test_greedy_ids_across_the_border_are_those_of_whole_forwards(
    folder: Path, model: Any, length: int
) -> None:
    reference = Reference(folder, None)
    [ids] = RECIPE.ids(1, length)
    want = list(ids)
    for _ in range(12):
        with torch.no_grad():
            want.append(int(reference.model(torch.tensor([want]), use_cache=False).logits[0, -1].argmax()))
    assert model.run(ids, max_new_tokens=12).token_ids == want[length:]
    several = model.run([ids, ids[:5]], max_new_tokens=12)
    assert several[0].token_ids == want[length:], "beside a short one"


def test_cached_equals_uncached_on_each_side(model: Any) -> None:
    [ids] = RECIPE.ids(1, 2 * BORDER)
    for length in (BORDER - 3, BORDER, BORDER + 1, 2 * BORDER):
        whole = model.logits(ids[:length])
        for split in (1, 17, BORDER - 4, length - 1):
            state = model.prefill(ids[:split])
            for token in ids[split:length]:
                state.step(token)
            assert np.array_equal(state.logits, whole[-1]), (length, split)


def test_a_state_may_go_back_over_the_border(model: Any) -> None:
    [ids] = RECIPE.ids(1, BORDER + 9)
    state = model.prefill(ids)
    fork = state.fork()
    state.truncate(BORDER - 5)
    assert len(state.tokens) == BORDER - 5
    logits = state.step(7)
    assert np.array_equal(logits, model.prefill([*ids[: BORDER - 5], 7]).logits)
    assert np.array_equal(fork.step(7), model.prefill([*ids, 7]).logits)


def test_searches_and_draws_cross_the_border(model: Any) -> None:
    prompts = [RECIPE.ids(1, length)[0] for length in (BORDER - 4, 3, BORDER + 2)]
    for options in ({"num_beams": 3}, {"do_sample": True, "seed": [1, 2, 3]}):
        together = model.run(prompts, max_new_tokens=10, **options)
        for place, prompt in enumerate(prompts):
            own = {**options, "seed": place + 1} if "seed" in options else options
            assert model.run(prompt, max_new_tokens=10, **own).token_ids == together[place].token_ids


def test_embeddings_cannot_be_read_again(model: Any) -> None:
    [ids] = RECIPE.ids(1, BORDER)
    state = model.prefill(embeddings=model.embed(ids))
    assert np.array_equal(state.logits, model.prefill(ids).logits)
    with pytest.raises(errors.OptionError, match="longrope"):
        state.step(5)
    state.truncate(BORDER - 1)
    assert np.array_equal(state.step(5), model.prefill([*ids[:-1], 5]).logits), "what fits still goes on"


@pytest.mark.parametrize(
    ("field", "value"), [("short_factor", [1.0]), ("long_factor", None), ("long_factor", [0.0] * 4)]
)
def test_factors_that_fit_no_head_are_refused(field: str, value: object) -> None:
    scaling = {**RECIPE.config["rope_scaling"], field: value}
    with pytest.raises(errors.ConfigError, match=f"rope_scaling.{field}: expected a list of 4 numbers"):
        fastdecode.CausalLM.from_tensors(RECIPE.config | {"rope_scaling": scaling}, {})


@pytest.mark.parametrize("length", [BORDER, BORDER + 1, 3 * BORDER, 600])
def test_losses_are_those_of_the_length(folder: Path, model: Any, length: int) -> None:
    """The last token is not read, and counts for the length all the same."""
    reference = Reference(folder, None)
    [ids] = RECIPE.ids(1, length)
    with torch.no_grad():
        told = torch.tensor([ids])
        want = reference.model(told, labels=told, use_cache=False).loss.item()
    # Others that begin with the same tokens, on either side of the border.
    company = [ids[: BORDER - 3], ids[: BORDER + 1], ids, [*ids, 5]]
    losses = model.loss(company)
    assert losses[2] == pytest.approx(want, rel=1e-4)
    assert losses == [model.loss(one) for one in company]
