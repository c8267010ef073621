"""Values in the words of errors: short, whatever they hold, and wherever a caller may give one.

Python writes no integer of more than 4,300 digits, and a class of anybody's may not say what it is.
"""

from __future__ import annotations

import typing
from functools import partial
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import tiny
from fastdecode import cli, errors
from fastdecode.arrays import brief, spelt
from fastdecode.checks import CHECKS
from fastdecode.load_options import AnyLoadOptions, LoadOptions
from fastdecode.options import GenerateOptions

HUGE = 10**5000
# Beside them options of sampling, and of beams, have an effect.
BESIDE: dict[str, dict[str, Any]] = {
    "length_penalty": {"num_beams": 2},
    "early_stopping": {"num_beams": 2},
} | {name: {"do_sample": True} for name in ("temperature", "top_k", "top_p", "min_p")}
# Each way in which a value may hold what Python does not write.
VALUES: dict[str, Any] = {
    "huge": HUGE,
    "below zero": -HUGE,
    "list": [HUGE],
    "lists": [[HUGE]],
    "mapping": {"a": HUGE},
    "key": {HUGE: 1},
    "array": np.array([HUGE], dtype=object),
}
# What a message may have: names of options are listed in it, values are not.
LONGEST = 1500


class Wordless:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


@pytest.fixture(scope="module")
def translator() -> fastdecode.Seq2SeqLM:
    return fastdecode.Seq2SeqLM.load("demo-en-fr", num_threads=1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        ("it's", '"it\'s"'),
        (None, "None"),
        (10**80, "1" + "0" * 79),
        (HUGE, "1.000e+5000"),
        (-3 * HUGE, "-3.000e+5000"),
        ([1, HUGE], "[1, 1.000e+5000]"),
        ((HUGE,), "(1.000e+5000,)"),
        ({"a": HUGE}, "{'a': 1.000e+5000}"),
        ({HUGE: 1}, "{1.000e+5000: 1}"),
        ("x" * 10**6, "'" + "x" * 79),
    ],
    # pytest would write the values.
    ids=range(11),
)
def test_words(value: object, text: str) -> None:
    assert brief(value) == text


def test_values_without_words() -> None:
    assert brief(Wordless()).startswith("<Wordless instance at 0x")
    assert brief([Wordless()]).startswith("[<Wordless instance at 0x")
    assert brief(VALUES["array"]).startswith("<ndarray instance at 0x")
    # What is named as a type of Python's need not be one.
    assert brief(type("array", (Wordless,), {})()) == "a value of type array"
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    assert 0 < len(brief(deep)) <= 80
    assert (spelt("a"), spelt(5), spelt(HUGE)) == ("a", "5", "1.000e+5000")


def refused(call: Any) -> errors.FastdecodeError | None:
    """The error of a call; None where nothing is wrong with it. Every other exception is a failure."""
    try:
        found = call()
        if hasattr(found, "__next__"):
            list(found)
    except errors.FastdecodeError as error:
        told = error
    else:
        return None
    assert len(str(told)) < LONGEST, "a value is shown whole"
    return told


