"""Resolution of options: precedence, checks, and what transformers makes of the same files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fastdecode import errors
from fastdecode.folder import config_defaults, folder_defaults
from fastdecode.options import Options, resolve
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path


def resolved(
    call: dict[str, Any] | None = None, file: dict[str, Any] | None = None, prompts: int = 1, limit: int = 64
) -> Options:
    return resolve(call or {}, config_defaults(file or {}, "generation_config.json"), prompts, limit)


def test_defaults_are_those_of_transformers_but_for_the_length() -> None:
    options = resolved()
    assert options.limit == ("default", 256)
    assert (options.do_sample, options.num_return_sequences, options.repetition_penalty) == (False, 1, 1.0)
    assert (options.eos_token_id, options.stop_token_ids, options.stop) == ((), (), ())
    assert options.skip_special_tokens
    sampling = resolved({"do_sample": True})
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (1.0, 50, 1.0, None)


@pytest.mark.parametrize(
    ("option", "file_value", "call_value", "expected"),
    [
        ("do_sample", True, False, False),
        ("temperature", 0.5, 0.25, 0.25),
        ("top_k", 7, 3, 3),
        ("top_k", 7, None, 0),
        ("top_k", None, None, 0),
        ("top_p", 0.5, 0.75, 0.75),
        ("top_p", 0.5, None, 1.0),
        ("min_p", 0.5, None, None),
        ("repetition_penalty", 1.5, 1.25, 1.25),
        ("repetition_penalty", 1.5, None, 1.0),
        ("eos_token_id", 3, 5, (5,)),
        ("eos_token_id", 3, [5, 6], (5, 6)),
        ("eos_token_id", 3, None, ()),
        ("min_new_tokens", 3, 5, 5),
        ("num_return_sequences", 3, 2, 2),
        ("num_beams", 3, 2, 2),
        ("num_beams", 3, None, 1),
        ("encoder_repetition_penalty", 1.5, None, 1.0),
        ("no_repeat_ngram_size", 3, 2, 2),
        ("no_repeat_ngram_size", 3, None, 0),
        ("encoder_no_repeat_ngram_size", 3, 2, 2),
    ],
)
def test_the_call_wins_and_none_switches_off(
    option: str, file_value: object, call_value: object, expected: object
) -> None:
    file = {"do_sample": True, option: file_value}
    assert getattr(resolved({option: call_value}, file), option) == expected


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("do_sample", True, True),
        ("temperature", 0.5, 0.5),
        ("top_k", 7, 7),
        ("top_p", 0.5, 0.5),
        ("min_p", 0.5, 0.5),
        ("repetition_penalty", 1.5, 1.5),
        ("eos_token_id", 3, (3,)),
        ("eos_token_id", [3, 4], (3, 4)),
        ("eos_token_id", -1, ()),
        ("min_length", 9, 9),
        ("min_new_tokens", 9, 9),
        ("num_return_sequences", 2, 2),
        ("num_beams", 2, 2),
        ("encoder_repetition_penalty", 1.5, 1.5),
        ("no_repeat_ngram_size", 3, 3),
        ("encoder_no_repeat_ngram_size", 3, 3),
    ],
)
def test_the_file_is_honoured(option: str, value: object, expected: object) -> None:
    assert getattr(resolved(file={"do_sample": True, option: value}), option) == expected


def test_stop_strings_of_the_file_are_honoured() -> None:
    file = {"stop_strings": ["\n", "END"]}
    assert (resolved(file=file).stop_strings, resolved(file=file).stop) == (("\n", "END"), ())
    for stop, expected in (("x", ("x",)), (None, ()), ([], ())):
        assert (resolved({"stop": stop}, file).stop_strings, resolved({"stop": stop}, file).stop) == (
            (),
            expected,
        )
    with pytest.raises(errors.OptionError, match="stop: expected none with num_beams above 1"):
        resolved({"num_beams": 2}, file)


@pytest.mark.parametrize(
    ("call", "file", "expected"),
    [
        ({}, {"max_length": 20}, ("length", 20)),
        ({}, {"max_length": 100}, ("length", 64)),
        ({}, {"max_new_tokens": 100}, ("up_to_new_tokens", 100)),
        ({}, {"max_new_tokens": 30, "max_length": 20}, ("up_to_new_tokens", 30)),
        ({"max_new_tokens": 5}, {"max_length": 20}, ("new_tokens", 5)),
        ({"max_length": 20}, {"max_new_tokens": 5}, ("length", 20)),
        ({"max_new_tokens": None}, {"max_new_tokens": 5}, ("default", 256)),
        ({"max_new_tokens": None}, {"max_new_tokens": 5, "max_length": 20}, ("length", 20)),
        ({"max_length": None}, {"max_length": 20}, ("default", 256)),
    ],
)
def test_lengths(call: dict[str, Any], file: dict[str, Any], expected: tuple[str, int]) -> None:
    assert resolved(call, file).limit == expected


def test_both_lengths_in_a_call_are_warned_about() -> None:
    with pytest.warns(errors.FastdecodeWarning, match="max_new_tokens is used"):
        assert resolved({"max_new_tokens": 5, "max_length": 20}).limit == ("new_tokens", 5)


@pytest.mark.parametrize(
    ("call", "file", "expected"),
    [
        ({}, {}, (0, 0)),
        ({"min_length": 7}, {}, (0, 7)),
        ({"min_new_tokens": 7}, {"min_length": 9}, (7, 0)),
        ({"min_length": 7}, {"min_new_tokens": 9}, (0, 7)),
        ({}, {"min_new_tokens": 3, "min_length": 9}, (3, 0)),
    ],
)
def test_minimum(call: dict[str, Any], file: dict[str, Any], expected: tuple[int, int]) -> None:
    options = resolved(call, file)
    assert (options.min_new_tokens, options.min_length) == expected


def test_without_generation_config_the_keys_of_config_json_count(tmp_path: Path) -> None:
    config = {
        "model_type": "gpt2",
        "eos_token_id": 5,
        "bos_token_id": 4,
        "do_sample": True,
        "temperature": 0.5,
    }
    alone = resolve({}, folder_defaults(tmp_path, config), 1)
    assert (alone.eos_token_id, alone.do_sample, alone.temperature) == ((5,), True, 0.5)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 7]}), encoding="utf-8")
    defaults = folder_defaults(tmp_path, config)
    beside = resolve({}, defaults, 1)
    assert (beside.eos_token_id, beside.do_sample, beside.temperature) == ((6, 7), False, 1.0)
    assert defaults.bos_token_id == 4


@pytest.mark.parametrize(
    ("call", "option"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 2**70}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"max_new_tokens": "5"}, "max_new_tokens"),
        ({"max_length": 0}, "max_length"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"do_sample": 1}, "do_sample"),
        ({"do_sample": True, "temperature": 0}, "temperature"),
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature"),
        ({"do_sample": True, "temperature": float("inf")}, "temperature"),
        ({"do_sample": True, "temperature": "1"}, "temperature"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"do_sample": True, "top_k": 2.0}, "top_k"),
        ({"do_sample": True, "top_p": 1.1}, "top_p"),
        ({"do_sample": True, "top_p": -0.1}, "top_p"),
        ({"do_sample": True, "min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"num_return_sequences": 0, "do_sample": True}, "num_return_sequences"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": 2**40}, "eos_token_id"),
        ({"eos_token_id": "a"}, "eos_token_id"),
        ({"eos_token_id": [1, None]}, "eos_token_id"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stop": b"x"}, "stop"),
        ({"stop_token_ids": [1.0]}, "stop_token_ids"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"seed": [1, 2, 3]}, "seed"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2.0}, "num_beams"),
        ({"num_beams": True}, "num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"num_beams": 2, "do_sample": True, "num_return_sequences": 3}, "num_return_sequences"),
        ({"num_beams": 2, "logprobs": 1}, "logprobs"),
        ({"num_beams": 2, "stop": "."}, "stop"),
        ({"num_beams": 2, "length_penalty": float("inf")}, "length_penalty"),
        ({"num_beams": 2, "length_penalty": "long"}, "length_penalty"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping"),
        ({"num_beams": 2, "early_stopping": 1}, "early_stopping"),
        ({"encoder_repetition_penalty": 0.0}, "encoder_repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"encoder_no_repeat_ngram_size": 1.5}, "encoder_no_repeat_ngram_size"),
        ({"num_beam_groups": 2}, "num_beam_groups"),
        ({"typical_p": 0.5}, "typical_p"),
    ],
)
def test_values_that_cannot_be_used(call: dict[str, Any], option: str) -> None:
    with pytest.raises(errors.OptionError) as caught:
        resolved(call, prompts=2)
    assert caught.value.option == option
    assert caught.value.expected
    assert caught.value.got
    assert option in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("option", ["temperature", "top_k", "top_p", "min_p"])
def test_sampling_options_need_do_sample(option: str) -> None:
    call = {option: 3 if option == "top_k" else 0.5}
    for extra in ({}, {"do_sample": False}):
        with pytest.raises(errors.OptionError, match="do_sample=True"):
            resolved(call | extra)
    assert resolved(call | {"do_sample": True})
    assert resolved(call, {"do_sample": True})
    # Values that mean "off" are no contradiction, and transformers does not warn about them either.
    assert resolved({"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "seed": 3})


@pytest.mark.parametrize(("option", "value"), [("length_penalty", 2.0), ("early_stopping", True)])
def test_options_of_beams_need_beams(option: str, value: object) -> None:
    for extra in ({}, {"num_beams": 1}, {"num_beams": None}):
        with pytest.raises(errors.OptionError, match="num_beams above 1"):
            resolved({option: value} | extra)
    assert getattr(resolved({option: value, "num_beams": 2}), option) == value
    assert getattr(resolved({option: value}, {"num_beams": 2}), option) == value
    # The file may hold them for calls with beams; None and what changes nothing are no contradiction.
    assert getattr(resolved({}, {option: value}), option) != value
    assert resolved({"length_penalty": 1.0, "early_stopping": False})
    assert resolved({option: None})


def test_beams_of_the_file_and_of_the_call() -> None:
    file = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never", "num_return_sequences": 2}
    options = resolved({}, file)
    assert (options.num_beams, options.length_penalty) == (4, 2.0)
    assert (options.early_stopping, options.num_return_sequences) == ("never", 2)
    assert resolved({"early_stopping": None}, file).early_stopping is False
    assert resolved({"num_beams": 1, "num_return_sequences": 1}, file).num_beams == 1
    with pytest.raises(errors.OptionError, match="num_return_sequences"):
        resolved({"num_beams": 1}, file)


def test_sampling_values_of_the_file_do_not_matter_to_greedy_decoding() -> None:
    file = {"do_sample": True, "temperature": 0.0, "top_p": 7}
    assert not resolved({"do_sample": False}, file).do_sample
    with pytest.raises(errors.ConfigError, match="temperature"):
        resolved({}, file)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_tokens", "max_new_tokens"),
        ("max_new_token", "max_new_tokens"),
        ("temprature", "temperature"),
        ("n", "num_return_sequences"),
        ("stop_strings", "stop"),
        ("topk", "top_k"),
    ],
)
def test_an_unknown_option_is_a_type_error_with_a_suggestion(name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"did you mean {meant}") as caught:
        resolved({name: 1})
    assert isinstance(caught.value, errors.UnknownOptionError)
    assert (caught.value.option, caught.value.expected) == (name, meant)


def test_an_unknown_option_like_nothing_lists_all() -> None:
    with pytest.raises(TypeError, match="the options are: max_new_tokens"):
        resolved({"qqqq": 1})


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ({"num_beams": "4"}, "num_beams"),
        ({"no_repeat_ngram_size": -3}, "no_repeat_ngram_size"),
        ({"num_beams": 2, "early_stopping": "always"}, "early_stopping"),
        ({"diversity_penalty": 0.5, "num_beam_groups": 2}, "diversity_penalty"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"do_sample": "yes"}, "do_sample"),
    ],
)
def test_what_the_file_may_not_hold(file: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        resolved({}, file)
    assert (caught.value.file, caught.value.field) == ("generation_config.json", field)


def test_whole_floats_of_the_file_are_integers() -> None:
    file = {"num_beams": 1.0, "max_new_tokens": 7.0, "no_repeat_ngram_size": 2.0, "num_beam_groups": 1.0}
    options = resolved({}, file | {"temperature": 1.0, "length_penalty": 1.0})
    assert (options.num_beams, options.limit) == (1, ("up_to_new_tokens", 7))
    assert (options.no_repeat_ngram_size, type(options.num_beams), type(options.temperature)) == (
        2,
        int,
        float,
    )
    for value in (1.5, float("nan"), float("inf")):
        with pytest.raises(errors.ConfigError, match="num_beams"):
            resolved({}, {"num_beams": value})
    with pytest.raises(errors.OptionError, match="num_beams"):
        resolved({"num_beams": 1.0})


def test_a_start_token_may_be_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"decoder_start_token_id": [5], "bos_token_id": [2]}')
    defaults = folder_defaults(tmp_path, {"model_type": "t5"})
    assert (defaults.decoder_start_token_id, defaults.bos_token_id) == (5, 2)
    for value in ("[]", "[0, 0]", '["a"]', "[[0]]"):
        (tmp_path / "generation_config.json").write_text(f'{{"decoder_start_token_id": {value}}}')
        with pytest.raises(errors.ConfigError, match="decoder_start_token_id: expected an integer or null"):
            folder_defaults(tmp_path, {"model_type": "t5"})


def test_numbers_that_are_not_finite_in_fields_that_nobody_reads(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 3, "x": NaN, "y": [-Infinity]}')
    options = resolve({}, folder_defaults(tmp_path, {}), 1, 64)
    assert options.limit == ("up_to_new_tokens", 3)


def test_an_unsupported_field_of_the_file_can_be_declined() -> None:
    assert resolved({"forced_eos_token_id": None}, {"forced_eos_token_id": 4})
    assert resolved(
        {}, {"num_beam_groups": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "use_cache": True}
    )
    assert resolved({}, {"typical_p": 0.5})  # of no effect without sampling


def test_seeds() -> None:
    assert resolved({"seed": 3}).seed == 3
    assert resolved({"seed": -1}).seed == 2**64 - 1
    assert resolved({"seed": [3, 4]}, prompts=2).seed == (3, 4)
    assert resolved().seed is None
    with pytest.raises(errors.OptionError, match="one seed per prompt, 2 in all"):
        resolved({"seed": [3]}, prompts=2)


@pytest.mark.parametrize(
    ("text", "field"),
    [("", ""), ("[]", ""), ("{", ""), ('{"bos_token_id": "x"}', "bos_token_id")],
)
def test_a_malformed_generation_config(tmp_path: Path, text: str, field: str) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(errors.ConfigError) as caught:
        folder_defaults(tmp_path, {})
    assert (caught.value.file, caught.value.field) == (str(file), field)


_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "max_length": st.integers(30, 60),
        "max_new_tokens": st.integers(1, 20),
        "min_length": st.integers(0, 10),
        "min_new_tokens": st.integers(1, 5),
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 5, 50]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "min_p": st.sampled_from([0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "encoder_repetition_penalty": st.sampled_from([1.0, 1.5]),
        "no_repeat_ngram_size": st.sampled_from([0, 2]),
        "encoder_no_repeat_ngram_size": st.sampled_from([0, 3]),
        "num_beams": st.sampled_from([1, 2, 4]),
        "length_penalty": st.sampled_from([0.0, 1.0, 2.0]),
        "early_stopping": st.sampled_from([False, True, "never"]),
        "eos_token_id": st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, max_size=2)),
    },
)


@given(file=_VALUES, call=_VALUES)
def test_resolution_equals_that_of_transformers(file: dict[str, Any], call: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    if not call.get("do_sample", file.get("do_sample", False)):
        call = {
            name: value
            for name, value in call.items()
            if name not in ("temperature", "top_k", "top_p", "min_p")
        }
    if call.get("num_beams", file.get("num_beams", 1)) == 1:
        call = {
            name: value for name, value in call.items() if name not in ("length_penalty", "early_stopping")
        }
    if "max_new_tokens" in call or ("max_new_tokens" in file and "max_length" in call):
        # The two places where we differ on purpose: no clash within a call, and the call's length wins.
        call.pop("max_length", None)
    if "min_new_tokens" in file:
        call.pop("min_length", None)
    reference = GenerationConfig()
    reference.update(**GenerationConfig(**file).to_dict(), defaults_only=True, allow_custom_entries=True)
    reference.update(**reference._get_default_generation_params(), defaults_only=True)
    reference.update(**call)
    options = resolved(call, file)
    assert options.do_sample == reference.do_sample
    if reference.do_sample:
        assert options.temperature == reference.temperature
        assert options.top_k == reference.top_k
        assert options.top_p == reference.top_p
        assert options.min_p == reference.min_p
    if reference.num_beams > 1:
        assert options.length_penalty == reference.length_penalty
        assert options.early_stopping == reference.early_stopping
    for name in (
        "repetition_penalty",
        "encoder_repetition_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "num_beams",
    ):
        assert getattr(options, name) == getattr(reference, name)
    eos = reference.eos_token_id
    assert options.eos_token_id == tuple([] if eos is None else [eos] if isinstance(eos, int) else eos)
    prompt = 8
    if reference.max_new_tokens is not None:
        assert options.limit[0] in ("new_tokens", "up_to_new_tokens")
        assert options.limit[1] == reference.max_new_tokens
    elif "max_length" in call or "max_length" in file:
        assert options.limit == ("length", reference.max_length)
    minimum = reference.min_new_tokens
    shortest = minimum + prompt if minimum is not None else reference.min_length
    assert max(options.min_new_tokens + prompt if options.min_new_tokens else 0, options.min_length) == (
        0 if shortest <= 0 else shortest
    )
