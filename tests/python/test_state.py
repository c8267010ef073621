"""Inference by hand: prefill, step, fork, truncate, logits and embeddings of `State`."""

from __future__ import annotations

from typing import Any

import fastdecode
import numpy as np
import pytest
from fastdecode import errors

GREEDY: Any = {"max_new_tokens": 12, "eos_token_id": None}


def test_steps_equal_generation(model: fastdecode.CausalLM) -> None:
    expected = model.run([5, 6, 7], **GREEDY).token_ids
    state = model.prefill([5, 6, 7])
    ids = []
    logits = state.logits
    for _ in range(12):
        ids.append(int(logits.argmax()))
        logits = state.step(ids[-1])
    assert ids == expected
    assert state.tokens == [5, 6, 7, *ids]
    assert len(state) == 15


def test_logits(model: fastdecode.CausalLM) -> None:
    everything = model.logits([5, 6, 7])
    assert everything.shape == (3, 320)
    assert everything.dtype == np.float32
    state = model.prefill([5, 6, 7])
    assert state.logits.shape == (320,)
    assert state.logits.dtype == np.float32
    assert np.array_equal(state.logits, everything[-1])
    fresh = state.logits
    fresh[:] = 0
    assert np.array_equal(state.logits, everything[-1])
    stepped = state.step(9)
    stepped[:] = 0
    assert np.array_equal(state.logits, model.logits([5, 6, 7, 9])[-1])
    assert model.tokenizer is not None
    assert np.array_equal(model.logits("Once"), model.logits(model.tokenizer.encode("Once")))


def test_fork(model: fastdecode.CausalLM) -> None:
    state = model.prefill([5, 6, 7])
    other = state.fork()
    state.step(8)
    assert other.tokens == [5, 6, 7]
    assert np.array_equal(other.logits, model.logits([5, 6, 7])[-1])
    other.step(9)
    assert np.array_equal(other.logits, model.logits([5, 6, 7, 9])[-1])
    assert np.array_equal(state.logits, model.logits([5, 6, 7, 8])[-1])


@pytest.mark.parametrize("n", [1, 2, 16, 17, 20])
def test_truncate(model: fastdecode.CausalLM, n: int) -> None:
    ids = list(range(20))
    everything = model.logits(ids)
    state = model.prefill(ids)
    kept = state.fork()
    state.truncate(n)
    assert state.tokens == ids[:n]
    assert np.array_equal(state.logits, everything[n - 1])
    assert np.array_equal(state.step(33), model.logits([*ids[:n], 33])[-1])
    assert kept.tokens == ids
    assert np.array_equal(kept.logits, everything[-1])
    again = kept.fork()
    again.truncate(n)  # and go on without looking at the logits in between
    assert np.array_equal(again.step(33), state.logits)


def test_embeddings(model: fastdecode.CausalLM) -> None:
    ids = list(range(30))
    rows = model.embed(ids)
    assert rows.shape == (30, 24)
    assert rows.dtype == np.float32
    state = model.prefill(embeddings=rows)
    assert state.tokens == [-1] * 30
    assert np.array_equal(state.logits, model.logits(ids)[-1])
    for other in (rows.astype(np.float64), np.asfortranarray(rows), rows[::1]):
        assert np.array_equal(model.prefill(embeddings=other).logits, state.logits)
    rows[:] = 0  # the state keeps its own
    state.truncate(17)
    assert np.array_equal(state.logits, model.logits(ids)[16])
    state.step(5)
    assert state.tokens == [*[-1] * 17, 5]
    assert np.array_equal(state.logits, model.logits([*ids[:17], 5])[-1])
    assert model.embed([]).shape == (0, 24)


def test_trace(model: fastdecode.CausalLM) -> None:
    trace = model.trace([5, 6, 7])
    assert all(len(values) == 3 for values in trace.values())
    assert any(np.array_equal(values, model.logits([5, 6, 7])) for values in trace.values())


@pytest.mark.parametrize("n", [0, -1, 4, 100])
def test_truncate_out_of_range(model: fastdecode.CausalLM, n: int) -> None:
    with pytest.raises(errors.OptionError, match="1 to 3"):
        model.prefill([5, 6, 7]).truncate(n)


def test_misuse(model: fastdecode.CausalLM) -> None:
    rows = model.embed([1, 2])
    bads: list[Any] = [{}, {"prompt": [1], "embeddings": rows}]
    for bad in bads:
        with pytest.raises(errors.OptionError, match="either"):
            model.prefill(**bad)
    for wrong in (rows[0], rows[:, :-1], rows[:0], rows[None]):
        with pytest.raises(errors.OptionError, match="embeddings"):
            model.prefill(embeddings=wrong)
    state = model.prefill([5])
    wrong_tokens: tuple[Any, ...] = (-1, 320, 2**40, "a", 1.0, None, True)
    for token in wrong_tokens:
        with pytest.raises(errors.OptionError, match="token_id"):
            state.step(token)
    assert state.tokens == [5]
    assert np.array_equal(state.logits, model.logits([5])[-1])
    with pytest.raises(errors.ContextLengthError):
        model.prefill([5] * 65)
    with pytest.raises(errors.ContextLengthError):
        model.logits([5] * 65)
    full = model.prefill([5] * 64)
    with pytest.raises(errors.ContextLengthError) as caught:
        full.step(5)
    assert (caught.value.limit, caught.value.requested) == (64, 65)
    assert len(full) == 64
    assert np.array_equal(full.logits, model.logits([5] * 64)[-1])
    with pytest.raises(errors.OptionError):
        model.embed([320])
    prompts: Any = [[1], [2]]
    with pytest.raises(errors.OptionError):
        model.logits(prompts)
