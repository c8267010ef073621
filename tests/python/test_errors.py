"""Bad folders and bad machines: the exception, its fields, and what it is a case of."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import tiny
from child import python
from fastdecode import errors
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return tiny.write_folder(tmp_path / "m")


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def failure(folder: Path, **options: Any) -> Any:
    with pytest.raises(errors.FastdecodeError) as caught:
        fastdecode.load(folder, num_threads=1, **options)
    assert str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value)
    assert str(again) == str(caught.value)
    assert vars(again) == vars(caught.value)
    return caught.value


def test_every_exception_is_one_of_ours_and_a_built_in() -> None:
    assert errors.FastdecodeError in CLASSES
    for cls in CLASSES:
        if cls in (errors.FastdecodeError, errors.FastdecodeWarning):
            continue
        assert issubclass(cls, errors.FastdecodeError)
        kinds = [
            base for base in cls.__mro__ if base.__module__ == "builtins" and base not in (Exception, object)
        ]
        assert kinds[0] is not BaseException, f"{cls.__name__} is no case of a built-in exception"
        assert getattr(builtins, kinds[0].__name__) is kinds[0]


def test_fields_are_attributes() -> None:
    error = errors.CheckpointError("message", file="f", tensor="t", expected="e", got="g")
    assert (str(error), error.file, error.tensor, error.expected, error.got) == (
        "message",
        "f",
        "t",
        "e",
        "g",
    )
    assert errors.CheckpointError("message").tensor is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(broken: Path, name: str) -> None:
    (broken / name).unlink()
    error = failure(broken)
    assert isinstance(error, errors.FileMissingError)
    assert isinstance(error, FileNotFoundError)
    assert str(broken) in str(error.file)
    assert name in str(error)


def test_a_forbidden_file(broken: Path) -> None:
    broken.chmod(0)
    code = f"""
import os, fastdecode
from fastdecode import _core
if os.geteuid() == 0:
    os.setuid(65534)  # the superuser may read everything
try:
    _core.Model.load({str(broken)!r}, ("auto", [], 64), None, 1, None, None, 0, ("cpu", "", []))
except fastdecode.errors.FileForbiddenError as error:
    print(isinstance(error, PermissionError), error.file, error.errno)
