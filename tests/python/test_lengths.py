"""How long sequences become: the default length of every family, lengths that are asked for, and dynamic rope's end.

A table of positions ends a sequence; rotary positions go on, and `max_position_embeddings` then says only where a call
ends that asks for no length, as in transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import torch
from families import FAMILIES, Input
from families.llama import LlamaRecipe
from families.llama import config as llama_config
from families.phi import PhiRecipe
from families.phi import config as phi_config
from fastdecode import errors
from reference import Reference, assert_close
from subject import Subject

END = 64
# Without an end token, so that only lengths end a sequence.
FULL: dict[str, Any] = {"eos_token_id": None, "do_sample": False}
LEARNED = ("gpt2", "openai-gpt")
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}


def tiny(folder: Path, family: str, **changes: Any) -> Any:
    return fastdecode.load(FAMILIES[family].write_tiny(folder, **changes), num_threads=1)


@pytest.fixture(scope="module", params=["gpt2", "openai-gpt", "llama", "phi"])
def family(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny(tmp_path_factory.mktemp(family), family)


class TestWithoutALength:
    @pytest.mark.parametrize("prompt", [1, 4, END - 1])
    def test_a_call_ends_at_the_configs_positions(self, model: Any, prompt: int) -> None:
        assert len(model.run([5] * prompt, **FULL).token_ids) == END - prompt
        assert sum(len(piece.token_ids) for piece in model.stream([5] * prompt, **FULL)) == END - prompt

    def test_beams_and_lists_do_too(self, model: Any) -> None:
        outputs = model.run([[5] * 60, [6] * 62], num_beams=2, num_return_sequences=2, **FULL)
        assert [len(output.token_ids) for output in outputs] == [4, 4, 2, 2]

    @pytest.mark.parametrize("prompt", [END, END + 1])
    def test_a_prompt_that_leaves_no_room_is_an_error(self, model: Any, family: str, prompt: int) -> None:
        for call in (model.run, model.stream):
            with pytest.raises(errors.ContextLengthError, match="expected at most 64 positions") as caught:
                call([[5] * 4, [5] * prompt], **FULL)
            assert (caught.value.limit, caught.value.requested) == (END, prompt + 1)
            advice = "shorten the prompt" if family in LEARNED else "give max_new_tokens= to go past that"
            assert advice in str(caught.value.reason)
            assert str(caught.value.reason) in str(caught.value)

    @pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
    def test_transformers_ends_there_too(self, model: Any, family: str, tmp_path: Path) -> None:
        theirs = Reference(FAMILIES[family].write_tiny(tmp_path, eos_token_id=None)).model
        options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "use_cache": True}
        for prompt in (END - 3, END - 1):
            assert theirs.generate(torch.full((1, prompt), 5), **options).shape == (1, END)
            assert len(model.run([5] * prompt, **FULL).token_ids) == END - prompt
        with pytest.raises(ValueError, match="max_length"):
            theirs.generate(torch.full((1, END), 5), **options)

    def test_the_default_is_256_where_there_is_room(self, tmp_path: Path) -> None:
        wide = tiny(tmp_path, "llama", max_position_embeddings=400)
        assert [len(wide.run([5] * prompt, **FULL).token_ids) for prompt in (4, 144, 145)] == [256, 256, 255]


class TestWithALength:
    CALLS: tuple[tuple[dict[str, Any], int], ...] = (({"max_new_tokens": 70}, 70), ({"max_length": 90}, 86))

    @pytest.mark.parametrize(("call", "new"), CALLS)
    def test_it_goes_past_where_positions_are_rotary(
        self, model: Any, family: str, call: dict[str, Any], new: int
    ) -> None:
        if family in LEARNED:
            with pytest.raises(errors.ContextLengthError, match="has learned no more of them"):
                model.run([5] * 4, **call, **FULL)
            return
        assert len(model.run([5] * 4, **call, **FULL).token_ids) == new
        assert len(model.run([5] * 80, max_new_tokens=3, **FULL).token_ids) == 3

    @pytest.mark.parametrize(("file", "new"), CALLS)
    def test_so_does_one_of_the_folder(self, file: dict[str, Any], new: int, tmp_path: Path) -> None:
        folder = FAMILIES["llama"].write_tiny(tmp_path, generation=file)
        assert len(fastdecode.load(folder).run([5] * 4, **FULL).token_ids) == new
        without = dict.fromkeys(file)
        assert len(fastdecode.load(folder).run([5] * 4, **without, **FULL).token_ids) == END - 4

    def test_none_means_no_length(self, model: Any) -> None:
        options: dict[str, Any] = {"max_new_tokens": None, "max_length": None}
        assert len(model.run([5] * 4, **options, **FULL).token_ids) == END - 4


RECIPES: dict[str, Any] = {
    "llama": LlamaRecipe(llama_config(rope_scaling=DYNAMIC), seed=7),
    "phi": PhiRecipe(phi_config(rope_scaling=DYNAMIC), seed=7),
}


@pytest.fixture(scope="module", params=RECIPES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe with dynamic rope, and its folder."""
    recipe = RECIPES[request.param]
    return recipe, FAMILIES[request.param].write(recipe, tmp_path_factory.mktemp("dynamic") / "model")


class TestDynamicRope:
    def test_up_to_the_end_it_is_the_plain_rope(self, case: Any) -> None:
        recipe, folder = case
        reference, ours = Reference(folder), fastdecode.load(folder)
        [ids] = recipe.ids(1, END)
        assert_close(Subject(ours).answers(Input(ids)), reference, Input(ids))
        want = reference.generate([ids[:40]], max_length=END, do_sample=False).ids[0]
        assert ours.run(ids[:40], **FULL).token_ids == want
        # The last new token is never fed back and needs no position.
        assert ours.run(ids[:40], max_new_tokens=25, **FULL).token_ids[:24] == want

    def test_past_it_every_face_says_why(self, case: Any) -> None:
        recipe, folder = case
        ours = fastdecode.load(folder)
        [ids] = recipe.ids(1, END + 1)
        state = ours.prefill(ids[:END])
        calls: list[Callable[[], object]] = [
            lambda: ours.run(ids[:4], max_new_tokens=62),
            lambda: ours.stream(ids[:4], max_length=65),
            lambda: ours.run(ids[:4], num_beams=2, max_new_tokens=62),
            lambda: ours.run(ids[:END]),
            lambda: ours.prefill(ids),
            lambda: ours.prefill(embeddings=ours.embed(ids)),
            lambda: state.step(1),
            lambda: ours.logits(ids),
            lambda: ours.trace(ids),
        ]
        for call in calls:
            with pytest.raises(errors.ContextLengthError, match='"dynamic" is supported up to') as caught:
                call()
            assert (caught.value.limit, caught.value.requested) in ((END, END + 1), (END, END + 2))
        assert state.tokens == ids[:END]  # what was refused changed nothing

    def test_scaling_of_another_kind_has_no_end(self, tmp_path: Path) -> None:
        linear = tiny(tmp_path, "llama", rope_scaling={"rope_type": "linear", "factor": 2.0})
        assert linear.logits([5] * (END + 1)).shape == (END + 1, 320)
