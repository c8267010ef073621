"""Adapters that cannot be applied: a tensor without a use, a target without tensors, files and values that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fastdecode
import peft_folders as made
import pytest
import torch
from families import FAMILIES
from fastdecode import errors
from peft_folders import BIN, CONFIG, SAFE, adapter, change, gpt2, t5

if TYPE_CHECKING:
    from pathlib import Path

T5 = FAMILIES["t5"]


def refused(base: Path, *adapters: Path) -> errors.CheckpointError:
    with pytest.raises(errors.CheckpointError) as caught:
        fastdecode.load(base, adapter=list(adapters))
    assert caught.value.expected
    assert caught.value.got
    return caught.value


class TestNothingIsPassedOver:
    """A tensor that has no use, or a target without one, is an error that names it."""

    NAME = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        return gpt2(tmp_path / "base")

    @pytest.fixture
    def one(self, base: Path, tmp_path: Path) -> Path:
        return adapter(base, tmp_path / "one", config={"target_modules": ["c_attn"]})

    def test_no_tensors_for_the_targets(self, base: Path, one: Path) -> None:
        whole = made.tensors(one)
        for keep in (lambda _: False, lambda name: "h.0" in name, lambda name: "lora_A" in name):
            made.rewrite(one, lambda _, keep=keep: {name: x for name, x in whole.items() if keep(name)})
            error = refused(base, one)
            assert error.file == str((one / SAFE).resolve())

    def test_a_saved_module_without_tensors(self, base: Path, tmp_path: Path) -> None:
        one = adapter(base, tmp_path / "one", config={"modules_to_save": ["lm_head"]})
        made.rewrite(one, lambda named: {k: v for k, v in named.items() if "lm_head" not in k})
        assert "lm_head" in str(refused(base, one))

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            (
                "base_model.model.transformer.h.7.attn.c_attn.lora_A.weight",
                (8, 48),
            ),  # with its other half below
            ("base_model.model.score.weight", (2, 48)),
            ("base_model.model.transformer.h.0.attn.c_attn.lora_magnitude_vector", (144,)),
            ("base_model.model.transformer.h.0.attn.c_attn.lora_C.weight", (8, 8)),
            ("base_model.model.transformer.h.0.attn.c_attn.lora_diag", (8,)),
            ("base_model.model.transformer.h.0.attn.c_attn.lora_A.bias", (8,)),
            ("base_model.model.transformer.h.0.attn.c_attn.lora_A.other.weight", (8, 48)),
            ("base_model.model.transformer.h.0.attn.c_attn.ia3_l", (1, 48)),
            ("base_model.model.transformer.h.0.ln_1.base_layer.bias", (49,)),
            ("prompt_embeddings", (4, 48)),
            (999 * "a." + "weight", (1,)),
            ("base_model.model.transformer.wte.token_adapter.trainable_tokens_delta", (2, 48)),
        ],
    )
    def test_a_tensor_that_has_no_use(self, base: Path, one: Path, name: str, shape: tuple[int, ...]) -> None:
        more = {name: torch.zeros(shape)}
        if "h.7" in name:
            more[name.replace("lora_A", "lora_B")] = torch.zeros(144, 8)
        made.rewrite(one, lambda named: named | more)
        with pytest.raises((errors.CheckpointError, errors.ConfigError)) as caught:
            fastdecode.load(base, adapter=one)
        assert name.removesuffix(".other.weight")[:900] in str(caught.value)

    @pytest.mark.parametrize("shape", [(7, 48), (8, 47), (8,), (8, 48, 1), (0, 48)])
    def test_shapes(self, base: Path, one: Path, shape: tuple[int, ...]) -> None:
        made.rewrite(one, lambda named: named | {self.NAME: torch.zeros(shape)})
        error = refused(base, one)
        assert error.tensor == self.NAME
        assert "[8, 48]" in str(error)

    def test_another_rank_than_the_configuration_says(self, base: Path, one: Path) -> None:
        change(one, r=4)
        assert "[4, 48]" in str(refused(base, one))

    def test_a_type_that_is_no_weight(self, base: Path, one: Path) -> None:
        made.rewrite(one, lambda named: named | {self.NAME: named[self.NAME].to(torch.int32)})
        assert refused(base, one).got == "I32"

    def test_matrices_of_the_other_kind(self, base: Path, one: Path) -> None:
        whole = made.tensors(one)
        for old, new, module in (
            ("h.0.attn.c_attn.lora_{}.weight", "h.0.attn.c_attn.lora_embedding_{}", "c_attn"),
            ("h.0.attn.c_attn.lora_{}.weight", "wte.lora_{}.weight", "wte"),
            ("h.0.attn.c_attn.lora_{}.weight", "h.0.ln_1.lora_{}.weight", "ln_1"),
        ):
            names = {f"base_model.model.transformer.{old.format(x)}": new.format(x) for x in "AB"}
            change(one, target_modules=None)
            made.rewrite(
                one,
                lambda _, names=names: {
                    f"base_model.model.transformer.{names[k]}" if k in names else k: v
                    for k, v in whole.items()
                },
            )
            assert module in str(refused(base, one))

    def test_a_bias_where_the_base_has_none(self, tmp_path: Path) -> None:
        base = t5(tmp_path / "t5")
        one = adapter(base, tmp_path / "two", T5, config={"target_modules": ["q"]})
        name = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_B.bias"
        made.rewrite(one, lambda named: named | {name: torch.zeros(48)})
        assert refused(base, one).tensor == name

    def test_tokens_beyond_the_vocabulary(self, base: Path, tmp_path: Path) -> None:
        one = adapter(base, tmp_path / "one", config={"trainable_token_indices": [3, 7]})
        change(one, trainable_token_indices=[3, 50])
        assert "50" in str(refused(base, one))
        change(one, trainable_token_indices=[3])
        assert "[1, 48]" in str(refused(base, one))

    def test_no_weights(self, base: Path, one: Path) -> None:
        (one / SAFE).unlink()
        with pytest.raises(errors.FileMissingError, match=BIN):
            fastdecode.load(base, adapter=one)

    @pytest.mark.parametrize("file", [SAFE, BIN])
    @pytest.mark.parametrize(
        "content", [b"", b"{}", b"\xff" * 64, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"]
    )
    def test_malformed_files(self, base: Path, one: Path, file: str, content: bytes) -> None:
        (one / SAFE).unlink()
        (one / file).write_bytes(content)
        error = refused(base, one)
        assert error.file == str((one / file).resolve())
        if content.startswith(b"version"):
            assert "git lfs pull" in str(error)

    def test_a_file_that_is_cut_short(self, base: Path, one: Path) -> None:
        data = (one / SAFE).read_bytes()
        for length in range(0, len(data), 97):
            (one / SAFE).write_bytes(data[:length])
            refused(base, one)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("peft_type", None),
            ("peft_type", "IA3"),
            ("peft_type", "PREFIX_TUNING"),
            ("peft_type", "ADALORA"),
            ("use_dora", True),
            ("use_qalora", True),
            ("alora_invocation_tokens", [1]),
            ("layer_replication", [[0, 1]]),
            ("target_parameters", ["x"]),
            ("arrow_config", {}),
            ("arrow_config", {"top_k": 1}),
            ("init_lora_weights", "pissa"),
            ("init_lora_weights", "pissa_niter_4"),
            ("init_lora_weights", "olora"),
            ("init_lora_weights", "corda"),
            ("init_lora_weights", "loftq"),
            ("r", 0),
            ("r", "8"),
            ("r", 8.0),
            ("r", None),
            ("r", True),
            ("lora_alpha", "8"),
            ("lora_alpha", 10**400),
            ("lora_alpha", None),
            ("use_rslora", 1),
            ("bias", "some"),
            ("rank_pattern", []),
            ("rank_pattern", {"c_attn": 0}),
            ("rank_pattern", {"(": 2}),
            ("alpha_pattern", {"c_attn": "x"}),
            ("target_modules", 3),
            ("target_modules", "("),
            ("exclude_modules", "("),
            ("modules_to_save", "lm_head"),
            ("layers_to_transform", "0"),
            ("trainable_token_indices", [-1]),
            ("trainable_token_indices", {"wte": 3}),
            ("base_model_name_or_path", 3),
            ("revision", 3),
        ],
    )
    def test_values_that_cannot_be_used(self, base: Path, one: Path, field: str, value: Any) -> None:
        change(one, **{field: value})
        with pytest.raises(errors.ConfigError) as caught:
            fastdecode.load(base, adapter=one)
        assert caught.value.field == field
        assert caught.value.file == str((one / CONFIG).resolve())

    @pytest.mark.parametrize("text", ["", "[]", "{", "\0", "version https://git-lfs.github.com/spec/v1\n"])
    def test_a_configuration_that_is_none(self, base: Path, one: Path, text: str) -> None:
        (one / CONFIG).write_text(text)
        for model, given in ((base, one), (one, None)):
            with pytest.raises(errors.ConfigError, match=CONFIG):
                fastdecode.load(model, adapter=given)

    def test_weights_of_an_adapter_without_its_configuration(self, one: Path) -> None:
        (one / CONFIG).unlink()
        with pytest.raises(errors.FileMissingError, match="adapter"):
            fastdecode.load(one)
