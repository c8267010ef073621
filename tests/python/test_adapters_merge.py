"""How adapters are merged: what each part of their files does to the weights, in every form, held against peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import peft_folders as made
import pytest
import torch
from adapter_checks import GPT2, T5, check, hold, load
from families import Family
from families.gpt2 import GPT2Recipe
from families.gpt2 import config as gpt2_config
from fastdecode import errors
from peft_folders import BIN, CONFIG, SAFE, adapter, change, gpt2, t5


class TestMerge:
    """Each thing that a configuration may ask for, by itself."""

    @pytest.mark.parametrize(
        "config",
        [
            {"r": 3, "lora_alpha": 7, "use_rslora": True},
            {"rank_pattern": {"0.attn.c_attn": 5}, "alpha_pattern": {r".*\.1\.attn.*": 64}},
            {"rank_pattern": {"c_attn": 2, r"h\.0.*": 4}},
            {"fan_in_fan_out": False},
            {"target_modules": ["c_proj"]},  # square, so that only its kind says how it lies
            {"target_modules": ["wte"]},
            {"target_modules": ["wpe", "c_fc"]},
            {"target_modules": ["lm_head"]},
            {"target_modules": ["lm_head", "wte", "c_attn"]},
            {"target_modules": "all-linear"},
            {"bias": "all"},
            {"bias": "lora_only"},
            {"lora_bias": True, "use_rslora": True},
            {"modules_to_save": ["lm_head"]},
            {"modules_to_save": ["wte"]},
            {"modules_to_save": ["wte", "lm_head"]},
            {"modules_to_save": ["ln_f", "mlp"]},
            {"modules_to_save": ["wte"], "target_modules": ["lm_head"]},
            {"trainable_token_indices": [3, 7]},
            {"trainable_token_indices": {"lm_head": [3, 7]}},
            {"init_lora_weights": "gaussian"},
            {"ensure_weight_tying": True, "modules_to_save": ["wte"]},
            {"ensure_weight_tying": True, "modules_to_save": ["lm_head"]},
            {"ensure_weight_tying": True, "target_modules": ["lm_head"]},
            {"ensure_weight_tying": True, "target_modules": ["wte", "lm_head", "c_fc"]},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("head", ["tied, absent", "tied, equal", "untied"])
    def test_gpt2(self, tmp_path: Path, config: dict[str, Any], head: str) -> None:
        base = gpt2(tmp_path / "base", head=head, tie_word_embeddings=head != "untied")
        one = adapter(base, tmp_path / "one", config={"target_modules": ["c_attn"], **config})
        check(base, [one])

    @pytest.mark.parametrize(
        "config",
        [
            {},
            {"target_modules": ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]},
            {"target_modules": ["shared"]},
            {"target_modules": ["embed_tokens", "lm_head"]},
            {"target_modules": ["relative_attention_bias", "q"]},
            {"modules_to_save": ["shared"]},
            {"modules_to_save": ["lm_head"]},
            {"modules_to_save": ["embed_tokens", "final_layer_norm"]},
            {"modules_to_save": ["encoder"], "target_modules": ["decoder.block.0.layer.0.SelfAttention.q"]},
            {"trainable_token_indices": [3, 7]},
            {"ensure_weight_tying": True, "target_modules": ["lm_head", "q"]},
            {"ensure_weight_tying": True, "target_modules": ["embed_tokens"]},
            {"ensure_weight_tying": True, "modules_to_save": ["lm_head"]},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
    def test_t5(self, tmp_path: Path, config: dict[str, Any], model_type: str) -> None:
        base = t5(tmp_path / "base", model_type)
        one = adapter(base, tmp_path / "one", T5, config={"target_modules": ["q", "v"], **config})
        check(base, [one], T5)

    @pytest.mark.parametrize("more", [6, -4])
    @pytest.mark.parametrize("family", [GPT2, T5], ids=str)
    @pytest.mark.parametrize("embedding", [False, True])
    def test_another_vocabulary(self, tmp_path: Path, family: Family, more: int, embedding: bool) -> None:
        base = (gpt2 if family is GPT2 else t5)(tmp_path / "base")
        aimed = [("wte" if family is GPT2 else "shared")] if embedding else []
        config = {"target_modules": ["c_attn" if family is GPT2 else "q", *aimed]}
        one = adapter(base, tmp_path / "one", family, more=more, config=config)
        ours = load(base, adapter=one)
        hold(ours, made.reference(family, base, [one], more), family, 50 + more)
        assert ours.config["vocab_size"] == ours.info()["vocab_size"] == 50 + more
        with pytest.raises(errors.OptionError):
            ours.run([50 + more])

    @pytest.mark.parametrize("head", ["tied, absent", "untied"])
    def test_a_vocabulary_whose_new_rows_are_not_all_there(self, tmp_path: Path, head: str) -> None:
        base = gpt2(tmp_path / "base", head=head, tie_word_embeddings=head != "untied")
        one = adapter(base, tmp_path / "one", more=6, config={"modules_to_save": ["wte"]})
        made.rewrite(
            one, lambda named: {k: v for k, v in named.items() if "lm_head" not in k and "original" not in k}
        )
        with pytest.raises(errors.CheckpointError, match="56 rows"):
            fastdecode.load(base, adapter=one)

    @pytest.mark.parametrize("file", [SAFE, BIN])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
    def test_files_and_types(self, tmp_path: Path, file: str, dtype: str) -> None:
        base = gpt2(tmp_path / "base")
        config = {"target_modules": ["c_attn", "wte"], "modules_to_save": ["ln_f"], "bias": "all"}
        one = adapter(base, tmp_path / "one", config=config, file=file, dtype=dtype)
        assert (one / file).is_file()
        check(base, [one])

    def test_safetensors_go_before_a_pickle(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        (one / BIN).write_bytes(b"no pickle")
        check(base, [one])

    def test_several_add_up_in_order(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        configs: list[dict[str, Any]] = [
            {"target_modules": ["c_attn", "lm_head"], "modules_to_save": ["ln_f"]},
            {"target_modules": ["c_attn", "wte"], "r": 2, "bias": "lora_only"},
            {"modules_to_save": ["lm_head", "ln_f"], "target_modules": ["c_fc"]},
        ]
        paths = [adapter(base, tmp_path / str(n), seed=n, config=c) for n, c in enumerate(configs)]
        for order in (paths, paths[::-1], paths[1:], [paths[0], paths[0]]):
            check(base, order)
        assert not np.allclose(
            load(base, adapter=paths).logits([1, 2]), load(base, adapter=paths[::-1]).logits([1, 2])
        )

    @pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
    @pytest.mark.parametrize("dtype", ["auto", "float32", "float16", "bfloat16"])
    def test_what_is_merged_is_then_stored_as_dtype_says(
        self, tmp_path: Path, stored: str, dtype: str
    ) -> None:
        recipe = GPT2Recipe(gpt2_config(vocab=50), dtype=stored, seed=5)
        base = GPT2.write(recipe, tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        ours = load(base, adapter=one, dtype=dtype)
        theirs = made.reference(GPT2, base, [one])
        if dtype != "auto":
            theirs.model = theirs.model.to(getattr(torch, dtype)).float()
            assert ours.info()["dtype"] == dtype
        else:
            # What was merged keeps every bit, and so does what no adapter touched, in its own type.
            assert set(ours.info()["dtype"].split(", ")) == {"float32", stored}
        hold(ours, theirs, GPT2, 50)

    def test_products_in_bfloat16(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        ours = load(one, dtype="bfloat16", compute_dtype="bfloat16")
        assert ours.info()["compute_dtype"] == "bfloat16"
        with pytest.raises(errors.OptionError, match="compute_dtype"):
            fastdecode.load(one, compute_dtype="bfloat16")

    def test_threads_do_not_change_results(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one", config={"target_modules": "all-linear"})
        single, several = (fastdecode.load(one, num_threads=n).logits([1, 2, 3]) for n in (1, 3))
        np.testing.assert_array_equal(single, several)

    def test_names_as_older_versions_and_other_classes_write_them(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        config = {"target_modules": ["c_attn", "wpe"], "modules_to_save": ["lm_head"]}
        one = adapter(base, tmp_path / "one", config=config)
        theirs = made.reference(GPT2, base, [one])

        def renamed(name: str) -> str:
            for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
                name = name.replace(f".{part}", f".{part}.default")
            return name.replace("lm_head.", "lm_head.modules_to_save.default.")

        for rename in (
            renamed,
            lambda name: name.replace(".transformer.", "."),  # of GPT2Model
            lambda name: name.removeprefix("base_model.model."),
            lambda name: name.replace("lm_head.", "lm_head.modules_to_save."),
        ):
            two = shutil.copytree(one, tmp_path / "two", dirs_exist_ok=True)
            made.rewrite(two, lambda named, rename=rename: {rename(name): x for name, x in named.items()})
            hold(load(base, adapter=two), theirs, GPT2, 50)
            shutil.copytree(one, two, dirs_exist_ok=True)

    def test_configurations_of_older_versions_have_fewer_fields(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one", config={"r": 8, "lora_alpha": 8})
        theirs = made.reference(GPT2, base, [one])
        kept = {"peft_type": "LORA", "target_modules": ["c_attn"], "base_model_name_or_path": str(base)}
        (one / CONFIG).write_text(json.dumps(kept))
        hold(load(one), theirs, GPT2, 50)
        change(one, target_modules=None, layers_pattern=None, rank_pattern=None, a_field_to_come={"x": 1})
        hold(load(one), theirs, GPT2, 50)

    def test_modules_that_the_base_does_not_have_are_no_targets(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        names = {"target_modules": ["c_attn", "q_proj"], "modules_to_save": ["score", "embed_tokens"]}
        check(base, [adapter(base, tmp_path / "one", config=names)])
