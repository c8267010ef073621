"""Types of weights by part of a model: which part gets which, what `info` tells of them, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import tiny
import torch
from families import FAMILIES
from fastdecode import CausalLM, Seq2SeqLM, TextEncoder, errors
from fastdecode.cli import main
from safetensors.numpy import load_file, save_file

FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "openai-gpt": ("openai-gpt", {}),
    "phi": ("phi", {}),
    "phi-tied": ("phi", {"tie_word_embeddings": True}),
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("llama", {"model_type": "mistral", "tie_word_embeddings": False}),
    "qwen2": ("llama", {"model_type": "qwen2", "tie_word_embeddings": True}),
    "qwen3": ("llama", {"model_type": "qwen3", "tie_word_embeddings": False}),
    "t5": ("t5", {}),
    "mt5": ("t5", {"model_type": "mt5"}),
    "umt5": ("t5", {"model_type": "umt5"}),
}
TYPES: list[Any] = [
    "int8",
    "int4",
    {"default": "bfloat16", "lm_head": "int8"},
    # Types that meet in one phase: queries, keys and values, gates.
    {"*q*": "int8", "*k*": "int4", "*fc*": "float16", "*wi_0*": "int8", "*up*": "int4", "embedding": "int8"},
]
VOCABULARY = {"lm_head", "wte", "tokens_embed", "embed_tokens", "shared"}
IDS = [5, 17, 3, 100, 41, 8]


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of every family."""
    family, changes = FOLDERS[request.param]
    folder = FAMILIES[family].write_tiny(tmp_path_factory.mktemp("dtypes") / request.param, **changes)
    if request.param == "gpt2-untied":
        tensors = load_file(folder / "model.safetensors")
        head = np.random.default_rng(7).normal(0, 0.3, _of(tensors, "wte").shape).astype(np.float32)
        save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head is its embeddings."""
    return FAMILIES["gpt2"].write_tiny(
        tmp_path_factory.mktemp("dtypes") / "tied", tokenizer=tiny.byte_level(320), n_embd=48
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder-decoder."""
    return FAMILIES["t5"].write_tiny(tmp_path_factory.mktemp("dtypes") / "pairs")


def _of(tensors: dict[str, Any], module: str) -> Any:
    [found] = [value for name, value in tensors.items() if name.endswith(f"{module}.weight")]
    return found


def _types(folder: Path | str, dtype: Any, **options: Any) -> dict[str, str]:
    """Types by name of part, those of matrices that are another's included."""
    info = fastdecode.load(folder, dtype=dtype, num_threads=1, **options).info()
    return {part["name"]: part["dtype"] for part in info["parts"]}


def _logits(model: Any, ids: list[int]) -> Any:
    return model.logits(ids) if isinstance(model, CausalLM) else model.logits(ids, [0, *ids])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_family_generates_and_its_bytes_add_up(dtype: Any, folder: Path) -> None:
    asked = dtype
    if isinstance(dtype, dict):  # Patterns that have nothing in this family are errors.
        names = " ".join(_types(folder, "auto").keys() - VOCABULARY)
        patterns = {"*q*": "q", "*k*": "k", "*fc*": "fc", "*wi_0*": "wi_0", "*up*": "up"}
        asked = {key: name for key, name in dtype.items() if patterns.get(key, "") in names}
        assert len(asked) > 1
    model = fastdecode.load(folder, dtype=asked, num_threads=1)
    info = model.info()
    parts = info["parts"]
    assert sum(part["bytes"] for part in parts) == info["weight_bytes"]
    assert info["parameters"] == fastdecode.load(folder).info()["parameters"]
    assert info["dtype"] == ", ".join(sorted({part["dtype"] for part in parts}))
    assert all((part["bytes"] == 0) == (part["shared_with"] is not None) for part in parts)
    # Together and alone, by one thread and by more, cached and read anew: the same.
    prompts = [IDS, IDS[:1], IDS * 3]
    together = [output.token_ids for output in model.run(prompts, max_new_tokens=6, do_sample=False)]
    other = fastdecode.load(folder, dtype=asked, num_threads=3)
    for prompt, ids in zip(prompts, together, strict=True):
        assert ids == other.run(prompt, max_new_tokens=6, do_sample=False).token_ids
        assert np.array_equal(_logits(model, prompt), _logits(other, prompt))
        assert np.array_equal(_logits(model, prompt)[:1], _logits(other, prompt[:1])[:1]) or model.has_encoder


