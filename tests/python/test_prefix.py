"""Prefixes that are read once: every bit is that of a call without one, whatever is reused, and by whomever."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastdecode
import laws
import pytest
import tables
import tiny
from families import FAMILIES
from families.llama import LlamaRecipe, config
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import Case
from prefix_models import GREEDY, holds
from subject import same

CAUSAL = {name: family for name, family in FAMILIES.items() if not family.has_encoder}
BORDER = 40
LONGROPE = LlamaRecipe(
    config(
        head_dim=8,
        max_position_embeddings=16 * BORDER,
        rope_scaling={
            "rope_type": "longrope",
            "original_max_position_embeddings": BORDER,
            "short_factor": [1.0, 1.5, 1.0, 2.0],
            "long_factor": [1.0, 4.0, 8.0, 3.0],
        },
    ),
    seed=3,
)

case = laws.case_of(CAUSAL.values())


@pytest.fixture(params=[laws.TYPES[0], laws.TYPES[-1]], ids=lambda types: "/".join(filter(None, types)))
def types(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The widest and the narrowest of the types that the laws look at."""
    dtype, compute = request.param
    return {"dtype": dtype, "compute_dtype": compute}


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory, byte_level: Any) -> Path:
    """As `folder`, with room for long prompts."""
    sizes: Any = {"n_positions": 512}
    return tiny.write_folder(tmp_path_factory.mktemp("models") / "long", tokenizer=byte_level, **sizes)


@pytest.fixture(scope="module")
def long_model(long_folder: Path) -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load(long_folder, num_threads=2)


def check(model: Any, prefix: list[int], prompt: list[int], **options: Any) -> int:
    """Whether a prompt behind a prefix gives the bits of both as one; how many tokens were reused."""
    with model.prefix(prefix) as handle:
        got = model.run([prompt], prefix=handle, **GREEDY | options)
    want = model.run([*prefix, *prompt], **GREEDY | options)
    for one, other in zip(*[out if isinstance(out, list) else [out] for out in (got, want)], strict=True):
        assert same(one, other), f"{len(prefix)} and {len(prompt)} tokens"
        assert one.score == other.score
        assert (one.usage.prompt_tokens, one.usage.cached_tokens) == (
            len(prefix) + len(prompt),
            first(got).usage.cached_tokens,
        )
        assert other.usage.cached_tokens == 0
    assert holds(model) == 0
    return int(first(got).usage.cached_tokens)


def first(outputs: Any) -> Any:
    return outputs[0] if isinstance(outputs, list) else outputs


def test_bits_around_blocks(case: Case, types: dict[str, Any]) -> None:
    model = case.load(**types).model
    ids = case.item(40).prompt
    for length in (1, 16, 17, 39):
        assert check(model, ids[:length], ids[length:]) == length
    assert check(model, ids, []) == len(ids) - 1, "the last one is read for its logits"


@pytest.mark.parametrize("family", CAUSAL.values(), ids=CAUSAL)
def test_bits_around_chunks(family: Any, types: dict[str, Any], tmp_path: Path) -> None:
    case = Case(family, family.chunks, family.write(family.chunks, tmp_path))
    model = case.load(**types).model
    ids = case.item(262).prompt
    for length in (240, 256, 257):
        for end in {257, 258}:
            if end > length:
                assert check(model, ids[:length], ids[length:end], max_new_tokens=2) == length


