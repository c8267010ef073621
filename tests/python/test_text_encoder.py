"""`TextEncoder` as a user meets it: what is loaded as one, texts and ids, means, bounds of memory, misuse."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastdecode
import laws
import numpy as np
import pytest
import tiny
from ctrl_c import seconds_to_stop
from encoder_folders import change, keep, load_quietly, of_encoder
from families import FAMILIES
from fastdecode import CausalLM, Seq2SeqLM, TextEncoder, errors
from laws import Case
from safetensors.numpy import load_file, save_file

T5 = FAMILIES["t5"]
case = laws.case_of([T5])
TEXTS = ["Once upon a time", "The wolf said: good day", "où vas-tu?", ""]
VERBS = ("generate", "run", "stream", "astream", "prefill", "logits", "loss", "trace")


def test_a_list_and_threads_give_the_bits_of_alone(case: Case, types: dict[str, Any]) -> None:
    sources = [case.item(1, length).source or [] for length in (150, 1, 9, 600, 16, 33, 300, 301, 2)]
    one, whole = (
        TextEncoder.load(case.folder, num_threads=1, **types),
        case.load(num_threads=1, **types).model,
    )
    together, means = one.encode(sources), one.encode(sources, pooling="mean")
    assert means.shape == (len(sources), one.config["d_model"])
    for source, states, mean in zip(sources, together, means, strict=True):
        assert states.shape == (len(source), one.config["d_model"])
        assert np.array_equal(states, one.encode(source))
        assert np.array_equal(mean, one.encode(source, pooling="mean"))
        assert np.array_equal(states, whole.encode(source).hidden)
        exact = states.astype(np.float64).sum(0) / len(source)
        assert np.abs(mean - exact).max() <= 1e-7 * max(1.0, np.abs(exact).max())
    others: list[dict[str, Any]] = [
        {"num_threads": 2},
        {"num_threads": 3, "max_rows": 1},
        {"num_threads": 2, "cache_bytes": 2**21},
    ]
    for options in others:
        other = TextEncoder.load(case.folder, **options, **types)
        assert all(map(np.array_equal, other.encode(sources), together))
        assert np.array_equal(other.encode(sources, pooling="mean"), means)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an encoder-decoder with a tokenizer; it ends every text with id 0."""
    return T5.write_tiny(tmp_path_factory.mktemp("t5") / "whole", tokenizer=tiny.with_end())