def test_int8_has_one_table_and_int4_a_head_of_eight_bits(folder: Path) -> None:
    eight, four = _types(folder, "int8"), _types(folder, "int4")
    assert {*eight.values()} == {"int8"}
    assert {name: four[name] for name in four} == {
        name: "int8" if name in VOCABULARY else "int4" for name in four
    }
    for dtype in ("int8", "int4", "float32", "bfloat16"):
        parts = fastdecode.load(folder, dtype=dtype).info()["parts"]
        shares = {part["name"]: part["shared_with"] for part in parts}
        usual = {part["name"]: part["shared_with"] for part in fastdecode.load(folder).info()["parts"]}
        assert shares == usual


def test_exact_rows_stay_beside_a_head_of_another_type(folder: Path) -> None:
    exact = fastdecode.load(folder, dtype="float32", num_threads=1)
    model = fastdecode.load(folder, dtype={"default": "float32", "lm_head": "int8"}, num_threads=1)
    before, after = ({part["name"]: part for part in each.info()["parts"]} for each in (exact, model))
    head = after.pop("lm_head")
    assert (head["dtype"], head["shared_with"]) == ("int8", None)
    assert head["bytes"] > 0
    del before["lm_head"]
    assert after == before
    want, got = _logits(exact, IDS), _logits(model, IDS)
    assert not np.array_equal(want, got)
    assert np.abs(want - got).max() < 0.05 * np.abs(want).max()
    if isinstance(model, CausalLM):
        assert np.array_equal(model.embed(IDS), exact.embed(IDS))
        eight = fastdecode.load(folder, dtype="int8")
        assert not np.array_equal(eight.embed(IDS), exact.embed(IDS))
        assert np.abs(eight.embed(IDS) - exact.embed(IDS)).max() < 0.01 * np.abs(exact.embed(IDS)).max()


def test_a_head_of_its_own_is_the_rounded_table(tied: Path) -> None:
    exact = CausalLM.load(tied, dtype="float32", num_threads=1)
    model = CausalLM.load(tied, dtype={"default": "float32", "lm_head": "bfloat16"}, num_threads=1)
    tensors = load_file(tied / "model.safetensors")
    table = torch.from_numpy(_of(tensors, "wte"))
    tensors["lm_head.weight"] = table.bfloat16().float().numpy()
    untied = CausalLM.from_tensors(dict(exact.config), tensors, dtype="float32", num_threads=1)
    assert np.array_equal(model.logits(IDS), untied.logits(IDS))
    assert not np.array_equal(model.logits(IDS), exact.logits(IDS))


def test_the_same_values_are_one_matrix(tied: Path, tmp_path: Path) -> None:
    tensors = load_file(tied / "model.safetensors")
    rounded = {name: torch.from_numpy(value).bfloat16().float().numpy() for name, value in tensors.items()}
    save_file(rounded, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tied / "config.json").read_bytes())
    auto = fastdecode.load(tmp_path).info()
    same: list[Any] = [
        {"lm_head": "bfloat16"},
        {"embedding": "bfloat16"},
        {"default": "auto"},
        {"*": "auto"},
        {},
    ]
    for dtype in same:
        info = fastdecode.load(tmp_path, dtype=dtype).info()
        assert (info["weight_bytes"], info["parts"]) == (auto["weight_bytes"], auto["parts"])


