"""Many requests of one model at once: threads, lists, streams that are read in turn, and what the two options bound.

`max_rows` and `cache_bytes` are so small here that requests have to wait for each other; what comes of each is
what comes of it alone.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastdecode
import numpy as np
import pytest
import tiny
from families import FAMILIES
from fastdecode import errors
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastdecode.decoding import Decoding

GREEDY: Any = {"eos_token_id": None, "do_sample": False}
SAMPLED: Any = {"eos_token_id": None, "do_sample": True, "temperature": 1.5, "top_k": 0}
# Tokens that a row runs ahead of its reader, and tokens of prompts that one step reads, at most.
AHEAD, CHUNK = 8, 512
NEW = 12
PROMPT = st.lists(st.integers(1, 319), min_size=1, max_size=40)


def known(output: Any) -> Any:
    """What of an output is the same bits, whatever ran beside it."""
    usage = (output.usage.prompt_tokens, output.usage.completion_tokens)
    return output.text, output.token_ids, output.finish_reason, output.logprobs, output.score, usage


def streamed(chunks: Any) -> dict[int, tuple[str, list[int]]]:
    """Text and ids of each sequence of a stream."""
    found: dict[int, tuple[str, list[int]]] = {}
    for chunk in chunks:
        text, ids = found.get(chunk.index, ("", []))
        found[chunk.index] = (text + str(chunk), ids + chunk.token_ids)
    return found


def all_at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What calls return that begin at the same time, each in a thread of its own."""
    barrier = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        barrier.wait(60)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def read(decoding: Decoding, count: int) -> list[int]:
    """Ids of the next pieces of a decoding of one sequence: at least so many, or all."""
    ids: list[int] = []
    while len(ids) < count and (chunks := decoding.advance()) is not None:
        ids += [token for chunk in chunks for token in chunk.token_ids]
    return ids


def block_bytes(model: Any) -> int:
    return 16 * int(model.info()["cache_bytes_per_token"])