@pytest.fixture(scope="module")
def folder(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its encoder alone."""
    copied = shutil.copytree(whole, tmp_path_factory.mktemp("t5") / "encoder")
    return keep(change(copied, architectures=["T5EncoderModel"]), of_encoder)


@pytest.fixture(scope="module")
def model(folder: Path) -> TextEncoder:
    return TextEncoder.load(folder, num_threads=2)


class TestLoading:
    def test_load_returns_one_where_there_is_no_decoder(self, whole: Path, folder: Path) -> None:
        assert type(load_quietly(folder)) is TextEncoder
        assert type(load_quietly(whole)) is Seq2SeqLM
        assert type(TextEncoder.load(whole)) is TextEncoder

    @pytest.mark.parametrize(
        ("architectures", "kind"),
        [
            (["T5EncoderModel"], TextEncoder),
            (["UMT5EncoderModel"], TextEncoder),
            (["T5ForTokenClassification"], TextEncoder),
            (["MyEncoder"], TextEncoder),
            ([], TextEncoder),
            (None, TextEncoder),
            ("T5EncoderModel", TextEncoder),
            (["T5ForConditionalGeneration"], None),
            (["T5Model"], None),
            (["MT5ForConditionalGeneration"], None),
            (["T5WithLMHeadModel"], None),
        ],
    )
    def test_what_config_json_says_of_encoder_tensors(
        self, folder: Path, tmp_path: Path, architectures: Any, kind: Any
    ) -> None:
        copied = change(shutil.copytree(folder, tmp_path / "m"), architectures=architectures)
        if kind is not None:
            assert type(load_quietly(copied)) is kind
            return
        for refuses in (fastdecode.load, Seq2SeqLM.load):
            with pytest.raises(
                errors.CheckpointError, match=r"TextEncoder\.load reads the encoder"
            ) as caught:
                refuses(copied)
            assert caught.value.tensor == "decoder.block.0.layer.1.EncDecAttention.k.weight"
            assert architectures[0] in str(caught.value)
        assert type(TextEncoder.load(copied)) is TextEncoder

    def test_a_class_of_encoders_over_a_whole_folder(self, whole: Path, tmp_path: Path) -> None:
        copied = change(shutil.copytree(whole, tmp_path / "m"), architectures=["T5EncoderModel"])
        assert type(load_quietly(copied)) is TextEncoder
        assert type(Seq2SeqLM.load(copied)) is Seq2SeqLM, "who asks for the decoder gets it"

    def test_each_class_refuses_the_other_kinds(self, folder: Path, tmp_path: Path) -> None:
        causal = tiny.write_folder(tmp_path)
        with pytest.raises(
            errors.UnsupportedModelError, match=r"CausalLM or fastdecode\.load takes it"
        ) as caught:
            TextEncoder.load(causal)
        assert (caught.value.got, caught.value.file) == ("gpt2", str(causal))
        assert caught.value.expected == "a model with an encoder (t5, mt5, umt5)"
        for cls in (CausalLM, Seq2SeqLM):
            with pytest.raises(errors.UnsupportedModelError, match="; TextEncoder or fastdecode") as caught:
                cls.load(folder)
            assert caught.value.got == "t5, an encoder alone"
        with pytest.raises(errors.UnsupportedModelError, match="CausalLM or fastdecode"):
            TextEncoder.from_tensors(tiny.config(), tiny.weights(tiny.config()))
        with pytest.raises(errors.UnsupportedModelError, match="model_type among mt5, t5, umt5, got bert"):
            TextEncoder.load(change(shutil.copytree(folder, tmp_path / "bert"), model_type="bert"))

    def test_nothing_of_a_decoder_is_read(self, whole: Path, folder: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(whole, tmp_path / "m")
        tensors = load_file(copied / "model.safetensors")
        for name in tensors:
            if name.startswith("decoder."):
                tensors[name] = np.zeros(3, np.int64)
        save_file(tensors | {"lm_head.weight": np.zeros((1, 1), np.int8)}, copied / "model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = TextEncoder.load(copied)
        kinds = ("parameters", "weight_bytes", "step_weight_bytes", "unknown_tensors")
        alone, all_of_it = TextEncoder.load(folder).info(), Seq2SeqLM.load(whole).info()
        assert [model.info()[name] for name in kinds] == [alone[name] for name in kinds]
        assert model.info()["weight_bytes"] < all_of_it["weight_bytes"]
        assert np.array_equal(model.encode([5, 6]), TextEncoder.load(folder).encode([5, 6]))

    def test_a_missing_tensor_of_the_encoder(self, folder: Path, tmp_path: Path) -> None:
        missing = "encoder.block.1.layer.0.SelfAttention.q.weight"
        copied = keep(shutil.copytree(folder, tmp_path / "m"), lambda name: name != missing)
        with pytest.raises(errors.CheckpointError, match="expected a tensor of shape") as caught:
            load_quietly(copied)
        assert caught.value.tensor == missing

    def test_unknown_tensors_are_warned_about(self, folder: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(folder, tmp_path / "m")
        file = copied / "model.safetensors"
        save_file(load_file(file) | {"classifier.weight": np.zeros(3, np.float32)}, file)
        with pytest.warns(errors.FastdecodeWarning, match=r"classifier\.weight") as caught:
            fastdecode.load(copied)
        assert caught[0].filename == __file__

    def test_a_damaged_generation_config_stops_no_encoder(self, folder: Path, tmp_path: Path) -> None:
        copied = shutil.copytree(folder, tmp_path / "m")
        (copied / "generation_config.json").write_text("{")
        assert len(load_quietly(copied).encode([5])) == 1

    def test_options(self, folder: Path) -> None:
        model = TextEncoder.load(
            folder, dtype="bfloat16", compute_dtype="bfloat16", num_threads=1, cache_bytes=9999, max_rows=3
        )
        names = ("dtype", "compute_dtype", "num_threads", "cache_bytes", "max_rows")
        assert [model.info()[name] for name in names] == ["bfloat16", "bfloat16", 1, 9999, 3]
        for name, value in (("dtype", "int3"), ("num_threads", 0), ("cache_bytes", -1), ("max_rows", 0)):
            with pytest.raises(errors.OptionError) as caught:
                TextEncoder.load(folder, **{name: value})  # type: ignore[arg-type]
            assert caught.value.option == name

    def test_from_tensors_takes_whole_models_and_encoders(self, model: TextEncoder) -> None:
        tensors = T5.tiny_weights(T5.tiny_config())
        want = model.encode([5, 6, 7])
        for kept in (tensors, {name: array for name, array in tensors.items() if of_encoder(name)}):
            built = TextEncoder.from_tensors(T5.tiny_config(), kept, num_threads=1)
            assert np.array_equal(built.encode([5, 6, 7]), want)
            with pytest.raises(TypeError, match="cannot be pickled"):
                pickle.dumps(built)
        with pytest.raises(errors.TokenizerMissing):
            built.encode("text")

    def test_a_pickled_model_is_the_same(self, whole: Path, model: TextEncoder) -> None:
        for loaded in (model, TextEncoder.load(whole), load_quietly(model._folder)):  # type: ignore[arg-type]
            again = pickle.loads(pickle.dumps(loaded))
            assert type(again) is TextEncoder
            assert np.array_equal(again.encode([5, 6]), model.encode([5, 6]))

    def test_info_config_tokenizer_and_repr(self, model: TextEncoder, folder: Path) -> None:
        info = model.info()
        assert (info["architecture"], info["context_length"], info["vocab_size"]) == ("t5", None, 320)
        assert info["parameters"] == sum(
            array.size for array in load_file(folder / "model.safetensors").values()
        )
        assert 0 < info["step_weight_bytes"] < info["weight_bytes"], "a source reads no whole embedding"
        assert model.config["d_model"] == 24
        assert model.tokenizer is not None
        assert repr(model) == f"TextEncoder(t5, {info['parameters']:,} parameters, float32)"

    def test_it_generates_nothing(self, model: TextEncoder) -> None:
        assert [name for name in VERBS if hasattr(model, name)] == []


class TestEncode:
    def test_texts_and_ids(self, model: TextEncoder, whole: Path) -> None:
        assert model.tokenizer is not None
        ids = [model.tokenizer.encode(text) for text in TEXTS]
        assert ids[-1] == [0], "an empty text is its end token"
        want = [memory.hidden for memory in Seq2SeqLM.load(whole).encode(TEXTS)]
        forms: list[Any] = [
            TEXTS,
            tuple(TEXTS),
            iter(TEXTS),
            ids,
            [np.array(row) for row in ids],
            [*TEXTS[:2], *ids[2:]],
        ]
        for sources in forms:
            got: Any = model.encode(sources)
            assert all(map(np.array_equal, got, want))
            assert [states.dtype for states in got] == [np.float32] * len(TEXTS)
        assert np.array_equal(model.encode(TEXTS[0]), want[0])
        assert np.array_equal(model.encode(np.array([ids[0], ids[0]]))[1], want[0])

    def test_means(self, model: TextEncoder) -> None:
        means = model.encode(TEXTS, pooling="mean")
        assert means.shape == (len(TEXTS), 24)
        assert means.dtype == np.float32
        for text, mean in zip(TEXTS, means, strict=True):
            assert np.array_equal(model.encode(text, pooling="mean"), mean)
            np.testing.assert_allclose(mean, model.encode(text).mean(0), rtol=1e-5, atol=1e-6)

    def test_no_sources(self, model: TextEncoder) -> None:
        assert model.encode([]) == []
        assert model.encode([], pooling="mean").shape == (0, 24)

    @pytest.mark.parametrize(
        "source", [[[5], []], [[]], [[5], [320]], [[-1]], [[True]], [5, 6.5], None, b"ab", 3, np.array(3)]
    )
    def test_sources_that_cannot_be_used(self, model: TextEncoder, source: Any) -> None:
        with pytest.raises(errors.OptionError) as caught:
            model.encode(source)
        assert caught.value.option == "source"

    @pytest.mark.parametrize("pooling", ["max", "", True, 0, ["mean"], np.array(["mean"])])
    def test_poolings_that_there_are_not(self, model: TextEncoder, pooling: Any) -> None:
        with pytest.raises(errors.OptionError, match='expected None or "mean"'):
            model.encode([5], pooling=pooling)

    def test_weights_that_are_not_numbers(self) -> None:
        tensors = T5.tiny_weights(T5.tiny_config())
        tensors["encoder.final_layer_norm.weight"][3] = np.nan
        model = TextEncoder.from_tensors(T5.tiny_config(), tensors)
        assert np.isnan(model.encode([5, 6])[:, 3]).all()
        assert np.isnan(model.encode([5, 6], pooling="mean")).sum() == 1

    def test_a_source_that_fits_no_cache(self, folder: Path) -> None:
        each = TextEncoder.load(folder).info()["cache_bytes_per_token"]
        model = TextEncoder.load(folder, cache_bytes=each * 40)
        assert model.encode([5] * 32).shape == (32, 24)
        assert [len(states) for states in model.encode([[5] * 20, [6] * 30, [7] * 4, [8]])] == [20, 30, 4, 1]
        with pytest.raises(
            errors.OptionError, match=r"at most 32 tokens \(all that fits into cache_bytes="
        ) as caught:
            model.encode([[5], [5] * 33])
        assert (caught.value.option, caught.value.got) == ("source", "33")

    def test_results_are_the_callers(self, model: TextEncoder) -> None:
        first = model.encode([5, 6])
        first[:] = 0
        assert model.encode([5, 6]).any()
        assert model.info()["cache_bytes_live"] == 0, "nothing is kept between calls"


MANY = """
import json, resource, fastdecode
model = fastdecode.TextEncoder.load({folder!r}, num_threads=2)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model.encode([[5] * 500] * 8)
before = peak()
means = model.encode(([5, 6] * 20 for _ in range(20_000)), pooling="mean")
print(json.dumps([peak() - before, means.shape, bool((means == means[0]).all())]))
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="PEAK MEMORY IS NOT TESTED: ru_maxrss counts kilobytes on Linux"
)
def test_a_long_list_holds_its_results_and_one_step(tmp_path: Path) -> None:
    """All hidden states would take 205 MB; the ids of the list take 7 MB twice, and the means 5 MB twice."""
    folder = T5.write_tiny(tmp_path, d_model=64, num_layers=1)
    run = [sys.executable, "-c", MANY.format(folder=str(folder))]
    found = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    more, shape, same = json.loads(found.stdout)
    assert (shape, same) == ([20_000, 64], True)
    assert more < 60 << 20


