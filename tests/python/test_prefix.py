"""Prefixes that are read once: every bit is that of a call without one, whatever is reused, and by whomever."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastdecode
import laws
import numpy as np
import pytest
import tables
import tiny
from families import FAMILIES
from families.llama import LlamaRecipe, config
from fastdecode import errors
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import Case
from subject import same

if TYPE_CHECKING:
    from collections.abc import Callable

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
GREEDY: Any = {"max_new_tokens": 6, "logprobs": 3, "eos_token_id": None, "do_sample": False}

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


def holds(model: Any) -> int:
    """Bytes of keys and values that anything of the model holds."""
    held: int = model.info()["cache_bytes_live"]
    return held


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


def test_it_is_what_it_says(model: fastdecode.CausalLM) -> None:
    assert holds(model) == 0
    prefix = model.prefix([5, 6, 7])
    assert (prefix.tokens, len(prefix), repr(prefix), prefix.closed) == (
        [5, 6, 7],
        3,
        "Prefix(3 tokens)",
        False,
    )
    block = 16 * model.info()["cache_bytes_per_token"]
    assert holds(model) == block
    longer = model.prefix(range(50))
    assert holds(model) == 5 * block
    assert model.run([9], prefix=longer, **GREEDY).usage.cached_tokens == 50
    longer.close()
    longer.close()
    assert (repr(longer), longer.closed, holds(model)) == ("Prefix(closed)", True, block)
    with prefix as same_one:
        assert same_one is prefix
    assert holds(model) == 0
    dropped = model.prefix([5])
    del dropped
    assert holds(model) == 0
    assert model.prefix(np.array([4, 5])).tokens == [4, 5]
    empty = model.prefix("")
    assert same(model.run("a wolf", prefix=empty, **GREEDY), model.run("a wolf", **GREEDY))
    assert bool(empty)


def test_what_a_handle_was_made_of_may_change_afterwards(model: fastdecode.CausalLM) -> None:
    ids = [5, 6, 7]
    prefix = model.prefix(ids)
    ids[:] = [1]
    assert same(model.run([8], prefix=prefix, **GREEDY), model.run([5, 6, 7, 8], **GREEDY))


def test_running_calls_keep_what_they_began_with(long_model: fastdecode.CausalLM) -> None:
    ids = list(range(60))
    want = long_model.run([*ids, 9], **GREEDY | {"max_new_tokens": 30})
    prefix = long_model.prefix(ids)
    stream = long_model.stream([9], prefix=prefix, **GREEDY | {"max_new_tokens": 30})
    begun = next(stream)
    prefix.close()
    assert [*begun.token_ids, *[token for piece in stream for token in piece.token_ids]] == want.token_ids
    del stream
    assert holds(long_model) == 0


def test_misuse_is_told(model: Any, ids_model: Any, tmp_path: Path) -> None:
    prefix = model.prefix([5, 6])
    with pytest.raises(errors.OptionError, match="prefix: expected one that this very model has read"):
        ids_model.run([5], prefix=prefix)
    text = model.prefix("Once")
    with pytest.raises(
        errors.OptionError, match=r"prompt: expected text, as the prefix is made of text .*got token ids"
    ):
        model.run([5], prefix=text)
    with pytest.raises(errors.OptionError, match=r"prompt: expected token ids.*got text"):
        model.generate(["", "a"], prefix=prefix)
    wrong: Any
    for wrong in ("Once", [5, 6], 7, model.prefill([5])):
        with pytest.raises(
            errors.OptionError, match=r"prefix: expected what model\.prefix returns, or None, got"
        ):
            model.run([5], prefix=wrong)
    assert model.run([5], prefix=None, **GREEDY).token_ids == model.run([5], **GREEDY).token_ids
    with pytest.raises(errors.UnknownOptionError, match="prefix"):
        model.run([5], prefx=prefix)
    limit = model.info()["context_length"]
    with pytest.raises(errors.ContextLengthError):
        model.prefix([1] * (limit + 1))
    with pytest.raises(errors.ContextLengthError):
        model.run([1] * limit, prefix=prefix, **GREEDY)
    for wrong in (None, 5, [model.info()["vocab_size"]], [[5], [6]]):
        with pytest.raises(errors.OptionError):
            model.prefix(wrong)
    with pytest.raises(errors.TokenizerMissing):
        ids_model.prefix("text")
    prefix.close()
    uses: list[Callable[[], Any]] = [
        lambda: len(prefix),
        lambda: prefix.tokens,
        lambda: model.run([5], prefix=prefix),
        lambda: model.stream([5], prefix=prefix),
        prefix.__enter__,
    ]
    for use in uses:
        with pytest.raises(
            errors.PrefixClosedError, match="expected a prefix that is open; read it again"
        ) as closed:
            use()
        assert closed.value.got == "a closed one"
    assert prefix, "whether it is there is another question than how long it is"
    spoils: list[Callable[[Any], Any]] = [pickle.dumps, copy.copy, copy.deepcopy]
    for spoil in spoils:
        with pytest.raises(TypeError, match="a prefix cannot be pickled or copied"):
            spoil(text)
    assert (
        pickle.loads(pickle.dumps(model)).run([5], **GREEDY).token_ids == model.run([5], **GREEDY).token_ids
    )
    folder = FAMILIES["t5"].write_tiny(tmp_path / "t5", tokenizer=tiny.with_end())
    t5 = fastdecode.load(folder)
    attempts: list[Callable[[], Any]] = [lambda: t5.prefix("Once"), lambda: t5.run("Once", prefix=text)]
    for attempt in attempts:
        with pytest.raises(
            errors.OptionError, match=r"prefix: expected none for a model with an encoder \(memory="
        ):
            attempt()
    assert t5.run("Once", prefix=None, max_new_tokens=2).usage.cached_tokens == 0


def test_handles_count_towards_what_requests_may_reserve(long_folder: Path) -> None:
    blocks = 16 * fastdecode.load(long_folder).info()["cache_bytes_per_token"]
    model = fastdecode.load(long_folder, cache_bytes=8 * blocks)
    prefix = model.prefix(list(range(96)))
    # Of two rows with two blocks each beside it, one has to wait; behind it, both are there at once.
    wants = [model.run([*range(96), number], **GREEDY).token_ids for number in (1, 2)]
    outputs = model.run([[1], [2]], prefix=prefix, **GREEDY)
    assert [output.token_ids for output in outputs] == wants
    with pytest.raises(errors.OptionError, match="cache_bytes"):
        model.run([1], prefix=prefix, max_new_tokens=60, eos_token_id=None)


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


def test_threads_share_a_handle(long_model: fastdecode.CausalLM) -> None:
    ids = list(range(70))
    prefix = long_model.prefix(ids)
    wants = [long_model.run([*ids, number], **GREEDY).token_ids for number in range(8)]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            output = long_model.run([number], prefix=prefix, **GREEDY)
            if output.token_ids != wants[number] or output.usage.cached_tokens != 70:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    prefix.close()
    assert holds(long_model) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_forked_children_go_on_with_a_handle(long_model: fastdecode.CausalLM) -> None:
    ids = list(range(70))
    prefix = long_model.prefix(ids)
    want = long_model.run([*ids, 9], **GREEDY | {"max_new_tokens": 20}).token_ids
    stream = long_model.stream([9], prefix=prefix, **GREEDY | {"max_new_tokens": 20})
    begun = list(next(stream).token_ids)
    for closes in (False, True):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(60)
                output = long_model.run([9], prefix=prefix, **GREEDY | {"max_new_tokens": 20})
                right = output.token_ids == want and output.usage.cached_tokens == 70
                if closes:
                    prefix.close()
                rest = [token for piece in stream for token in piece.token_ids]
                own = long_model.prefix(ids[:20])
                right = (
                    right
                    and [*begun, *rest] == want
                    and long_model.run([5], prefix=own).usage.cached_tokens == 20
                )
                code = 0 if right else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [*begun, *[token for piece in stream for token in piece.token_ids]] == want
    assert long_model.run([9], prefix=prefix, **GREEDY).usage.cached_tokens == 70


def test_what_a_call_has_in_the_cache_can_be_kept(long_model: fastdecode.CausalLM) -> None:
    ids = list(range(40))
    decoding = long_model._start([ids], GREEDY, keep=True)
    [output] = decoding.outputs()
    kept = decoding.kept()
    assert kept is not None
    assert kept.tokens == [*ids, *output.token_ids[:-1]]
    assert decoding.kept() is kept
    turn = [*ids, *output.token_ids, 7, 8]
    second = long_model._start([turn], GREEDY, reuse=kept, keep=True)
    pieces = second.stream()
    read = [token for _ in range(3) for token in next(pieces).token_ids]
    pieces.close()
    more = second.kept()
    assert more is not None
    assert more.tokens[: len(turn) + len(read) - 1] == [*turn, *read][:-1]
    assert len(more) <= len(turn) + 6
    [third] = long_model._start([turn], GREEDY, reuse=more).outputs()
    assert same(third, long_model.run(turn, **GREEDY))
    assert third.usage.cached_tokens == len(turn) - 1
    kept.close()
    more.close()
    assert long_model._start([ids], GREEDY).kept() is None
    beams: Any = {"num_beams": 2, "max_new_tokens": 3}
    for items, options in (([ids], beams), ([ids, ids], GREEDY)):
        several = long_model._start(items, options, keep=True)
        several.outputs()
        assert several.kept() is None
    stopped = long_model._start([ids], GREEDY | {"stop": "e", "max_new_tokens": 60}, keep=True)
    stopped.outputs()
    left = stopped.kept()
    assert left is not None
    assert len(left) >= 40
    left.close()
    del decoding, second, stopped, left, kept, more, pieces
    assert holds(long_model) == 0


def test_kept_beside_threads_that_lead(folder: Path) -> None:
    """A call that is closed while another thread's step has it leaves what that step has read, too."""
    model = fastdecode.load(folder, num_threads=2)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            model.run([[7] * 20] * 3, **GREEDY)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        whole = [5, 6, *model.run([5, 6], **GREEDY | {"max_new_tokens": 40}).token_ids]
        for pieces in [1, 2, 5] * 20:
            decoding = model._start([[5, 6]], GREEDY | {"max_new_tokens": 40}, keep=True)
            stream = decoding.stream()
            for _ in range(pieces):
                next(stream)
            stream.close()
            kept = decoding.kept()
            assert kept is not None
            assert len(kept) > pieces
            assert kept.tokens == whole[: len(kept)]
            kept.close()
    finally:
        done.set()
        for worker in workers:
            worker.join()
    del decoding, stream, kept
    assert holds(model) == 0