def thread_count() -> int:
    """Threads of this process, those of the native side counted where the system tells."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()


class Pair:
    """A model with room for everything, and the same one with room for hardly one request."""

    def __init__(self, folder: Path, blocks: int) -> None:
        self.wide = fastdecode.load(folder, num_threads=2, max_rows=1000)
        self.tight = fastdecode.load(
            folder, num_threads=2, max_rows=2, cache_bytes=blocks * block_bytes(self.wide)
        )


@pytest.fixture(scope="module")
def gpt2(folder: Path) -> Pair:
    # A search with three beams over 40 tokens and 12 new ones: two blocks of its own, and three times two.
    return Pair(folder, 8)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["t5"].write_tiny(tmp_path_factory.mktemp("engine") / "t5", tokenizer=tiny.with_end())


@pytest.fixture(scope="module")
def t5(t5_folder: Path) -> Pair:
    # Three blocks for a source of 40 tokens, and one for each of three beams.
    return Pair(t5_folder, 6)


# Kinds of calls: their options, whether a list gives what its prompts give alone, and whether it is streamed.
KINDS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "greedy": (GREEDY, True, False),
    "log-probabilities": ({**GREEDY, "logprobs": 3}, True, False),
    "beams": ({**GREEDY, "num_beams": 3, "num_return_sequences": 2}, True, False),
    "drawn beams": ({**SAMPLED, "num_beams": 2, "seed": 3}, False, False),
    "one seed": ({**SAMPLED, "seed": 7}, False, False),
    "sequences": ({**SAMPLED, "seed": 5, "num_return_sequences": 3}, False, False),
    "seeds": (SAMPLED, True, False),
    "penalties": (
        {**GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.2},
        True,
        False,
    ),
    "stop strings": ({**GREEDY, "stop": ["a", "e", " "]}, True, False),
    "stream": (GREEDY, True, True),
    "drawn stream": ({**SAMPLED, "seed": 2}, False, True),
}
CALL = st.tuples(
    st.sampled_from(sorted(KINDS)), st.lists(PROMPT, min_size=1, max_size=4), st.sampled_from([1, 5, NEW])
)


def job_and_expected(
    pair: Pair, kind: str, prompts: list[list[int]], new: int
) -> tuple[Callable[[], Any], Any]:
    """A call of the tight model, and what comes of it on the other one, prompt by prompt where that is the same."""
    options, alone, streams = KINDS[kind]
    options = {**options, "max_new_tokens": new}
    seeds = list(range(len(prompts))) if kind == "seeds" else None
    if seeds is not None:
        options["seed"] = seeds
    expected: list[Any] = []
    if not alone:
        expected = pair.wide.run(prompts, **options)
    for place, prompt in enumerate(prompts if alone else []):
        own = options | ({"seed": [seeds[place]]} if seeds is not None else {})
        expected += pair.wide.run([prompt], **own)
    if streams:
        texts = {at: (str(output), output.token_ids) for at, output in enumerate(expected)}
        return lambda: streamed(pair.tight.stream(prompts, **options)), texts
    return lambda: [known(output) for output in pair.tight.run(prompts, **options)], [
        known(output) for output in expected
    ]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@settings(max_examples=25)
@given(calls=st.lists(CALL, min_size=2, max_size=5))
def test_calls_of_all_kinds_at_once_give_what_each_gives_alone(
    family: str, calls: list[tuple[str, list[list[int]], int]], gpt2: Pair, t5: Pair
) -> None:
    pair = gpt2 if family == "gpt2" else t5
    jobs, expected = zip(*(job_and_expected(pair, *call) for call in calls), strict=True)
    assert all_at_once(list(jobs)) == list(expected)
    gc.collect()
    assert pair.tight.info()["cache_bytes_live"] == 0


def test_sources_memories_and_states_at_once(t5: Pair) -> None:
    """Memories and states are never refused, and count; calls over them and over sources go on beside them."""
    model = t5.tight
    sources = [[5 + at] * (3 * at + 1) for at in range(8)]
    expected = [known(t5.wide.run(source, max_new_tokens=NEW, **GREEDY)) for source in sources]
    memories = model.encode(sources)
    states = [model.prefill(memory=memory) for memory in memories]
    assert model.info()["cache_bytes_live"] > model.info()["cache_bytes"], "more than requests may reserve"
    jobs: list[Callable[[], Any]] = [
        lambda: [known(output) for output in model.run(sources, max_new_tokens=NEW, **GREEDY)],
        lambda: [known(output) for output in model.run(memory=memories, max_new_tokens=NEW, **GREEDY)],
        lambda: [
            known(model.run(memory=memory, max_new_tokens=NEW, **GREEDY)) for memory in reversed(memories)
        ][::-1],
    ]
    assert all_at_once(jobs) == [expected] * 3
    assert [int(state.logits.argmax()) for state in states] == [ids[1][0] for ids in expected]


class TestLists:
    def test_three_thousand_prompts(self, ids_model: fastdecode.CausalLM) -> None:
        rng = np.random.default_rng(1)
        prompts = [rng.integers(0, 48, 1 + at % 23).tolist() for at in range(3000)]
        news = {"max_new_tokens": 4, **GREEDY, "logprobs": 1}
        outputs = ids_model.run(prompts, **news)
        assert [output.usage.prompt_tokens for output in outputs] == [len(prompt) for prompt in prompts]
        for at in range(0, 3000, 41):
            assert known(outputs[at]) == known(ids_model.run(prompts[at], **news)), at

    @pytest.mark.parametrize("sequences", [1, 3])
    def test_one_seed_draws_for_the_whole_list(self, ids_folder: Path, sequences: int) -> None:
        """A list that runs in waves draws what one step with all of its rows draws."""
        rng = np.random.default_rng(2)
        prompts = [rng.integers(0, 48, 1 + at % 19).tolist() for at in range(150)]
        options: Any = {**SAMPLED, "eos_token_id": 7, "seed": 11, "num_return_sequences": sequences}
        by_rows = [
            [
                output.token_ids
                for output in fastdecode.load(ids_folder, num_threads=2, max_rows=rows).run(
                    prompts, max_new_tokens=9, **options
                )
            ]
            for rows in (1000, 64, 5, 1)
        ]
        assert len({len(ids) for ids in by_rows[0]}) > 3, "sequences end in different steps"
        for ids in by_rows[1:]:
            assert ids == by_rows[0]

    def test_a_list_of_seeds_draws_as_single_runs(self, ids_folder: Path) -> None:
        model = fastdecode.load(ids_folder, num_threads=1, max_rows=7)
        prompts = [[at % 48] for at in range(60)]
        together = model.run(prompts, max_new_tokens=5, seed=list(range(60)), **SAMPLED)
        for at, output in enumerate(together):
            assert output.token_ids == model.run(prompts[at], max_new_tokens=5, seed=at, **SAMPLED).token_ids

    def test_a_waiting_prompt_has_no_python_object(self, model: fastdecode.CausalLM) -> None:
        """Neither when a stream begins nor when it runs: not the caller's lists, and none of its own."""
        few, many = [[300 + at % 19] * 30 for at in range(64)], [[300 + at % 19] * 30 for at in range(5000)]

        def growth(prompts: list[list[int]]) -> list[int]:
            gc.collect()
            references, blocks = sys.getrefcount(prompts[40]), sys.getallocatedblocks()
            chunks = model.stream(prompts, max_new_tokens=3, **GREEDY)
            begun = sys.getallocatedblocks() - blocks
            next(chunks)
            gc.collect()
            running = sys.getallocatedblocks() - blocks
            more = sys.getrefcount(prompts[40]) - references
            assert more == 0
            chunks.close()
            return [begun, running]

        growth(few)
        for short, long in zip(growth(few), growth(many), strict=True):
            assert long - short < 1000, "less than an object for every fifth prompt"

    @pytest.mark.skipif(
        sys.platform != "linux", reason="RESIDENT MEMORY IS NOT TESTED: /proc/self/statm is Linux's"
    )
    def test_a_waiting_id_takes_four_bytes(self, ids_folder: Path) -> None:
        """A hundred thousand prompts of a hundred ids take 40 MB and a little, when they wait and when some run."""
        script = f"""
import fastdecode, resource
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
model = fastdecode.load({str(ids_folder)!r}, num_threads=1)
prompts = [[at % 48 for at in range(50)]] * 200_000
next(model.stream(prompts[:100], max_new_tokens=2, eos_token_id=None))
before = resident()
stream = model.stream(prompts, max_new_tokens=2, eos_token_id=None)
begun = resident() - before
next(stream)
print(begun, resident() - before)
"""
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True
        )
        for grown in map(int, result.stdout.split()):
            assert grown < 64 * 10**6, result.stdout

    def test_a_long_list_streams_in_waves(self, ids_folder: Path) -> None:
        """Its sequences begin as others end: not all advance together, each comes in order."""
        model = fastdecode.load(ids_folder, num_threads=1, max_rows=4)
        chunks = list(model.stream([[at] for at in range(20)], max_new_tokens=3, **GREEDY))
        first = [next(place for place, chunk in enumerate(chunks) if chunk.index == at) for at in range(20)]
        last = [
            next(place for place, chunk in enumerate(chunks) if chunk.index == at and chunk.finish_reason)
            for at in range(20)
        ]
        assert first == sorted(first)
        assert last[0] < first[4] < last[15], "the fifth begins when the first has ended"
        assert {at: ids for at, (_, ids) in streamed(chunks).items()} == {
            at: model.run([at], max_new_tokens=3, **GREEDY).token_ids for at in range(20)
        }

    def test_nothing_in_a_list_is_lost_when_it_is_left(self, ids_model: fastdecode.CausalLM) -> None:
        stream = ids_model.stream([[1]] * 500, max_new_tokens=20, **GREEDY)
        next(stream)
        assert ids_model.info()["cache_bytes_live"] > 0
        stream.close()
        assert ids_model.info()["cache_bytes_live"] == 0


