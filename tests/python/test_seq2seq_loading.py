"""Encoder-decoders as they are loaded: their class, what they tell, files and configs that cannot be used."""

from __future__ import annotations

import pickle
import shutil
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import tiny
from families import FAMILIES
from families.t5 import block_shapes
from fastdecode import CausalLM, Seq2SeqLM, errors
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

T5 = FAMILIES["t5"]
OPTIONS: Any = {"max_new_tokens": 8, "eos_token_id": None}
TEXTS = ["Once upon a time", "The wolf said: good day", "où vas-tu?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return T5.write_tiny(tmp_path_factory.mktemp("t5") / "tiny", tokenizer=tiny.with_end())


@pytest.fixture(scope="module")
def model(folder: Path) -> Seq2SeqLM:
    return Seq2SeqLM.load(folder, num_threads=2)


class TestLoading:
    def test_load_returns_what_the_folder_is(self, folder: Path, tmp_path: Path) -> None:
        assert type(fastdecode.load(folder)) is Seq2SeqLM
        assert type(fastdecode.load(tiny.write_folder(tmp_path))) is CausalLM

    def test_each_class_refuses_the_other_kind(self, folder: Path, tmp_path: Path) -> None:
        causal = tiny.write_folder(tmp_path)
        with pytest.raises(errors.UnsupportedModelError, match="Seq2SeqLM or fastdecode") as caught:
            CausalLM.load(folder)
        assert caught.value.got == "t5"
        with pytest.raises(errors.UnsupportedModelError, match="CausalLM or fastdecode"):
            Seq2SeqLM.load(causal)
        with pytest.raises(errors.UnsupportedModelError, match="expected a causal model"):
            CausalLM.from_tensors(T5.tiny_config(), T5.tiny_weights(T5.tiny_config()))
        with pytest.raises(errors.UnsupportedModelError, match="expected a model with an encoder"):
            Seq2SeqLM.from_tensors(tiny.config(), tiny.weights(tiny.config()))

    def test_info_and_repr(self, model: Seq2SeqLM) -> None:
        info = model.info()
        assert (info["architecture"], info["context_length"], info["vocab_size"]) == ("t5", None, 320)
        assert info["parameters"] == sum(w.size for w in T5.tiny_weights(T5.tiny_config()).values())
        # A step reads the decoder and the head, but neither the encoder nor what makes keys and values of a source.
        shapes = block_shapes(T5.tiny_config())
        skipped = ("relative_attention_bias", "EncDecAttention.k", "EncDecAttention.v")
        names = [name for name in shapes if name.startswith("decoder") and len(shapes[name]) == 2]
        names = [name for name in names if not any(part in name for part in skipped)]
        padded = [-(-shapes[name][0] // 16) * 16 * shapes[name][1] for name in names]
        assert info["step_weight_bytes"] == 4 * (sum(padded) + 320 * 24)
        assert repr(model).startswith("Seq2SeqLM(t5, ")

    def test_from_tensors_equals_the_folder(self, model: Seq2SeqLM) -> None:
        config = T5.tiny_config()
        built = Seq2SeqLM.from_tensors(config, T5.tiny_weights(config))
        assert built.run([5, 6, 7], **OPTIONS).token_ids == model.run([5, 6, 7], **OPTIONS).token_ids
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(built)

    def test_a_pickled_model_is_the_same(self, model: Seq2SeqLM) -> None:
        again = pickle.loads(pickle.dumps(model))
        assert type(again) is Seq2SeqLM
        assert again.generate(TEXTS, **OPTIONS) == model.generate(TEXTS, **OPTIONS)

    def test_a_tensor_that_nothing_reads_is_warned_about(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "m")
        file = tmp_path / "m" / "model.safetensors"
        save_file(load_file(file) | {"decoder.block.0.layer.9.x": np.zeros(3, np.float32)}, file)
        with pytest.warns(errors.FastdecodeWarning, match=r"decoder\.block\.0\.layer\.9\.x") as caught:
            fastdecode.load(tmp_path / "m")
        assert caught[0].filename == __file__

    @pytest.mark.parametrize("missing", ["shared.weight", "encoder.final_layer_norm.weight"])
    def test_a_missing_tensor(self, missing: str) -> None:
        weights = T5.tiny_weights(T5.tiny_config())
        del weights[missing]
        with pytest.raises(errors.CheckpointError, match="expected a tensor of shape") as caught:
            Seq2SeqLM.from_tensors(T5.tiny_config(), weights)
        assert caught.value.tensor == missing

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets"),
            ({"relative_attention_max_distance": 16}, "relative_attention_max_distance"),
            ({"relative_attention_max_distance": 2**20}, "relative_attention_max_distance"),
            ({"feed_forward_proj": "gated-gelu-new"}, "feed_forward_proj"),
            ({"feed_forward_proj": "dense-relu"}, "feed_forward_proj"),
            ({"feed_forward_proj": "gated"}, "feed_forward_proj"),
            ({"feed_forward_proj": "gated-prelu"}, "feed_forward_proj"),
            ({"dense_act_fn": "no_such_function"}, "dense_act_fn"),
            ({"dense_act_fn": None}, "dense_act_fn"),
            ({"is_gated_act": "yes"}, "is_gated_act"),
            ({"scale_decoder_outputs": 1}, "scale_decoder_outputs"),
            ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
            ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon"),
            ({"num_decoder_layers": 0}, "num_decoder_layers"),
            ({"d_kv": 2.0}, "d_kv"),
            ({"head_dim": 0}, "head_dim"),
        ],
    )
    def test_configs_that_cannot_be(self, changes: dict[str, Any], field: str) -> None:
        weights = T5.tiny_weights(T5.tiny_config())
        with pytest.raises(errors.ConfigError) as caught:
            Seq2SeqLM.from_tensors(T5.tiny_config(**changes), weights)
        assert caught.value.field == field

    def test_sizes_that_the_tensors_deny(self) -> None:
        weights = T5.tiny_weights(T5.tiny_config())
        for changes in ({"d_ff": 2**30}, {"num_layers": 2**30}, {"num_heads": 2**20}, {"vocab_size": 2**30}):
            with pytest.raises(errors.CheckpointError):
                Seq2SeqLM.from_tensors(T5.tiny_config(**changes), weights)
