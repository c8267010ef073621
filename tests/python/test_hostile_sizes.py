"""Requests that would take all memory are refused before any of it is taken."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
from families import FAMILIES
from fastdecode import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

linux = pytest.mark.skipif(sys.platform != "linux", reason="what is left of the memory is known on Linux")


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """Whoever takes memory by the gigabyte takes time."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 20


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> fastdecode.CausalLM:
    """A cache of 98 KB for every sequence, however short."""
    sizes: Any = {"n_embd": 192, "n_head": 3, "n_layer": 4}
    folder = tiny.write_folder(tmp_path_factory.mktemp("models") / "wide", **sizes)
    return fastdecode.CausalLM.load(folder, num_threads=1)


@pytest.fixture(scope="module")
def wide_t5(tmp_path_factory: pytest.TempPathFactory) -> fastdecode.Seq2SeqLM:
    """Half a megabyte of activations for every token of a source."""
    folder = FAMILIES["t5"].write_tiny(tmp_path_factory.mktemp("models") / "t5", d_ff=2**17)
    return fastdecode.Seq2SeqLM.load(folder, num_threads=1)


@pytest.mark.parametrize("sequences", [2**24 + 1, 2**40, 2**63 - 1])
def test_sequences(model: fastdecode.CausalLM, sequences: int) -> None:
    with pytest.raises(errors.OptionError, match="num_return_sequences") as caught:
        model.run([5], do_sample=True, num_return_sequences=sequences)
    assert "16777216" in str(caught.value.expected)
    assert caught.value.got == f"1 x {sequences}"
    with pytest.raises(errors.OptionError, match="num_return_sequences"):
        model.stream([[5]] * 3, do_sample=True, num_return_sequences=2**23)


@linux
@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("num_beams", {"num_beams": 2**23}),
        ("num_beams", {"num_beams": 2**23, "num_return_sequences": 2**23}),
    ],
)
def test_beams_that_no_memory_holds(wide_model: fastdecode.CausalLM, option: str, options: Any) -> None:
    for call in (wide_model.run, wide_model.stream):
        with pytest.raises(errors.OptionError, match=option) as caught:
            call([5], **options)
        most = int(str(caught.value.expected).split()[2].rstrip(","))
        assert 0 < most < int(str(caught.value.got))
    assert len(wide_model.run([5], max_new_tokens=2, num_beams=4, eos_token_id=None).token_ids) == 2


def test_sequences_begin_as_others_end(wide_model: fastdecode.CausalLM) -> None:
    """As many as a call may have: those that wait hold nothing."""
    options: Any = {
        "do_sample": True,
        "num_return_sequences": 2**24,
        "max_new_tokens": 2,
        "eos_token_id": None,
    }
    stream = wide_model.stream([5], **options)
    seen = {next(stream).index for _ in range(100)}
    assert seen == set(range(len(seen)))
    info = wide_model.info()
    assert info["cache_bytes_live"] <= (info["max_rows"] + 1) * 16 * info["cache_bytes_per_token"]
    stream.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 2**31 - 1},
        {"num_hidden_layers": 2**31 - 1, "model_type": "mistral"},
        {"num_hidden_layers": 2**31 - 1, "model_type": "qwen2", "use_sliding_window": True},
        {"num_hidden_layers": 2**31 - 1, "model_type": "phi"},
        {"num_hidden_layers": 2**31 - 1, "model_type": "openai-gpt"},
        {"num_hidden_layers": 2**31 - 1, "model_type": "gpt2"},
        {"max_window_layers": 2**31 - 1, "model_type": "qwen3"},
        {"head_dim": 2**31 - 2},
        {"hidden_size": 2**31 - 2, "num_attention_heads": 1, "model_type": "phi"},
        {"max_position_embeddings": 2**31 - 1},
        {"vocab_size": 2**31 - 1},
        {"sliding_window": 2**31 - 1, "model_type": "mistral"},
    ],
    ids=str,
)
def test_sizes_of_a_config_take_no_memory(changes: dict[str, Any]) -> None:
    config = {"model_type": "llama"} | changes
    with pytest.raises((errors.ConfigError, errors.CheckpointError)):
        fastdecode.CausalLM.from_tensors(config, {})


@linux
def test_sources_that_no_memory_holds(wide_t5: fastdecode.Seq2SeqLM) -> None:
    source = [5] * 4_000_000
    calls: list[Any] = [
        lambda: wide_t5.encode(source),
        lambda: wide_t5.run(source),
        lambda: wide_t5.logits(source, [1]),
        lambda: wide_t5.trace(source, [1]),
    ]
    for call in calls:
        with pytest.raises(errors.OptionError, match="source") as caught:
            call()
        assert caught.value.got == "4000000"
        assert 0 < int(str(caught.value.expected).split()[2]) < 4_000_000
    assert len(wide_t5.run([5], max_new_tokens=2, eos_token_id=None).token_ids) == 2