class TestReaders:
    """Who reads, leads; who does not read, waits for nobody and holds nobody up."""

    @pytest.mark.parametrize("rows", [1, 3, 64])
    def test_streams_that_are_read_in_turn(self, folder: Path, rows: int) -> None:
        model = fastdecode.load(folder, num_threads=1, max_rows=rows)
        prompts = [[at + 1] * (at + 1) for at in range(6)]
        streams = [model.stream(prompt, max_new_tokens=40, **GREEDY) for prompt in prompts]
        found: list[list[int]] = [[] for _ in prompts]
        open_ones = dict(enumerate(streams))
        while open_ones:
            for at, stream in list(open_ones.items()):
                chunk = next(stream, None)
                if chunk is None:
                    del open_ones[at]
                else:
                    found[at] += chunk.token_ids
        assert found == [model.run(prompt, max_new_tokens=40, **GREEDY).token_ids for prompt in prompts]

    @pytest.mark.parametrize("rows", [1, 64])
    def test_an_unread_stream_runs_eight_tokens_ahead(self, folder: Path, rows: int) -> None:
        model = fastdecode.load(folder, num_threads=1, max_rows=rows)
        expected = model.run([5], max_new_tokens=50, **GREEDY).token_ids
        other = model.run([6], max_new_tokens=50, **GREEDY).token_ids
        unread = model._start([[5]], {"max_new_tokens": 50, **GREEDY})
        assert unread._generation.take() == [], "nothing is computed where nobody waits"
        for begin in (0, AHEAD):
            assert model.run([6], max_new_tokens=50, **GREEDY).token_ids == other
            events = unread._generation.take()
            assert events is not None
            ids = [event[1] for event in events]
            assert ids == expected[begin : begin + AHEAD]
        unread.cancel()

    def test_unread_streams_do_not_hold_up_a_request_that_fits_alone(self, folder: Path) -> None:
        """Caches of streams that are behind stay, and count for nothing where somebody else waits."""
        wide = fastdecode.load(folder, num_threads=1)
        model = fastdecode.load(folder, num_threads=1, max_rows=2, cache_bytes=4 * block_bytes(wide))
        prompts = [[at] * 20 for at in range(1, 8)]
        streams = [model.stream(prompt, max_new_tokens=30, **GREEDY) for prompt in prompts]
        firsts = [next(stream) for stream in streams]
        assert model.run([9] * 20, max_new_tokens=30, **GREEDY).token_ids == (
            wide.run([9] * 20, max_new_tokens=30, **GREEDY).token_ids
        )
        for prompt, first, stream in zip(prompts, firsts, streams, strict=True):
            rest = [token for chunk in stream for token in chunk.token_ids]
            assert first.token_ids + rest == wide.run(prompt, max_new_tokens=30, **GREEDY).token_ids

    def test_nothing_is_computed_where_nobody_waits(self, folder: Path) -> None:
        model = fastdecode.load(folder, num_threads=1)
        threads = thread_count()
        one, two = (model._start([[at]], {"max_new_tokens": 50, **GREEDY}) for at in (1, 2))
        assert one._generation.take() == two._generation.take() == []
        time.sleep(0.1)
        assert one._generation.take() == two._generation.take() == []
        assert model.info()["cache_bytes_live"] == 0
        read(one, 1)
        first = two._generation.take()
        time.sleep(0.1)
        assert (len(first or []), two._generation.take()) == (1, []), "one step for both, and no other"
        model.run([[3]] * 5, max_new_tokens=3, **GREEDY)
        assert thread_count() <= threads, "nobody's thread but the caller's"

    def test_two_threads_on_one_generation_take_turns(self, ids_model: fastdecode.CausalLM) -> None:
        """Every token comes to one of them, and both see the end."""
        for _ in range(5):
            expected = ids_model.run([1, 2], max_new_tokens=60, **GREEDY).token_ids
            generation = ids_model._start([[1, 2]], {"max_new_tokens": 60, **GREEDY})._generation

            def work(generation: Any = generation) -> list[Any]:
                mine: list[Any] = []
                while (events := generation.advance()) is not None:
                    mine += events
                return mine

            taken = all_at_once([work, work])
            assert sorted(event[1] for event in taken[0] + taken[1]) == sorted(expected)

    def test_advance_after_cancel(self, ids_model: fastdecode.CausalLM) -> None:
        decoding = ids_model._start([[1]], {"max_new_tokens": 50, **GREEDY})
        decoding.advance()
        decoding.cancel()
        decoding.cancel()
        for _ in range(2):
            for verb in (decoding.advance, decoding.take):
                with pytest.raises(errors.CancelledError):
                    verb()
        assert ids_model.info()["cache_bytes_live"] == 0
        before_it_begins = ids_model._start([[1]], {"max_new_tokens": 50, **GREEDY})
        before_it_begins.cancel()
        with pytest.raises(errors.CancelledError):
            before_it_begins.advance()

    def test_cancelling_wakes_who_waits(self, folder: Path) -> None:
        """One thread leads, the other one waits for it: both calls are told, and a third one is not."""
        model = fastdecode.load(folder, num_threads=1)
        expected = known(model.run([3], max_new_tokens=60, **GREEDY))
        for _ in range(10):
            running = [model._start([[at]], {"max_new_tokens": 60, **GREEDY}) for at in (1, 2)]

            def work(decoding: Decoding) -> str:
                try:
                    while decoding.advance() is not None:
                        pass
                except errors.CancelledError:
                    return "cancelled"
                return "done"

            def cancel(running: list[Decoding] = running) -> None:
                time.sleep(0.001)
                for decoding in running:
                    decoding.cancel()

            jobs = [lambda d=decoding: work(d) for decoding in running]
            found = all_at_once([*jobs, cancel, lambda: known(model.run([3], max_new_tokens=60, **GREEDY))])
            assert set(found[:2]) <= {"cancelled", "done"}
            assert found[3] == expected