"""
    answer = python(code)
    broken.chmod(0o755)
    assert answer == f"True {broken / 'config.json'} 13\n"


def test_a_folder_in_place_of_a_file(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors").mkdir()
    assert isinstance(failure(broken), (errors.FileReadError, errors.CheckpointError))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "gpt2"', "null", "\x00", "[" * 10_000])
def test_config_that_is_no_json_object(broken: Path, text: str) -> None:
    (broken / "config.json").write_text(text)
    error = failure(broken)
    assert isinstance(error, errors.ConfigError)
    assert "config.json" in str(error.file)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", -1),
        ("n_layer", "two"),
        ("n_layer", 1.5),
        ("n_embd", 0),
        ("n_head", 5),
        ("n_head", 0),
        ("vocab_size", 2**60),
        ("n_positions", 0),
        ("activation_function", "gelu_newest"),
        ("activation_function", 3),
        ("layer_norm_epsilon", "small"),
        ("model_type", 3),
        ("tie_word_embeddings", "yes"),
    ],
)
def test_values_of_config_that_cannot_be_used(broken: Path, field: str, value: object) -> None:
    change(broken, **{field: value})
    error = failure(broken)
    if isinstance(error, errors.ConfigError):
        assert error.field == field
        assert error.expected
        assert error.got
    else:  # a size that the tensors deny
        assert isinstance(error, (errors.CheckpointError, errors.OutOfMemoryError))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_non_finite_values_of_config(broken: Path, text: str) -> None:
    config = json.loads((broken / "config.json").read_text()) | {"layer_norm_epsilon": "HERE"}
    (broken / "config.json").write_text(json.dumps(config).replace('"HERE"', text))
    error = failure(broken)
    assert isinstance(error, errors.ConfigError)
    assert error.field == "layer_norm_epsilon"


@pytest.mark.parametrize("text", ["NaN", '[Infinity, {"a": -Infinity}]', "1e999"])
def test_non_finite_values_that_nobody_reads(broken: Path, text: str) -> None:
    config = json.loads((broken / "config.json").read_text()) | {"some_scale": "HERE"}
    (broken / "config.json").write_text(json.dumps(config).replace('"HERE"', text))
    model = fastdecode.load(broken, num_threads=1)
    assert len(model.run([1], max_new_tokens=2, eos_token_id=None).token_ids) == 2
    tensors = load_file(broken / "model.safetensors")
    assert fastdecode.CausalLM.from_tensors(json.loads((broken / "config.json").read_text()), tensors)


def test_another_architecture(broken: Path) -> None:
    change(broken, model_type="bert")
    error = failure(broken)
    assert isinstance(error, errors.UnsupportedModelError)
    assert error.got == "bert"
    assert "gpt2" in str(error.expected)


def test_a_missing_tensor(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, broken / "model.safetensors")
    error = failure(broken)
    assert isinstance(error, errors.CheckpointError)
    assert "h.1.mlp.c_fc.weight" in str(error.tensor)
    assert "model.safetensors" in str(error.file)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda array: array[:-1],
        lambda array: array.T.copy(),
        lambda array: array.reshape(-1),
        lambda array: array.astype(np.int32),
    ],
)
def test_a_tensor_of_wrong_shape_or_type(broken: Path, wrong: Callable[[Any], Any]) -> None:
    tensors = load_file(broken / "model.safetensors")
    name = "transformer.h.0.attn.c_attn.weight"
    tensors[name] = wrong(tensors[name])
    save_file(tensors, broken / "model.safetensors")
    error = failure(broken)
    assert isinstance(error, errors.CheckpointError)
    assert error.tensor in (name, name.removeprefix("transformer."))
    assert error.expected
    assert error.got


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 5000, -1])
def test_a_file_that_was_cut_short(broken: Path, kept: int) -> None:
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[:kept])
    error = failure(broken)
    assert isinstance(error, errors.CheckpointError)
    assert "model.safetensors" in str(error.file)


def test_untied_and_without_a_head(broken: Path) -> None:
    change(broken, tie_word_embeddings=False)
    error = failure(broken)
    assert isinstance(error, errors.CheckpointError)
    assert error.tensor == "lm_head.weight"


def test_values_beyond_float16(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["transformer.wte.weight"][3, 3] = 1e6
    save_file(tensors, broken / "model.safetensors")
    error = failure(broken, dtype="float16")
    assert isinstance(error, errors.CheckpointError)
    assert "wte.weight" in str(error.tensor)
    assert fastdecode.load(broken, dtype="bfloat16", num_threads=1)


def test_bfloat16_products_need_bfloat16_weights(broken: Path) -> None:
    error = failure(broken, compute_dtype="bfloat16")
    assert isinstance(error, errors.OptionError)
    assert error.option == "compute_dtype"


def test_scores_that_are_no_numbers(broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    tensors["transformer.ln_f.bias"][:] = np.nan
    save_file(tensors, broken / "model.safetensors")
    model = fastdecode.load(broken, num_threads=1)
    calls: list[Any] = [{}, {"do_sample": True, "seed": 1}]
    for options in calls:
        with pytest.raises(errors.ScoresError) as caught:
            model.run([[5], [6]], max_new_tokens=3, **options)
        assert caught.value.row == 0
        assert caught.value.expected
    assert np.isnan(model.logits([5])).all()


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_no_numbers_meet_integers(dtype: str, bad: float, broken: Path) -> None:
    tensors = load_file(broken / "model.safetensors")
    config = tiny.config(tie_word_embeddings=False)
    name = next(name for name in tensors if name.endswith("wte.weight"))
    tensors["lm_head.weight"] = tensors[name].copy()
    exact: Any = {"dtype": {"default": dtype, "embedding": "float32"}, "num_threads": 1}
    sound = fastdecode.CausalLM.from_tensors(config, tensors, **exact)
    spoilt = {**tensors, name: tensors[name].copy()}
    spoilt[name][7, 3] = bad
    model = fastdecode.CausalLM.from_tensors(config, spoilt, **exact)
    with pytest.raises(errors.ScoresError) as caught:
        model.run([[5], [6, 7], [8]], max_new_tokens=3, do_sample=False)
    assert caught.value.row == 1
    assert np.isnan(model.logits([7])).all()
    assert np.array_equal(model.logits([5, 6, 8]), sound.logits([5, 6, 8])), "no other row"
    # Behind an activation function infinity stays what it is.
    bias = next(name for name in tensors if name.endswith("h.0.mlp.c_fc.bias"))
    spoilt = {**tensors, bias: tensors[bias].copy()}
    spoilt[bias][2] = abs(bad)
    model = fastdecode.CausalLM.from_tensors(config, spoilt, **exact)
    with pytest.raises(errors.ScoresError):
        model.run([5], max_new_tokens=3, do_sample=False)
    assert np.isnan(model.logits([5, 6, 8])).all()


def test_an_instruction_set_that_is_absent() -> None:
    code = """
