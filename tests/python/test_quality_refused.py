"""What a quality report refuses: arguments, folders that have changed, scores that are not finite."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from fastdecode import CausalLM, Seq2SeqLM, errors, quality_logits
from fastdecode.scoring import Item
from quality_checks import T5, TEXT


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder-decoder in float32."""
    return T5.write_tiny(tmp_path_factory.mktemp("t5"), tokenizer=tiny.with_end())


class TestMisuse:
    @pytest.mark.parametrize(
        ("arguments", "option", "expected"),
        [
            ({"texts": ""}, "texts", "at least two tokens"),
            ({"texts": [5]}, "texts", "at least two tokens"),
            ({"texts": [[5, 6], [7]]}, "texts", "in text 1"),
            ({"texts": []}, "texts", "at least one"),
            ({"texts": iter([])}, "texts", "at least one"),
            ({"texts": 5}, "texts", "a string"),
            ({"texts": None}, "texts", "a string"),
            ({"texts": b"abc"}, "texts", "a string"),
            ({"texts": [("a", "b")]}, "texts", "one string or one list"),
            ({"texts": [5, 320]}, "texts", "from 0 to 319"),
            ({"texts": [{"role": "user", "content": "Hi"}]}, "texts", "of messages"),
            ({"dtypes": []}, "dtypes", "at least one"),
            ({"dtypes": 5}, "dtypes", "a list of types"),
            ({"dtypes": ["bfloat16", "float16", "bfloat16"]}, "dtypes", "bfloat16 more than once"),
            ({"dtypes": "float8"}, "dtype", "bfloat16"),
            ({"dtypes": ["bfloat16", None]}, "dtype", "bfloat16"),
            ({"int4_group": 48}, "int4_group", "32, 64 or 128"),
            ({"int4_group": "64"}, "int4_group", "32, 64 or 128"),
            ({"int4_group": 32, "dtypes": ["int8"]}, "int4_group", "None where no dtype"),
            ({"stride": 0}, "stride", "at least 1"),
            ({"stride": 2.5}, "stride", "at least 1"),
            ({"window": 1}, "window", "at least 2"),
            ({"window": True}, "window", "at least 2"),
            ({"limit": 1}, "limit", "at least 2"),
            ({"limit": "9"}, "limit", "at least 2"),
            ({"progress": 1}, "progress", "True, False or None"),
            ({"progress": "yes"}, "progress", "True, False or None"),
        ],
    )
    def test_texts(self, model: CausalLM, arguments: dict[str, Any], option: str, expected: str) -> None:
        with pytest.raises(errors.OptionError, match=expected) as caught:
            model.quality(**{"texts": TEXT, **arguments})
        assert caught.value.option == option

    @pytest.mark.parametrize(
        ("arguments", "option", "expected"),
        [
            ({"texts": "a text"}, "texts", "pairs"),
            ({"texts": {"a": "b"}}, "texts", "pairs"),
            ({"texts": None}, "texts", "pairs"),
            ({"texts": []}, "texts", "at least one"),
            ({"texts": ["ab"]}, "texts", "among them"),
            ({"texts": [("a", "b", "c")]}, "texts", "among them"),
            ({"texts": [("a", [])]}, "target", "at least one token"),
            ({"texts": [("a", [-100])]}, "target", "at least one token"),
            ({"texts": [([], "b")]}, "source", "at least one token"),
            ({"texts": [(5, "b")]}, "source", "a string"),
            ({"stride": 512}, "stride", "None in a model with an encoder"),
            ({"window": 512}, "window", "None in a model with an encoder"),
            ({"limit": 0}, "limit", "at least 1"),
            ({"dtypes": ["int3"]}, "dtype", "bfloat16"),
        ],
    )
    def test_pairs(self, translator: Path, arguments: dict[str, Any], option: str, expected: str) -> None:
        model = Seq2SeqLM.load(translator)
        with pytest.raises(errors.OptionError, match=expected) as caught:
            model.quality(**{"texts": [("Good day", "Bonjour")], **arguments})
        assert caught.value.option == option

    def test_a_window_beyond_the_context(self, model: CausalLM) -> None:
        with pytest.raises(errors.ContextLengthError, match="window"):
            model.quality(TEXT, window=4096)

    def test_text_without_a_tokenizer(self, ids_model: CausalLM) -> None:
        with pytest.raises(errors.TokenizerMissing):
            ids_model.quality(TEXT)
        assert len(ids_model.quality([1, 2, 3], dtypes="bfloat16").rows) == 2

    def test_a_model_in_memory(self) -> None:
        shape = tiny.config()
        model = CausalLM.from_tensors(shape, tiny.weights(shape))
        with pytest.raises(errors.OptionError, match="from_tensors") as caught:
            model.quality([1, 2, 3])
        assert caught.value.option == "model"

    def test_a_folder_that_is_gone(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "m")
        model = CausalLM.load(tmp_path / "m", dtype="bfloat16")
        shutil.rmtree(tmp_path / "m")
        with pytest.raises(errors.ModelNotFoundError, match="loaded again as float32") as caught:
            model.quality([1, 2, 3])
        assert caught.value.model == str(tmp_path / "m")

    def test_a_folder_that_holds_another_model_by_now(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "m")
        model = CausalLM.load(tmp_path / "m", dtype="bfloat16")
        shutil.rmtree(tmp_path / "m")
        tiny.write_folder(tmp_path / "m", n_layer=1)
        with pytest.raises(errors.ConfigError, match="load the model again") as caught:
            model.quality([1, 2, 3])
        assert caught.value.field == "num_hidden_layers"

    @pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
    def test_scores_that_are_not_finite(self, tmp_path: Path, wrong: float) -> None:
        from safetensors.numpy import load_file, save_file

        path = tiny.write_folder(tmp_path / "m")
        sound = CausalLM.load(path)
        tensors = load_file(path / "model.safetensors")
        name = next(name for name in tensors if name.endswith("wte.weight"))
        # Of a head that is tied, the row of a token that is not read.
        tensors[name][47] = wrong
        save_file(tensors, path / "model.safetensors")
        unsound = CausalLM.load(path, dtype="bfloat16")
        with pytest.raises(errors.ScoresError, match="dtype=float32 behind token 0 of text 0") as caught:
            unsound.quality([[1, 2, 3], [4, 5]])
        assert caught.value.row == 0
        assert caught.value.expected == "finite scores"
        assert str(caught.value.got).startswith(("nan", "inf", "-inf"))
        passage = quality_logits.Passage(7, Item([1, 2, 3], [2, 3, 4], 4), 3)
        with pytest.raises(errors.ScoresError, match="dtype=int4 behind token 0 of text 7"):
            quality_logits.hold_against(sound, unsound, passage, ("float32", "int4"))
        with pytest.raises(errors.ScoresError, match="dtype=float32 behind"):
            quality_logits.hold_against(unsound, sound, passage, ("float32", "int4"))

    def test_a_type_that_cannot_hold_the_weights(self, tmp_path: Path) -> None:
        from safetensors.numpy import load_file, save_file

        path = tiny.write_folder(tmp_path)
        tensors = load_file(path / "model.safetensors")
        name = next(name for name in tensors if name.endswith("ln_f.weight"))
        save_file(tensors | {name: tensors[name] * np.float32(1e30)}, path / "model.safetensors")
        with pytest.raises(errors.CheckpointError, match="values that float16 can hold"):
            CausalLM.load(path).quality([1, 2, 3], dtypes=["float16"])