def test_the_more_specific_key_wins(tied: Path) -> None:
    asked: Any = {
        "lm_head": "int8",
        "h.*": "float16",
        "h.*.mlp.*": "int4",
        "h.1.mlp.c_fc": "float32",
        "embedding": "int4",
        "h.*.attn.c_attn": "int8",
        "h.*.attn.*": "bfloat16",
    }
    keys = list(asked)
    for turn in range(len(keys)):
        turned = {key: asked[key] for key in keys[turn:] + keys[:turn]}
        with pytest.raises(errors.OptionError, match=r'fits get .*"h\.\*\.mlp\.\*".*got "h\.\*"'):
            fastdecode.load(tied, dtype=turned)
        del turned["h.*"]
        info = fastdecode.load(tied, dtype=turned).info()
        found = {(part["name"], part["dtype"], part["matrices"]) for part in info["parts"]}
        assert found == {
            ("wte", "int4", 1),
            ("lm_head", "int8", 1),
            ("h.*.attn.c_attn", "int8", 2),
            ("h.*.attn.c_proj", "bfloat16", 2),
            ("h.*.mlp.c_fc", "int4", 1),
            ("h.*.mlp.c_fc", "float32", 1),
            ("h.*.mlp.c_proj", "int4", 2),
        }
    everywhere = _types(tied, {"*": "float16", "embedding": "int8", "lm_head": "float32"})
    assert (everywhere.pop("wte"), everywhere.pop("lm_head")) == ("int8", "float32")
    assert {*everywhere.values()} == {"float16"}
    assert _types(tied, {"*": "int8", "h.*.mlp.*": "int4"})["h.*.mlp.c_fc"] == "int4"
    for name in ("h.*.mlp.c_fc", "transformer.h.*.mlp.c_fc", "h.*.c_fc.weight", "*c_fc"):
        types = _types(tied, {"default": "float32", name: "int8"})
        assert {part for part, dtype in types.items() if dtype == "int8"} == {"h.*.mlp.c_fc"}


def test_a_pattern_of_the_body_leaves_the_head(tied: Path, tmp_path: Path) -> None:
    types = _types(tied, {"default": "float32", "transformer.*": "int8"})
    assert types.pop("lm_head") == "float32"
    assert {*types.values()} == {"int8"}
    llama = FAMILIES["llama"].write_tiny(tmp_path / "llama", tie_word_embeddings=False)
    assert _types(llama, {"default": "float32", "model.*": "int8"})["lm_head"] == "float32"
    with pytest.raises(errors.OptionError, match=r'parts of this model.*got "model\.lm_head"'):
        fastdecode.load(llama, dtype={"model.lm_head": "int8"})


def test_a_key_is_taken_at_its_word(tied: Path, pairs: Path) -> None:
    assert _types(tied, {"default": "int4", "lm_head": "int4"}) | {"wte": "int4"} == _types(
        tied, {"*": "int4"}
    )
    assert _types(tied, {"default": "int4", "lm_head": "int4"})["wte"] == "int8"
    wo = "encoder.block.*.layer.1.DenseReluDense.wo"
    assert _types(pairs, "float16")[wo] == "float32"
    assert _types(pairs, {"default": "float16", "*.wo": "float16"})[wo] == "float16"
    dtype: Any
    for dtype in ("int8", {"*.wo": "int8"}):
        parts = fastdecode.load(pairs, dtype=dtype).info()["parts"]
        assert [part["group"] for part in parts if part["name"] == wo] == [64]


def test_names_of_tied_tables(pairs: Path) -> None:
    for name in ("shared", "shared.weight"):
        assert _types(pairs, {name: "int8"})["shared"] == "int8"
    for dtype in (
        {"shared": "int8", "encoder.embed_tokens": "int4"},
        {"encoder.embed_tokens": "int4", "shared": "int8"},
    ):
        parts = fastdecode.load(pairs, dtype=dtype).info()["parts"]  # type: ignore[arg-type]
        assert {part["dtype"] for part in parts if part["name"] == "shared"} == {"int8", "int4"}
    parts = fastdecode.load(pairs, dtype={"default": "float32", "encoder.embed_tokens": "int8"}).info()[
        "parts"
    ]
    found = [(part["dtype"], part["bytes"] > 0) for part in parts if part["name"] == "shared"]
    assert found == [("int8", True), ("float32", True)]


def test_tensors_that_are_no_matrices_follow_the_default(tied: Path) -> None:
    exact = CausalLM.load(tied, dtype="float32", num_threads=1)
    alike = CausalLM.load(tied, dtype={"default": "int8", "*": "float32"}, num_threads=1)
    rounded = CausalLM.load(tied, dtype={"default": "bfloat16", "*": "float32"}, num_threads=1)
    assert np.array_equal(exact.logits(IDS), alike.logits(IDS))
    assert not np.array_equal(exact.logits(IDS), rounded.logits(IDS))