@pytest.mark.parametrize("sources", ["[5] * 40_000", "[[5] * 400] * 5_000"])
def test_ctrl_c(sources: str, tmp_path: Path) -> None:
    """Within one long step, and between short ones: the list's ids are numbers of the core long before the signal."""
    folder = T5.write_tiny(tmp_path, d_model=64, d_kv=64, num_heads=4, num_layers=8, num_decoder_layers=1)
    call = f"fastdecode.TextEncoder.load({str(folder)!r}, num_threads=2).encode({sources}, pooling='mean')"
    assert seconds_to_stop(folder, call, after=3) < 3


def test_threads_at_once(model: TextEncoder) -> None:
    sources = [[token] * (1 + token % 50) for token in range(40)]
    want = [model.encode(source) for source in sources]
    with ThreadPoolExecutor(8) as pool:
        assert all(map(np.array_equal, pool.map(model.encode, sources * 5), want * 5))


def test_a_forked_child_encodes(model: TextEncoder) -> None:
    want = model.encode(TEXTS, pooling="mean")
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if np.array_equal(model.encode(TEXTS, pooling="mean"), want) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastdecode", *words], capture_output=True, text=True, timeout=200
    )


class TestElsewhere:
    def test_the_command_tells_about_it(self, folder: Path) -> None:
        done = command("info", str(folder), "--json")
        assert done.returncode == 0, done.stderr
        info = json.loads(done.stdout)["model"]
        assert (info["architecture"], info["weight_bytes"]) == (
            "t5",
            load_quietly(folder).info()["weight_bytes"],
        )

    @pytest.mark.parametrize("verb", ["run", "bench"])
    def test_the_command_generates_nothing(self, folder: Path, verb: str) -> None:
        done = command(verb, str(folder))
        assert (done.returncode, done.stdout) == (1, "")
        [line] = done.stderr.splitlines()
        assert line.startswith(
            f"fastdecode: error: {folder}: expected a model with a decoder, got t5, an encoder"
        )

    @pytest.mark.parametrize("task", ["text2text-generation", "text-generation", "translation"])
    def test_pipelines_refuse_it(self, folder: Path, model: TextEncoder, task: str) -> None:
        for asked in (folder, model):
            with pytest.raises(
                errors.UnsupportedModelError, match="expected a model with a decoder"
            ) as caught:
                fastdecode.pipeline(task, asked)
            assert caught.value.got == "t5, an encoder alone"

    def test_it_is_imported_when_it_is_needed(self) -> None:
        found = "'fastdecode.text_encoder' in sys.modules, fastdecode.TextEncoder.__name__"
        code = f"import sys, fastdecode; print({found})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False TextEncoder\n"
