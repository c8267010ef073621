"""The quality report: types of weights against float32, by what numpy makes of the models' own logits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import tiny
from families import FAMILIES
from families.llama import LlamaRecipe, config
from fastdecode import CausalLM, Quality, QualityReport, Seq2SeqLM, errors, quality_logits
from peft_folders import adapter, gpt2
from quality_checks import PAIRS, T5, TEXT, by_hand
from score_checks import drawn


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder-decoder in float32."""
    return T5.write_tiny(tmp_path_factory.mktemp("t5"), tokenizer=tiny.with_end())


class TestTexts:
    def test_demo_stories(self) -> None:
        # Its file holds bfloat16: float32 has exactly its values, and products are formed in float32 in both.
        model = fastdecode.load("demo-stories", num_threads=2)
        report = model.quality(TEXT, dtypes=["bfloat16", "float16"], stride=16, window=32)
        assert isinstance(report, QualityReport)
        assert report.measure == "perplexity"
        exact, half, other = report.rows
        assert [row.dtype for row in report.rows] == ["float32", "bfloat16", "float16"]
        assert (exact.kl, exact.agreement) == (0, 1)
        assert (half.kl, half.agreement, half.loss) == (0, 1, exact.loss)
        assert 0 < other.kl < 1e-6
        assert exact.perplexity == pytest.approx(model.perplexity(TEXT, 16, 32), rel=1e-12)
        assert exact.loss == pytest.approx(math.log(exact.perplexity), rel=1e-12)
        for row in report.rows:
            assert isinstance(row, Quality)
            info = fastdecode.load("demo-stories", dtype=row.dtype).info()
            assert (row.weight_bytes, row.step_weight_bytes) == (
                info["weight_bytes"],
                info["step_weight_bytes"],
            )
            assert row.tokens == len(model.tokenizer.encode(TEXT)) - 1
            assert row.tokens_per_second > 0

    @pytest.mark.parametrize(("stride", "window"), [(8, 24), (24, 24), (30, 20), (512, None)])
    @pytest.mark.parametrize("slice_rows", [1, 7, 10**6])
    def test_numbers_are_those_of_whole_logits(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, stride: int, window: int | None, slice_rows: int
    ) -> None:
        monkeypatch.setattr(quality_logits, "LOGITS_BYTES", slice_rows * 4 * 320)
        monkeypatch.setattr(quality_logits, "BLOCK_BYTES", 3 * 8 * 320)
        model, other = CausalLM.load(folder), CausalLM.load(folder, dtype="bfloat16")
        ids = drawn(3, 60)
        report = model.quality(ids, dtypes=["bfloat16"], stride=stride, window=window)
        rows, seen = [], 0
        size = model.info()["context_length"] if window is None else window
        for begin in range(0, len(ids), stride):
            end = min(begin + size, len(ids))
            # The guide counts behind what the window before it has scored; behind the first token of its own at least.
            first = max(begin + 1, seen)
            if end - first > (0 if begin == 0 else 1):
                part = slice(first - 1 - begin, end - 1 - begin)
                logits = (model.logits(ids[begin:end])[part], other.logits(ids[begin:end])[part])
                rows.append((*logits, ids[first:end]))
            seen = end
            if end == len(ids):
                break
        divergence, agreement = by_hand(rows)
        [exact, row] = report.rows
        assert row.tokens == exact.tokens == sum(len(targets) for *_, targets in rows)
        assert divergence > 1e-8
        assert row.kl == pytest.approx(divergence, rel=1e-6)
        assert row.agreement == agreement
        for found, loaded in ((exact, model), (row, other)):
            assert found.perplexity == pytest.approx(loaded.perplexity(ids, stride, window), rel=1e-12)

    def test_best_tokens_that_differ_are_counted(self, folder: Path) -> None:
        # Enough tokens that some best ones change with the type.
        model, other = CausalLM.load(folder), CausalLM.load(folder, dtype="bfloat16")
        texts = [drawn(seed, 48) for seed in range(20)]
        pairs = [(model.logits(ids)[:-1], other.logits(ids)[:-1], ids[1:]) for ids in texts]
        divergence, agreement = by_hand(pairs)
        row = model.quality(texts, dtypes="bfloat16").rows[1]
        assert row.agreement == agreement
        assert 0.5 < agreement < 1, "some differ"
        assert row.kl == pytest.approx(divergence, rel=1e-6)
        weights = [47] * 20
        losses = other.loss(texts)
        assert row.loss == pytest.approx(np.average(losses, weights=weights), rel=1e-12)

    def test_float32_alone_and_against_a_second_one(self) -> None:
        model = CausalLM.load("demo-stories", dtype="float32")
        [row] = model.quality(TEXT, dtypes=["float32"]).rows
        assert (row.dtype, row.kl, row.agreement) == ("float32", 0, 1)
        # The file's own values in another model.
        _, auto = model.quality(TEXT, dtypes=["auto"]).rows
        assert (auto.dtype, auto.kl, auto.agreement, auto.loss) == ("auto", 0, 1, row.loss)
        assert auto.weight_bytes < row.weight_bytes

    def test_types_by_default(self, folder: Path) -> None:
        given: Any
        for given, first in (
            ("auto", ["float32", "bfloat16"]),
            ("float16", ["float32", "float16", "bfloat16"]),
        ):
            report = CausalLM.load(folder, dtype=given).quality(TEXT, limit=9)
            names = [row.dtype for row in report.rows]
            assert names[: len(first)] == first
            assert "auto" not in names
            assert len(set(map(str, names))) == len(names)

    def test_rows_are_in_the_order_asked_for(self, model: CausalLM) -> None:
        asked: Any = iter(["float16", "float32", "bfloat16"])
        report = model.quality(TEXT, dtypes=asked, limit=9)
        assert [row.dtype for row in report.rows] == ["float32", "float16", "bfloat16"]

    def test_groups_of_int4(self, folder: Path) -> None:
        model = CausalLM.load(folder, dtype="int4", int4_group=128, num_threads=1)
        asked: Any = ["int4", {"default": "bfloat16", "*.c_fc": "int4"}, "int8"]
        found: Any
        for group, found in ((None, 128), (32, 32), (64, 64), (128, 128)):
            report = model.quality(TEXT, dtypes=asked, int4_group=group, limit=9)  # type: ignore[arg-type]
            assert [row.int4_group for row in report.rows] == [None, found, found, None]
            for row in report.rows[1:3]:
                info = CausalLM.load(folder, dtype=row.dtype, int4_group=found).info()
                assert row.weight_bytes == info["weight_bytes"]
            lines = str(report).splitlines()[1:]
            assert [f" by {found}" in line for line in lines] == [False, True, True, False]
        assert (
            len({model.quality(TEXT, dtypes="int4", int4_group=n, limit=9).rows[1].kl for n in (32, 64)}) == 2
        )

    def test_what_says_the_same_is_one_type(self, folder: Path) -> None:
        model = CausalLM.load(folder, dtype={"default": "bfloat16"})
        asked: Any = [{"default": "int8"}, {}, {"default": "auto", "lm_head": "int8"}]
        names = [row.dtype for row in model.quality(TEXT, dtypes=asked, limit=9).rows]
        assert names == ["float32", "int8", "auto", {"lm_head": "int8"}]
        names = [row.dtype for row in model.quality(TEXT, limit=9).rows]
        assert names == ["float32", "bfloat16", "int8", "int4"]
        for twice in (
            ["int8", {"default": "int8"}],
            [{}, "auto"],
            [{"default": "auto", "*": "int8"}, {"*": "int8"}],
        ):
            with pytest.raises(errors.OptionError, match="more than once"):
                model.quality(TEXT, dtypes=twice)  # type: ignore[arg-type]

    def test_a_limit_leaves_the_rest_out(self, model: CausalLM) -> None:
        texts = [drawn(1, 9), drawn(2, 9), drawn(3, 9)]
        for limit, wanted in (
            (5, [texts[0][:5]]),
            (10, texts[:1]),
            (11, [texts[0], texts[1][:2]]),
            (99, texts),
        ):
            got = model.quality(texts, dtypes="bfloat16", limit=limit).rows[1]
            want = model.quality(wanted, dtypes="bfloat16").rows[1]
            assert (got.loss, got.kl, got.tokens) == (want.loss, want.kl, want.tokens), limit

    def test_products_are_formed_as_the_model_forms_them(self, folder: Path) -> None:
        model = CausalLM.load(folder, dtype="bfloat16", compute_dtype="bfloat16")
        rows = model.quality(TEXT, dtypes=["bfloat16", "float16"]).rows
        assert [row.compute_dtype for row in rows] == ["float32", "bfloat16", "float32"]
        plain = CausalLM.load(folder, dtype="bfloat16").quality(TEXT, dtypes=["bfloat16"]).rows[1]
        assert rows[1].kl > plain.kl
        assert rows[1].perplexity == pytest.approx(model.perplexity(TEXT), rel=1e-12)

    def test_across_the_border_of_longrope(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows that come first are those of the whole window, too, however few are asked for at once."""
        factors = {"short_factor": [1.0, 1.5, 1.0, 2.0], "long_factor": [1.0, 4.0, 8.0, 3.0]}
        scaling = {"rope_type": "longrope", "original_max_position_embeddings": 40, **factors}
        recipe = LlamaRecipe(
            config(head_dim=8, max_position_embeddings=160, rope_scaling=scaling), spread=1.5, seed=3
        )
        model = CausalLM.load(FAMILIES["llama"].write(recipe, tmp_path))
        monkeypatch.setattr(quality_logits, "LOGITS_BYTES", 4 * recipe.vocab * 9)
        [ids] = recipe.ids(1, 130)
        for stride, window in ((64, 64), (30, 90), (512, 130), (20, 40), (20, 41)):
            [row] = model.quality(ids, dtypes="float32", stride=stride, window=window).rows
            assert row.perplexity == pytest.approx(model.perplexity(ids, stride, window), rel=1e-12)

    def test_adapters_are_in_every_model(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        added = adapter(base, tmp_path / "a", config={"target_modules": ["c_attn"]})
        model = CausalLM.load(base, adapter=added)
        ids = drawn(5, 20, 50)
        exact, half = model.quality(ids, dtypes=["bfloat16"]).rows
        assert exact.perplexity == pytest.approx(model.perplexity(ids), rel=1e-12)
        other = CausalLM.load(base, adapter=added, dtype="bfloat16")
        assert half.perplexity == pytest.approx(other.perplexity(ids), rel=1e-12)
        assert exact.perplexity != pytest.approx(CausalLM.load(base).perplexity(ids), rel=1e-6)

    def test_what_the_folder_asks_for_in_generating_does_not_count(
        self, tmp_path: Path, byte_level: Any
    ) -> None:
        asks = {"num_beams": 3, "do_sample": True, "repetition_penalty": 1.5, "max_new_tokens": 2}
        path = tiny.write_folder(tmp_path, tokenizer=byte_level, generation=asks)
        assert CausalLM.load(path).quality(TEXT, dtypes="float32").rows[0].tokens_per_second > 0

    def test_a_context_without_room_for_two_new_tokens(self, tmp_path: Path, byte_level: Any) -> None:
        path = tiny.write_folder(tmp_path, tokenizer=byte_level, n_positions=2)
        [row] = CausalLM.load(path).quality(TEXT, dtypes="float32", stride=1).rows
        assert (row.tokens_per_second, row.tokens) == (0, 1)

    def test_a_cache_that_calls_may_not_use_is_no_bound(self, folder: Path) -> None:
        model = CausalLM.load(folder, dtype="bfloat16", cache_bytes=1 << 20, max_rows=1)
        assert len(model.quality(TEXT, dtypes=["float16"]).rows) == 2


class TestPairs:
    def test_demo_en_fr(self) -> None:
        model = fastdecode.load("demo-en-fr", num_threads=2)
        report = model.quality(PAIRS, dtypes=["bfloat16", "float16"])
        assert report.measure == "loss"
        exact, half, other = report.rows
        assert (half.kl, half.agreement, half.loss) == (0, 1, exact.loss)
        assert 0 < other.kl < 1e-4
        counts = [len(model.tokenizer.encode(target)) for _, target in PAIRS]
        losses = model.loss([source for source, _ in PAIRS], [target for _, target in PAIRS])
        assert exact.loss == pytest.approx(np.average(losses, weights=counts), rel=1e-12)
        assert exact.tokens == sum(counts)
        [alone] = model.quality(PAIRS[:1], dtypes="float32").rows
        assert alone.loss == pytest.approx(model.loss(*PAIRS[0]), rel=1e-12)

    @pytest.mark.parametrize("slice_rows", [1, 3, 10**6])
    def test_numbers_are_those_of_whole_logits(
        self, translator: Path, monkeypatch: pytest.MonkeyPatch, slice_rows: int
    ) -> None:
        model, other = Seq2SeqLM.load(translator), Seq2SeqLM.load(translator, dtype="bfloat16")
        monkeypatch.setattr(quality_logits, "LOGITS_BYTES", slice_rows * 4 * 320)
        start, pad = model.config["decoder_start_token_id"], model.config.get("pad_token_id", 0)
        sources: list[Any] = ["Good day", drawn(1, 9)]
        targets = [drawn(2, 7), [-100, 5, -100, 6, 7, -100]]
        rows, losses, counts = [], [], []
        for source, target in zip(sources, targets, strict=True):
            ids = [start, *(pad if token == -100 else token for token in target[:-1])]
            kept = [None if token == -100 else token for token in target]
            rows.append((model.logits(source, ids), other.logits(source, ids), kept))
            losses.append(other.loss(source, target))
            counts.append(sum(token is not None for token in kept))
        pairs = list(zip(sources, targets, strict=True))
        row = model.quality(pairs, dtypes=["bfloat16"]).rows[1]
        divergence, agreement = by_hand(rows)
        assert divergence > 1e-8
        assert row.kl == pytest.approx(divergence, rel=1e-6)
        assert (row.agreement, row.tokens) == (agreement, 10)
        assert row.loss == pytest.approx(np.average(losses, weights=counts), rel=1e-12)

    def test_a_limit_takes_whole_pairs(self, translator: Path) -> None:
        model = Seq2SeqLM.load(translator)
        pairs = [("a", [5, 6, 7]), ("b", [5, -100, 7]), ("c", [8])]
        for limit, tokens in ((1, 3), (3, 3), (4, 5), (5, 5), (6, 6), (99, 6)):
            assert model.quality(iter(pairs), dtypes="float32", limit=limit).rows[0].tokens == tokens
