"""Conversations in the pipeline for text generation: what transformers 5.24 answers, and misuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
import torch
import transformers
from chat_cases import TOOL, assistant, user
from fastdecode import errors

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{{ x }}{{ tools | tojson if tools }}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
ONE, OPEN = [user("Hi")], [user("Hi"), assistant("Once upon")]
GREEDY: Any = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.byte_level(380)
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    tiny.write_folder(folder, tokenizer=tokenizer, vocab_size=400, n_positions=512)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tiny.END, "model_max_length": 40}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.pipeline("text-generation", str(folder), dtype=torch.float32)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (ONE, {}),
        (OPEN, {}),
        (OPEN, {"continue_final_message": False}),
        ([ONE, OPEN, [*OPEN, user("a")]], {}),
        (ONE, {"return_full_text": False}),
        (OPEN, {"return_full_text": False}),
        (ONE, {"return_tensors": True}),
        (ONE, {"tokenizer_encode_kwargs": {"x": "1"}}),
        (ONE, {"tools": [TOOL]}),
        (ONE, {"num_return_sequences": 2, "num_beams": 2}),
        ([ONE, ONE], {"batch_size": 1}),
    ],
)
def test_answers_are_those_of_transformers(
    inputs: Any, options: dict[str, Any], folder: Path, theirs: Any
) -> None:
    ours = fastdecode.pipeline("text-generation", folder)
    before = json.dumps(inputs)
    assert ours(inputs, **options, **GREEDY) == theirs(inputs, **options, **GREEDY)
    assert json.dumps(inputs) == before


def test_steps_iterators_and_options_of_the_pipeline(folder: Path) -> None:
    pipe = fastdecode.pipeline("text-generation", folder, chat_variables={"x": "z"}, **GREEDY)
    whole = pipe(ONE)
    encoded = pipe.preprocess(ONE)
    assert encoded["prompt_text"] == ONE
    assert pipe.postprocess(pipe.forward(encoded)) == whole
    assert pipe(iter(ONE)) == whole
    assert list(pipe(iter([ONE, OPEN]))) == [whole, pipe(OPEN)]
    plain = pipe(ONE, chat_template="plain", chat_variables=None)
    assert plain != whole
    parts = [user("Hi"), assistant([{"type": "text", "text": "Once"}])]
    [record] = pipe(parts, chat_template="plain", chat_variables=None)
    assert record["generated_text"][1]["content"][0]["text"].startswith("Once")
    cut = pipe.preprocess([user("word " * 50)], truncation=True)
    assert cut["input_ids"].shape == (1, 40)
    hole = pipe.preprocess([user("word " * 50)], handle_long_generation="hole")
    assert hole["input_ids"].shape == (1, 34)


def test_misuse(folder: Path) -> None:
    pipe = fastdecode.pipeline("text-generation", folder, **GREEDY)
    for options, match in (
        ({"tools": [TOOL]}, "tools: expected None with a text"),
        ({"chat_template": "plain"}, "chat_template: expected None with a text"),
        ({"documents": [{}]}, "documents"),
        ({"tokenizer_encode_kwargs": {"x": 1}}, "tokenizer_encode_kwargs"),
    ):
        with pytest.raises(errors.OptionError, match=match):
            pipe("Hi", **options)
    assert pipe("Hi", continue_final_message=True) == pipe("Hi")
    with pytest.raises(errors.OptionError, match="continue_final_message"):
        pipe(ONE, continue_final_message="content")
    with pytest.raises(errors.OptionError, match="chat_variables"):
        pipe(ONE, chat_variables=3)
    with pytest.raises(errors.OptionError, match="inputs"):
        pipe([ONE, 3])
    with pytest.raises(errors.OptionError, match="a message"):
        pipe([user("Hi"), "x"])
