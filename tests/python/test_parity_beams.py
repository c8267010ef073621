"""Beam search beside parity: what it reports, where its options come from, and what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
from families import FAMILIES
from families.gpt2 import GPT2Recipe, config
from fastdecode import errors
from parity import found

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture(scope="module")
def beam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beams")
    return FAMILIES["gpt2"].write(GPT2Recipe(config(vocab=50, eos_token_id=3), seed=5), folder)


def test_a_prompt_gives_alone_what_it_gives_in_a_batch(beam_folder: Path) -> None:
    model = fastdecode.load(beam_folder)
    batch = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 9}
    together = found(model.run(batch, **options))
    alone = [found(model.run(prompt, **options)) for prompt in batch]
    assert together.ids == [ids for one in alone for ids in one.ids]
    assert together.scores == [score for one in alone for score in one.scores]
    drawn = {**options, "do_sample": True}
    together = found(model.run(batch, seed=[1, 2, 3], **drawn))
    assert together.ids[2:4] == found(model.run(batch[1], seed=2, **drawn)).ids


def test_what_a_search_reports(beam_folder: Path) -> None:
    model = fastdecode.load(beam_folder)
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}
    best, second = model.run([[1, 2]], **options, eos_token_id=None)
    assert best.score is not None
    assert second.score is not None
    assert best.score >= second.score
    assert (best.finish_reason, best.logprobs, best.usage.completion_tokens) == ("length", None, 6)
    assert best.timings.decode > 0
    assert best.timings.prefill > 0
    logits = model.logits([1, 2, *best.token_ids]).astype(np.float64)[1:-1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mean = logprobs[np.arange(6), best.token_ids].mean()
    assert best.score == pytest.approx(mean, abs=1e-5)
    assert model.run([1, 2], max_new_tokens=3).score is None
    ended = model.run([1, 2], num_beams=3, stop_token_ids=range(50), max_new_tokens=4)
    assert (ended.finish_reason, len(ended.token_ids)) == ("stop", 1)


def test_beams_of_generation_config(beam_folder: Path, tmp_path: Path) -> None:
    folder = FAMILIES["gpt2"].write(GPT2Recipe(config(vocab=50), seed=5), tmp_path)
    values = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "max_new_tokens": 7}
    (folder / "generation_config.json").write_text(json.dumps(values))
    model = fastdecode.load(folder)
    asked: dict[str, Any] = {**values, "eos_token_id": None}
    assert found(model.run([1, 2])) == found(fastdecode.load(beam_folder).run([1, 2], **asked))
    assert model.run([1, 2], num_beams=1).score is None


def test_onnxruntimes_golden_beams() -> None:
    folder = GOLDEN / "ortgenai-tiny-random-gpt2"
    golden = json.loads((folder / "expected.json").read_text())["beam_search"]
    model = fastdecode.load(folder)
    # Its own search stops by other rules; without an end token in reach all rules agree.
    names = ("num_beams", "max_length", "length_penalty", "repetition_penalty")
    outputs = model.run(golden["input_ids"], eos_token_id=98, **{name: golden[name] for name in names})
    full = [
        prompt + list(output.token_ids) for prompt, output in zip(golden["input_ids"], outputs, strict=True)
    ]
    assert full == golden["expected"]


def test_a_stream_refuses_beams(beam_folder: Path) -> None:
    model = fastdecode.load(beam_folder)
    with pytest.raises(errors.OptionError, match="num_beams: expected 1 for a stream"):
        model.stream([1], num_beams=2)

    async def pieces() -> None:
        async for _ in model.astream([1], num_beams=2):
            pass

    with pytest.raises(errors.OptionError, match="num_beams: expected 1 for a stream"):
        asyncio.run(pieces())


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2**40}, "num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"num_beams": 2, "logprobs": 0}, "logprobs"),
        ({"num_beams": 2, "stop": "end"}, "stop"),
        ({"num_beams": 2, "early_stopping": "sometimes"}, "early_stopping"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"num_beams": 2, "diversity_penalty": 0.5}, "diversity_penalty"),
    ],
)
def test_what_is_refused(beam_folder: Path, options: Any, option: str) -> None:
    with pytest.raises(errors.OptionError) as caught:
        fastdecode.load(beam_folder).run([1], **options)
    assert caught.value.option == option
    assert caught.value.expected