@pytest.mark.parametrize("name", CHECKS)
def test_an_option_of_a_call(name: str, model: fastdecode.CausalLM, translator: fastdecode.Seq2SeqLM) -> None:
    options: Any = {"max_new_tokens": 1, **BESIDE.get(name, {}), name: HUGE}
    pipeline = fastdecode.pipeline("text-generation", model)
    chat = fastdecode.Chat(model, chat_template="plain")
    calls = [
        lambda: model.run("x", **options),
        lambda: model.stream("x", **options),
        lambda: translator.generate("x", **options),
        lambda: pipeline("x", **options),
        lambda: model.generate("x", generation_config=options),
    ]
    if name != "num_return_sequences":  # a chat has one
        calls.append(lambda: chat.send("x", **options))
    for call in calls:
        if call is calls[4] and name in ("seed", "stop", "stop_token_ids", "logprobs", "skip_special_tokens"):
            continue  # no field of a configuration
        if call is calls[3] and name == "skip_special_tokens":
            continue  # whatever is not False is true there, as in transformers
        error = refused(call)
        assert isinstance(error, errors.OptionError), name
        assert error.option == name
        assert "1.000e+5000" in str(error.got)
        assert "1.000e+5000" in str(error)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_every_option_of_a_call(
    value: Any, model: fastdecode.CausalLM, translator: fastdecode.Seq2SeqLM
) -> None:
    told = 0
    for name in (*GenerateOptions.__annotations__, "generation_config", "no_such_option"):
        options: Any = {"max_new_tokens": 1, **BESIDE.get(name, {}), name: value}
        given: Any = {name: value}
        for call in (
            partial(model.run, "x", **options),
            partial(model.run, "x", generation_config=options),
            partial(translator.run, "x", **options),
            partial(fastdecode.Chat(model, chat_template="plain").send, "x", **options),
            partial(fastdecode.pipeline("text-generation", model), "x", **options),
            partial(fastdecode.pipeline, "text-generation", model, **given),
            partial(fastdecode.pipeline("translation_en_to_fr", translator), "x", **options),
        ):
            told += refused(call) is not None
    assert told > 250


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_every_argument_of_loading(value: Any, folder: Path) -> None:
    for name in (*AnyLoadOptions.__annotations__, "model", "no_such_argument"):
        given: Any = {"model": folder, "num_threads": 1} | {name: value}
        calls = [partial(fastdecode.load, **given), partial(fastdecode.pipeline, "text-generation", **given)]
        if name != "model":
            kept: Any = {name: value}
            calls.append(partial(fastdecode.pipeline, "text-generation", folder, model_kwargs=kept))
        found = [refused(call) for call in calls]
        # Of a local folder nothing is fetched, so that nothing asks how.
        if name in LoadOptions.__annotations__ and name not in ("token", "cache_dir", "local_files_only"):
            assert all(found), name


@pytest.mark.parametrize(
    "name", ["dtype", "int4_group", "compute_dtype", "num_threads", "cache_bytes", "max_rows"]
)
def test_weights_in_memory(name: str) -> None:
    config = tiny.config()
    given: Any = {name: HUGE}
    error = refused(lambda: fastdecode.CausalLM.from_tensors(config, tiny.weights(config), **given))
    assert isinstance(error, errors.OptionError)
    assert (error.option, "1.000e+5000" in str(error)) == (name, True)
    assert refused(lambda: fastdecode.CausalLM.from_tensors(config | {"n_embd": HUGE}, {})) is not None


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_other_verbs(value: Any, model: fastdecode.CausalLM, translator: fastdecode.Seq2SeqLM) -> None:
    state, memory, tokenizer = model.prefill([5, 6]), translator.encode("x"), model.tokenizer
    assert tokenizer is not None
    ids = [5, 6, 7]
    # Some take any integer of at least one.
    below = -HUGE if value is HUGE else value
    calls = (
        lambda: model.run(value),
        lambda: model.logits(value),
        lambda: model.trace(value),
        lambda: model.embed(value),
        lambda: model.prefix(value),
        lambda: model.prefill(value),
        lambda: model.prefill(embeddings=value),
        lambda: model.loss(value),
        lambda: model.loss(ids, value),
        lambda: model.score(value),
        lambda: model.score([(ids, value)]),
        lambda: model.rank(ids, value),
        lambda: model.rank(ids, [ids], normalize=value),
        lambda: model.perplexity(value),
        lambda: model.perplexity(ids, below),
        lambda: model.perplexity(ids, 5, value),
        lambda: model.quality(value),
        lambda: model.quality(ids, dtypes=value),
        lambda: model.quality(ids, int4_group=value),
        lambda: model.quality(ids, window=value),
        lambda: model.quality(ids, progress=value),
        lambda: model.run(ids, prefix=value),
        lambda: state.step(value),
        lambda: state.truncate(value),
        lambda: translator.run(value),
        lambda: translator.run("x", decoder_prompt=value),
        lambda: translator.run(memory=value),
        lambda: translator.encode(value),
        lambda: translator.prefill(value, memory=memory),
        lambda: translator.prefill(memory=value),
        lambda: translator.logits("x", value),
        lambda: translator.loss("x", value),
        lambda: tokenizer.encode(value),
        lambda: tokenizer.decode(value),
        lambda: tokenizer.decode(ids, skip_special_tokens=value),
        lambda: tokenizer.batch_decode([value]),
        lambda: tokenizer.convert_ids_to_tokens(value),
        lambda: tokenizer.convert_tokens_to_ids([value]),
        lambda: tokenizer.token_id(value),
        lambda: tokenizer(value),
        lambda: tokenizer("x", padding=value),
        lambda: tokenizer("x", truncation=value),
        lambda: tokenizer("x", max_length=below, truncation=True),
        lambda: tokenizer("x", return_tensors=value),
        lambda: fastdecode.Chat(value),
        lambda: fastdecode.Chat(model, value),
        lambda: fastdecode.Chat(model).send(value),
        lambda: fastdecode.Chat(model).send("x", role=value),
        lambda: fastdecode.pipeline(value, model),
        lambda: fastdecode.pipeline("text-generation", model)(value),
        lambda: fastdecode.pipeline("text-generation", model, batch_size=below),
        lambda: model.apply_chat_template(value, chat_template="plain"),
    )
    assert [place for place, call in enumerate(calls) if refused(call) is None] == []


