"""Losses of texts, and perplexity in windows as the guide of Hugging Face measures it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from families import FAMILIES
from fastdecode import CausalLM, errors
from score_checks import STORY, drawn, logprobs


@pytest.fixture(scope="module")
def demo() -> CausalLM:
    return CausalLM.load("demo-stories", num_threads=2)


class TestLoss:
    def test_labels(self, model: CausalLM) -> None:
        ids = drawn(3, 30)
        nats = -logprobs(model.logits(ids))[np.arange(29), ids[1:]]
        assert model.loss(ids) == pytest.approx(nats.mean(), rel=1e-12)
        assert model.loss(ids, ids) == model.loss(ids, np.array(ids)) == model.loss(ids)
        some = [label if place % 4 else -100 for place, label in enumerate(ids)]
        counted = [place for place in range(29) if some[place + 1] != -100]
        assert model.loss(ids, some) == pytest.approx(nats[counted].mean(), rel=1e-12)
        assert model.loss(ids, [-100, *ids[1:4], *[-100] * 26]) == pytest.approx(nats[:3].mean(), rel=1e-12)
        other = ids[::-1]
        nats = -logprobs(model.logits(ids))[np.arange(29), other[1:]]
        assert model.loss(ids, other) == pytest.approx(nats.mean(), rel=1e-12)

    def test_lists(self, model: CausalLM) -> None:
        prompts: list[Any] = [drawn(1, 30), "The wolf said", drawn(2, 2), [*drawn(1, 30), 5]]
        losses = model.loss(prompts)
        assert losses == [model.loss(prompt) for prompt in prompts]
        labels = [None, None, [-100, 7], None]
        assert model.loss(prompts, labels)[2] == model.loss(prompts[2], [-100, 7])
        assert model.loss(prompts, labels)[:2] == losses[:2]
        assert np.size(model.loss([])) == 0

    def test_texts_have_their_special_tokens(self, folder: Path) -> None:
        model = CausalLM.load(folder, tokenizer=tiny.with_end())
        assert model.loss("The wolf said") == model.loss(tiny.with_end().encode("The wolf said").ids)


def guide(model: CausalLM, ids: list[int], stride: int, window: int) -> float:
    """Perplexity as the guide to fixed-length models words it, in double precision."""
    nll, tokens, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        labels = [
            label if place >= (end - begin) - (end - before) else -100
            for place, label in enumerate(ids[begin:end])
        ]
        valid = sum(label != -100 for label in labels)
        if valid > 1:
            nll += model.loss(ids[begin:end], labels) * (valid - 1)
            tokens += valid - 1
        before = end
        if end == len(ids):
            break
    return math.exp(nll / tokens)


class TestPerplexity:
    @pytest.mark.parametrize(
        ("length", "stride", "window"),
        [(150, 16, 64), (150, 64, 64), (129, 64, 64), (33, 512, 64), (2, 1, 2), (97, 32, 64), (70, 5, 9)],
    )
    def test_windows(self, model: CausalLM, length: int, stride: int, window: int) -> None:
        ids = drawn(length, length)
        want = guide(model, ids, stride, window)
        assert model.perplexity(ids, stride, window) == pytest.approx(want, rel=1e-12)

    def test_a_stride_beyond_the_window_leaves_tokens_out(self, model: CausalLM) -> None:
        ids = drawn(4, 100)
        want = math.exp(
            (9 * model.loss(ids[:10]) + 9 * model.loss(ids[40:50]) + 9 * model.loss(ids[80:90])) / 27
        )
        assert model.perplexity(ids, 40, 10) == pytest.approx(want, rel=1e-12)

    def test_the_window_is_the_context(self, model: CausalLM, tmp_path: Path) -> None:
        limit = model.info()["context_length"]
        ids = drawn(5, 3 * limit)
        assert model.perplexity(ids, 20) == model.perplexity(ids, 20, limit)
        recipe = next(iter(FAMILIES["llama"].laws.values()))
        folder = FAMILIES["llama"].write(recipe, tmp_path)
        llama = CausalLM.load(folder)
        assert llama.info()["context_length"] is None
        most, ids = recipe.config["max_position_embeddings"], recipe.ids(1, 300)[0]
        assert llama.perplexity(ids, 200) == llama.perplexity(ids, 200, most)
        config = json.loads((folder / "config.json").read_text())
        del config["max_position_embeddings"]
        (folder / "config.json").write_text(json.dumps(config))
        unknown = CausalLM.load(folder)
        with pytest.raises(errors.OptionError, match="max_position_embeddings") as caught:
            unknown.perplexity(ids)
        assert caught.value.option == "window"
        assert unknown.perplexity(ids, 200, 64) > 1

    def test_a_text(self, demo: CausalLM) -> None:
        text = (STORY + " who lived in a house by the wood. ") * 3
        assert demo.tokenizer is not None
        assert demo.perplexity(text) == pytest.approx(math.exp(demo.loss(text)), rel=1e-12)
        assert demo.perplexity(text) == demo.perplexity(demo.tokenizer.encode(text))
