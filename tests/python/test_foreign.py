"""Folders that hold something else than what is read: the error names it and says what to do."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
from families import FAMILIES
from fastdecode import errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import tokenizers

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"


@pytest.fixture
def broken(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> Path:
    return tiny.write_folder(tmp_path / "m", tokenizer=byte_level)


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"]
)
def test_a_file_that_git_lfs_has_not_fetched(broken: Path, name: str) -> None:
    if name == "model.safetensors.index.json":
        (broken / "model.safetensors").unlink()
    (broken / name).write_text(POINTER)
    with pytest.raises(errors.FastdecodeError, match="git lfs pull") as caught:
        fastdecode.load(broken, num_threads=1)
    error: Any = caught.value
    assert isinstance(error, (errors.ConfigError, errors.CheckpointError))
    assert error.file == str(broken / name)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json"]
)
def test_a_tokenizer_that_git_lfs_has_not_fetched(tmp_path: Path, kind: str, name: str) -> None:
    folder = FAMILIES[kind].write_tiny(tmp_path / "m")
    if name in ("vocab.json", "merges.txt"):
        (folder / "vocab.json").write_text("{}")
        (folder / "merges.txt").write_text("")
    (folder / name).write_text(POINTER)
    model = fastdecode.load(folder, num_threads=1)
    with pytest.raises((errors.TokenizerError, errors.ConfigError), match="git lfs pull") as caught:
        model.tokenizer  # noqa: B018 (it is read when it is first asked for)
    assert getattr(caught.value, "file", None) == str(folder / name)


@pytest.mark.parametrize("name", ["tokenizer.json", "spiece.model"])
def test_a_tokenizer_of_the_call_that_git_lfs_has_not_fetched(
    broken: Path, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(errors.TokenizerError, match="git lfs pull"):
        fastdecode.load(broken, num_threads=1, tokenizer=tmp_path / name)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "named"),
    [
        ('{"a": 0, "b": 1, "ab": 2}', "#version: 0.2\na b c\n", "merges.txt"),
        ('{"a": 0, "b": 1}', "#version: 0.2\na b\n", "merges.txt"),
        ('{"a": 0, "b": 1, "ab": 2', "#version: 0.2\na b\n", "vocab.json"),
        ("[]", "", "vocab.json"),
    ],
)
def test_which_file_of_a_vocabulary_is_damaged(
    ids_folder: Path, tmp_path: Path, vocabulary: str, merges: str, named: str
) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(errors.TokenizerError) as caught:
        fastdecode.load(ids_folder, num_threads=1, tokenizer=tmp_path)
    assert caught.value.file == str(tmp_path / named)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("quantization", "got"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "weights in 4 bits of bitsandbytes"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "weights in 8 bits of bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "weights in 4 bits of GPTQ"),
        ({"quant_method": "awq", "w_bit": 4}, "weights in 4 bits of AWQ"),
        ({"quant_method": "fp8"}, "weights of fp8"),
        ("int8", "'int8'"),
    ],
)
def test_quantized_weights(broken: Path, quantization: object, got: str) -> None:
    configure(broken, quantization_config=quantization, n_embd=4096)
    with pytest.raises(errors.ConfigError, match="quantized weights are not read") as caught:
        fastdecode.load(broken, num_threads=1)
    assert (caught.value.field, caught.value.got) == ("quantization_config", got)


@pytest.mark.parametrize("quantization", [None, {}, {"load_in_4bit": False, "load_in_8bit": False}])
def test_a_quantization_of_nothing(broken: Path, quantization: object) -> None:
    configure(broken, quantization_config=quantization)
    assert fastdecode.load(broken, num_threads=1)


@pytest.mark.parametrize(
    ("names", "what", "advice"),
    [
        (["tf_model.h5"], "TensorFlow weights", "from_tf=True"),
        (["flax_model.msgpack"], "Flax weights", "from_flax=True"),
        (["model.onnx"], "an ONNX graph", "exported from"),
        (["onnx/model.onnx"], "an ONNX graph", "exported from"),
        (["q4.gguf", "q8.gguf"], "a GGUF file", "made from"),
        (["model.fp16.safetensors"], "weights of a variant", "rename it to model.safetensors"),
        (["pytorch_model.fp16.bin"], "weights of a variant", "rename it to pytorch_model.bin"),
        (["openvino_model.bin", "openvino_model.xml"], "an OpenVINO graph", "exported from"),
        (["rust_model.ot"], "weights of rust-bert", "made from"),
        (["epoch=3.ckpt"], "a training checkpoint", "wrote it"),
        (["model.ckpt-9.index", "model.ckpt-9.meta"], "a TensorFlow checkpoint", "convert it"),
        (["adapter_model.safetensors"], "an adapter", "adapter_config.json"),
    ],
)
@pytest.mark.parametrize("configured", [True, False])
def test_other_weights_alone(
    broken: Path, names: list[str], what: str, advice: str, *, configured: bool
) -> None:
    (broken / "model.safetensors").unlink()
    if not configured:
        (broken / "config.json").unlink()
    for name in names:
        (broken / name).parent.mkdir(exist_ok=True)
        (broken / name).write_bytes(b"x")
    with pytest.raises(errors.FileMissingError, match=what) as caught:
        fastdecode.load(broken, num_threads=1)
    message = str(caught.value)
    assert names[0] in message
    assert advice in message
    assert "model.safetensors" in message
    assert caught.value.file == str(broken)


def test_other_weights_beside_ours_are_passed_over(broken: Path) -> None:
    (broken / "tf_model.h5").write_bytes(b"x")
    assert fastdecode.load(broken, num_threads=1)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_ids_need_no_tokenizer(tmp_path: Path, kind: str) -> None:
    folder = FAMILIES[kind].write_tiny(tmp_path / "m")
    expected = fastdecode.load(folder, num_threads=1).run([1, 2, 3], max_new_tokens=3)
    (folder / "tokenizer.json").write_text("{")
    model = fastdecode.load(folder, num_threads=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = [model.run([1, 2, 3], max_new_tokens=3) for _ in range(2)]
        pieces = list(model.stream([1, 2, 3], max_new_tokens=3))
    assert len(caught) == 1
    assert caught[0].category is errors.FastdecodeWarning
    assert "ids and no text" in str(caught[0].message)
    assert str(folder / "tokenizer.json") in str(caught[0].message)
    assert caught[0].filename == __file__
    assert [(output.text, output.token_ids) for output in outputs] == [(None, expected.token_ids)] * 2
    assert [token for piece in pieces for token in piece.token_ids] == expected.token_ids
    calls: tuple[Callable[[], object], ...] = (
        lambda: model.generate([1, 2, 3], max_new_tokens=3),
        lambda: model.run("a", max_new_tokens=3),
        lambda: model.run([1], stop="a", max_new_tokens=3),
        lambda: model.tokenizer,
    )
    for call in calls:
        with pytest.raises((errors.TokenizerError, errors.ConfigError), match=r"tokenizer\.json"):
            call()