def test_groups_of_int4(tied: Path) -> None:
    sizes = []
    for group in (32, 64, 128):
        info = CausalLM.load(tied, dtype="int4", int4_group=group).info()
        assert {part["group"] for part in info["parts"] if part["dtype"] == "int4"} == {group}
        sizes.append(info["weight_bytes"])
    assert CausalLM.load(tied, dtype="int4").info()["weight_bytes"] == sizes[1]
    mixed = CausalLM.load(tied, dtype={"*.c_fc": "int4"}, int4_group=32).info()["parts"]
    assert {part["group"] for part in mixed} == {None, 32}


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (
            {"head": "int8"},
            {},
            '"default", "embedding", "lm_head", or a matrix.*wte, h.\\*.attn.c_attn.*got "head"',
        ),
        ({"wpe": "int8"}, {}, 'got "wpe"'),
        ({"h.7.*": "int8"}, {}, 'got "h.7.\\*"'),
        ({"lm_head": "int8", "c_fc": "int8"}, {}, 'got "c_fc"'),
        ({"wte": "int8", "embedding": "int4"}, {}, 'fits get "wte"\\), got "embedding"'),
        ({"embedding": "int4", "wte.weight": "int8"}, {}, 'fits get "wte.weight"\\), got "embedding"'),
        ({"wt*": "int8", "embedding": "int4"}, {}, 'fits get "embedding"\\), got "wt\\*"'),
        ({"lm_head.weight": "int8", "lm_head": "int4"}, {}, 'fits get "lm_head.weight"\\), got "lm_head"'),
        ({"h.*.weight": "int8", "h.*": "int8"}, {}, 'fits get "h.\\*.weight"\\), got "h.\\*"'),
        ({"lm_head": "int16"}, {}, "'int16' for 'lm_head'"),
        ({"lm_head": None}, {}, "None for 'lm_head'"),
        ({"lm_head": {"default": "int8"}}, {}, "dtype: expected"),
        ({"lm_head": torch.int8}, {}, "torch.int8 for 'lm_head'"),
        ({1: "int8"}, {}, "got 1"),
        ({"": "int8"}, {}, "got ''"),
        ({"h.\udcff": "int8"}, {}, r"expected types by .* got 'h.\\udcff'"),
        ({"\ud800*": "int8"}, {}, r"expected types by .* got '\\ud800\*'"),
        ([("lm_head", "int8")], {}, "dtype: expected"),
        ("int16", {}, '"int8" or "int4"'),
        (torch.int8, {}, "torch.int8"),
        ("int8", {"int4_group": 32}, 'int4_group: expected 64 where no dtype is "int4", got 32'),
        ("int4", {"int4_group": 48}, "int4_group: expected 32, 64 or 128, got 48"),
        ("int4", {"int4_group": "64"}, "int4_group: expected 32, 64 or 128"),
        ("int4", {"int4_group": None}, "int4_group: expected 32, 64 or 128"),
        ("int8", {"compute_dtype": "bfloat16"}, "formed of integers"),
        ("int4", {"compute_dtype": "bfloat16"}, "formed of integers"),
        (
            {"default": "float32", "lm_head": "int8"},
            {"compute_dtype": "bfloat16"},
            'load with dtype="bfloat16"',
        ),
        ("int8", {"torch_dtype": "float16"}, "torch_dtype: expected the same as dtype"),
    ],
)
def test_misuse(dtype: Any, options: dict[str, Any], message: str, tied: Path) -> None:
    with pytest.raises(errors.OptionError, match=message):
        CausalLM.load(tied, dtype=dtype, **options)


def test_an_encoder_alone_has_no_head(pairs: Path) -> None:
    model = TextEncoder.load(
        pairs, dtype={"default": "int8", "encoder.embed_tokens": "float32"}, num_threads=1
    )
    assert {part["dtype"] for part in model.info()["parts"]} == {"float32", "int8"}
    exact = TextEncoder.load(pairs, num_threads=1)
    assert np.abs(model.encode(IDS) - exact.encode(IDS)).max() < 0.1 * np.abs(exact.encode(IDS)).max()
    with pytest.raises(errors.OptionError, match='parts of this model: "default", "embedding", or'):
        TextEncoder.load(pairs, dtype={"lm_head": "int8"})


