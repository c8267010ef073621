"""Readers of one engine: streams that are read in turn or by nobody, threads that wait, what is cancelled."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
from engine_calls import AHEAD, GREEDY, all_at_once, block_bytes, known, read, thread_count
from fastdecode import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastdecode.decoding import Decoding


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
