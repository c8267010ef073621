"""Pipelines by task: what transformers 4.57.6 answered, layers of options, lists and iterators, misuse."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import torch
import transformers
from fastdecode import errors
from fastdecode.pipelines import Seq2SeqPipeline, TextGenerationPipeline

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "pipelines"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
CASES: list[dict[str, Any]] = EXPECTED["cases"]
DE, FR = "translate English to German: ", "translate English to French: "


@pytest.fixture(scope="module")
def t5() -> Any:
    return fastdecode.load(GOLDEN / "t5")


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return fastdecode.load(GOLDEN / "gpt2")


def plain(value: Any) -> Any:
    """Returns an answer with arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def edited(tmp: Path, name: str, tasks: Any, **generation: Any) -> Path:
    """Returns a copy of a golden folder with other task_specific_params and further generation defaults."""
    shutil.copytree(GOLDEN / name, tmp, dirs_exist_ok=True)
    config = json.loads((tmp / "config.json").read_text())
    (tmp / "config.json").write_text(json.dumps(config | {"task_specific_params": tasks}))
    values = json.loads((tmp / "generation_config.json").read_text())
    (tmp / "generation_config.json").write_text(json.dumps(values | generation))
    return tmp


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


def test_a_generation_config_in_pipelines(t5: Any) -> None:
    source = t5.tokenizer.encode("summarize: the king")

    def ids(pipe: Any, **call: Any) -> list[int]:
        answer: list[int] = pipe("the king", return_tensors=True, **call)[0]["summary_token_ids"].tolist()
        return answer[1:]

    def expected(**options: Any) -> list[int]:
        return list(t5.run(source, **options).token_ids)

    config = transformers.GenerationConfig(max_new_tokens=6, num_beams=3, length_penalty=0.5)
    task: dict[str, Any] = {"min_length": 6, "no_repeat_ngram_size": 3, "early_stopping": True}
    # Beside the options of the pipeline it stands below them and above the task's entry ...
    pipe = fastdecode.pipeline("summarization", t5, generation_config=config)
    assert ids(pipe) == expected(max_new_tokens=6, num_beams=3, length_penalty=0.5, **task)
    pipe = fastdecode.pipeline("summarization", t5, generation_config=config, num_beams=2)
    assert ids(pipe) == expected(max_new_tokens=6, num_beams=2, length_penalty=0.5, **task)
    assert ids(pipe, max_new_tokens=3) == expected(max_new_tokens=3, num_beams=2, length_penalty=0.5, **task)
    # ... and one of a call takes the place of them all.
    pipe = fastdecode.pipeline("summarization", t5, num_beams=2, repetition_penalty=1.5)
    assert ids(pipe, generation_config=config) == expected(max_new_tokens=6, num_beams=3, length_penalty=0.5)
    assert ids(pipe, generation_config={"max_new_tokens": 6}) == expected(max_new_tokens=6, num_beams=1)
    with pytest.raises(errors.OptionError, match="num_beams"):
        pipe("the king", generation_config={"num_beams": "4"})
    with pytest.raises(errors.UnknownOptionError, match="did you mean num_beams"):
        fastdecode.pipeline("summarization", t5, generation_config={"num_beam": 4})


@pytest.mark.parametrize(
    "config",
    [
        {"max_new_tokens": 6, "do_sample": False},
        {"max_new_tokens": 6},
        {"max_new_tokens": 6, "temperature": 2.0, "top_k": 3},
        {"max_length": 9, "do_sample": True},
        {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "num_return_sequences": 2},
        {"do_sample": False, "max_new_tokens": 5, "temperature": 0.3},
    ],
    ids=str,
)
def test_a_generation_config_in_text_generation(config: dict[str, Any], gpt2: Any) -> None:
    theirs: Any = transformers.pipeline("text-generation", str(GOLDEN / "gpt2"))
    torch.manual_seed(3)
    expected = theirs("the king", generation_config=transformers.GenerationConfig(**config))
    ours = fastdecode.pipeline("text-generation", gpt2, repetition_penalty=3.0)
    assert ours("the king", generation_config=config, seed=3) == expected


