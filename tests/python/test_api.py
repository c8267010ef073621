"""The public verbs: what goes in, what comes out, and that all of them tell the same story."""

from __future__ import annotations

import json
import pickle
import shutil
from typing import TYPE_CHECKING, Any, assert_type

import fastdecode
import numpy as np
import pytest
import tiny
from fastdecode import errors

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers

GREEDY: Any = {"max_new_tokens": 12, "eos_token_id": None}


def test_types_of_results(model: fastdecode.CausalLM) -> None:
    """What a type checker sees is what there is."""
    ids = [5, 6]
    assert isinstance(assert_type(model.generate("a", max_new_tokens=1), str), str)
    assert isinstance(assert_type(model.generate(ids, max_new_tokens=1), str), str)
    assert isinstance(assert_type(model.generate(["a", "b"], max_new_tokens=1), list[str]), list)
    assert isinstance(assert_type(model.generate([ids, ids], max_new_tokens=1), list[str]), list)
    assert isinstance(assert_type(model.run("a", max_new_tokens=1), fastdecode.Output), fastdecode.Output)
    assert isinstance(assert_type(model.run(["a"], max_new_tokens=1), list[fastdecode.Output]), list)


def test_shapes_of_prompts_and_results(model: fastdecode.CausalLM) -> None:
    ids = [5, 6, 7]
    one = model.run(ids, **GREEDY)
    assert isinstance(one, fastdecode.Output)
    assert model.run(tuple(ids), **GREEDY).token_ids == one.token_ids
    assert model.run(np.array(ids), **GREEDY).token_ids == one.token_ids
    many = model.run([ids, [8]], **GREEDY)
    assert [type(output) for output in many] == [fastdecode.Output] * 2
    assert many[0].token_ids == one.token_ids
    unusual: list[Any] = [np.array([ids, ids]), [np.array(ids)], iter([ids])]
    for prompts in unusual:
        assert model.run(prompts, **GREEDY)[0].token_ids == one.token_ids
    assert model.run([], **GREEDY) == []
    assert model.generate([], **GREEDY) == []
    assert list(model.stream([], **GREEDY)) == []
    text = "Once upon"
    mixed = model.run([text, ids], **GREEDY)
    assert model.generate(text, **GREEDY) == mixed[0].text == str(mixed[0])
    assert model.generate([text, ids], **GREEDY) == [mixed[0].text, one.text]
    assert model.generate([text], **GREEDY) == [mixed[0].text]


def test_text_and_ids_agree(model: fastdecode.CausalLM) -> None:
    assert model.tokenizer is not None
    text = "The wolf said"
    by_text = model.run(text, **GREEDY)
    by_ids = model.run(model.tokenizer.encode(text), **GREEDY)
    assert by_text.token_ids == by_ids.token_ids
    assert by_text.text == model.tokenizer.decode(by_text.token_ids, skip_special_tokens=True)
    assert by_text.usage.prompt_tokens == len(model.tokenizer.encode(text))
    assert by_text.usage.completion_tokens == len(by_text.token_ids) == 12