import fastdecode
for call in (fastdecode.cpu_info, lambda: fastdecode.load("demo-stories")):
    try:
        call()
    except fastdecode.errors.IsaError as error:
        print(ascii(error.got), error.expected, isinstance(error, RuntimeError))
"""
    # What is no text is no name, and is not passed over.
    for name, shown in (("sse9", "'sse9'"), (os.fsdecode(b"sse\xe9"), r"'sse\ufffd'")):
        lines = python(code, FASTDECODE_ISA=name).splitlines()
        assert len(lines) == 2
        assert all(line.startswith(f"{shown} ") and "portable" in line for line in lines)
        assert all(line.endswith("True") for line in lines)
    portable = "import fastdecode; print(fastdecode.cpu_info()['isa'], fastdecode.load('demo-stories').info()['isa'])"
    assert python(portable, FASTDECODE_ISA="portable") == "portable portable\n"


def test_names_of_tensors_that_are_no_text() -> None:
    name: Any
    for name in ("\udcff", "h.\ud800.weight", 1, None, b"wte.weight"):
        with pytest.raises(errors.CheckpointError, match="expected names that are text") as caught:
            fastdecode.CausalLM.from_tensors(tiny.config(), {name: np.zeros((2, 2), np.float32)})
        assert repr(name) in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes are those of Linux")
def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    """Paths are bytes: one that is not UTF-8 is as good as another."""
    folder = tiny.write_folder(tmp_path / "m\udcff")
    plain = tiny.write_folder(tmp_path / "m")
    assert (
        fastdecode.CausalLM.load(folder).logits([1, 2]).tobytes()
        == fastdecode.CausalLM.load(plain).logits([1, 2]).tobytes()
    )
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(errors.CheckpointError):
        fastdecode.load(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are tried on Linux")
def test_memory_that_the_system_refuses(tmp_path: Path) -> None:
    """Nothing aborts: neither while loading nor when the cache grows."""
    folder = tiny.write_folder(
        tmp_path / "m", n_embd=256, n_head=4, n_layer=2, n_positions=4096, vocab_size=50_000
    )
    # Matrices that lie with their inputs first are read whole where they are quantized.
    whole = tiny.write_folder(
        tmp_path / "whole", n_embd=768, n_head=4, n_layer=1, n_positions=64, vocab_size=300
    )
    code = f"""
import resource, fastdecode
from fastdecode import errors
folder, whole = {str(folder)!r}, {str(whole)!r}
fastdecode.load("demo-stories", num_threads=1).run([1, 2, 3], max_new_tokens=2)  # threads and libraries are there
def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
def limit(more):
    resource.setrlimit(resource.RLIMIT_AS, (used() + more, resource.RLIM_INFINITY))
def attempt(what, call):
    try:
        call()
    except errors.OutOfMemoryError as error:
        print(what, error.bytes > 0, isinstance(error, MemoryError))
    else:
        print(what, "no error")
limit(40 << 20)
attempt("load", lambda: fastdecode.load(folder, num_threads=1))
limit(8 << 20)
attempt("quantize", lambda: fastdecode.load(whole, dtype="int4", num_threads=1))
limit(1 << 34)
attempt("quantize", lambda: fastdecode.load(whole, dtype="int4", num_threads=1))
model = fastdecode.load(folder, num_threads=1)
limit(8 << 20)
attempt("run", lambda: model.run([[1] * 2000] * 4, max_new_tokens=2))
limit(1 << 34)
print(len(model.run([1], max_new_tokens=2).token_ids))
"""
    assert python(code).splitlines() == [
        "load True True",
        "quantize True True",
        "quantize no error",
        "run True True",
        "2",
    ]
