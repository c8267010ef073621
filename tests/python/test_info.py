"""What `info` and the command say of a folder of each family, and the real sizes that the benchmarks build."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import fastdecode
import pytest
from families import FAMILIES
from families.llama import LlamaRecipe, config
from fastdecode.bench import _cache_bytes
from fastdecode.cli import main

NAMES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "sliding_window_layers",
    "rope_type",
    "context_length",
    "max_position_embeddings",
)
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SLIDING = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}
CASES: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "gpt2": ({}, (2, 3, 3, 8, None, 0, None, 64, 64)),
    "openai-gpt": ({}, (2, 3, 3, 8, None, 0, None, 64, 64)),
    "phi": ({}, (2, 4, 4, 8, None, 0, "default", None, 64)),
    "t5": ({}, (2, 3, 3, 8, None, 0, None, None, None)),
    "llama": ({"rope_scaling": YARN}, (2, 4, 2, 8, None, 0, "yarn", None, 64)),
    "mistral": ({"sliding_window": 24}, (2, 4, 2, 8, 24, 2, "default", None, 64)),
    "qwen2": ({"num_hidden_layers": 5, **SLIDING}, (5, 4, 2, 8, 24, 3, "default", None, 64)),
    "qwen3": (
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        (2, 4, 2, 8, None, 0, "dynamic", 64, 64),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder, and what is to be known of it."""
    changes, known = CASES[request.param]
    family = FAMILIES.get(request.param, FAMILIES["llama"])
    changes = {**changes, "model_type": request.param}
    return family.write_tiny(tmp_path_factory.mktemp("info") / "model", **changes), dict(
        zip(NAMES, known, strict=True)
    )


def test_info_tells_what_attends(case: Any) -> None:
    folder, known = case
    info = fastdecode.load(folder).info()
    assert {name: info[name] for name in NAMES} == known
    heads, layers = info["num_key_value_heads"], info["num_hidden_layers"]
    # Keys and values in float32; what stands between blocks is the cache's own.
    assert info["cache_bytes_per_token"] >= 2 * 4 * heads * info["head_dim"] * layers
    assert info["cache_bytes_per_token"] < 2 * 2 * 4 * heads * info["head_dim"] * layers


def test_the_command_shows_it(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, known = case
    assert main(["info", str(folder)]) == 0
    lines = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    for name, value in known.items():
        absent = "no limit" if name == "context_length" else "none"
        assert f"{name.replace('_', ' ')} {absent if value is None else value}" in lines
    assert main(["info", str(folder), "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert {name: model[name] for name in NAMES} == known


def test_bench_runs_on_every_family(case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, known = case
    assert main(["bench", str(folder), "--rounds", "1", "--num-threads", "1", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    limit = known["context_length"]
    assert values["prefill"]["tokens"] == (512 if limit is None else limit - 1)
    assert values["decode"]["share_of_bandwidth"] > 0


def test_the_head_of_an_encoder_alone(tmp_path: Path) -> None:
    info = fastdecode.TextEncoder.load(FAMILIES["t5"].write_tiny(tmp_path)).info()
    assert [info[name] for name in NAMES[:4]] == [2, 3, 3, 8]


def test_a_mistral_that_names_no_window_has_one_of_4096(tmp_path: Path) -> None:
    folder = FAMILIES["llama"].write_tiny(tmp_path, model_type="mistral")
    info = fastdecode.load(folder).info()
    assert (info["sliding_window"], info["sliding_window_layers"]) == (4096, 2)


def test_bench_counts_what_a_window_shows(tmp_path: Path) -> None:
    recipe = LlamaRecipe(config("qwen2", layers=4, **SLIDING | {"max_window_layers": 3}), seed=1)
    info = fastdecode.load(FAMILIES["llama"].write(recipe, tmp_path)).info()
    each = info["cache_bytes_per_token"]
    assert _cache_bytes(info, 20) == 20 * each
    assert _cache_bytes(info, 100) == (3 * 100 + 24) / 4 * each
    assert _cache_bytes(info | {"sliding_window": None, "sliding_window_layers": 0}, 100) == 100 * each


# Parameters of the models on the hub, tied ones counted once.
PUBLISHED = {
    "gpt2": 124_439_808,
    "openai-gpt": 116_534_784,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "smollm2-135m": 134_515_008,
    "mistral-7b": 7_241_732_096,
    "phi-1.5": 1_418_270_720,
    "t5-base": 222_903_552,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_of_benchmarks_are_those_of_the_hub(name: str) -> None:
    [(family, recipe)] = [
        (family, family.sizes[name]) for family in FAMILIES.values() if name in family.sizes
    ]
    assert sum(math.prod(shape) for shape in family.shapes(recipe).values()) == PUBLISHED[name]