def test_an_empty_prompt_starts_from_bos(
    model: fastdecode.CausalLM, ids_folder: Path, tmp_path: Path
) -> None:
    from_bos = model.run([0], **GREEDY)
    assert model.run("", **GREEDY).token_ids == from_bos.token_ids
    assert [output.token_ids for output in model.run(["", []], **GREEDY)] == [from_bos.token_ids] * 2
    assert model.run("", **GREEDY).usage.prompt_tokens == 1
    assert model.prefill("").tokens == [0]
    shutil.copytree(ids_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["bos_token_id"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    without = fastdecode.load(tmp_path / "m", num_threads=1)
    with pytest.raises(errors.OptionError, match="bos_token_id"):
        without.run([[]])


@pytest.mark.parametrize(
    "bad",
    [
        *(
            None,
            3,
            1.5,
            b"bytes",
            {"a": 1},
            [1, "a"],
            ["a", 3],
            [[1.5]],
            [True],
            [-1],
            [10**6],
            [2**40],
            [[[1]]],
        ),
        *(np.array(3), np.array("a")),
    ],
)
def test_prompts_that_are_none(model: fastdecode.CausalLM, bad: Any) -> None:
    for verb in (model.run, model.generate, model.stream):
        with pytest.raises(errors.OptionError, match="prompt"):
            verb(bad)


def test_finish_reasons(model: fastdecode.CausalLM) -> None:
    plain = model.run([5, 6, 7], **GREEDY)
    assert plain.finish_reason == "length"
    ids = plain.token_ids
    last = max(ids, key=ids.index)  # the id that comes first at the latest place
    place = ids.index(last)
    ended = model.run([5, 6, 7], max_new_tokens=12, eos_token_id=last)
    assert (ended.finish_reason, ended.token_ids) == ("eos", ids[: place + 1])
    stopped = model.run([5, 6, 7], max_new_tokens=12, eos_token_id=None, stop_token_ids=[last])
    assert (stopped.finish_reason, stopped.token_ids) == ("stop", ids[: place + 1])
    if place:
        longer = model.run([5, 6, 7], max_new_tokens=12, eos_token_id=last, min_new_tokens=place + 1)
        assert len(longer.token_ids) > place + 1 or longer.finish_reason != "eos"
        assert last not in longer.token_ids[: place + 1]


def test_stop_strings(model: fastdecode.CausalLM) -> None:
    plain = model.run("Once upon a time", max_new_tokens=30, eos_token_id=None)
    assert plain.text is not None
    pairs = [plain.text[at : at + 2] for at in range(5, len(plain.text) - 1)]
    stop = next(pair for pair in pairs if "\ufffd" not in pair)
    stopped = model.run("Once upon a time", max_new_tokens=30, eos_token_id=None, stop=stop)
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert plain.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    assert model.tokenizer is not None
    assert stop in model.tokenizer.decode(stopped.token_ids, skip_special_tokens=True)
    assert stop not in model.tokenizer.decode(stopped.token_ids[:-1], skip_special_tokens=True)
    none = model.run("Once upon a time", max_new_tokens=30, eos_token_id=None, stop=["never", "comes"])
    assert (none.text, none.finish_reason) == (plain.text, "length")
    both = model.run(["Once upon a time", [9]], max_new_tokens=30, eos_token_id=None, stop=[stop])
    assert both[0].text == stopped.text
    assert both[1].token_ids[:5] == model.run([9], max_new_tokens=5, eos_token_id=None).token_ids


def test_special_tokens_in_text(model: fastdecode.CausalLM) -> None:
    ids = model.run([5, 6, 7], **GREEDY).token_ids
    assert model.tokenizer is not None
    kept = model.run([5, 6, 7], **GREEDY, skip_special_tokens=False).text
    assert kept == model.tokenizer.decode(ids, skip_special_tokens=False)


def test_logprobs(model: fastdecode.CausalLM) -> None:
    output = model.run([5, 6, 7], **GREEDY, logprobs=3)
    assert output.logprobs is not None
    assert [entry.token_id for entry in output.logprobs] == output.token_ids
    logits = model.logits([5, 6, 7, *output.token_ids])[2:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for entry, row in zip(output.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-4)
        assert [token for token, _ in entry.top] == list(np.argsort(-row, kind="stable")[:3])
        assert entry.top[0] == (entry.token_id, entry.logprob)
    assert model.run([5], **GREEDY).logprobs is None
    chosen_only = model.run([5], **GREEDY, logprobs=0).logprobs
    assert chosen_only is not None
    assert all(entry.top == [] for entry in chosen_only)
    everything = model.run([5], max_new_tokens=1, logprobs=10**6).logprobs
    assert everything is not None
    assert len(everything[0].top) == 320
    sampled = model.run(
        [5], do_sample=True, seed=3, temperature=5.0, repetition_penalty=2.0, logprobs=1, **GREEDY
    )
    assert sampled.logprobs is not None
    raw = model.logits([5, *sampled.token_ids])[:-1].astype(np.float64)
    raw -= np.log(np.exp(raw).sum(axis=1, keepdims=True))
    for entry, row in zip(sampled.logprobs, raw, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id], abs=1e-4)


def test_sampling_and_seeds(model: fastdecode.CausalLM) -> None:
    options: Any = {"do_sample": True, "temperature": 3.0, "top_k": 0, **GREEDY}
    once = model.run([5], seed=1, **options).token_ids
    assert model.run([5], seed=1, **options).token_ids == once
    assert model.run([5], seed=2, **options).token_ids != once
    assert model.run([5], **options).token_ids != model.run([5], **options).token_ids
    alone = [model.run(prompt, seed=seed, **options).token_ids for prompt, seed in (([5], 1), ([6, 7], 2))]
    together = [output.token_ids for output in model.run([[5], [6, 7]], seed=[1, 2], **options)]
    assert together == alone
    shared = [output.token_ids for output in model.run([[5], [6, 7]], seed=1, **options)]
    assert shared != alone


def test_num_return_sequences_are_flat_prompt_by_prompt(model: fastdecode.CausalLM) -> None:
    options: Any = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 3, **GREEDY}
    one = model.run([5], seed=1, **options)
    assert isinstance(one, list)
    assert len(one) == 3
    assert len({tuple(output.token_ids) for output in one}) == 3
    texts = model.generate([5], seed=1, **options)
    assert texts == [output.text for output in one]
    several = model.run([[5], [6]], seed=[1, 2], **options)
    assert [output.token_ids for output in several[:3]] == [output.token_ids for output in one]
    assert len(several) == 6
    assert all(output.usage.prompt_tokens == 1 for output in several)


def test_lists_equal_single_runs(model: fastdecode.CausalLM) -> None:
    prompts = [[5], list(range(40)), [7, 8, 9], [3] * 17]
    together = model.run(prompts, max_new_tokens=10, logprobs=2)
    for prompt, output in zip(prompts, together, strict=True):
        alone = model.run(prompt, max_new_tokens=10, logprobs=2)
        assert (output.text, output.token_ids, output.logprobs) == (
            alone.text,
            alone.token_ids,
            alone.logprobs,
        )
        assert output.usage == alone.usage


def test_lengths_and_the_context(model: fastdecode.CausalLM) -> None:
    full: Any = {"eos_token_id": None}
    assert len(model.run([5] * 4, **full).token_ids) == 60  # what the context leaves of 256
    assert len(model.run([5] * 4, max_length=10, **full).token_ids) == 6
    assert len(model.run([5] * 4, max_new_tokens=60, **full).token_ids) == 60
    # The last new token is never fed back and needs no position.
    assert len(model.run([5] * 4, max_new_tokens=61, **full).token_ids) == 61
    calls: list[tuple[Any, int]] = [
        ({"max_new_tokens": 62}, 66),
        ({"max_new_tokens": 1000}, 1004),
        ({"max_length": 65}, 65),
        ({"max_new_tokens": 2**31}, 2**31 + 4),
    ]
    for call, requested in calls:
        with pytest.raises(errors.ContextLengthError, match="64") as caught:
            model.run([5] * 4, **call, **full)
        assert (caught.value.limit, caught.value.requested) == (64, requested)
        with pytest.raises(errors.ContextLengthError):
            model.stream([5] * 4, **call, **full)
    with pytest.raises(errors.ContextLengthError) as caught:
        model.run([5] * 64)
    assert (caught.value.limit, caught.value.requested) == (64, 65)
    with pytest.raises(errors.OptionError, match="max_length"):
        model.run([5] * 4, max_length=4)


def test_the_folder_decides_what_the_call_leaves_open(
    tmp_path: Path, byte_level: tokenizers.Tokenizer
) -> None:
    generation = {
        "do_sample": True,
        "top_k": 5,
        "temperature": 2.0,
        "max_new_tokens": 7,
        "eos_token_id": [1, 2],
    }
    folder = tiny.write_folder(tmp_path / "m", tokenizer=byte_level, generation=generation)
    model = fastdecode.load(folder, num_threads=1)
    options: Any = {
        "do_sample": True,
        "top_k": 5,
        "temperature": 2.0,
        "max_new_tokens": 7,
        "eos_token_id": [1, 2],
    }
    implicit = model.run([5], seed=4)
    assert implicit.token_ids == model.run([5], seed=4, **options).token_ids
    assert implicit.finish_reason in ("eos", "length")
    greedy = model.run([5], do_sample=False, max_new_tokens=9, eos_token_id=None)
    assert len(greedy.token_ids) == 9


def test_timings(model: fastdecode.CausalLM) -> None:
    timings = model.run([5, 6, 7], **GREEDY).timings
    assert timings.load > 0
    assert timings.prefill > 0
    assert timings.decode > 0
    assert timings.tokens_per_second == pytest.approx(11 / timings.decode)
    assert model.run([5], max_new_tokens=1).timings.tokens_per_second == 0.0


def test_results_are_frozen(model: fastdecode.CausalLM) -> None:
    output = model.run([5], max_new_tokens=1)
    chunk = next(model.stream([5], max_new_tokens=1))
    values = {"text": output, "prompt_tokens": output.usage, "load": output.timings, "index": chunk}
    for field, value in values.items():
        with pytest.raises(AttributeError):
            setattr(value, field, None)
        assert not hasattr(value, "__dict__")
        assert pickle.loads(pickle.dumps(value)) == value