class TestStopStrings:
    def test_what_is_behind_one_is_not_counted(self, model: fastdecode.CausalLM) -> None:
        """The engine has run ahead, since others were read meanwhile."""
        text = model.generate([5, 6], max_new_tokens=50, **GREEDY)
        middle = next(at for at in range(3, len(text) - 2) if "\ufffd" not in text[at : at + 2])
        options: Any = {"max_new_tokens": 50, **GREEDY, "stop": text[middle : middle + 2], "logprobs": 0}
        alone = model.run([5, 6], **options)
        assert alone.finish_reason == "stop"
        assert alone.usage.completion_tokens == len(alone.token_ids) == len(alone.logprobs or []) < 50
        slow = model.stream([5, 6], **options)
        found = [next(slow)]
        while found[-1].finish_reason is None:
            model.run([7], max_new_tokens=12, **GREEDY)
            found += [chunk for chunk in [next(slow, None)] if chunk is not None]
        assert list(slow) == []
        assert [token for chunk in found for token in chunk.token_ids] == alone.token_ids
        assert "".join(map(str, found)) == alone.text
        for outputs in all_at_once([lambda: model.run([[5, 6], [7], [5, 6]], **options)] * 4):
            assert known(outputs[0]) == known(outputs[2]) == known(alone)

    def test_finish_ends_a_row_alone(self, ids_model: fastdecode.CausalLM) -> None:
        decoding = ids_model._start([[1], [2]], {"max_new_tokens": 30, **GREEDY})
        other = ids_model._start([[3]], {"max_new_tokens": 30, **GREEDY})
        generation = decoding._generation
        assert generation.take() == []
        read(other, 3)
        events = generation.take() or []
        assert len(events) == 6
        read(other, 3)
        generation.finish(0)
        events = []
        while (more := generation.advance()) is not None:
            events += more
        assert {event[0] for event in events} == {1}, "what row 0 was ahead is dropped"
        expected = ids_model.run([2], max_new_tokens=30, **GREEDY).token_ids
        assert [event[1] for event in events] == expected[3:]
        with pytest.raises(errors.OptionError, match="row"):
            generation.finish(2)
        beams = ids_model._start([[1]], {"max_new_tokens": 3, "num_beams": 2, **GREEDY})
        with pytest.raises(errors.OptionError, match="num_beams"):
            beams._generation.finish(0)
        generation.finish(0)