def test_a_loaded_model_and_a_name(t5: Any, gpt2: Any) -> None:
    pipe = fastdecode.pipeline("summarization", t5)
    assert isinstance(pipe, Seq2SeqPipeline)
    assert (pipe.task, pipe.model, pipe.tokenizer, pipe.prefix) == (
        "summarization",
        t5,
        t5.tokenizer,
        "summarize: ",
    )
    assert isinstance(fastdecode.pipeline("text-generation", gpt2), TextGenerationPipeline)
    options: dict[str, Any] = {"num_threads": 1, "dtype": "bfloat16", "cache_bytes": 10**8, "max_rows": 4}
    loaded = fastdecode.pipeline("text-generation", "demo-stories", device="cpu", **options)
    info = loaded.model.info()
    assert {name: info[name] for name in options} == options
    with pytest.raises(errors.OptionError, match="max_rows: expected None or an integer from 1 to 65536"):
        fastdecode.pipeline("text-generation", "demo-stories", max_rows=0)
    with pytest.raises(errors.OptionError, match="cache_bytes: expected nothing with a model that is loaded"):
        fastdecode.pipeline("text-generation", gpt2, cache_bytes=10**8)


def test_a_bare_translation_takes_the_first_pair(t5: Any) -> None:
    with pytest.warns(errors.FastdecodeWarning, match="translation_en_to_de"):
        pipe = fastdecode.pipeline("translation", t5)
    assert (pipe.task, pipe.prefix) == ("translation_en_to_de", DE)
    chosen = fastdecode.pipeline("translation", t5, src_lang="en", tgt_lang="fr")
    assert (chosen.task, chosen.prefix) == ("translation_en_to_fr", FR)


def test_languages_of_a_call(t5: Any) -> None:
    german = fastdecode.pipeline("translation_en_to_de", t5, max_new_tokens=4)
    french = fastdecode.pipeline("translation_en_to_fr", t5, max_new_tokens=4)
    assert german("the king", src_lang="en", tgt_lang="fr") == french("the king")
    with pytest.warns(errors.FastdecodeWarning, match="no task translation_en_to_it"):
        assert german("the king", src_lang="en", tgt_lang="it") == german("the king")


def test_the_prefix_is_always_put_first(t5: Any) -> None:
    pipe = fastdecode.pipeline("translation_en_to_de", t5, max_new_tokens=4)
    plain_task = fastdecode.pipeline(
        "text2text-generation", t5, max_new_tokens=4, num_beams=3, early_stopping=True
    )
    text = pipe("the king")[0]["translation_text"]
    assert plain_task(DE + "the king")[0]["generated_text"] == text
    with pytest.warns(errors.FastdecodeWarning, match="puts before it again"):
        twice = pipe(DE + "the king")[0]["translation_text"]
    assert plain_task(DE + DE + "the king")[0]["generated_text"] == twice


def test_the_highest_length_wins(tmp_path: Path) -> None:
    def length(pipe: Any, **options: Any) -> int:
        return len(pipe("the king", return_tensors=True, eos_token_id=[], **options)[0]["summary_token_ids"])

    tasks = {"summarization": {"max_length": 9}}
    pipe = fastdecode.pipeline("summarization", edited(tmp_path / "a", "t5", tasks, max_new_tokens=20))
    assert length(pipe) == 9
    assert length(pipe, max_length=5) == 5
    assert length(pipe, max_new_tokens=5) == 6
    created = fastdecode.pipeline("summarization", pipe.model, max_length=7)
    assert length(created) == 7
    assert length(created, max_new_tokens=3) == 4
    folder = fastdecode.pipeline("summarization", edited(tmp_path / "b", "t5", {}, max_length=11))
    assert length(folder) == 11
    nothing = fastdecode.pipeline("summarization", edited(tmp_path / "c", "t5", None))
    assert length(nothing, num_beams=1) == 257


