"""Loading by the public names: arguments of `load`, weights in memory, what a loaded model tells, and pickles of it."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

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