@pytest.fixture(scope="module")
def small(folder: Path) -> Any:
    """A model with room for 32 tokens."""
    return fastdecode.load(folder, num_threads=1, cache_bytes=2 * block_bytes(fastdecode.load(folder)))


@pytest.fixture(scope="module")
def small_t5(t5_folder: Path) -> Any:
    return fastdecode.load(t5_folder, num_threads=1, cache_bytes=2 * block_bytes(fastdecode.load(t5_folder)))


class TestBudget:
    """What exceeds an empty cache is refused before any work, by the name of the option and with the most that fits."""

    @pytest.mark.parametrize(
        ("prompt", "options", "named", "most"),
        [
            ([1] * 10, {"max_new_tokens": 23}, "max_new_tokens", "at most 22"),
            ([1] * 40, {"max_new_tokens": 1}, "prompt 1", "fewer than 32 tokens"),
            ([1] * 9, {"max_new_tokens": 7, "num_beams": 3}, "num_beams", "at most 2"),
        ],
    )
    def test_of_a_causal_model(
        self, small: Any, prompt: list[int], options: dict[str, Any], named: str, most: str
    ) -> None:
        for verb in (small.run, small.stream) if "num_beams" not in options else (small.run,):
            with pytest.raises(errors.OptionError) as caught:
                verb([[1], prompt], **options, **GREEDY)
            message = str(caught.value)
            assert message.startswith(f"{named}: "), message
            assert most in message, message
            assert f"cache_bytes={small.info()['cache_bytes']}" in message
            assert small.info()["cache_bytes_live"] == 0

    def test_of_an_encoder_decoder(self, small_t5: Any) -> None:
        with pytest.raises(errors.OptionError, match=r"^source: .*at most 32 tokens"):
            small_t5.run([[1], [1] * 33], max_new_tokens=1, **GREEDY)
        with pytest.raises(errors.OptionError, match=r"^max_new_tokens: .*at most 15"):
            small_t5.run([1] * 16, max_new_tokens=16, **GREEDY)
        with pytest.raises(errors.OptionError, match=r"^num_beams: .*at most 1"):
            small_t5.run([1] * 16, max_new_tokens=3, num_beams=2, **GREEDY)
        memory = small_t5.encode([1] * 100)
        assert len(small_t5.run(memory=memory, max_new_tokens=31, **GREEDY).token_ids) == 31, (
            "a memory has been read already, and is nobody's reservation"
        )

    def test_what_just_fits_runs(self, small: Any, small_t5: Any) -> None:
        assert len(small.run([1] * 10, max_new_tokens=22, **GREEDY).token_ids) == 22
        assert len(small.run([[1] * 10] * 30, max_new_tokens=22, **GREEDY)) == 30
        assert len(small.run([1] * 9, max_new_tokens=7, num_beams=2, **GREEDY).token_ids) == 7
        assert len(small_t5.run([[1] * 16] * 9, max_new_tokens=15, **GREEDY)) == 9

    def test_states_are_never_refused_and_requests_go_on_beside_them(self, small: Any) -> None:
        states = [small.prefill([at] * 40) for at in range(1, 6)]
        assert small.info()["cache_bytes_live"] > small.info()["cache_bytes"]
        expected = [known(small.run([at], max_new_tokens=5, **GREEDY)) for at in range(8)]
        assert [known(out) for out in small.run([[at] for at in range(8)], max_new_tokens=5, **GREEDY)] == (
            expected
        )
        assert [state.fork().step(3).argmax() for state in states] == [
            small.logits([at] * 40 + [3])[-1].argmax() for at in range(1, 6)
        ]

    def test_what_requests_hold_stays_within_it(self, folder: Path) -> None:
        wide = fastdecode.load(folder, num_threads=1)
        model = fastdecode.load(folder, num_threads=1, cache_bytes=5 * block_bytes(wide))
        most = 0
        for _ in model.stream([[at] * 10 for at in range(1, 30)], max_new_tokens=12, **GREEDY):
            most = max(most, model.info()["cache_bytes_live"])
        assert 3 * block_bytes(wide) < most <= 5 * block_bytes(wide)


