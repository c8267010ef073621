"""Types of weights in a quality report: which are compared, which are the same, how each is loaded and named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from families import FAMILIES
from fastdecode import CausalLM, Seq2SeqLM, errors, quality
from fastdecode.accepted import same_types
from fastdecode.results import dtype_name
from quality_checks import PAIRS, TEXT
from safetensors.numpy import load_file, save_file

# Two patterns that are equally close to one matrix, which the first of them gets; each has one of its own.
FIRST: Any = {"h.0.mlp.c*": "int8", "*.mlp.c_fc": "bfloat16"}
SECOND: Any = dict(reversed(FIRST.items()))


def as_bfloat16(array: Any) -> Any:
    """The values cut to those that bfloat16 holds, in float32."""
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def as_float16(array: Any) -> Any:
    return array.astype(np.float16).astype(np.float32)


def rounded(folder: Path, narrow: Any, *, values: bool) -> Path:
    """Writes a folder's matrices, and its other values where it is asked for, as a narrow type holds them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(
        {name: narrow(array) if values or array.ndim == 2 else array for name, array in tensors.items()}, file
    )
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the types that are read, each as often as it is."""
    seen: list[str] = []
    compare = quality._compare

    def watched(reference: Any, other: Any, passages: Any, dtype: Any, shown: Any) -> Any:
        seen.append(dtype_name(dtype))
        return compare(reference, other, passages, dtype, shown)

    monkeypatch.setattr(quality, "_compare", watched)
    return seen


def names(report: Any) -> list[Any]:
    return [row.dtype for row in report.rows]


def numbers(row: Any) -> dict[str, Any]:
    """A row without its name."""
    return {key: value for key, value in dataclasses.asdict(row).items() if key != "dtype"}


def test_the_names_of_types_are_those_that_load_takes() -> None:
    names = quality._names()
    assert {"auto", "float32", "float16", "bfloat16"} <= set(names)
    name: Any
    for name in names:
        assert CausalLM.load("demo-stories", dtype=name).info()["weight_bytes"] > 0


class TestAuto:
    def test_norms_that_bfloat16_would_round(
        self, tmp_path: Path, byte_level: Any, measured: list[str]
    ) -> None:
        """Its matrices are in bfloat16, and it is no model in bfloat16."""
        path = rounded(tiny.write_folder(tmp_path, tokenizer=byte_level), as_bfloat16, values=False)
        model = CausalLM.load(path)
        assert model.info()["dtype"] == "bfloat16"
        report = model.quality(TEXT, limit=20)
        assert names(report) == ["float32", "auto", "bfloat16", "int8", "int4"]
        exact, auto, half = report.rows[:3]
        assert (auto.kl, auto.loss) == (0, exact.loss)
        assert half.kl > 0
        assert half.loss != exact.loss
        assert measured == ["auto", "bfloat16", "int8", "int4"]
        by_name = CausalLM.load(path, dtype="bfloat16").quality(TEXT, dtypes=["auto", "bfloat16"], limit=20)
        assert [(row.kl, row.loss) for row in by_name.rows[1:]] == [
            (row.kl, row.loss) for row in (auto, half)
        ]

    def test_a_file_that_is_all_in_bfloat16(
        self, tmp_path: Path, byte_level: Any, measured: list[str]
    ) -> None:
        path = rounded(tiny.write_folder(tmp_path, tokenizer=byte_level), as_bfloat16, values=True)
        model = CausalLM.load(path)
        assert names(model.quality(TEXT, limit=9)) == ["float32", "bfloat16", "int8", "int4"]
        measured.clear()
        for asked in (["auto", "bfloat16"], ["bfloat16", "auto"]):
            for loaded in (
                model,
                CausalLM.load(path, dtype="bfloat16"),
                CausalLM.load(path, dtype="float32"),
            ):
                given: Any = asked
                report = loaded.quality(TEXT, dtypes=given, limit=9)
                assert names(report) == ["float32", *asked]
                assert numbers(report.rows[1]) == numbers(report.rows[2])
                assert measured == asked[:1], "equal loads are measured once"
                measured.clear()

    def test_a_file_that_is_all_in_float32(self, folder: Path, measured: list[str]) -> None:
        report = CausalLM.load(folder).quality(TEXT, dtypes=["auto", {"lm_head": "float32"}], limit=9)
        assert names(report) == ["float32", "auto", {"lm_head": "float32"}]
        assert [numbers(row) for row in report.rows[1:]] == [numbers(report.rows[0])] * 2
        assert measured == ["float32"]

    def test_matrices_that_float16_would_serve_badly(self, tmp_path: Path) -> None:
        """A T5 whose file is in float16 is loaded as float16 with some matrices in float32."""
        path = FAMILIES["t5"].write_tiny(tmp_path, tokenizer=tiny.with_end())
        model = Seq2SeqLM.load(rounded(path, as_float16, values=True))
        assert model.info()["dtype"] == "float16"
        assert Seq2SeqLM.load(path, dtype="float16").info()["dtype"] == "float16, float32"
        report = model.quality(PAIRS, limit=4)
        assert names(report)[:3] == ["float32", "auto", "bfloat16"]
        sizes = [row.weight_bytes for row in model.quality(PAIRS, dtypes=["auto", "float16"], limit=4).rows]
        assert sizes[0] > sizes[2] > sizes[1]

    def test_products_of_what_is_the_same_are_formed_as_the_model_forms_them(
        self, tmp_path: Path, byte_level: Any
    ) -> None:
        path = rounded(tiny.write_folder(tmp_path, tokenizer=byte_level), as_bfloat16, values=True)
        model = CausalLM.load(path, compute_dtype="bfloat16")
        assert [row.compute_dtype for row in model.quality(TEXT, dtypes=["bfloat16"], limit=9).rows] == [
            "float32",
            "bfloat16",
        ]


class TestParts:
    def test_of_patterns_that_are_equally_close_the_first_counts(
        self, folder: Path, measured: list[str]
    ) -> None:
        assert FIRST == SECOND, "mappings do not look at the order"
        for own in (FIRST, SECOND):
            report = CausalLM.load(folder, dtype=own).quality(TEXT, dtypes=[FIRST, SECOND], limit=9)
            assert [[*row.dtype] for row in report.rows[1:]] == [[*FIRST], [*SECOND]]
            assert len(measured) == 2
            measured.clear()
            for dtype, row in zip((FIRST, SECOND), report.rows[1:], strict=True):
                assert row.weight_bytes == CausalLM.load(folder, dtype=dtype).info()["weight_bytes"]
            assert report.rows[1].weight_bytes != report.rows[2].weight_bytes

    @pytest.mark.parametrize(
        "types",
        [
            {"lm_head": "int8", "h.*": "bfloat16"},
            {"h.*": "bfloat16", "h.*.mlp.*": "int8"},
            {"h.0.mlp.c*": "int8", "*.mlp.c_fc": "int8"},
            {"default": "int8", "*.mlp.c_fc": "bfloat16", "h.0.mlp.c_proj": "bfloat16"},
        ],
        ids=str,
    )
    def test_where_the_order_says_nothing_they_are_one_type(self, folder: Path, types: Any) -> None:
        again: Any = dict(reversed(types.items()))
        model = CausalLM.load(folder, dtype=types)
        with pytest.raises(errors.OptionError, match="more than once") as caught:
            model.quality(TEXT, dtypes=[types, again])
        assert caught.value.option == "dtypes"
        digests = {CausalLM.load(folder, dtype=one)._core.weights_digest for one in (types, again)}
        assert digests == {model._core.weights_digest}

    def test_equal_loads_are_measured_once_whatever_they_are_called(
        self, folder: Path, measured: list[str]
    ) -> None:
        asked: Any = [
            "int8",
            {"default": "int8", "*.c_fc": "int8"},
            "int4",
            {"default": "int4", "*.c_fc": "int4", "lm_head": "int8"},
            {"default": "int4", "lm_head": "int4"},
        ]
        report = CausalLM.load(folder).quality(TEXT, dtypes=asked, limit=9)
        assert names(report) == ["float32", *asked]
        assert measured == ["int8", "int4", "default=int4,lm_head=int4"]
        rows = report.rows[1:]
        assert numbers(rows[0]) == numbers(rows[1])
        assert numbers(rows[2]) == numbers(rows[3])
        assert rows[3].kl != rows[4].kl
        assert [row.int4_group for row in rows] == [None, None, 64, 64, 64]

    def test_progress_of_types_that_are_the_same(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: Any = ["int8", {"default": "int8", "*.c_fc": "int8"}, "bfloat16"]
        CausalLM.load(folder).quality([[1, 2, 3]], dtypes=asked, progress=True)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "quality: int8 (1 of 3): 0 of 2 tokens"
        assert lines[-1] == "quality: bfloat16 (3 of 3): 2 of 2 tokens"
        assert not any("(2 of 3)" in line for line in lines)
        asked = ["auto", {"lm_head": "float32"}]
        CausalLM.load(folder).quality([[1, 2, 3]], dtypes=asked, progress=True)
        lines = capsys.readouterr().err.splitlines()
        assert (lines[0], lines[-1]) == (
            "quality: float32 (2 of 2): 0 of 2 tokens",
            "quality: float32 (2 of 2): 2 of 2 tokens",
        )

    def test_loading_takes_two_names_of_the_same_type_alone(self, folder: Path) -> None:
        kept = CausalLM.load(folder, dtype=FIRST, torch_dtype=FIRST).info()["weight_bytes"]
        assert kept == CausalLM.load(folder, dtype=FIRST).info()["weight_bytes"]
        with pytest.raises(errors.OptionError, match="the same as dtype") as caught:
            CausalLM.load(folder, dtype=FIRST, torch_dtype=SECOND)
        assert caught.value.option == "torch_dtype"

    def test_what_is_the_same(self) -> None:
        assert same_types("int8", "int8")
        assert not same_types("int8", "int4")
        assert not same_types("int8", {"lm_head": "int8"})
        assert not same_types({"lm_head": "int4"}, {"lm_head": "int8"})
        assert same_types(FIRST, dict(FIRST))
        assert not same_types(FIRST, SECOND)


def test_digests_are_those_of_what_is_held(folder: Path) -> None:
    """Equal where all weights are, and never else."""
    types: list[Any] = ["float32", "float16", "bfloat16", "int8", "int4", FIRST, SECOND, {"lm_head": "int4"}]
    loads = {str(dtype): CausalLM.load(folder, dtype=dtype) for dtype in types}
    digests = {name: model._core.weights_digest for name, model in loads.items()}
    assert len({*digests.values()}) == len(types)
    groups = [CausalLM.load(folder, dtype="int4", int4_group=group) for group in (32, 64, 128)]
    assert len({model._core.weights_digest for model in groups}) == 3
    assert groups[1]._core.weights_digest == digests["int4"]
    for threads in (1, 2):
        model = CausalLM.load(folder, num_threads=threads, cache_bytes=1 << 20)
        assert model._core.weights_digest == digests["float32"]