def test_products_in_bfloat16_beside_integers(tied: Path) -> None:
    options: dict[str, Any] = {"compute_dtype": "bfloat16", "num_threads": 1}
    model = CausalLM.load(tied, dtype={"default": "bfloat16", "lm_head": "int8"}, **options)
    assert (model.info()["dtype"], model.info()["compute_dtype"]) == ("bfloat16, int8", "bfloat16")
    exact = CausalLM.load(tied, num_threads=1).logits(IDS)
    assert np.abs(model.logits(IDS) - exact).max() < 0.1 * np.abs(exact).max()
    assert np.array_equal(model.logits(IDS)[:2], model.logits(IDS[:2]))


def test_more_inputs_than_sums_of_integers_hold(tmp_path: Path) -> None:
    folder = FAMILIES["gpt2"].write_tiny(tmp_path / "wide", n_inner=66_001, n_layer=1)
    with pytest.raises(
        errors.OptionError, match=r"h\.0\.mlp\.c_proj.*at most 66000 inputs, got int8 for 66001 inputs"
    ):
        CausalLM.load(folder, dtype="int8")
    found = _types(folder, {"default": "int8", "h.0.mlp.c_proj": "bfloat16"})
    assert found["h.*.mlp.c_proj"] == "bfloat16"
    assert _types(folder, "int4")["h.*.mlp.c_proj"] == "int4"


def test_it_travels(tied: Path) -> None:
    dtype = {"default": torch.bfloat16, "*.c_fc": "int4", "lm_head": "int8"}
    options: dict[str, Any] = {"int4_group": 128, "num_threads": 1}
    model = CausalLM.load(tied, torch_dtype=dtype, **options)
    dtype["lm_head"] = "float32"  # What was given is the caller's.
    assert model._source is not None
    kept = model._source[1]["dtype"]
    for other in (
        pickle.loads(pickle.dumps(model)),
        fastdecode.pipeline("text-generation", str(tied), dtype=kept, **options).model,
    ):
        assert other.info()["parts"] == model.info()["parts"]
        assert np.array_equal(other.logits(IDS), model.logits(IDS))
    tensors = load_file(tied / "model.safetensors")
    given = {"default": "bfloat16", "*.c_fc": "int4", "lm_head": "int8"}
    built = CausalLM.from_tensors(dict(model.config), tensors, dtype=given, **options)  # type: ignore[arg-type]
    assert built.info()["parts"] == model.info()["parts"]
    assert "bfloat16, int4, int8" in repr(built)


def test_the_command_takes_and_shows_it(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dtype", "default=bfloat16,lm_head=int8", "--dtype", "*.wo=int4", "--int4-group", "32"]
    assert main(["info", str(pairs), "--json", *words]) == 0
    parts = json.loads(capsys.readouterr().out)["model"]["parts"]
    wanted = {"default": "bfloat16", "lm_head": "int8", "*.wo": "int4"}
    model = Seq2SeqLM.load(pairs, dtype=wanted, int4_group=32)  # type: ignore[arg-type]
    assert parts == model.info()["parts"]
    assert main(["info", str(pairs), "--dtype", "bfloat16", "--dtype", "lm_head=int8"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "lm_head 1 x int8 0.0 MB" in lines
    assert "shared 1 x bfloat16 0.0 MB" in lines
    assert main(["info", str(pairs), "--dtype", "int4"]) == 0
    assert "lm_head 1 x int8 the same as shared" in " ".join(capsys.readouterr().out.split())
    for word in (
        "lm_head=int8,lm_head=int4",
        "=int8",
        "\udcff=int8",
        "lm_head=",
        "int8,int4",
        "",
        "int5",
        "lm_head=int5",
    ):
        with pytest.raises(SystemExit):
            main(["info", str(pairs), "--dtype", word])
        assert "argument --dtype: expected" in capsys.readouterr().err
    wrong: list[list[str]] = [
        ["--dtype", "int8", "--dtype", "int4"],
        ["--dtype", "head=int8"],
        ["--int4-group", "32"],
    ]
    for given in wrong:
        assert main(["info", str(pairs), *given]) == 1
        assert ": expected" in capsys.readouterr().err