def test_scores_that_leave_no_choice_end_their_call_alone() -> None:
    """A token of NaN makes the scores of whoever has it in its prompt NaN."""
    config = FAMILIES["gpt2"].tiny_config(vocab_size=48)
    weights = FAMILIES["gpt2"].tiny_weights(config)
    name = next(name for name in weights if name.endswith("wte.weight"))
    sound, spoilt = weights, dict(weights)
    # The head is tied, so the column of token 47 is NaN for all: it is given a head of its own.
    config["tie_word_embeddings"] = False
    head = {"lm_head.weight": weights[name].copy()}
    spoilt[name] = weights[name].copy()
    spoilt[name][47] = np.nan
    model = fastdecode.CausalLM.from_tensors(config, {**spoilt, **head}, num_threads=2)
    whole = fastdecode.CausalLM.from_tensors(config, {**sound, **head}, num_threads=2)
    options: Any = {"max_new_tokens": 30, **GREEDY}
    expected = [known(output) for output in whole.run([[1], [2, 3]], **options)]

    def fails(prompts: list[list[int]]) -> str:
        try:
            model.run(prompts, **options)
        except errors.ScoresError as error:
            return str(error)
        return "nothing"

    for _ in range(5):
        found = all_at_once(
            [
                lambda: [known(output) for output in model.run([[1], [2, 3]], **options)],
                lambda: fails([[47]]),
                lambda: fails([[4], [5], [6, 47]]),
                lambda: [known(model.run([1], **options)), known(model.run([2, 3], **options))],
            ]
        )
        assert found[0] == found[3] == expected
        assert found[1].startswith("row 0: expected finite scores"), found[1]
        assert found[2].startswith("row 2: expected finite scores"), "its own number within its call"
    stream = model.stream([[1], [47]], **options)
    with pytest.raises(errors.ScoresError):
        list(stream)
    assert model.info()["cache_bytes_live"] == 0


