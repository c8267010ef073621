"""Options of pipelines: the layers that they come from, languages and prefixes, lists and iterators, truncation."""

from __future__ import annotations

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
from pipeline_folders import DE, FR, GOLDEN, edited, with_settings


@pytest.fixture(scope="module")
def t5() -> Any:
    return fastdecode.load(GOLDEN / "t5")


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return fastdecode.load(GOLDEN / "gpt2")


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


def test_seeds_of_numpy_and_lists_of_any_length(t5: Any) -> None:
    pipe = fastdecode.pipeline("summarization", t5, do_sample=True, num_beams=1, max_new_tokens=6)
    texts = ["the king", "the wolf"]
    assert pipe(texts, seed=np.int64(7)) == pipe(texts, seed=7)
    assert pipe(texts, seed=np.array([7, 8])) == pipe(texts, seed=[7, 8])
    assert pipe(texts, seed=7, batch_size=2**64) == pipe(texts, seed=7)
