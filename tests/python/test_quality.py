"""The quality report: types of weights against float32, by what numpy makes of the models' own logits."""

from __future__ import annotations

import gc
import json
import math
import shutil
import sys
import tracemalloc
import weakref
from io import StringIO
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import tiny
from families import FAMILIES
from families.llama import LlamaRecipe, config
from fastdecode import CausalLM, Quality, QualityReport, Seq2SeqLM, errors, quality, quality_logits
from fastdecode.scoring import Item
from peft_folders import adapter, gpt2

T5 = FAMILIES["t5"]
TEXT = (
    "Once upon a time there was a little girl who lived in a house by the wood. One day her mother said to her: "
    "Take this cake to your grandmother, for she is ill. And the wolf, who stood behind a tree, heard every word."
)
PAIRS = [
    ("translate English to French: I am happy to see you.", "Je suis content de vous voir."),
    ("translate English to French: Where is the station?", "Où est la gare ?"),
    ("translate English to French: We have to go home now.", "Nous devons rentrer à la maison."),
]


def log_softmax(logits: Any) -> Any:
    exact = logits.astype(np.longdouble)
    return exact - np.log(np.exp(exact).sum(-1, keepdims=True))


def by_hand(rows: list[tuple[Any, Any, Any]]) -> tuple[float, float]:
    """Mean divergence, and share of best tokens that agree, of (float32's logits, other's logits, targets)."""
    divergences, agreed = [], []
    for ours, theirs, targets in rows:
        p, q = log_softmax(ours), log_softmax(theirs)
        assert len(p) == len(targets)
        for place, target in enumerate(targets):
            if target is not None:
                divergences.append(float(np.sum(np.exp(p[place]) * (p[place] - q[place]))))
                agreed.append(int(ours[place].argmax()) == int(theirs[place].argmax()))
    return sum(divergences) / len(divergences), sum(agreed) / len(agreed)


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder-decoder in float32."""
    return T5.write_tiny(tmp_path_factory.mktemp("t5"), tokenizer=tiny.with_end())


def drawn(seed: int, count: int, vocab: int = 320) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, vocab, count)]


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


def test_the_names_of_types_are_those_that_load_takes() -> None:
    names = quality._names()
    assert {"auto", "float32", "float16", "bfloat16"} <= set(names)
    name: Any
    for name in names:
        assert CausalLM.load("demo-stories", dtype=name).info()["weight_bytes"] > 0


def test_a_report_is_json_after_all(model: CausalLM) -> None:
    import dataclasses

    report = model.quality(TEXT, dtypes="bfloat16")
    assert json.loads(json.dumps(dataclasses.asdict(report)))["rows"][1]["dtype"] == "bfloat16"
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows[0].kl = 1.0  # type: ignore[misc]