def test_layers_of_other_options(tmp_path: Path) -> None:
    tasks = {
        "summarization": {"num_beams": 2, "length_penalty": 2.0, "do_sample": True, "top_k": 3, "unknown": 1}
    }
    folder = edited(tmp_path, "t5", tasks, num_beams=5, repetition_penalty=1.5)
    pipe: Any = fastdecode.pipeline("summarization", folder, max_new_tokens=6, seed=3)
    model = pipe.model
    source = model.tokenizer.encode("the king")

    def ids(**options: Any) -> list[int]:
        answer: list[int] = pipe("the king", return_tensors=True, **options)[0]["summary_token_ids"].tolist()
        return answer[1:]

    def expected(**options: Any) -> list[int]:
        return list(model.run(source, max_new_tokens=6, **options).token_ids)

    wanted: dict[str, Any] = {"do_sample": True, "top_k": 3, "num_beams": 2, "length_penalty": 2.0, "seed": 3}
    assert ids() == expected(**wanted)
    # A call that draws nothing, or searches nothing, drops what the task wants of that.
    assert ids(do_sample=False) == expected(do_sample=False, num_beams=2, length_penalty=2.0)
    assert ids(num_beams=1) == expected(do_sample=True, top_k=3, num_beams=1, seed=3)
    with pytest.raises(errors.OptionError, match="do_sample=True"):
        ids(do_sample=False, top_k=5)
    # The folder wins over the defaults of transformers 4.
    other: Any = fastdecode.pipeline("text2text-generation", folder, max_new_tokens=6)
    answer = other("the king", return_tensors=True)[0]["generated_token_ids"].tolist()
    assert answer[1:] == expected(num_beams=5)


def test_a_task_may_have_whole_floats(tmp_path: Path) -> None:
    tasks = {"summarization": {"num_beams": 1.0, "max_length": 4.0}}
    pipe = fastdecode.pipeline("summarization", edited(tmp_path, "t5", tasks))
    [record] = pipe("the king", return_tensors=True)
    assert len(record["summary_token_ids"]) <= 4


def test_text_generation_draws_unless_told_otherwise(gpt2: Any) -> None:
    pipe = fastdecode.pipeline("text-generation", gpt2, max_new_tokens=12, seed=4)
    new = gpt2.generate("the king", do_sample=True, temperature=0.7, seed=4, max_new_tokens=12)
    assert pipe("the king") == [{"generated_text": "the king" + new}]
    greedy = gpt2.generate("the king", max_new_tokens=12)
    assert pipe("the king", do_sample=False, return_full_text=False) == [{"generated_text": greedy}]


def test_lists_and_iterators_equal_single_texts(t5: Any, gpt2: Any) -> None:
    texts = ["the king", "the old woman", "little one", "by the wood", "ill"]
    single = fastdecode.pipeline("summarization", t5, max_new_tokens=6)
    pairs = fastdecode.pipeline("summarization", t5, max_new_tokens=6, batch_size=2)
    assert pairs(texts) == [single(text)[0] for text in texts]
    answers = pairs(iter(texts))
    assert next(answers) == single(texts[0])
    assert list(answers) == [single(text) for text in texts[1:]]
    drawn = fastdecode.pipeline("text-generation", gpt2, max_new_tokens=6, batch_size=2)
    assert drawn(texts, seed=1) == [drawn(text, seed=1) for text in texts]
    seeds = [5, 6, 7, 8, 9]
    assert drawn(texts, seed=seeds) == [
        drawn(text, seed=seed) for text, seed in zip(texts, seeds, strict=True)
    ]


def test_truncation(t5: Any) -> None:
    pipe: Any = fastdecode.pipeline("text2text-generation", t5, max_new_tokens=5)
    text = "the old woman by the wood " * 20
    ids = t5.tokenizer.encode(text)
    assert t5.tokenizer.model_max_length == 24 < len(ids)
    cut = t5.run([*ids[:23], 1], max_new_tokens=5, num_beams=4)
    [record] = pipe(text, truncation=True, return_tensors=True)
    assert record["generated_token_ids"].tolist() == [0, *cut.token_ids]
    whole = t5.run(ids, max_new_tokens=5, num_beams=4)
    [record] = pipe(text, return_tensors=True)
    assert record["generated_token_ids"].tolist() == [0, *whole.token_ids]