@settings(max_examples=40 * int(os.environ.get("FASTDECODE_EXAMPLES", "1")))
@given(data=st.data())
def test_whatever_is_asked_behind_a_prefix(data: st.DataObject, ids_model: Any) -> None:
    """A prompt that parts from what was read, in any call: the reader is told what was reused."""
    draw, ids = data.draw, st.lists(st.integers(0, 5), min_size=1, max_size=40)
    prefix, prompts = (
        draw(ids),
        draw(st.lists(st.lists(st.integers(0, 47), max_size=20), min_size=1, max_size=4)),
    )
    options: Any = draw(
        st.sampled_from(
            [
                {"logprobs": 2},
                {"do_sample": True, "seed": 3, "num_return_sequences": 3, "logprobs": 0},
                {"num_beams": 3, "num_return_sequences": 2},
                {"num_beams": 2, "do_sample": True, "seed": 1},
                {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.2},
                {"do_sample": True, "seed": 4, "min_length": 30, "eos_token_id": [1, 2, 3]},
                {"encoder_no_repeat_ngram_size": 2, "stop_token_ids": [7, 8, 9]},
            ]
        )
    )
    options = {"max_new_tokens": draw(st.integers(1, 12))} | options
    whole = [[*prefix, *prompt] for prompt in prompts]
    with ids_model.prefix(prefix) as handle:
        got = ids_model.run(prompts, prefix=handle, **options)
    want = ids_model.run(whole, **options)
    for one, other in zip(got, want, strict=True):
        assert (one.token_ids, one.logprobs, one.score, one.finish_reason) == (
            other.token_ids,
            other.logprobs,
            other.score,
            other.finish_reason,
        )
    for at, output in enumerate(got):
        length = len(whole[at * len(prompts) // len(got)])
        assert output.usage == type(output.usage)(length, len(output.token_ids), min(len(prefix), length - 1))
    assert holds(ids_model) == 0


def test_a_prefix_of_more_than_the_prompt(model: fastdecode.CausalLM) -> None:
    """Text that is tokenized otherwise with what follows: as much of the ids as agrees is reused."""
    whole = "Once upon a time there was a little girl"
    tokenizer = model.tokenizer
    assert tokenizer is not None
    parted = 0
    for length in range(1, len(whole)):
        with model.prefix(whole[:length]) as prefix:
            got = model.run(whole[length:], prefix=prefix, **GREEDY)
            agree = [a == b for a, b in zip(prefix.tokens, tokenizer.encode(whole), strict=False)]
        assert same(got, model.run(whole, **GREEDY))
        common = agree.index(False) if False in agree else len(agree)
        parted += common < len(agree)
        assert got.usage.cached_tokens == min(common, got.usage.prompt_tokens - 1)
    assert parted > 3, "some prefixes end within a token"


def test_lists_streams_and_tasks(model: fastdecode.CausalLM) -> None:
    text, prompts = "Once upon a time there was ", ["a wolf", "a little girl who", ""]
    plain = [model.run(text + prompt, **GREEDY) for prompt in prompts]
    with model.prefix(text) as prefix:
        together = model.run(prompts, prefix=prefix, **GREEDY)
        assert all(
            same(one, other) and one.text == other.text for one, other in zip(together, plain, strict=True)
        )
        assert all(output.usage.cached_tokens > 3 for output in together)
        assert model.generate(prompts, prefix=prefix, **GREEDY) == [output.text for output in plain]
        streamed = [str(piece) for piece in model.stream(prompts[0], prefix=prefix, **GREEDY)]
        assert "".join(streamed) == plain[0].text

        async def task() -> str:
            return "".join([str(piece) async for piece in model.astream(prompts[1], prefix=prefix, **GREEDY)])

        assert asyncio.run(task()) == plain[1].text
        stop = (plain[0].text or "")[3:5]
        assert model.generate(prompts[0], prefix=prefix, stop=stop, **GREEDY) == model.generate(
            text + prompts[0], stop=stop, **GREEDY
        )


def test_the_borders_of_longrope(tmp_path: Path) -> None:
    model = fastdecode.load(FAMILIES["llama"].write(LONGROPE, tmp_path))
    [ids] = LONGROPE.ids(1, 3 * BORDER)
    for length in (BORDER - 10, BORDER - 1, BORDER, BORDER + 1, 2 * BORDER):
        for end in {length + 1, BORDER - 2, BORDER, BORDER + 1, 2 * BORDER + 3}:
            if end <= length:
                continue
            reused = check(model, ids[:length], ids[length:end], max_new_tokens=8)
            assert reused == (length if (length > BORDER) == (end > BORDER) else 0), (length, end)
    # What was read on the other side is of no use, and one that parts from it early may be short again.
    with model.prefix(ids[: 2 * BORDER]) as prefix:
        for cut in (5, BORDER - 5):
            prompt = [*ids[:cut], *ids[:3]]
            start = model._start([prompt], GREEDY, reuse=prefix)
            [output] = start.outputs()
            assert same(output, model.run(prompt, **GREEDY))
            assert output.usage.cached_tokens == 0
        longer = [*ids[:50], *ids[:30]]
        [output] = model._start([longer], GREEDY, reuse=prefix).outputs()
        assert same(output, model.run(longer, **GREEDY))
        assert output.usage.cached_tokens == 50


ANSWER = """
import json, sys
import fastdecode
assert fastdecode.cpu_info()["isa"] == sys.argv[2], fastdecode.cpu_info()
for case in json.load(open(sys.argv[1])):
    for options in ({}, {"dtype": "bfloat16", "compute_dtype": "bfloat16"}):
        model = fastdecode.load(case["folder"], num_threads=2, prefix_cache_bytes=10**7, **options)
        ids, asked = case["ids"], {"max_new_tokens": 3, "logprobs": 3, "eos_token_id": None, "do_sample": False}
        plain = fastdecode.load(case["folder"], num_threads=1, **options).run(ids, **asked)
        for length in case["lengths"]:
            with model.prefix(ids[:length]) as prefix:
                output = model.run(ids[length:], prefix=prefix, **asked)
            assert (output.token_ids, output.logprobs) == (plain.token_ids, plain.logprobs), (case, length)
            assert output.usage.cached_tokens >= length * case["reuses"], output.usage
        assert model.info()["prefix_cache_entries"] == 1
print("well")
"""


@pytest.mark.parametrize("table", tables.NEEDS)
def test_bits_on_every_table(table: str, tmp_path: Path) -> None:
    if table not in tables.present():
        pytest.skip(f"this CPU lacks {table}")
    cases = []
    for name, family in CAUSAL.items():
        recipe = family.chunks
        [ids] = recipe.ids(1, 260)
        folder = family.write(recipe, tmp_path / name)
        cases.append({"folder": str(folder), "ids": ids, "lengths": [1, 16, 17, 255, 256, 257], "reuses": 1})
    [ids] = LONGROPE.ids(1, 260)
    folder = FAMILIES["llama"].write(LONGROPE, tmp_path / "longrope")
    cases.append(
        {"folder": str(folder), "ids": ids, "lengths": [16, BORDER, BORDER + 1, 256, 257], "reuses": 0}
    )
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    arguments = [sys.executable, "-c", ANSWER, str(tmp_path / "cases.json"), table]
    environment = os.environ | {"FASTDECODE_ISA": table}
    answer = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert (answer.stdout, answer.returncode) == ("well\n", 0), answer.stderr
