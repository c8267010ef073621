"""Streams: pieces that join to the whole, in order, and nothing left running when they are left."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
from fastdecode import errors
from fastdecode.decoding import Decoding
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import tokenizers

OPTIONS: Any = {"max_new_tokens": 30, "eos_token_id": None}


def joined(chunks: Iterable[fastdecode.Chunk]) -> dict[int, tuple[str, list[int], str | None]]:
    """Text, ids and finish reason of each sequence; checks what holds for every stream."""
    texts: dict[int, list[str]] = {}
    ids: dict[int, list[int]] = {}
    ended: dict[int, str] = {}
    for chunk in chunks:
        assert chunk.index not in ended, "a chunk after the last one"
        assert chunk.token_ids
        assert str(chunk) == (chunk.text or "")
        assert chunk.text or chunk.text is None or chunk.finish_reason is not None, "an empty piece"
        texts.setdefault(chunk.index, []).append(str(chunk))
        ids.setdefault(chunk.index, []).extend(chunk.token_ids)
        if chunk.finish_reason is not None:
            ended[chunk.index] = chunk.finish_reason
    assert ended.keys() == ids.keys()
    return {index: ("".join(texts[index]), ids[index], ended[index]) for index in ids}


def as_tuples(outputs: list[fastdecode.Output]) -> dict[int, tuple[str, list[int], str | None]]:
    return {index: (str(out), out.token_ids, out.finish_reason) for index, out in enumerate(outputs)}


@settings(max_examples=60)
@given(
    prompts=st.lists(st.lists(st.integers(0, 319), min_size=1, max_size=6), min_size=1, max_size=3),
    stop=st.lists(st.text("SさI 'a\ufffd", min_size=1, max_size=3), max_size=2),
    seed=st.integers(0, 100),
    count=st.integers(1, 2),
    skip=st.booleans(),
)
def test_a_stream_tells_what_run_tells(
    model: fastdecode.CausalLM,
    prompts: list[list[int]],
    stop: list[str],
    seed: int,
    count: int,
    *,
    skip: bool,
) -> None:
    options: Any = {
        "max_new_tokens": 15,
        "do_sample": True,
        "temperature": 2.0,
        "seed": seed,
        "stop": stop,
        "num_return_sequences": count,
        "skip_special_tokens": skip,
    }
    assert joined(model.stream(prompts, **options)) == as_tuples(model.run(prompts, **options))


def test_text_is_that_of_all_ids(model: fastdecode.CausalLM) -> None:
    assert model.tokenizer is not None
    for seed in range(20):
        chunks = list(model.stream([5], do_sample=True, temperature=3.0, top_k=0, seed=seed, **OPTIONS))
        ids = [token for chunk in chunks for token in chunk.token_ids]
        assert "".join(map(str, chunks)) == model.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_list_is_interleaved(model: fastdecode.CausalLM, ids_model: fastdecode.CausalLM) -> None:
    assert [
        chunk.index for chunk in ids_model.stream([[1], [2], [3]], max_new_tokens=2, eos_token_id=None)
    ] == [
        *[0, 1, 2],
        *[0, 1, 2],
    ]
    mixed: list[Any] = ["a", [5]]
    assert set(joined(model.stream(mixed, **OPTIONS))) == {0, 1}


def test_sequences_end_on_their_own(ids_model: fastdecode.CausalLM) -> None:
    prompts = [[1, 2], [3]]
    plain = ids_model.run(prompts, max_new_tokens=10, eos_token_id=None)
    ids = plain[0].token_ids
    last = max(ids, key=ids.index)
    streamed = joined(ids_model.stream(prompts, max_new_tokens=10, eos_token_id=last))
    assert streamed == as_tuples(ids_model.run(prompts, max_new_tokens=10, eos_token_id=last))
    assert streamed[0][1:] == (ids[: ids.index(last) + 1], "eos")


def test_what_may_begin_a_stop_string_is_held_back(model: fastdecode.CausalLM) -> None:
    text = model.generate("Once upon a time", **OPTIONS)
    middle = next(at for at in range(8, len(text) - 3) if "\ufffd" not in text[at : at + 3])
    never = text[middle : middle + 3] + "\u2603"  # begins as the text does, and ends otherwise
    pieces = [str(chunk) for chunk in model.stream("Once upon a time", stop=never, **OPTIONS)]
    assert "".join(pieces) == text
    stop = text[middle : middle + 3]
    seen = ""
    for chunk in model.stream("Once upon a time", stop=stop, **OPTIONS):
        seen += str(chunk)
        assert stop not in seen
    assert seen == text[: text.index(stop)]


def test_arguments_are_checked_before_the_first_piece(model: fastdecode.CausalLM) -> None:
    with pytest.raises(errors.OptionError):
        model.stream("a", max_new_tokens=0)
    with pytest.raises(TypeError, match="did you mean"):
        model.stream("a", max_tokens=3)  # type: ignore[call-arg]


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[Decoding]:
    """The decodings that were told to stop."""
    seen: list[Decoding] = []
    cancel = Decoding.cancel

    def note(self: Decoding) -> None:
        seen.append(self)
        cancel(self)

    monkeypatch.setattr(Decoding, "cancel", note)
    return seen


def test_leaving_the_loop_stops_the_work(model: fastdecode.CausalLM, cancelled: list[Decoding]) -> None:
    for _ in model.stream("Once", **OPTIONS):
        break
    gc.collect()
    assert len(cancelled) == 1
    with pytest.raises(errors.CancelledError):
        cancelled[0].advance()
    stream = model.stream("Once", **OPTIONS)
    next(stream)
    stream.close()
    assert len(cancelled) == 2
    with pytest.raises(ZeroDivisionError):
        sum(1 / 0 for _ in model.stream("Once", **OPTIONS))
    assert len(cancelled) == 3


def test_another_thread_can_stop_a_step(tmp_path: Path) -> None:
    """A step of a thousand tokens ends early, with an error of its own, and the model remains usable."""
    model = fastdecode.load(
        tiny.write_folder(tmp_path / "m", n_positions=4096, n_embd=192, n_layer=4), num_threads=1
    )
    decoding = model._start([[1] * 4000], {"max_new_tokens": 50})
    threading.Timer(0.05, decoding.cancel).start()
    began = time.perf_counter()
    with pytest.raises(errors.CancelledError):
        decoding.outputs()
    assert time.perf_counter() - began < 30
    assert len(model.run([1], max_new_tokens=3).token_ids) == 3


class TestAsync:
    async def pieces(self, model: fastdecode.CausalLM, prompt: Any, **options: Any) -> list[fastdecode.Chunk]:
        return [chunk async for chunk in model.astream(prompt, **options)]

    def test_it_equals_the_stream(self, model: fastdecode.CausalLM) -> None:
        prompts: list[Any] = ["Once upon", [[5], "a"], []]
        for prompt in prompts:
            chunks = asyncio.run(self.pieces(model, prompt, **OPTIONS))
            assert chunks == list(model.stream(prompt, **OPTIONS))

    def test_several_at_once(self, model: fastdecode.CausalLM) -> None:
        async def main() -> list[list[fastdecode.Chunk]]:
            return await asyncio.gather(*(self.pieces(model, [seed], **OPTIONS) for seed in range(6)))

        for seed, chunks in enumerate(asyncio.run(main())):
            assert chunks == list(model.stream([seed], **OPTIONS))

    def test_errors_come_with_the_first_item(self, model: fastdecode.CausalLM) -> None:
        with pytest.raises(errors.OptionError):
            asyncio.run(self.pieces(model, "a", max_new_tokens=0))
        with pytest.raises(TypeError):
            asyncio.run(self.pieces(model, "a", bogus=1))

    def test_the_loop_is_not_blocked(
        self, model: fastdecode.CausalLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the thread that leads waits for the loop, the loop runs."""
        take = Decoding.take

        async def main() -> int:
            loop = asyncio.get_running_loop()
            beats = 0

            def beat() -> None:
                nonlocal beats
                beats += 1

            def slow(self: Decoding) -> list[fastdecode.Chunk] | None:
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(timeout=60)
                loop.call_soon_threadsafe(beat)
                return take(self)

            monkeypatch.setattr(Decoding, "take", slow)
            await self.pieces(model, "Once", max_new_tokens=5, eos_token_id=None)
            return beats

        assert asyncio.run(main()) >= 5

    def test_cancelling_stops_the_work(self, model: fastdecode.CausalLM, cancelled: list[Decoding]) -> None:
        async def main() -> None:
            started = asyncio.Event()

            async def consume() -> None:
                async for _ in model.astream("Once", max_new_tokens=60, eos_token_id=None):
                    started.set()

            task = asyncio.create_task(consume())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert len(cancelled) == 1
        with pytest.raises(errors.CancelledError):
            cancelled[0].advance()

    def test_cancelling_twice_leaves_no_unseen_exception(
        self, model: fastdecode.CausalLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both come while the thread that leads is busy with the stream, which then fails unwatched."""
        take, go = Decoding.take, threading.Event()
        reported: list[object] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: reported.append(context))
            running, failed = asyncio.Event(), asyncio.Event()

            def slow(self: Decoding) -> list[fastdecode.Chunk] | None:
                loop.call_soon_threadsafe(running.set)
                assert go.wait(60)
                try:
                    return take(self)
                except errors.CancelledError:
                    loop.call_soon_threadsafe(failed.set)
                    raise

            monkeypatch.setattr(Decoding, "take", slow)
            task = asyncio.create_task(self.pieces(model, "Once", max_new_tokens=60, eos_token_id=None))
            await running.wait()
            for _ in range(2):
                task.cancel()
                await asyncio.sleep(0.01)  # until it waits again
            with pytest.raises(asyncio.CancelledError):
                await task
            go.set()
            await failed.wait()
            del task

        asyncio.run(main())
        gc.collect()
        assert reported == []

    def test_leaving_the_loop_stops_the_work(
        self, model: fastdecode.CausalLM, cancelled: list[Decoding]
    ) -> None:
        async def main() -> None:
            stream = model.astream("Once", **OPTIONS)
            async for _ in stream:
                break
            await stream.aclose()

        asyncio.run(main())
        assert len(cancelled) == 1


def test_stop_strings_across_sequences(model: fastdecode.CausalLM, byte_level: tokenizers.Tokenizer) -> None:
    assert byte_level.get_vocab_size() == 320
    stop = ["S", "さ", "a", "e"]
    outputs = model.run([[seed] for seed in range(1, 9)], stop=stop, **OPTIONS)
    for output in outputs:
        assert output.text is not None
        assert not any(word in output.text for word in stop)
    assert joined(model.stream([[seed] for seed in range(1, 9)], stop=stop, **OPTIONS)) == as_tuples(outputs)
