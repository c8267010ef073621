"""The public verbs: what goes in, what comes out, and that all of them tell the same story.

One story, and so one file.
"""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, assert_type

import fastdecode
import numpy as np
import pytest
import tiny
from fastdecode import errors
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import tokenizers

GREEDY: Any = {"max_new_tokens": 12, "eos_token_id": None}


def test_signature_of_load_is_as_announced() -> None:
    signature = inspect.signature(fastdecode.load)
    assert list(signature.parameters) == [
        "model",
        "dtype",
        "int4_group",
        "compute_dtype",
        "num_threads",
        "cache_bytes",
        "max_rows",
        "prefix_cache_bytes",
        "device",
        "tokenizer",
        "adapter",
        "revision",
        "token",
        "cache_dir",
        "local_files_only",
        "transformers",
    ]
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    assert kinds[1:-1] == [inspect.Parameter.KEYWORD_ONLY] * 14
    assert kinds[-1] is inspect.Parameter.VAR_KEYWORD
    assert signature.parameters["dtype"].default == "auto"


def test_types_of_results(model: fastdecode.CausalLM) -> None:
    """What a type checker sees is what there is."""
    ids = [5, 6]
    assert isinstance(assert_type(model.generate("a", max_new_tokens=1), str), str)
    assert isinstance(assert_type(model.generate(ids, max_new_tokens=1), str), str)
    assert isinstance(assert_type(model.generate(["a", "b"], max_new_tokens=1), list[str]), list)
    assert isinstance(assert_type(model.generate([ids, ids], max_new_tokens=1), list[str]), list)
    assert isinstance(assert_type(model.run("a", max_new_tokens=1), fastdecode.Output), fastdecode.Output)
    assert isinstance(assert_type(model.run(["a"], max_new_tokens=1), list[fastdecode.Output]), list)


def test_import_is_light() -> None:
    heavy = (
        "numpy",
        "tokenizers",
        "huggingface_hub",
        "torch",
        "transformers",
        "asyncio",
        "argparse",
        "dataclasses",
    )
    code = f"import sys, fastdecode; print([name for name in {heavy!r} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "[]\n"
    )


def test_shapes_of_prompts_and_results(model: fastdecode.CausalLM) -> None:
    ids = [5, 6, 7]
    one = model.run(ids, **GREEDY)
    assert isinstance(one, fastdecode.Output)
    assert model.run(tuple(ids), **GREEDY).token_ids == one.token_ids
    assert model.run(np.array(ids), **GREEDY).token_ids == one.token_ids
    many = model.run([ids, [8]], **GREEDY)
    assert [type(output) for output in many] == [fastdecode.Output] * 2
    assert many[0].token_ids == one.token_ids
    unusual: list[Any] = [np.array([ids, ids]), [np.array(ids)], iter([ids])]
    for prompts in unusual:
        assert model.run(prompts, **GREEDY)[0].token_ids == one.token_ids
    assert model.run([], **GREEDY) == []
    assert model.generate([], **GREEDY) == []
    assert list(model.stream([], **GREEDY)) == []
    text = "Once upon"
    mixed = model.run([text, ids], **GREEDY)
    assert model.generate(text, **GREEDY) == mixed[0].text == str(mixed[0])
    assert model.generate([text, ids], **GREEDY) == [mixed[0].text, one.text]
    assert model.generate([text], **GREEDY) == [mixed[0].text]


def test_text_and_ids_agree(model: fastdecode.CausalLM) -> None:
    assert model.tokenizer is not None
    text = "The wolf said"
    by_text = model.run(text, **GREEDY)
    by_ids = model.run(model.tokenizer.encode(text), **GREEDY)
    assert by_text.token_ids == by_ids.token_ids
    assert by_text.text == model.tokenizer.decode(by_text.token_ids, skip_special_tokens=True)
    assert by_text.usage.prompt_tokens == len(model.tokenizer.encode(text))
    assert by_text.usage.completion_tokens == len(by_text.token_ids) == 12


