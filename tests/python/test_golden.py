"""The core laws against answers that were fixed beforehand; nothing here needs torch or transformers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
from families import FAMILIES
from safetensors.numpy import load_file

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
GOLDENS = {name: family.has_encoder for family in FAMILIES.values() for name in family.goldens}
MADE = sorted(name for name, has_encoder in GOLDENS.items() if not has_encoder)
SEQ2SEQ = sorted(name for name, has_encoder in GOLDENS.items() if has_encoder)
DTYPES = ["float32", "float16", "bfloat16"]


def expected(name: str) -> dict[str, Any]:
    answers: dict[str, Any] = json.loads((GOLDEN / name / "expected.json").read_text())
    return answers


def test_the_made_folders_are_those_of_the_families() -> None:
    there = {
        folder.parent.name for folder in GOLDEN.glob("*/expected.json") if "made_by" in folder.read_text()
    }
    assert there == set(GOLDENS), "make them with `make golden`"
    for family in FAMILIES.values():
        assert len(family.goldens) >= 4, f"{family.name} has {len(family.goldens)} golden folders"
        for name, recipe in family.goldens.items():
            config = json.loads((GOLDEN / name / "config.json").read_text())
            assert config == recipe.config | {"dtype": recipe.dtype}, "make them again with `make golden`"


@pytest.mark.parametrize("name", MADE)
def test_logits_equal_transformers(name: str) -> None:
    want = load_file(GOLDEN / name / "expected.safetensors")["logits"]
    got = fastdecode.load(GOLDEN / name).logits(expected(name)["prompt"])
    assert got.dtype == np.float32
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-4 * max(1.0, np.abs(want).max())


def logprobs(name: str, targets: list[int]) -> Any:
    """Log-probabilities of tokens by the golden logits of the places before them."""
    logits = load_file(GOLDEN / name / "expected.safetensors")["logits"].astype(np.float64)[: len(targets)]
    logits -= logits.max(-1, keepdims=True)
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(len(targets)), targets]


@pytest.mark.parametrize("name", MADE)
def test_scores_are_those_of_transformers_logits(name: str) -> None:
    model, ids = fastdecode.CausalLM.load(GOLDEN / name), expected(name)["prompt"]
    want = logprobs(name, ids[1:])
    assert model.loss(ids) == pytest.approx(-want.mean(), rel=1e-4)
    [score] = model.score([(ids[:2], ids[2:])])
    bound = 1e-4 * max(1.0, np.abs(want).max())
    np.testing.assert_allclose(score.token_logprobs, want[1:], rtol=0, atol=bound)
    assert score.logprob == pytest.approx(want[1:].sum(), rel=1e-4)


@pytest.mark.parametrize("name", MADE)
def test_greedy_ids_equal_transformers(name: str) -> None:
    answers = expected(name)
    out = fastdecode.load(GOLDEN / name).run(answers["prompt"], max_new_tokens=len(answers["greedy"]))
    assert list(out.token_ids) == answers["greedy"]
    assert out.finish_reason == "length"


@pytest.mark.parametrize("name", MADE)
def test_sampled_ids_equal_transformers(name: str) -> None:
    answers = expected(name)
    out = fastdecode.load(GOLDEN / name).run(answers["prompt"], **answers["sampling"])
    assert list(out.token_ids) == answers["sampled"]


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_an_encoder_decoder_equals_transformers(name: str) -> None:
    answers, want = expected(name), load_file(GOLDEN / name / "expected.safetensors")
    model = fastdecode.load(GOLDEN / name)
    source, target = answers["source"], answers["target"]
    memory = model.encode(source)
    np.testing.assert_allclose(memory.hidden, want["hidden"], rtol=0, atol=1e-4)
    logits = model.logits(memory, [model.config["decoder_start_token_id"], *target[:-1]])
    np.testing.assert_allclose(
        logits, want["logits"], rtol=0, atol=1e-4 * max(1.0, np.abs(want["logits"]).max())
    )
    assert model.loss(source, target) == pytest.approx(answers["loss"], rel=1e-5)
    [score] = model.score([(memory, target)])
    bound = 1e-4 * max(1.0, np.abs(want["logits"]).max())
    np.testing.assert_allclose(score.token_logprobs, logprobs(name, target), rtol=0, atol=bound)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_what_an_encoder_decoder_generates_equals_transformers(name: str) -> None:
    answers, model = expected(name), fastdecode.load(GOLDEN / name)
    source = answers["source"]
    assert list(model.run(source, max_new_tokens=len(answers["greedy"])).token_ids) == answers["greedy"]
    assert list(model.run(source, **answers["sampling"]).token_ids) == answers["sampled"]
    found = model.run(source, **answers["search"])
    assert [list(output.token_ids) for output in found] == answers["beams"]
    assert [output.score for output in found] == pytest.approx(answers["scores"], abs=1e-4)


@pytest.mark.parametrize("row", [0, 1])
def test_tiny_random_gpt2_gives_what_onnxruntime_fixed(row: int) -> None:
    name = "ortgenai-tiny-random-gpt2"
    answers, model = expected(name), fastdecode.load(GOLDEN / name)
    prompt, full = answers["input_ids"][row], answers["greedy"][row]
    want = np.array(answers["prompt_logits_every_200th"][row])
    np.testing.assert_allclose(model.logits(prompt)[:, ::200], want, rtol=0, atol=1e-6)
    out = model.run(prompt, max_length=answers["max_length"])
    assert prompt + list(out.token_ids) == full
    state = model.prefill(prompt)
    after = state.step(full[len(prompt)])
    want = np.array(answers["logits_after_first_new_token_every_200th"][row])
    np.testing.assert_allclose(after[::200], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sort_model_sorts_every_input(dtype: Any) -> None:
    # The task was trained in float32; its decisions survive 16-bit weights.
    model = fastdecode.load(GOLDEN / "llmviz-gpt-nano-sort", dtype=dtype, num_threads=1)
    inputs = [list(digits) for digits in itertools.product(range(3), repeat=6)]
    # The model has 11 positions, one less than input and output together: the last token is never fed back.
    outs = model.run(inputs, max_new_tokens=6)
    right = sum(out.token_ids == sorted(digits) for digits, out in zip(inputs, outs, strict=True))
    assert right == len(inputs) == 729


def test_the_sort_model_gives_pytorchs_logits() -> None:
    model = fastdecode.load(GOLDEN / "llmviz-gpt-nano-sort")
    partials = load_file(GOLDEN / "llmviz-gpt-nano-sort" / "partials.safetensors")
    for ids, want in zip(partials["idx"].astype(int).tolist(), partials["lm_head"], strict=True):
        np.testing.assert_allclose(model.logits(ids), want, rtol=0, atol=2e-5)


# Names of the trace, and of the same activation in the file that PyTorch wrote. Block 0 is there in full.
TRACED = {
    "x": "x",
    "h.0.ln_1": "ln1",
    "h.0.attn.c_attn": "qkv",
    "h.0.attn.heads": "y",
    "h.0.attn.c_proj": "yProj",
    "h.0.attn.residual": "attnResid",
    "h.0.ln_2": "ln2",
    "h.0.mlp.c_fc": "fc",
    "h.0.mlp.act": "gelu",
    "h.0.mlp.c_proj": "mlp",
    "h.0.mlp.residual": "mlpResid",
    "h.1.mlp.residual": "block1",
    "h.2.mlp.residual": "block2",
    "ln_f": "ln_f",
    "lm_head": "lm_head",
}


@pytest.mark.parametrize("row", [0, 1, 2])
def test_the_trace_shows_pytorchs_activations(row: int) -> None:
    folder = GOLDEN / "llmviz-gpt-nano-sort"
    model, partials = fastdecode.load(folder), load_file(folder / "partials.safetensors")
    ids = partials["idx"][row].astype(int).tolist()
    trace = model.trace(ids)
    for mine, theirs in TRACED.items():
        want = partials[theirs][row]
        np.testing.assert_allclose(trace[mine], want, rtol=0, atol=2e-5, err_msg=f"{mine} / {theirs}")
    # Queries, keys and values are three thirds of one product, split into three heads of 16.
    thirds = trace["h.0.attn.c_attn"].reshape(11, 3, 3, 16).transpose(1, 2, 0, 3)
    for third, letter in zip(thirds, "qkv", strict=True):
        np.testing.assert_allclose(third, partials[letter][row], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(model.embed(ids), partials["tok_emb"][row])
    raised = np.exp(trace["lm_head"] - trace["lm_head"].max(-1, keepdims=True))
    np.testing.assert_allclose(
        raised / raised.sum(-1, keepdims=True), partials["probs"][row], rtol=0, atol=2e-5
    )
