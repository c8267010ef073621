"""Parity with transformers (law 4) of encoders alone: `T5EncoderModel` and its like, which also write the folders."""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import peft_folders
import pytest
import torch
import transformers
from encoder_folders import change, load_quietly, of_encoder
from families import FAMILIES, Recipe
from families.t5 import T5Recipe, config
from fastdecode import TextEncoder, errors
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import EXAMPLES, PHASES
from reference import assert_near
from reference_seq2seq import Seq2SeqReference
from safetensors.numpy import load_file, save_file

T5 = FAMILIES["t5"]
GOLDEN = Path(__file__).resolve().parent.parent / "golden"
CLASSES: dict[str, Any] = {
    "t5": transformers.T5EncoderModel,
    "mt5": transformers.MT5EncoderModel,
    "umt5": transformers.UMT5EncoderModel,
}
# Ways in which an encoder alone is kept: as transformers writes it, in shards, as a file of torch, without a class.
LAYOUTS = ("saved", "shards", "torch", "no class")


def write_alone(theirs: Any, folder: Path, layout: str) -> Path:
    """Writes transformers' encoder as a folder."""
    shards = {"max_shard_size": "20KB"} if layout == "shards" else {}
    theirs.save_pretrained(folder, **shards)
    if layout == "torch":
        (folder / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    if layout == "no class":
        change(folder, architectures=None)
    return folder


def hold(ours: TextEncoder, encoder: Any, sources: list[list[int]]) -> None:
    """Holds the hidden states and means of sources against those of a module of transformers (law 4)."""
    double = copy.deepcopy(encoder).double()
    means = ours.encode(sources, pooling="mean")
    for source, got, mean in zip(sources, ours.encode(sources), means, strict=True):
        with torch.no_grad():
            ids = torch.tensor([source])
            mask = torch.ones_like(ids)
            want = encoder(ids, attention_mask=mask).last_hidden_state[0]
            exact = double(ids, attention_mask=mask).last_hidden_state[0]
        error = float((exact - want).abs().max())
        assert_near(got, want.numpy(), lambda error=error: error, "hidden states")  # type: ignore[misc]
        assert_near(mean, want.mean(0).numpy(), lambda error=error: error, "their mean")  # type: ignore[misc]


@settings(max_examples=80 * EXAMPLES, phases=PHASES)
@given(
    recipe=T5.recipes(),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    layout=st.sampled_from(LAYOUTS),
)
def test_hidden_states_equal_transformers(recipe: Recipe, lengths: list[int], layout: str) -> None:
    sources = [recipe.ids(1, length, salt=length)[0] for length in lengths]
    with tempfile.TemporaryDirectory() as tmp:
        whole = T5.write(recipe, Path(tmp) / "whole")
        ours = TextEncoder.load(whole, num_threads=2)
        hold(ours, Seq2SeqReference(whole).model.get_encoder(), sources)
        cls = CLASSES[recipe.config["model_type"]]
        theirs, info = cls.from_pretrained(whole, dtype="auto", output_loading_info=True)
        if info["missing_keys"]:
            # Where the embeddings are kept under a name of the decoder only, transformers draws others.
            assert info["missing_keys"] <= {"shared.weight", "encoder.embed_tokens.weight"}
            return
        alone = load_quietly(write_alone(theirs, Path(tmp) / "alone", layout), num_threads=1)
    assert type(alone) is TextEncoder
    hold(alone, theirs.float().eval(), sources)
    assert all(map(np.array_equal, alone.encode(sources), ours.encode(sources)))
    assert alone.info()["weight_bytes"] == ours.info()["weight_bytes"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("model_type", CLASSES)
def test_rounded_weights_are_transformers_own(model_type: str, dtype: Any, tmp_path: Path) -> None:
    recipe = T5Recipe(config(model_type, d_ff=150, feed_forward_proj="gated-gelu"), seed=51)
    folder = T5.write(recipe, tmp_path)
    theirs = CLASSES[model_type].from_pretrained(folder, dtype=getattr(torch, dtype)).float().eval()
    ours = TextEncoder.load(folder, dtype=dtype)
    hold(ours, theirs, recipe.ids(2, 40))
    # Under float16 transformers keeps `wo` as it is in the file.
    assert ours.info()["dtype"] == ("float16, float32" if dtype == "float16" else dtype)


@pytest.mark.parametrize("ties", ["encoder.embed_tokens", "shared", "both", "different"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_ties_in_every_direction(ties: str, prefix: str, tmp_path: Path) -> None:
    folder = change(T5.write_tiny(tmp_path), architectures=["T5EncoderModel"])
    tensors = {
        name: array for name, array in load_file(folder / "model.safetensors").items() if of_encoder(name)
    }
    table, name = tensors.pop("shared.weight"), "encoder.embed_tokens.weight"
    tensors |= {} if ties == "encoder.embed_tokens" else {"shared.weight": table}
    tensors |= {} if ties == "shared" else {name: -table if ties == "different" else table.copy()}
    save_file({prefix + name: array for name, array in tensors.items()}, folder / "model.safetensors")
    theirs, info = transformers.T5EncoderModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    ours = load_quietly(folder)
    hold(ours, theirs.eval(), [[5, 6, 7], [300]])
    blocks = sum(array.size for name, array in tensors.items() if ".block." in name or "norm" in name)
    assert ours.info()["parameters"] == blocks + table.size


def test_a_source_beyond_every_block_size(tmp_path: Path) -> None:
    recipe, _ = T5.longest["umt5"]
    folder = T5.write(recipe, tmp_path)
    theirs = transformers.UMT5EncoderModel.from_pretrained(folder).eval()
    hold(TextEncoder.load(folder, num_threads=2), theirs, [recipe.ids(1, 1100)[0]])


def test_texts_and_their_means(tmp_path: Path) -> None:
    """As embeddings of texts are made with transformers: a padded batch, its mask, a mean over what the mask leaves."""
    name, files = T5.tokenizer
    recipe = T5Recipe(config(vocab=32128, d_model=32, d_ff=40), seed=52)
    theirs = transformers.T5EncoderModel.from_pretrained(T5.write(recipe, tmp_path / "whole")).eval()
    folder = write_alone(theirs, tmp_path / "alone", "saved")
    for file in files:
        shutil.copy(GOLDEN / name / file, folder)
    texts = [
        "translate English to German: The house is wonderful.",
        "",
        "  où   vas-tu?",
        "a <extra_id_0> b </s>",
    ]
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = theirs(**batch).last_hidden_state
    means = (states * mask).sum(1) / mask.sum(1)
    ours = load_quietly(folder)
    assert_near(ours.encode(texts, pooling="mean"), means.numpy(), lambda: 0.0, "means")
    for got, want, length in zip(ours.encode(texts), states, mask.sum((1, 2)), strict=True):
        assert_near(got, want[:length].numpy(), lambda: 0.0, "hidden states")


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q", "v"]},
        {"target_modules": ["q", "shared"]},
        {"target_modules": ["wo"], "modules_to_save": ["final_layer_norm"]},
    ],
    ids=str,
)
def test_an_adapter_of_an_encoder_alone(tmp_path: Path, model_type: str, config: dict[str, Any]) -> None:
    whole, alone = peft_folders.t5(tmp_path / "whole", model_type), tmp_path / "alone"
    read = CLASSES[model_type].from_pretrained
    read(whole, dtype=torch.float32).save_pretrained(alone)
    recipe = peft_folders.Recipe({"task_type": "FEATURE_EXTRACTION", **config})
    # Its configuration names the whole model, as it does where training took the encoder of that.
    one = peft_folders.make(read(whole, dtype=torch.float32), recipe, tmp_path / "one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(read(whole, dtype=torch.float32), one).merge_and_unload()
    sources = [[3, 9, 14, 1], [7]]
    theirs.eval()
    hold(load_quietly(alone, adapter=one), theirs, sources)
    hold(TextEncoder.load(whole, adapter=one), theirs, sources)
    hold(TextEncoder.load(one), theirs, sources)
    with pytest.raises(errors.CheckpointError, match=r"of decoder\..*got no such tensor"):
        load_quietly(whole, adapter=one)