def test_an_empty_prompt_starts_from_bos(
    model: fastdecode.CausalLM, ids_folder: Path, tmp_path: Path
) -> None:
    from_bos = model.run([0], **GREEDY)
    assert model.run("", **GREEDY).token_ids == from_bos.token_ids
    assert [output.token_ids for output in model.run(["", []], **GREEDY)] == [from_bos.token_ids] * 2
    assert model.run("", **GREEDY).usage.prompt_tokens == 1
    assert model.prefill("").tokens == [0]
    shutil.copytree(ids_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["bos_token_id"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    without = fastdecode.load(tmp_path / "m", num_threads=1)
    with pytest.raises(errors.OptionError, match="bos_token_id"):
        without.run([[]])


@pytest.mark.parametrize(
    "bad",
    [
        *(
            None,
            3,
            1.5,
            b"bytes",
            {"a": 1},
            [1, "a"],
            ["a", 3],
            [[1.5]],
            [True],
            [-1],
            [10**6],
            [2**40],
            [[[1]]],
        ),
        *(np.array(3), np.array("a")),
    ],
)
def test_prompts_that_are_none(model: fastdecode.CausalLM, bad: Any) -> None:
    for verb in (model.run, model.generate, model.stream):
        with pytest.raises(errors.OptionError, match="prompt"):
            verb(bad)


def test_finish_reasons(model: fastdecode.CausalLM) -> None:
    plain = model.run([5, 6, 7], **GREEDY)
    assert plain.finish_reason == "length"
    ids = plain.token_ids
    last = max(ids, key=ids.index)  # the id that comes first at the latest place
    place = ids.index(last)
    ended = model.run([5, 6, 7], max_new_tokens=12, eos_token_id=last)
    assert (ended.finish_reason, ended.token_ids) == ("eos", ids[: place + 1])
    stopped = model.run([5, 6, 7], max_new_tokens=12, eos_token_id=None, stop_token_ids=[last])
    assert (stopped.finish_reason, stopped.token_ids) == ("stop", ids[: place + 1])
    if place:
        longer = model.run([5, 6, 7], max_new_tokens=12, eos_token_id=last, min_new_tokens=place + 1)
        assert len(longer.token_ids) > place + 1 or longer.finish_reason != "eos"
        assert last not in longer.token_ids[: place + 1]


def test_stop_strings(model: fastdecode.CausalLM) -> None:
    plain = model.run("Once upon a time", max_new_tokens=30, eos_token_id=None)
    assert plain.text is not None
    pairs = [plain.text[at : at + 2] for at in range(5, len(plain.text) - 1)]
    stop = next(pair for pair in pairs if "\ufffd" not in pair)
    stopped = model.run("Once upon a time", max_new_tokens=30, eos_token_id=None, stop=stop)
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert plain.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    assert model.tokenizer is not None
    assert stop in model.tokenizer.decode(stopped.token_ids, skip_special_tokens=True)
    assert stop not in model.tokenizer.decode(stopped.token_ids[:-1], skip_special_tokens=True)
    none = model.run("Once upon a time", max_new_tokens=30, eos_token_id=None, stop=["never", "comes"])
    assert (none.text, none.finish_reason) == (plain.text, "length")
    both = model.run(["Once upon a time", [9]], max_new_tokens=30, eos_token_id=None, stop=[stop])
    assert both[0].text == stopped.text
    assert both[1].token_ids[:5] == model.run([9], max_new_tokens=5, eos_token_id=None).token_ids


def test_special_tokens_in_text(model: fastdecode.CausalLM) -> None:
    ids = model.run([5, 6, 7], **GREEDY).token_ids
    assert model.tokenizer is not None
    kept = model.run([5, 6, 7], **GREEDY, skip_special_tokens=False).text
    assert kept == model.tokenizer.decode(ids, skip_special_tokens=False)


def test_logprobs(model: fastdecode.CausalLM) -> None:
    output = model.run([5, 6, 7], **GREEDY, logprobs=3)
    assert output.logprobs is not None
    assert [entry.token_id for entry in output.logprobs] == output.token_ids
    logits = model.logits([5, 6, 7, *output.token_ids])[2:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for entry, row in zip(output.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-4)
        assert [token for token, _ in entry.top] == list(np.argsort(-row, kind="stable")[:3])
        assert entry.top[0] == (entry.token_id, entry.logprob)
    assert model.run([5], **GREEDY).logprobs is None
    chosen_only = model.run([5], **GREEDY, logprobs=0).logprobs
    assert chosen_only is not None
    assert all(entry.top == [] for entry in chosen_only)
    everything = model.run([5], max_new_tokens=1, logprobs=10**6).logprobs
    assert everything is not None
    assert len(everything[0].top) == 320
    sampled = model.run(
        [5], do_sample=True, seed=3, temperature=5.0, repetition_penalty=2.0, logprobs=1, **GREEDY
    )
    assert sampled.logprobs is not None
    raw = model.logits([5, *sampled.token_ids])[:-1].astype(np.float64)
    raw -= np.log(np.exp(raw).sum(axis=1, keepdims=True))
    for entry, row in zip(sampled.logprobs, raw, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-4)


def test_sampling_and_seeds(model: fastdecode.CausalLM) -> None:
    options: Any = {"do_sample": True, "temperature": 3.0, "top_k": 0, **GREEDY}
    once = model.run([5], seed=1, **options).token_ids
    assert model.run([5], seed=1, **options).token_ids == once
    assert model.run([5], seed=2, **options).token_ids != once
    assert model.run([5], **options).token_ids != model.run([5], **options).token_ids
    alone = [model.run(prompt, seed=seed, **options).token_ids for prompt, seed in (([5], 1), ([6, 7], 2))]
    together = [output.token_ids for output in model.run([[5], [6, 7]], seed=[1, 2], **options)]
    assert together == alone
    shared = [output.token_ids for output in model.run([[5], [6, 7]], seed=1, **options)]
    assert shared != alone


def test_num_return_sequences_are_flat_prompt_by_prompt(model: fastdecode.CausalLM) -> None:
    options: Any = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 3, **GREEDY}
    one = model.run([5], seed=1, **options)
    assert isinstance(one, list)
    assert len(one) == 3
    assert len({tuple(output.token_ids) for output in one}) == 3
    texts = model.generate([5], seed=1, **options)
    assert texts == [output.text for output in one]
    several = model.run([[5], [6]], seed=[1, 2], **options)
    assert [output.token_ids for output in several[:3]] == [output.token_ids for output in one]
    assert len(several) == 6
    assert all(output.usage.prompt_tokens == 1 for output in several)


def test_lists_equal_single_runs(model: fastdecode.CausalLM) -> None:
    prompts = [[5], list(range(40)), [7, 8, 9], [3] * 17]
    together = model.run(prompts, max_new_tokens=10, logprobs=2)
    for prompt, output in zip(prompts, together, strict=True):
        alone = model.run(prompt, max_new_tokens=10, logprobs=2)
        assert (output.text, output.token_ids, output.logprobs) == (
            alone.text,
            alone.token_ids,
            alone.logprobs,
        )
        assert output.usage == alone.usage


def test_lengths_and_the_context(model: fastdecode.CausalLM) -> None:
    full: Any = {"eos_token_id": None}
    assert len(model.run([5] * 4, **full).token_ids) == 60  # what the context leaves of 256
    assert len(model.run([5] * 4, max_length=10, **full).token_ids) == 6
    assert len(model.run([5] * 4, max_new_tokens=60, **full).token_ids) == 60
    # The last new token is never fed back and needs no position.
    assert len(model.run([5] * 4, max_new_tokens=61, **full).token_ids) == 61
    calls: list[tuple[Any, int]] = [
        ({"max_new_tokens": 62}, 66),
        ({"max_new_tokens": 1000}, 1004),
        ({"max_length": 65}, 65),
        ({"max_new_tokens": 2**31}, 2**31 + 4),
    ]
    for call, requested in calls:
        with pytest.raises(errors.ContextLengthError, match="64") as caught:
            model.run([5] * 4, **call, **full)
        assert (caught.value.limit, caught.value.requested) == (64, requested)
        with pytest.raises(errors.ContextLengthError):
            model.stream([5] * 4, **call, **full)
    with pytest.raises(errors.ContextLengthError) as caught:
        model.run([5] * 64)
    assert (caught.value.limit, caught.value.requested) == (64, 65)
    with pytest.raises(errors.OptionError, match="max_length"):
        model.run([5] * 4, max_length=4)


def test_the_folder_decides_what_the_call_leaves_open(
    tmp_path: Path, byte_level: tokenizers.Tokenizer
) -> None:
    generation = {
        "do_sample": True,
        "top_k": 5,
        "temperature": 2.0,
        "max_new_tokens": 7,
        "eos_token_id": [1, 2],
    }
    folder = tiny.write_folder(tmp_path / "m", tokenizer=byte_level, generation=generation)
    model = fastdecode.load(folder, num_threads=1)
    options: Any = {
        "do_sample": True,
        "top_k": 5,
        "temperature": 2.0,
        "max_new_tokens": 7,
        "eos_token_id": [1, 2],
    }
    implicit = model.run([5], seed=4)
    assert implicit.token_ids == model.run([5], seed=4, **options).token_ids
    assert implicit.finish_reason in ("eos", "length")
    greedy = model.run([5], do_sample=False, max_new_tokens=9, eos_token_id=None)
    assert len(greedy.token_ids) == 9


class TestWithoutATokenizer:
    def test_ids_work(self, ids_model: fastdecode.CausalLM) -> None:
        assert ids_model.tokenizer is None
        output = ids_model.run([5, 6], **GREEDY)
        assert output.text is None
        assert str(output) == ""
        chunks = list(ids_model.stream([5, 6], **GREEDY))
        assert [chunk.text for chunk in chunks] == [None] * 12
        assert [token for chunk in chunks for token in chunk.token_ids] == output.token_ids

    def test_text_does_not(self, ids_model: fastdecode.CausalLM) -> None:
        calls: list[Any] = [
            lambda: ids_model.generate([5]),
            lambda: ids_model.generate([]),
            lambda: ids_model.run("text"),
            lambda: ids_model.stream("text"),
            lambda: ids_model.prefill("text"),
            lambda: ids_model.run([5], stop="x"),
        ]
        for call in calls:
            with pytest.raises(errors.TokenizerMissing, match="tokenizer"):
                call()

    def test_one_can_be_given(self, folder: Path, ids_folder: Path, byte_level: tokenizers.Tokenizer) -> None:
        for given in (folder, str(folder / "tokenizer.json"), byte_level):
            model = fastdecode.load(ids_folder, num_threads=1, tokenizer=given)
            assert isinstance(model.generate([5], **GREEDY), str)


class TestFromTensors:
    @pytest.fixture
    def tensors(self, ids_folder: Path) -> dict[str, Any]:
        tensors: dict[str, Any] = load_file(ids_folder / "model.safetensors")
        return tensors

    def test_equals_the_folder(self, ids_model: fastdecode.CausalLM, tensors: dict[str, Any]) -> None:
        config = dict(ids_model.config)
        model = fastdecode.CausalLM.from_tensors(config, tensors, num_threads=1)
        assert np.array_equal(model.logits([1, 2, 3]), ids_model.logits([1, 2, 3]))
        assert model.run([5]).token_ids == ids_model.run([5]).token_ids
        assert model.config == config
        fortran = {name: np.asfortranarray(array) for name, array in tensors.items()}
        big = {name: array.astype(">f4") for name, array in tensors.items()}
        for same in (fortran, big):
            again = fastdecode.CausalLM.from_tensors(config, same, num_threads=1)
            assert np.array_equal(again.logits([1, 2, 3]), ids_model.logits([1, 2, 3]))

    def test_16_bit(self, ids_model: fastdecode.CausalLM, tensors: dict[str, Any], ids_folder: Path) -> None:
        import ml_dtypes

        config = dict(ids_model.config)
        narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
        bits = {name: array.view(np.uint16) for name, array in narrow.items()}
        half = {name: array.astype(np.float16) for name, array in tensors.items()}
        rounded = fastdecode.load(ids_folder, dtype="bfloat16", num_threads=1)
        for same in (narrow, bits):
            model = fastdecode.CausalLM.from_tensors(config, same, num_threads=1)
            assert np.array_equal(model.logits([1, 2]), rounded.logits([1, 2]))
        halves = fastdecode.load(ids_folder, dtype="float16", num_threads=1)
        model = fastdecode.CausalLM.from_tensors(config, half, num_threads=1)
        assert np.array_equal(model.logits([1, 2]), halves.logits([1, 2]))

    def test_memory_is_copied(self, ids_model: fastdecode.CausalLM, tensors: dict[str, Any]) -> None:
        mine = {name: array.copy() for name, array in tensors.items()}
        model = fastdecode.CausalLM.from_tensors(dict(ids_model.config), mine, num_threads=1)
        for array in mine.values():
            array[:] = 0
        assert np.array_equal(model.logits([1, 2]), ids_model.logits([1, 2]))

    def test_unknown_tensors_are_named(self, ids_model: fastdecode.CausalLM, tensors: dict[str, Any]) -> None:
        more = tensors | {"transformer.extra": np.zeros(3, np.float32), "other.thing": np.zeros(2, np.int64)}
        with pytest.warns(errors.FastdecodeWarning, match=r"other\.thing, transformer\.extra"):
            model = fastdecode.CausalLM.from_tensors(dict(ids_model.config), more, num_threads=1)
        assert model.info()["unknown_tensors"] == ["other.thing", "transformer.extra"]

    def test_misuse(self, ids_model: fastdecode.CausalLM, tensors: dict[str, Any]) -> None:
        config = dict(ids_model.config)
        build = fastdecode.CausalLM.from_tensors
        name = "transformer.h.1.mlp.c_fc.bias"
        for wrong in (
            np.zeros(95, np.float32),
            tensors[name].astype(np.int64),
            [0.0] * 96,
            np.array(["a"]),
        ):
            with pytest.raises(errors.CheckpointError, match="tensors in memory") as caught:
                build(config, tensors | {name: wrong}, num_threads=1)
            assert caught.value.tensor is not None
            assert caught.value.tensor in name
            assert caught.value.expected
            assert caught.value.got
        with pytest.raises(errors.CheckpointError) as caught:
            build(config, {key: value for key, value in tensors.items() if key != name}, num_threads=1)
        assert caught.value.tensor is not None
        assert caught.value.tensor in name
        with pytest.raises(errors.UnsupportedModelError, match="gpt2"):
            build(config | {"model_type": "bert"}, tensors)
        with pytest.raises(errors.ConfigError) as bad:
            build(config | {"n_head": 5}, tensors)
        assert bad.value.field == "n_head"
        with pytest.raises(errors.ConfigError):
            build(config | {"n_layer": object()}, tensors)
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(build(config, tensors, num_threads=1))


def test_config(model: fastdecode.CausalLM) -> None:
    assert model.config["n_embd"] == model.config.n_embd == 24
    assert dict(model.config) == tiny.config()
    assert model.config.get("n_inner") is None
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.config.nothing
    with pytest.raises(AttributeError, match="fixed"):
        model.config.n_embd = 3
    assert pickle.loads(pickle.dumps(model.config)) == model.config == copy.deepcopy(model.config)


def test_info_and_repr(model: fastdecode.CausalLM, folder: Path) -> None:
    info = model.info()
    assert info["architecture"] == "gpt2"
    assert info["parameters"] == sum(array.size for array in load_file(folder / "model.safetensors").values())
    assert info["num_threads"] == 2
    assert info["context_length"] == 64
    assert info["isa"] == fastdecode.cpu_info()["isa"]
    assert info["load_seconds"] > 0
    assert "gpt2" in repr(model)
    assert repr(model.prefill([1, 2])) == "State(2 tokens)"


def test_cpu_info() -> None:
    info = fastdecode.cpu_info()
    assert info["isa"] in info["available"]
    assert "portable" in info["available"]
    assert info["num_threads"] >= 1


def test_models_pickle_by_their_path(folder: Path, model: fastdecode.CausalLM) -> None:
    narrow = fastdecode.load(folder, dtype="bfloat16", num_threads=1)
    again = pickle.loads(pickle.dumps(narrow))
    assert again.info()["dtype"] == narrow.info()["dtype"]
    assert again.info()["num_threads"] == 1
    assert np.array_equal(again.logits([1, 2]), narrow.logits([1, 2]))
    assert copy.deepcopy(model).generate("Once", **GREEDY) == model.generate("Once", **GREEDY)
    assert len(pickle.dumps(narrow)) < 2000


def test_timings(model: fastdecode.CausalLM) -> None:
    timings = model.run([5, 6, 7], **GREEDY).timings
    assert timings.load > 0
    assert timings.prefill > 0
    assert timings.decode > 0
    assert timings.tokens_per_second == pytest.approx(11 / timings.decode)
    assert model.run([5], max_new_tokens=1).timings.tokens_per_second == 0.0


def test_results_are_frozen(model: fastdecode.CausalLM) -> None:
    output = model.run([5], max_new_tokens=1)
    chunk = next(model.stream([5], max_new_tokens=1))
    values = {"text": output, "prompt_tokens": output.usage, "load": output.timings, "index": chunk}
    for field, value in values.items():
        with pytest.raises(AttributeError):
            setattr(value, field, None)
        assert not hasattr(value, "__dict__")
        assert pickle.loads(pickle.dumps(value)) == value


def test_unknown_tensors_of_a_folder_are_warned_about(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["surplus.weight"] = np.zeros(3, np.float32)
    tensors["transformer.h.0.attn.bias"] = np.zeros(
        (1, 1, 64, 64), np.float32
    )  # a buffer that old versions saved
    save_file(tensors, folder / "model.safetensors")
    with pytest.warns(errors.FastdecodeWarning, match=r"use: surplus\.weight$"):
        fastdecode.load(folder, num_threads=1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", "int16"),
        ("int4_group", 48),
        ("int4_group", True),
        ("int4_group", 64.0),
        ("int4_group", 32),
        ("dtype", None),
        ("compute_dtype", "float16"),
        ("compute_dtype", "auto"),
        ("compute_dtype", np.array(["float32"])),
        ("num_threads", 0),
        ("num_threads", -1),
        ("num_threads", 1.5),
        ("num_threads", True),
        ("num_threads", 10**6),
        ("cache_bytes", 0),
        ("cache_bytes", -1),
        ("cache_bytes", 1e9),
        ("cache_bytes", True),
        ("cache_bytes", "1 GB"),
        ("cache_bytes", 2**63),
        ("max_rows", 0),
        ("max_rows", -1),
        ("max_rows", 8.0),
        ("max_rows", True),
        ("max_rows", 2**16 + 1),
        ("max_rows", 2**64),
        ("prefix_cache_bytes", -1),
        ("prefix_cache_bytes", 1.0),
        ("prefix_cache_bytes", True),
        ("prefix_cache_bytes", 2**63),
    ],
)
def test_options_of_load(folder: Path, ids_folder: Path, option: str, value: Any) -> None:
    config = json.loads((ids_folder / "config.json").read_text())
    builders: list[Callable[..., object]] = [
        lambda **options: fastdecode.load(folder, **options),
        lambda **options: fastdecode.CausalLM.load(folder, **options),
        lambda **options: fastdecode.CausalLM.from_tensors(
            config, load_file(ids_folder / "model.safetensors"), **options
        ),
    ]
    for build in builders:
        with pytest.raises(errors.OptionError) as caught:
            build(**{option: value})
        assert caught.value.option == option
        assert caught.value.expected
        assert caught.value.got in (repr(value), str(value))


def test_limits_of_requests(folder: Path, ids_folder: Path) -> None:
    config = json.loads((ids_folder / "config.json").read_text())
    tensors = load_file(ids_folder / "model.safetensors")
    limits: Any = {"cache_bytes": 10**6, "max_rows": 3, "prefix_cache_bytes": 10**5}
    for limited in (
        fastdecode.load(folder, **limits),
        fastdecode.CausalLM.load(folder, **limits),
        fastdecode.CausalLM.from_tensors(config, tensors, **limits),
        pickle.loads(pickle.dumps(fastdecode.load(folder, **limits))),
    ):
        info = limited.info()
        assert {name: info[name] for name in limits} == limits
    most = fastdecode.load(folder, cache_bytes=2**63 - 1, max_rows=2**16).info()
    assert (most["cache_bytes"], most["max_rows"]) == (2**63 - 1, 2**16)
    info = fastdecode.load(folder).info()
    assert info["max_rows"] == 64
    # Half of what was left then, where the system tells.
    assert info["cache_bytes"] is None or info["cache_bytes"] > 0
    assert info["cache_bytes"] is not None or sys.platform != "linux"
    assert pickle.loads(pickle.dumps(fastdecode.load(folder))).info()["max_rows"] == 64


def test_demo(tmp_path: Path) -> None:
    model = fastdecode.load("demo-stories", num_threads=2)
    assert model.generate("Once upon a time", max_new_tokens=20, seed=1) == pickle.loads(
        pickle.dumps(model)
    ).generate("Once upon a time", max_new_tokens=20, seed=1)
    with pytest.raises(errors.OptionError, match="revision"):
        fastdecode.load("demo-stories", revision="main")
    assert not list(tmp_path.iterdir())
