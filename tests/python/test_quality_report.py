"""What a quality report takes and shows while it is made, and how it reads: memory, progress, the table."""

from __future__ import annotations

import gc
import json
import math
import sys
import tracemalloc
import weakref
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tiny
from fastdecode import CausalLM, Quality, QualityReport, quality_logits
from quality_checks import TEXT
from score_checks import drawn


class TestMemory:
    def test_one_type_is_loaded_at_a_time(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = CausalLM.load(folder, dtype="float16", num_threads=1)
        before: Any = CausalLM.load.__func__  # type: ignore[attr-defined]
        loaded: list[tuple[str, weakref.ref[Any]]] = []

        def load(cls: type[CausalLM], name: str, /, **options: Any) -> CausalLM:
            alive = [dtype for dtype, made in loaded if made() is not None]
            assert alive in ([], ["float32"]), f"{options['dtype']} is loaded beside {alive}"
            assert options["num_threads"] == 1
            made: CausalLM = before(cls, name, **options)
            loaded.append((options["dtype"], weakref.ref(made)))
            return made

        monkeypatch.setattr(CausalLM, "load", classmethod(load))
        gc.disable()
        try:
            report = model.quality(TEXT, dtypes=["bfloat16", "float16", "auto"])
            assert [dtype for dtype, _ in loaded] == ["float32", "bfloat16", "auto"]
            assert [made() for _, made in loaded] == [None] * 3, "all have gone"
        finally:
            gc.enable()
        assert len(report.rows) == 4

    def test_logits_of_a_window_are_never_all_there(self, tmp_path: Path) -> None:
        """103 MB of logits in float32 with each of two models; a slice of each is there, and some blocks."""
        path = tiny.write_folder(tmp_path, vocab_size=50257, n_positions=512, n_embd=16, n_head=2, n_layer=1)
        model = CausalLM.load(path, num_threads=2)
        ids = drawn(3, 512, 50257)
        model.quality(ids[:9], dtypes="bfloat16")
        tracemalloc.start()
        try:
            model.quality(ids, dtypes="bfloat16")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak > 2 * quality_logits.LOGITS_BYTES * 0.9, "logits are counted"
        assert peak < 2 * quality_logits.LOGITS_BYTES + 12 * quality_logits.BLOCK_BYTES
        assert model.info()["activation_bytes"] <= 64 << 20


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class TestProgress:
    def test_lines(self, model: CausalLM, capsys: pytest.CaptureFixture[str]) -> None:
        texts = [drawn(seed, 11) for seed in range(20)]
        model.quality(texts, dtypes=["bfloat16", "float16"], progress=True)
        shown = capsys.readouterr()
        assert shown.out == ""
        lines = shown.err.splitlines()
        assert lines[0] == "quality: bfloat16 (1 of 2): 0 of 200 tokens"
        assert lines[-1] == "quality: float16 (2 of 2): 200 of 200 tokens"
        assert len(lines) == 2 * 11

    @pytest.mark.parametrize("progress", [None, False])
    def test_nothing_where_nobody_looks(
        self, model: CausalLM, capsys: pytest.CaptureFixture[str], progress: bool | None
    ) -> None:
        model.quality(TEXT, dtypes="bfloat16", progress=progress)
        assert capsys.readouterr() == ("", "")

    def test_one_line_on_a_terminal(self, model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        model.quality([[1, 2, 3], [4, 5, 6]], dtypes="bfloat16")
        shown = terminal.getvalue()
        assert "\n" not in shown
        assert "2 of 4 tokens" in shown
        assert shown.endswith("\r\x1b[K"), "the line is taken away"
        silent = Terminal()
        monkeypatch.setattr(sys, "stderr", silent)
        model.quality([1, 2, 3], dtypes="bfloat16", progress=False)
        assert silent.getvalue() == ""

    def test_a_program_without_a_console(self, model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
        for progress in (None, True):
            monkeypatch.setattr(sys, "stderr", None)
            assert len(model.quality([1, 2, 3], dtypes="bfloat16", progress=progress).rows) == 2


def row(**changes: Any) -> Quality:
    values: dict[str, Any] = {
        "dtype": "float32",
        "compute_dtype": "float32",
        "loss": 2.0,
        "perplexity": 8.0,
        "kl": 0.0,
        "agreement": 1.0,
        "tokens": 1000,
        "weight_bytes": 12_340_000,
        "step_weight_bytes": 2_000_000_000,
        "tokens_per_second": 1234.56,
    }
    return Quality(**values | changes)


def test_the_table() -> None:
    by_part = {"default": "bfloat16", "lm_head": "int8"}
    other = row(dtype=by_part, perplexity=8.4, loss=2.1, kl=0.00291, agreement=0.98765, tokens_per_second=0.0)
    report = QualityReport("perplexity", (row(), other))
    head, first, second = str(report).splitlines()
    columns = "dtype products perplexity change KL agreement weights per step tokens/s"
    assert " ".join(head.split()) == columns
    assert " ".join(first.split()) == "float32 float32 8.0000 +0.00% 0 100.00% 12.3 MB 2,000.0 MB 1,234.6"
    wanted = "default=bfloat16,lm_head=int8 float32 8.4000 +5.00% 0.00291 98.77% 12.3 MB 2,000.0 MB 0.0"
    assert " ".join(second.split()) == wanted
    losses = str(QualityReport("loss", (row(), other))).splitlines()
    assert losses[2].split()[2:4] == ["2.1000", "+5.00%"]
    assert len({line.index("float32", 9) for line in losses[1:]}) == 1, "columns stand below each other"
    unusable = str(QualityReport("perplexity", (row(perplexity=math.inf), row(perplexity=3e9))))
    assert "inf" in unusable
    assert "3e+09" in unusable


def test_a_report_is_json_after_all(model: CausalLM) -> None:
    import dataclasses

    report = model.quality(TEXT, dtypes="bfloat16")
    assert json.loads(json.dumps(dataclasses.asdict(report)))["rows"][1]["dtype"] == "bfloat16"
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows[0].kl = 1.0  # type: ignore[misc]