class TestChunks:
    """What reads much holds the tokens of others up by one chunk at a time."""

    def test_a_long_prompt_is_read_between_tokens_of_others(self, tmp_path: Path) -> None:
        model = fastdecode.load(tiny.write_folder(tmp_path / "m", n_positions=4096), num_threads=2)
        expected = model.run([[9] * 4000, [8] * 1500], max_new_tokens=3, **GREEDY)
        reader = model._start([[1]], {"max_new_tokens": 4000, **GREEDY})
        read(reader, 1)
        long, shorter = (
            model._start([[token] * length], {"max_new_tokens": 3, **GREEDY})
            for token, length in ((9, 4000), (8, 1500))
        )
        when: dict[str, int] = {}
        tokens: dict[str, list[int]] = {"long": [], "shorter": []}
        for step in range(40):
            for name, decoding in (("long", long), ("shorter", shorter)):
                for event in decoding._generation.take() or []:
                    when.setdefault(name, step)
                    tokens[name].append(event[1])
            assert reader.advance(), "every step has a token for the one who reads"
        assert when["long"] >= 5500 // CHUNK, "no step reads more than a chunk of both together"
        assert when["shorter"] < when["long"], "the chunk is shared"
        assert [tokens["long"], tokens["shorter"]] == [output.token_ids for output in expected]

    def test_sources_are_read_between_tokens_of_others(self, t5: Pair) -> None:
        """One larger than a chunk goes alone, and tokens of others come in between."""
        model = t5.wide
        sources = [[at] * 600 for at in range(3, 8)] + [[9] * 100] * 3
        expected = [known(output) for output in model.run(sources, max_new_tokens=3, **GREEDY)]
        reader = model._start([*model._items([5], None, None)[0]], {"max_new_tokens": 200, **GREEDY})
        read(reader, 1)
        with ThreadPoolExecutor(1) as pool:
            others = pool.submit(lambda: model.run(sources, max_new_tokens=3, **GREEDY))
            while not others.done() and (chunks := reader.advance()) is not None:
                assert len(chunks) <= AHEAD
            reader.cancel()
            assert [known(output) for output in others.result()] == expected

    def test_no_two_steps_in_a_row_read_sources_where_somebody_waits_for_tokens(self, t5: Pair) -> None:
        model = t5.wide
        reader = model._start([*model._items([5], None, None)[0]], {"max_new_tokens": 200, **GREEDY})
        read(reader, 1)
        sources = [[at] * 600 for at in range(3, 9)]
        other = model._start([*model._items(sources, None, None)[0]], {"max_new_tokens": 2, **GREEDY})
        empty, found = [False], 0
        while found < len(sources):
            found += len([event for event in other._generation.take() or [] if event[2] is not None])
            empty.append(not reader.advance())
            assert not (empty[-1] and empty[-2]), "a token at least with every second step"
            assert len(empty) < 60
        assert sum(empty) >= len(sources), "each source has a step of its own"
        reader.cancel()


def test_what_waits_longest_leads_next(ids_model: fastdecode.CausalLM) -> None:
    """Many threads with calls of very different lengths all end, and none of them only after all others."""
    ends: list[tuple[int, float]] = []

    def job(length: int) -> Callable[[], None]:
        def run() -> None:
            assert len(ids_model.run([length % 48], max_new_tokens=length, **GREEDY).token_ids) == length
            ends.append((length, time.monotonic()))

        return run

    all_at_once([job(length) for length in [60] * 8 + [1] * 8])
    assert [length for length, _ in ends].index(1) < 8, "a short one need not wait for the long ones"
    assert len(ends) == 16
