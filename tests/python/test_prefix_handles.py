"""Prefixes as handles: what they tell, who holds them in threads and forked children, what a call leaves behind."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import tiny
from families import FAMILIES
from fastdecode import errors
from prefix_models import GREEDY, holds
from subject import same

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory, byte_level: Any) -> Path:
    """As `folder`, with room for long prompts."""
    sizes: Any = {"n_positions": 512}
    return tiny.write_folder(tmp_path_factory.mktemp("models") / "long", tokenizer=byte_level, **sizes)


@pytest.fixture(scope="module")
def long_model(long_folder: Path) -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load(long_folder, num_threads=2)


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
