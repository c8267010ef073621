"""Arguments of transformers that change nothing here: taken with such values, refused with others."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import tiny
import torch
from families import FAMILIES
from fastdecode import accepted, errors, options
from transformers import GenerationConfig

if TYPE_CHECKING:
    from pathlib import Path

IDS = [1, 2, 3]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["t5"].write_tiny(tmp_path_factory.mktemp("t5"), tokenizer=tiny.with_end())


CALLS: list[dict[str, Any]] = [
    {"pad_token_id": 0},
    {"pad_token_id": np.int64(7), "use_cache": False},
    {"return_dict_in_generate": False, "output_scores": False, "output_attentions": None},
    {"attention_mask": [[1, 1, 1]]},
    {"attention_mask": torch.ones(1, 3, dtype=torch.int64)},
    {"attention_mask": np.ones((1, 3), bool)},
    {"cache_implementation": "static", "max_cache_len": 64, "disable_compile": True},
    {"num_assistant_tokens": 5, "assistant_confidence_threshold": 0.4, "prefill_chunk_size": 2},
    {"logits_processor": [], "stopping_criteria": None, "streamer": None, "synced_gpus": False},
    {
        "decoder_attention_mask": [[1]],
        "past_key_values": None,
        "token_type_ids": None,
        "trust_remote_code": False,
    },
    {"stop_strings": None, "tokenizer": None, "generation_config": None, "transformers_version": "5.24.0"},
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: next(iter(call)))
def test_what_changes_nothing_is_taken_in_every_call(call: dict[str, Any], model: Any) -> None:
    expected = model.run(IDS, max_new_tokens=4)
    assert model.run(IDS, max_new_tokens=4, **call).token_ids == expected.token_ids
    assert model.generate(IDS, max_new_tokens=4, **call) == expected.text
    pieces = list(model.stream(IDS, max_new_tokens=4, **call))
    assert "".join(map(str, pieces)) == expected.text

    async def streamed() -> str:
        return "".join([str(piece) async for piece in model.astream(IDS, max_new_tokens=4, **call)])

    assert asyncio.run(streamed()) == expected.text


def test_every_field_of_a_generation_config_is_known(model: Any) -> None:
    given = GenerationConfig(max_new_tokens=4).to_dict()
    fields = {*vars(GenerationConfig())} - {"stop_strings", "bos_token_id", "decoder_start_token_id"}
    assert fields <= {*accepted._GENERATE, *options.OPTION_NAMES}
    expected = model.run(IDS, max_new_tokens=4, eos_token_id=None)
    assert model.run(IDS, **given).token_ids == expected.token_ids


def test_the_types_list_what_is_taken() -> None:
    own = {"bos_token_id", "decoder_start_token_id", "stop_strings"}
    taken = {name for name in accepted._GENERATE if not name.startswith("_")}
    assert {*accepted.PassedOver.__annotations__} == taken | own
    assert {*accepted.PassedOverInLoading.__annotations__} == {*accepted._LOAD, "torch_dtype", "device_map"}


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        ({"pad_token_id": "<pad>"}, "an integer or None"),
        ({"use_cache": 1}, "True, False or None"),
        ({"output_scores": True}, "logprobs"),
        ({"return_dict_in_generate": True}, "run gives"),
        ({"attention_mask": [[0, 1, 1]]}, "ones alone"),
        ({"attention_mask": "all"}, "ones alone"),
        ({"cache_implementation": "quantized"}, "dynamic"),
        ({"streamer": object()}, "stream gives"),
        ({"past_key_values": object()}, "by hand"),
        ({"trust_remote_code": True}, "no code"),
        ({"logits_processor": [print]}, "empty list"),
        ({"generation_config": "greedy"}, "a GenerationConfig of transformers, a dict"),
        ({"generation_config": GenerationConfig}, "a GenerationConfig of transformers, a dict"),
        ({"bos_token_id": 99}, "the model's folder"),
        ({"decoder_start_token_id": 99}, "the model's folder"),
    ],
)
def test_what_would_change_something_is_named(call: dict[str, Any], hint: str, model: Any) -> None:
    with pytest.raises(errors.OptionError, match=hint) as caught:
        model.run(IDS, max_new_tokens=2, **call)
    assert caught.value.option == next(iter(call))
    assert caught.value.got


def test_the_tokens_of_the_folder_itself(t5: Path) -> None:
    model = fastdecode.load(t5, num_threads=1)
    start = model._defaults.decoder_start_token_id
    expected = model.run(IDS, max_new_tokens=3).token_ids
    assert model.run(IDS, max_new_tokens=3, decoder_start_token_id=start).token_ids == expected
    with pytest.raises(errors.OptionError, match="decoder_start_token_id"):
        model.run(IDS, max_new_tokens=3, decoder_start_token_id=start + 1)


LOADS: list[dict[str, Any]] = [
    {"torch_dtype": None, "device_map": None},
    {"device_map": "auto", "trust_remote_code": False, "low_cpu_mem_usage": True},
    {"device_map": "cpu", "use_safetensors": True, "attn_implementation": "sdpa"},
    {"device_map": {"": "cpu"}, "attn_implementation": "eager", "variant": None, "subfolder": ""},
    {"tp_plan": None, "gguf_file": None, "adapter_name": "default", "tqdm_class": None, "mirror": None},
    {"device_map": torch.device("cpu"), "quantization_config": None, "load_in_8bit": False},
]


@pytest.mark.parametrize("given", LOADS, ids=lambda given: str(next(iter(given.values()))))
def test_what_changes_nothing_is_taken_by_load(given: dict[str, Any], folder: Path, t5: Path) -> None:
    for load in (fastdecode.load, fastdecode.CausalLM.load):
        model: Any = load(folder, num_threads=1, **given)
        assert model.info()["dtype"] == "float32"
    assert pickle.loads(pickle.dumps(model)).info()["dtype"] == "float32"
    fastdecode.Seq2SeqLM.load(t5, num_threads=1, **given)
    pipe = fastdecode.pipeline("text-generation", folder, max_new_tokens=2, **given)
    assert pipe("a", seed=1)


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
@pytest.mark.parametrize("dtype", ["float16", torch.float16, "torch.float16"])
def test_a_dtype_has_two_names(name: str, dtype: Any, folder: Path) -> None:
    given: dict[str, Any] = {name: dtype}
    model = fastdecode.load(folder, num_threads=1, **given)
    assert model.info()["dtype"] == "float16"
    assert pickle.loads(pickle.dumps(model)).info()["dtype"] == "float16"
    pipe = fastdecode.pipeline("text-generation", folder, model_kwargs=given)
    assert pipe.model.info()["dtype"] == "float16"


@pytest.mark.parametrize(
    "given",
    [
        {"torch_dtype": torch.float64},
        {"torch_dtype": "int16"},
        {"torch_dtype": torch.int8},
        {"torch_dtype": 16},
        {"torch_dtype": "float16", "dtype": "bfloat16"},
        {"device_map": "cuda"},
        {"device_map": {"": 0}},
        {"device_map": True},
        {"trust_remote_code": True},
        {"use_safetensors": False},
        {"attn_implementation": "flash_attention_2"},
        {"quantization_config": {"load_in_4bit": True}},
        {"load_in_4bit": True},
        {"variant": "fp16"},
        {"gguf_file": "q4.gguf"},
        {"tp_plan": "auto"},
    ],
    ids=str,
)
def test_what_load_may_not_be_asked(given: dict[str, Any], folder: Path) -> None:
    for load in (fastdecode.load, fastdecode.CausalLM.load):
        with pytest.raises(errors.OptionError) as caught:
            load(folder, num_threads=1, **given)
        assert caught.value.option == next(iter(given))
    with pytest.raises(errors.OptionError):
        fastdecode.pipeline("text-generation", folder, **given)


def test_an_unknown_argument_of_load(folder: Path) -> None:
    for load in (fastdecode.load, fastdecode.CausalLM.load):
        with pytest.raises(errors.UnknownOptionError, match="did you mean num_threads"):
            load(folder, num_thread=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="the arguments of load are: adapter, cache_bytes"):
            load(folder, qqqq=1)  # type: ignore[call-arg]


def test_pipelines_take_them_too(folder: Path, t5: Path) -> None:
    made: dict[str, Any] = {"framework": "pt", "num_workers": 2, "pad_token_id": 0, "batch_size": None}
    device = torch.device("cpu")
    tell = fastdecode.pipeline("text-generation", folder, device=device, do_sample=False, **made)
    expected = tell(["a", "b", "c"], max_new_tokens=3)
    call: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "padding": True, "pad_token_id": 3}
    assert tell(["a", "b", "c"], max_new_tokens=3, **call) == expected
    answer = fastdecode.pipeline("text2text-generation", t5, return_full_text=False, **made)
    assert answer("a", max_new_tokens=3, return_full_text=True, **call) == answer("a", max_new_tokens=3)
    with pytest.raises(errors.OptionError, match="handle_long_generation: expected None"):
        answer("a", handle_long_generation="hole")
    for call in (
        {"batch_size": 0},
        {"num_workers": "2"},
        {"padding": 3},
        {"tokenizer_encode_kwargs": {"a": 1}},
    ):
        with pytest.raises(errors.OptionError, match=f"{next(iter(call))}: expected"):
            tell("a", **call)
    with pytest.raises(errors.OptionError, match="framework"):
        fastdecode.pipeline("text-generation", folder, framework="tf")
    with pytest.raises(errors.OptionError, match="model_kwargs"):
        fastdecode.pipeline("text-generation", folder, model_kwargs=3)


def test_a_loaded_model_in_a_pipeline(model: Any) -> None:
    assert fastdecode.pipeline("text-generation", model, trust_remote_code=False, torch_dtype=None)
    assert fastdecode.pipeline("text-generation", model, tokenizer=model.tokenizer, modelcard="a card")
    with pytest.raises(errors.OptionError, match="tokenizer: expected nothing with a model that is loaded"):
        fastdecode.pipeline("text-generation", model, tokenizer=object())
    with pytest.raises(errors.OptionError, match="dtype: expected nothing with a model that is loaded"):
        fastdecode.pipeline("text-generation", model, torch_dtype="float16")
