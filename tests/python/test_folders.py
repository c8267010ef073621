"""Folders as people have them: what transformers loads gives the same logits here, whatever the files look like."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES
from families.gpt2 import GPT2Recipe
from families.gpt2 import config as gpt2_config
from families.t5 import T5Recipe
from families.t5 import config as t5_config
from fastdecode import errors
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IDS, SOURCE = [3, 1, 4, 1, 5], [2, 7, 1, 8]
SHARDS = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TIED = "shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"


def gpt2(folder: Path, *, shards: int = 1, head: str = "tied, absent", **changes: Any) -> Path:
    """A small GPT-2 with random weights."""
    recipe = GPT2Recipe(gpt2_config(vocab=50, **changes), shards=shards, head=head, spread=1.5, seed=5)
    return FAMILIES["gpt2"].write(recipe, folder)


def t5(folder: Path, model_type: str = "t5", **changes: Any) -> Path:
    """A small T5 with random weights, of which `shared.weight` is the only embedding."""
    recipe = T5Recipe(t5_config(vocab=50, **changes) | {"model_type": model_type}, spread=1.5, seed=6)
    return FAMILIES["t5"].write(recipe, folder)


def rewrite(
    folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], file: str = "model.safetensors"
) -> None:
    """Changes the tensors of a file."""
    save_file(change(load_file(folder / file)), folder / file, {"format": "pt"})


def hold(folder: Path) -> None:
    """Holds logits of the folder against those of transformers, which must miss nothing in it."""
    model: Any = fastdecode.load(folder, num_threads=1)
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = (
        transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    )
    theirs, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"], "the reference would draw weights at random"
    theirs = theirs.eval()
    with torch.no_grad():
        if config.is_encoder_decoder:
            ours = model.logits(SOURCE, IDS)
            given = {"input_ids": torch.tensor([SOURCE]), "decoder_input_ids": torch.tensor([IDS])}
        else:
            ours, given = model.logits(IDS), {"input_ids": torch.tensor([IDS])}
        expected = theirs(**given).logits[0].numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def refused(folder: Path) -> errors.CheckpointError:
    with pytest.raises(errors.CheckpointError) as caught:
        fastdecode.load(folder, num_threads=1)
    assert caught.value.expected
    assert caught.value.got
    return caught.value


class TestIndex:
    """An index is a list of files: which tensors it says they hold does not matter."""

    def change(self, folder: Path, weight_map: Callable[[dict[str, str]], dict[str, str]]) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        path.write_text(json.dumps(index | {"weight_map": weight_map(index["weight_map"])}))

    def test_entries_that_no_shard_holds(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path, shards=2)
        more = {"lm_head.weight": SHARDS[0], "transformer.h.0.attn.bias": SHARDS[1]}
        self.change(folder, lambda names: names | more)
        hold(folder)

    def test_tensors_elsewhere_and_unlisted(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path, shards=2)
        swapped = {SHARDS[0]: SHARDS[1], SHARDS[1]: SHARDS[0]}
        self.change(folder, lambda names: {name: swapped[file] for name, file in list(names.items())[::3]})
        hold(folder)

    def test_a_tensor_in_both_shards_is_the_later_one(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path, shards=2)
        name = "transformer.wte.weight"
        both = {file: load_file(folder / file) for file in SHARDS}
        [first] = [tensors[name] for tensors in both.values() if name in tensors]
        for file, factor in zip(SHARDS, (2.0, 0.5), strict=True):
            save_file(both[file] | {name: first * factor}, folder / file, {"format": "pt"})
        hold(folder)

    def test_a_missing_shard(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path, shards=2)
        (folder / SHARDS[1]).unlink()
        assert SHARDS[1] in str(refused(folder))

    def test_a_needed_tensor_in_no_shard(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path, shards=2)
        for file in SHARDS:
            rewrite(folder, lambda named: {k: v for k, v in named.items() if "ln_f.bias" not in k}, file)
        assert refused(folder).tensor == "ln_f.bias"


class TestTies:
    """Of tied weights a file may keep any one."""

    @pytest.mark.parametrize("prefix", ["transformer.", ""])
    def test_gpt2_with_its_head_only(self, tmp_path: Path, prefix: str) -> None:
        folder = gpt2(tmp_path, head="tied, equal")
        drop = "transformer.wte.weight"
        rewrite(
            folder,
            lambda named: {k.replace("transformer.", prefix): v for k, v in named.items() if k != drop},
        )
        hold(folder)

    def test_an_untied_gpt2_with_its_head_only(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path, head="untied", tie_word_embeddings=False)
        hold(folder)
        rewrite(folder, lambda named: {k: v for k, v in named.items() if k != "transformer.wte.weight"})
        assert refused(folder).tensor == "wte.weight"

    @pytest.mark.parametrize("dropped", ["both", "lm_head.weight"])
    def test_gpt2_without_what_it_needs(self, tmp_path: Path, dropped: str) -> None:
        folder = gpt2(tmp_path, head="untied", tie_word_embeddings=dropped == "both")
        names = {"transformer.wte.weight", "lm_head.weight"} if dropped == "both" else {dropped}
        rewrite(folder, lambda named: {k: v for k, v in named.items() if k not in names})
        assert refused(folder).tensor in {name.removeprefix("transformer.") for name in names}

    @pytest.mark.parametrize("kept", [kept for kept in product((0, 1), repeat=4) if any(kept)])
    @pytest.mark.parametrize(
        ("model_type", "tie"), [("t5", True), ("t5", False), ("mt5", False), ("umt5", True)]
    )
    def test_t5_in_every_direction(
        self, tmp_path: Path, kept: tuple[int, ...], model_type: str, tie: bool
    ) -> None:
        """The family is tied whatever its config says; what the file has beside is kept, and differs here."""
        folder = t5(tmp_path, model_type, tie_word_embeddings=tie)

        def change(named: dict[str, Any]) -> dict[str, Any]:
            table = named.pop("shared.weight")
            factors = {f"{name}.weight": 1 + 0.5 * i for i, name in enumerate(TIED) if kept[i]}
            return named | {name: table * factor for name, factor in factors.items()}

        rewrite(folder, change)
        hold(folder)

    @pytest.mark.parametrize("tie", [True, False])
    def test_t5_without_any(self, tmp_path: Path, tie: bool) -> None:
        folder = t5(tmp_path, tie_word_embeddings=tie)
        rewrite(folder, lambda named: {k: v for k, v in named.items() if k != "shared.weight"})
        assert refused(folder).tensor == "shared.weight"


class TestTypes:
    """Weights come in floats of 64, 32 and 16 bits, and integers may stand beside them."""

    @pytest.mark.parametrize("model", [gpt2, t5])
    @pytest.mark.parametrize("some", [False, True])
    def test_float64(self, tmp_path: Path, model: Callable[[Path], Path], some: bool) -> None:
        folder = model(tmp_path)

        def widen(named: dict[str, Any]) -> dict[str, Any]:
            nudged = {name: tensor.double() * (1 + 2.0**-30) for name, tensor in named.items()}
            return {name: nudged[name] if i % 3 or not some else named[name] for i, name in enumerate(named)}

        rewrite(folder, widen)
        hold(folder)

    @pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
    def test_float64_is_rounded_to_the_dtype(self, tmp_path: Path, dtype: Any) -> None:
        single, double = gpt2(tmp_path / "single"), gpt2(tmp_path / "double")
        rewrite(double, lambda named: {name: tensor.double() for name, tensor in named.items()})
        one, two = (fastdecode.load(folder, num_threads=1, dtype=dtype) for folder in (single, double))
        assert np.array_equal(one.logits(IDS), two.logits(IDS))
        assert one.info()["weight_bytes"] == two.info()["weight_bytes"]

    def test_float64_past_float32(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path)
        name = "transformer.ln_f.bias"
        rewrite(
            folder, lambda named: named | {name: torch.full(named[name].shape, 1e300, dtype=torch.float64)}
        )
        error = refused(folder)
        assert (error.tensor, "float32" in str(error.expected)) == (name, True)

    @pytest.mark.filterwarnings("ignore::fastdecode.errors.FastdecodeWarning")
    def test_integers_beside_the_weights(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path)
        more = {
            "transformer.position_ids": torch.arange(9),
            "transformer.h.0.attn.masked_bias": torch.tensor(-10000),
            "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        }
        rewrite(folder, lambda named: named | more)
        hold(folder)

    def test_float8(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path)
        name = "transformer.h.0.attn.c_attn.weight"
        rewrite(folder, lambda named: named | {name: named[name].to(torch.float8_e4m3fn)})
        error = refused(folder)
        assert (error.tensor, error.got) == (name, "F8_E4M3")


class TestPickles:
    """`pytorch_model.bin` as torch wrote it before 1.6, a stream of pickles and storages."""

    @pytest.mark.parametrize("model", [gpt2, t5])
    def test_one_file(self, tmp_path: Path, model: Callable[[Path], Path]) -> None:
        folder = model(tmp_path)
        named = load_file(folder / "model.safetensors")
        table = "transformer.wte.weight" if model is gpt2 else "shared.weight"
        named["lm_head.weight"] = named[table]  # One storage under two names, as a state_dict has it.
        (folder / "model.safetensors").unlink()
        torch.save(named, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        hold(folder)

    def test_shards(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path, shards=2)
        for file in SHARDS:
            path = folder / file
            torch.save(load_file(path), path.with_suffix(".bin"), _use_new_zipfile_serialization=False)
            path.unlink()
        index = (folder / "model.safetensors.index.json").read_text()
        (folder / "model.safetensors.index.json").unlink()
        (folder / "pytorch_model.bin.index.json").write_text(index.replace(".safetensors", ".bin"))
        hold(folder)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_values_that_are_no_tensors(self, tmp_path: Path, *, legacy: bool) -> None:
        folder = gpt2(tmp_path)
        named: dict[str, Any] = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        named |= {"epoch": 3, "loss": 0.5, "name": "x", "none": None, "seen": [1, 2], "opt": {"lr": 1e-4}}
        torch.save(named, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        with pytest.warns(errors.FastdecodeWarning, match="does not use: epoch, loss, name, none, opt, seen"):
            hold(folder)

    def test_a_file_cut_short(self, tmp_path: Path) -> None:
        folder = gpt2(tmp_path)
        path = folder / "pytorch_model.bin"
        torch.save(load_file(folder / "model.safetensors"), path, _use_new_zipfile_serialization=False)
        (folder / "model.safetensors").unlink()
        path.write_bytes(path.read_bytes()[:-1])
        assert "cut short" in str(refused(folder))
