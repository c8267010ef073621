"""Pipelines by task: what transformers 4.57.6 answered, step by step, and long generation with a hole."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import transformers
from fastdecode import errors
from pipeline_folders import GOLDEN, edited, plain, with_settings

EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
CASES: list[dict[str, Any]] = EXPECTED["cases"]


@pytest.fixture(scope="module")
def t5() -> Any:
    return fastdecode.load(GOLDEN / "t5")


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return fastdecode.load(GOLDEN / "gpt2")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['task']}-{case['call']}")
def test_answers_are_those_of_transformers_4(case: dict[str, Any], tmp_path: Path) -> None:
    folder = GOLDEN / ("gpt2" if case["task"] == "text-generation" else "t5")
    if settings := case.get("tokenizer_config"):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        folder = with_settings(tmp_path, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.FastdecodeWarning)
        pipe = fastdecode.pipeline(case["task"], model=folder, **case["created"])
        assert plain(pipe(case["inputs"], **case["call"])) == case["answer"]


@pytest.mark.parametrize(
    "case", EXPECTED["steps"], ids=lambda case: f"{case['task']}-{case['text'][:9]}-{case['options'][0]}"
)
def test_steps_are_those_of_transformers_4(case: dict[str, Any]) -> None:
    folder = GOLDEN / ("gpt2" if case["task"] == "text-generation" else "t5")
    pipe = fastdecode.pipeline(case["task"], model=folder)
    before, options, after = case["options"]
    inputs = pipe.preprocess(case["text"], **before)
    assert plain(dict(inputs)) == case["inputs"]
    assert inputs["input_ids"].dtype == np.int64
    assert inputs["input_ids"] is inputs.input_ids
    outputs = pipe.forward(inputs, **options)
    assert plain(outputs) == case["outputs"]
    assert plain(pipe.postprocess(outputs, **after)) == case["records"]
    # The steps do not change what they are given.
    assert plain(dict(inputs)) == case["inputs"]
    assert plain(pipe.postprocess(outputs, **after)) == case["records"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['task']}-{case['call']}")
def test_a_call_is_its_steps(case: dict[str, Any]) -> None:
    folder = GOLDEN / ("gpt2" if case["task"] == "text-generation" else "t5")
    call = case["call"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.FastdecodeWarning)
        pipe = fastdecode.pipeline(case["task"], model=folder, **case["created"])
        texts = case["inputs"] if isinstance(case["inputs"], list) else [case["inputs"]]
        for text in texts:
            outputs = pipe.forward(pipe.preprocess(text, **call), **call)
            assert plain(pipe.postprocess(outputs, **call)) == plain(pipe(text, **call))


def test_steps_draw_as_a_call_does(gpt2: Any) -> None:
    pipe = fastdecode.pipeline("text-generation", gpt2, max_new_tokens=6, num_return_sequences=3, seed=2)
    outputs = pipe.forward(pipe.preprocess("the king"))
    assert outputs["generated_sequence"].shape[:2] == (1, 3)
    assert pipe.postprocess(outputs) == pipe("the king")


def test_forward_takes_what_a_tokenizer_gives(t5: Any, gpt2: Any) -> None:
    answer = fastdecode.pipeline("text2text-generation", t5, max_new_tokens=5)
    texts = ["the king", "by the wood, the old woman"]
    alone = [answer.forward(answer.preprocess(text))["output_ids"][0] for text in texts]
    rows = [t5.tokenizer(text).input_ids for text in texts]
    longest = max(map(len, rows))
    padded = {
        "input_ids": [row + [0] * (longest - len(row)) for row in rows],
        "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in rows],
    }
    both = answer.forward(padded)["output_ids"]
    assert both.shape[:2] == (2, 1)
    for row, expected in zip(both, alone, strict=True):
        assert row[:, : expected.shape[1]].tolist() == expected.tolist()
    tell = fastdecode.pipeline("text-generation", gpt2, max_new_tokens=5, do_sample=False)
    outputs = tell.forward(gpt2.tokenizer("the king", return_tensors="np"))
    # Without prompt_text there is the new text alone.
    assert tell.postprocess(outputs) == tell("the king", return_full_text=False)


HOLES: list[dict[str, Any]] = [
    {"max_new_tokens": 4},
    {"max_new_tokens": 9},
    {"max_new_tokens": 20},
    {"max_length": 30},
    {"max_length": 12},
    {"max_length": 2},
    {"generation_config": {"max_new_tokens": 5, "do_sample": False}},
    {"prefix": "The wolf: ", "max_new_tokens": 6},
    {"prefix": "The wolf: ", "max_length": 33},
    {"prefix": "The wolf: ", "max_length": 33, "min_length": 33},
    {},
]


@pytest.mark.parametrize("call", HOLES, ids=str)
def test_long_generation_with_a_hole(tmp_path: Path, call: dict[str, Any]) -> None:
    folder = with_settings(edited(tmp_path, "gpt2", {}), model_max_length=16)
    # Version 5 does not read what task_specific_params says; it is not there.
    ours = fastdecode.pipeline("text-generation", folder, do_sample=False)
    theirs: Any = transformers.pipeline("text-generation", str(folder), do_sample=False)
    given = dict(call)
    if "generation_config" in call:
        given["generation_config"] = transformers.GenerationConfig(**call["generation_config"])
    for text in ("the king", "The king said that he was ill, the wolf thought to himself", ""):
        for long in ("hole", None):
            try:
                expected = theirs(text, handle_long_generation=long, **given)
            except IndexError:  # beyond the context; here the default of 256 tokens gives way to it
                assert not call
            except ValueError:
                with pytest.raises((errors.OptionError, errors.ContextLengthError)):
                    ours(text, handle_long_generation=long, **call)
            else:
                assert ours(text, handle_long_generation=long, **call) == expected
    with pytest.raises(errors.OptionError, match="handle_long_generation: expected"):
        ours("the king", handle_long_generation="left")


def test_a_length_of_the_pipeline_with_a_hole(tmp_path: Path) -> None:
    folder = with_settings(edited(tmp_path, "gpt2", {}), model_max_length=16)
    made: dict[str, Any] = {"do_sample": False, "max_length": 19}
    ours = fastdecode.pipeline("text-generation", folder, **made)
    theirs: Any = transformers.pipeline("text-generation", str(folder), **made)
    text = "the king said that he was"
    expected = theirs(text, handle_long_generation="hole")
    assert ours(text, handle_long_generation="hole") == expected != theirs(text)


def test_a_hole_without_a_limit(tmp_path: Path) -> None:
    folder = edited(tmp_path, "gpt2", {})
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    pipe = fastdecode.pipeline("text-generation", folder, do_sample=False, max_new_tokens=5)
    assert pipe("the king", handle_long_generation="hole") == pipe("the king")
