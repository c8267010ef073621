"""What pipelines refuse: tasks, models, options and inputs that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
from fastdecode import errors
from pipeline_folders import GOLDEN, edited


@pytest.fixture(scope="module")
def t5() -> Any:
    return fastdecode.load(GOLDEN / "t5")


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return fastdecode.load(GOLDEN / "gpt2")


@pytest.mark.parametrize(
    ("inputs", "option"),
    [
        ({}, "model_inputs"),
        ([[1, 2]], "model_inputs"),
        ({"input_ids": [1, 2]}, "input_ids"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": np.zeros((0, 3), np.int64)}, "input_ids"),
        ({"input_ids": [[1], [2, 3]]}, "input_ids"),
        ({"input_ids": [[0.5]]}, "input_ids"),
        ({"input_ids": [["a"]]}, "input_ids"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "attention_mask"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}, "attention_mask"),
    ],
)
def test_what_forward_may_not_be_given(inputs: Any, option: str, t5: Any, gpt2: Any) -> None:
    for task, model in (("summarization", t5), ("text-generation", gpt2)):
        with pytest.raises(errors.OptionError) as caught:
            fastdecode.pipeline(task, model, max_new_tokens=2).forward(inputs)
        assert caught.value.option == option


def test_what_other_steps_may_not_be_given(t5: Any, gpt2: Any) -> None:
    for task, model in (("summarization", t5), ("text-generation", gpt2)):
        pipe = fastdecode.pipeline(task, model)
        for text in (["the king"], None, 3):
            with pytest.raises(errors.OptionError, match="inputs: expected one text"):
                pipe.preprocess(text)  # type: ignore[arg-type]
        with pytest.raises(errors.OptionError, match="model_outputs: expected a dictionary with"):
            pipe.postprocess({})
        for wrong in ([[1]], [], [[[0.5]]]):
            with pytest.raises(errors.OptionError, match="integers of shape"):
                pipe.postprocess({"output_ids": wrong, "generated_sequence": wrong})
        with pytest.raises(errors.UnknownOptionError):
            pipe.preprocess("the king", max_lenght=3)
        with pytest.raises(errors.OptionError, match="return_type: expected"):
            pipe("the king", return_type=7)


@pytest.mark.parametrize(
    "task", ["", "translate", "translation_en_fr", "translation__to_", "ner", "translation_a_in_b", None, 3]
)
def test_unknown_tasks(task: Any, t5: Any) -> None:
    with pytest.raises(errors.OptionError, match="task: expected") as caught:
        fastdecode.pipeline(task, t5)
    assert caught.value.option == "task"


@pytest.mark.parametrize(
    "task", ["translation", "translation_en_to_fr", "summarization", "text2text-generation"]
)
def test_a_causal_model_in_a_pipeline_for_encoders(task: str, gpt2: Any) -> None:
    for model in (gpt2, GOLDEN / "gpt2"):
        with pytest.raises(errors.UnsupportedModelError, match="with an encoder, got gpt2"):
            fastdecode.pipeline(task, model)


def test_an_encoder_in_the_pipeline_for_causal_models(t5: Any) -> None:
    with pytest.raises(errors.UnsupportedModelError, match="without an encoder, got t5"):
        fastdecode.pipeline("text-generation", t5)


def test_a_model_without_a_tokenizer(ids_folder: Path) -> None:
    with pytest.raises(errors.TokenizerMissing):
        fastdecode.pipeline("text-generation", ids_folder)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"device": "cuda"}, "device"),
        ({"device": 0}, "device"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"dtype": "float16"}, "dtype"),
        ({"num_beams": 0}, "num_beams"),
        ({"temperature": 2.0}, "temperature"),
        ({"diversity_penalty": 0.5}, "diversity_penalty"),
        ({"seed": 1.5}, "seed"),
        ({"device": np.array([-1, -1])}, "device"),
    ],
)
def test_what_a_pipeline_may_not_be_made_with(options: Any, option: str, t5: Any) -> None:
    with pytest.raises(errors.OptionError) as caught:
        fastdecode.pipeline("summarization", t5, **options)
    assert caught.value.option == option


def test_an_unknown_option_suggests_the_right_one(t5: Any) -> None:
    with pytest.raises(errors.UnknownOptionError, match="did you mean num_beams"):
        fastdecode.pipeline("summarization", t5, num_beam=2)
    with pytest.raises(errors.UnknownOptionError, match="did you mean max_length"):
        fastdecode.pipeline("summarization", t5)("the king", max_lenght=2)


@pytest.mark.parametrize(
    ("call", "option"),
    [
        ({"truncation": "some"}, "truncation"),
        ({"return_text": False}, "return_text"),
        ({"stop_sequence": ""}, "stop_sequence"),
        ({"stop_sequence": 3}, "stop_sequence"),
        ({"num_return_sequences": 9}, "num_return_sequences"),
        ({"stop": "x"}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"seed": np.array(1.5)}, "seed"),
        ({"seed": object()}, "seed"),
        ({"seed": "3"}, "seed"),
        ({"truncation": np.array([True, True])}, "truncation"),
        ({"return_tensors": np.array([True, True])}, "return_tensors"),
        ({"clean_up_tokenization_spaces": np.array([True, True])}, "clean_up_tokenization_spaces"),
        ({"forced_eos_token_id": np.array([1, 1])}, "forced_eos_token_id"),
    ],
)
def test_what_a_call_may_not_ask(call: Any, option: str, t5: Any) -> None:
    with pytest.raises(errors.OptionError) as caught:
        fastdecode.pipeline("summarization", t5)("the king", **call)
    assert caught.value.option == option


@pytest.mark.parametrize("inputs", [np.array("text"), None, 3, b"text", {"a": 1}, [3], ["a", None], [["a"]]])
def test_inputs_that_are_no_texts(inputs: Any, t5: Any, gpt2: Any) -> None:
    for task, model in (("summarization", t5), ("text-generation", gpt2)):
        with pytest.raises(errors.OptionError, match="inputs: expected"):
            fastdecode.pipeline(task, model)(inputs, max_new_tokens=2)


def test_what_text_generation_may_not_be_asked(gpt2: Any) -> None:
    pipe = fastdecode.pipeline("text-generation", gpt2)
    with pytest.raises(errors.OptionError, match="return_full_text: expected nothing beside"):
        pipe("the king", return_full_text=False, return_tensors=True)
    with pytest.raises(errors.OptionError, match="stop_sequence"):
        pipe("the king", stop_sequence="")
    with pytest.raises(errors.OptionError, match="one seed per text, 2 in all"):
        pipe(["the king", "the wolf"], seed=[1])


@pytest.mark.parametrize(
    ("tasks", "field"),
    [
        ([], ""),
        ("all", "task_specific_params"),
        ({"summarization": 3}, "summarization"),
        ({"summarization": {"prefix": 3}}, "prefix"),
        ({"summarization": {"num_beams": "4"}}, "task_specific_params.summarization.num_beams"),
        (
            {"summarization": {"diversity_penalty": 2.0}},
            "task_specific_params.summarization.diversity_penalty",
        ),
    ],
)
def test_a_malformed_task(tmp_path: Path, tasks: Any, field: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        fastdecode.pipeline("summarization", edited(tmp_path, "t5", tasks))
    assert caught.value.file == "config.json"
    assert field in str(caught.value)