def test_in_conversations(model: fastdecode.CausalLM) -> None:
    def tool(x: typing.Literal[10**5000]) -> None:  # type: ignore[valid-type]
        """Does something.

        Args:
            x: What it does it to.
        """

    said: Any = [{"role": "user", "content": "x", "z": HUGE}]
    huge: Any = {"z": HUGE}
    for options in (
        {"chat_template": "{{ messages[0].z }}"},
        {"chat_template": "{{ messages[0].z|tojson }}"},
        {"chat_template": "{{ raise_exception(messages[0].z) }}"},
        {"chat_template": "{{ 10**5000 }}"},
        {"chat_template": "{{ z }}", "chat_variables": huge},
        {"chat_template": "{{ 'a' * z }}", "chat_variables": huge},
        {"chat_template": "{{ tools|tojson }}", "tools": [huge]},
        {"chat_template": "{{ tools|tojson }}", "tools": [tool]},
        {"chat_template": "{{ documents|tojson }}", "documents": [huge]},
        {"chat_template": "plain", "tools": [huge]},
        {"chat_template": "plain", "chat_variables": huge},
        {"chat_template": HUGE},
        {"chat_template": "plain", "continue_final_message": HUGE},
    ):
        given: Any = options
        assert refused(lambda given=given: model.run(said, max_new_tokens=1, **given)) is not None, options
    role: Any = [{"role": HUGE, "content": "x"}]
    error = refused(lambda: model.run(role, max_new_tokens=1, chat_template="plain"))
    assert error is not None
    assert "1.000e+5000" in str(error)


def test_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time")
    digits = "9" * 5000
    for arguments in (
        ["run", str(folder), "x", "--max-new-tokens", digits],
        ["run", str(folder), "x", "--seed", digits],
        ["run", str(folder), "x", "--early-stopping", digits],
        ["run", str(folder), "x", "--dtype", digits],
        ["run", str(folder), "x", "--int4-group", digits],
        ["bench", str(folder), "--rounds", digits],
        ["quality", str(folder), "--text", str(tmp_path / "text.txt"), "--limit", digits],
        ["quality", str(folder), "--text", str(tmp_path / "text.txt"), "--dtype", digits],
    ):
        try:
            status = cli.main(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        last = capsys.readouterr().err.splitlines()[-1]
        assert status != 0
        assert "9" * 70 in last
        assert len(last) < 300, arguments


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_in_the_files_of_a_folder(tmp_path: Path, byte_level: Any, file: str) -> None:
    tiny.write_folder(tmp_path, tokenizer=byte_level)
    written = tmp_path / file
    before = written.read_text() if written.exists() else "{}"
    separator = "" if before.strip() == "{}" else ","
    written.write_text(before.replace("{", f'{{"max_length": 1{"0" * 5000}{separator}', 1))
    with pytest.raises(errors.ConfigError) as caught:
        fastdecode.load(tmp_path).generate("x", max_new_tokens=1)
    assert caught.value.file == str(written)
    assert len(str(caught.value)) < LONGEST
