"""One call of generate, run or stream: steps of the engine in, pieces of text and finished outputs out.

The only loop is in the engine; this file turns its new ids into text, cuts at stop strings and keeps what an
`Output` reports. Nothing here knows prompts as text, folders or defaults.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .detokenizer import StopText
from .errors import OptionError
from .results import Chunk, Output, Timings, TokenLogprob, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from . import _core
    from .model import Request
    from .options import Options
    from .results import FinishReason
    from .tokenizer import Tokenizer


class Decoding:
    """The sequences of one call on their way.

    Args:
        core: The native model.
        requests: What each prompt begins with, at least one id each.
        options: Resolved options of the call.
        tokenizer: Makes the text; None for ids alone.
        load_seconds: How long the model took to load, for the outputs' timings.

    Raises:
        ContextLengthError: A prompt and its new tokens are more than the model's context holds.
        OptionError: An id is beyond the vocabulary, or `max_length` leaves no room.
    """

    def __init__(
        self,
        core: _core.Model,
        requests: Sequence[Request],
        options: Options,
        tokenizer: Tokenizer | None,
        load_seconds: float,
    ) -> None:
        self._began = time.perf_counter()
        self._load_seconds = load_seconds
        self._beams = options.num_beams
        sources = [request.source for request in requests if request.source is not None]
        self._generation = core.generate(
            [request.prompt for request in requests],
            sources if core.has_encoder else None,
            limit=options.limit,
            min_new_tokens=options.min_new_tokens,
            min_length=options.min_length,
            do_sample=options.do_sample,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            seed=options.seed,
            num_return_sequences=options.num_return_sequences,
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            early_stopping=options.early_stopping,
            repetition_penalty=options.repetition_penalty,
            encoder_repetition_penalty=options.encoder_repetition_penalty,
            no_repeat_ngram_size=options.no_repeat_ngram_size,
            encoder_no_repeat_ngram_size=options.encoder_no_repeat_ngram_size,
            eos_token_id=options.eos_token_id,
            stop_token_ids=options.stop_token_ids,
            logprobs=options.logprobs,
        )
        # After the native side has looked at how many there are.
        self._rows = [
            _Row(index, len(request.prompt) + len(request.source or ()), options, tokenizer)
            for index, request in enumerate(
                request for request in requests for _ in range(options.num_return_sequences)
            )
        ]

    def advance(self) -> list[Chunk] | None:
        """Runs one step, which may give no text yet; None when all sequences are finished."""
        events = self._generation.advance()
        if events is None:
            return None
        now = time.perf_counter()
        first = now
        if events and self._beams > 1:  # a search gives out its tokens only at its end
            first = min(now, self._began + self._generation.prefill_seconds)
        chunks = []
        for index, token, reason, logprob, top, score in events:
            row = self._rows[index]
            if logprob is not None:
                row.logprobs.append(TokenLogprob(token, logprob, top or []))
            row.score = score
            chunk = row.push(token, reason, (first, now))
            if chunk is not None:
                chunks.append(chunk)
                if chunk.finish_reason is not None and reason is None:
                    self._generation.finish(index)
        return chunks

    def cancel(self) -> None:
        """Stops a step that is running in another thread, and every later one."""
        self._generation.cancel()

    def refuse_beams(self) -> None:
        """Refuses to give out pieces of a beam search.

        Raises:
            OptionError: There are beams.
        """
        if self._beams > 1:
            expected = "1 for a stream (which beam wins is known only at the end; generate and run search with beams)"
            raise OptionError(
                f"num_beams: expected {expected}, got {self._beams}",
                option="num_beams",
                expected=expected,
                got=str(self._beams),
            )

    def stream(self) -> Generator[Chunk]:
        """All pieces, for those who asked for a stream.

        Raises:
            OptionError: There are beams.
        """
        self.refuse_beams()
        return self._chunks()

    def _chunks(self) -> Generator[Chunk]:
        """All pieces, step by step; closing it, or an exception in it, stops the work."""
        try:
            while (step := self.advance()) is not None:
                yield from step
        finally:
            self.cancel()

    def outputs(self) -> list[Output]:
        """Runs to the end and returns every sequence, prompt by prompt."""
        for _ in self._chunks():
            pass
        return [row.output(self._began, self._load_seconds) for row in self._rows]


class _Row:
    """One sequence: its ids, its text so far and what is being held back."""

    def __init__(self, index: int, prompt_tokens: int, options: Options, tokenizer: Tokenizer | None) -> None:
        self._index = index
        self._prompt_tokens = prompt_tokens
        self._want_logprobs = options.logprobs is not None
        self.logprobs: list[TokenLogprob] = []
        self.score: float | None = None
        self._detokenizer = None
        if tokenizer is not None:
            self._detokenizer = tokenizer.detokenizer(skip_special_tokens=options.skip_special_tokens)
        self._stop = StopText(options.stop)
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._given = 0  # ids that are in a chunk already
        self._reason: FinishReason | None = None
        self._first = self._last = 0.0

    def push(self, token: int, reason: FinishReason | None, times: tuple[float, float]) -> Chunk | None:
        """Takes the next id; a chunk when it completes a piece of text or ends the sequence.

        Args:
            token: The id.
            reason: Why it is the last one, or None.
            times: When the sequence began, if this is its first id, and now.
        """
        if not self._ids:
            self._first = times[0]
        self._last = times[1]
        self._ids.append(token)
        text = None if self._detokenizer is None else self._text(token, last=reason is not None)
        self._reason = "stop" if self._stop.stopped else reason
        if text == "" and self._reason is None:
            return None
        ids = self._ids[self._given :]
        self._given = len(self._ids)
        if text:
            self._texts.append(text)
        return Chunk(text, ids, self._index, self._reason)

    def _text(self, token: int, *, last: bool) -> str:
        assert self._detokenizer is not None
        piece = self._detokenizer.push([token])
        if not last:
            return self._stop.push(piece)
        text = self._stop.push(piece + self._detokenizer.finish())
        return text + self._stop.finish()

    def output(self, began: float, load_seconds: float) -> Output:
        """The finished sequence."""
        assert self._reason is not None
        new = len(self._ids)
        decode = self._last - self._first
        return Output(
            text=None if self._detokenizer is None else "".join(self._texts),
            token_ids=self._ids,
            finish_reason=self._reason,
            logprobs=self.logprobs if self._want_logprobs else None,
            score=self.score,
            usage=Usage(self._prompt_tokens, new),
            timings=Timings(
                load_seconds, self._first - began, decode, (new - 1) / decode if decode > 0 else 0.0
            ),
        )


async def astream(start: Callable[[], Decoding]) -> AsyncGenerator[Chunk]:
    """All pieces, every step in the event loop's executor.

    Args:
        start: Makes the decoding, in the executor too.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    decoding = await loop.run_in_executor(None, start)
    decoding.refuse_beams()

    def advance() -> asyncio.Future[list[Chunk] | None]:
        step = loop.run_in_executor(None, decoding.advance)
        # Seen whatever becomes of the task that waits, or asyncio would report the exception as forgotten.
        step.add_done_callback(lambda done: done.cancelled() or done.exception())
        return step

    step = advance()
    try:
        while True:
            # `wait` leaves the step alone when the task is cancelled; the flag below ends it.
            await asyncio.wait((step,))
            chunks = step.result()
            if chunks is None:
                return
            for chunk in chunks:
                yield chunk
            step = advance()
    finally:
        decoding.cancel()
        # The step that is running is waited for, unless the task is cancelled again.
        if not step.done():
            await asyncio.wait((step,))