def with_settings(folder: Path, **settings: Any) -> Path:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def test_truncation_on_the_left(tmp_path: Path, t5: Any) -> None:
    folder = with_settings(edited(tmp_path, "t5", {}), truncation_side="left")
    text = "the king said that he was ill and the old woman by the wood " * 9
    ids = t5.tokenizer.encode(text)
    cut = t5.run([*ids[-24:-1], 1], max_new_tokens=5, num_beams=4)
    # max_length is about the output where there is an encoder.
    for lengths in ({"max_new_tokens": 5}, {"max_length": 6}):
        pipe: Any = fastdecode.pipeline("text2text-generation", folder, **lengths)
        [record] = pipe(text, truncation=True, return_tensors=True)
        assert record["generated_token_ids"].tolist() == [0, *cut.token_ids]
    with_settings(folder, truncation_side="middle")
    with pytest.raises(errors.ConfigError, match="truncation_side: expected"):
        fastdecode.pipeline("text2text-generation", folder)


@pytest.mark.parametrize("side", ["right", "left"])
def test_max_length_bounds_a_prompt_that_is_truncated(tmp_path: Path, gpt2: Any, side: str) -> None:
    folder = with_settings(edited(tmp_path, "gpt2", {}), truncation_side=side)
    text = "the king said that he was ill, the wolf"
    ids = gpt2.tokenizer.encode(text)
    assert len(ids) > 6
    kept = ids[:6] if side == "right" else ids[-6:]
    expected = [*kept, *gpt2.run(kept, max_new_tokens=3).token_ids]
    call: dict[str, Any] = {"do_sample": False, "return_tensors": True, "truncation": True}
    pipe = fastdecode.pipeline("text-generation", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made, given in (
            ({}, {"max_length": 6, "max_new_tokens": 3}),
            ({"max_new_tokens": 3}, {"max_length": 6}),
            ({"max_length": 6}, {"max_new_tokens": 3}),
        ):
            tell = fastdecode.pipeline("text-generation", pipe.model, **made, truncation=True)
            assert tell(text, **call, **given)[0]["generated_token_ids"] == expected
    # Alone it bounds both, and a prompt that was cut leaves no room.
    short = pipe("the", max_length=6, **call)[0]["generated_token_ids"]
    assert len(short) <= 6
    with pytest.raises(errors.OptionError, match="max_length"):
        pipe(text, max_length=6, **call)
    with pytest.raises(errors.OptionError, match="max_length"):
        pipe(text, max_length="6", **call)


def test_truncation_without_a_limit(tmp_path: Path) -> None:
    folder = edited(tmp_path, "t5", {})
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    pipe = fastdecode.pipeline("text2text-generation", folder, max_new_tokens=3)
    with pytest.warns(errors.FastdecodeWarning, match="model_max_length"):
        assert pipe("the king", truncation=True) == pipe("the king")


def test_a_stop_sequence_of_many_tokens_is_warned_about(t5: Any) -> None:
    pipe = fastdecode.pipeline("text2text-generation", t5, max_new_tokens=5)
    with pytest.warns(errors.FastdecodeWarning, match="its first alone"):
        pipe("the king", stop_sequence="the old woman")


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


def test_seeds_of_numpy_and_lists_of_any_length(t5: Any) -> None:
    pipe = fastdecode.pipeline("summarization", t5, do_sample=True, num_beams=1, max_new_tokens=6)
    texts = ["the king", "the wolf"]
    assert pipe(texts, seed=np.int64(7)) == pipe(texts, seed=7)
    assert pipe(texts, seed=np.array([7, 8])) == pipe(texts, seed=[7, 8])
    assert pipe(texts, seed=7, batch_size=2**64) == pipe(texts, seed=7)


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
