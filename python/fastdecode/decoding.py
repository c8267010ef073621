"""One call of generate, run or stream: steps of the engine in, pieces of text and finished outputs out.

The only loop is in the engine; this file turns its new ids into text, cuts at stop strings and keeps what an
`Output` reports. Nothing here knows prompts as text, folders or defaults.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .detokenizer import after_prompt
from .errors import OptionError
from .results import Chunk, Output, Timings, TokenLogprob, Usage
from .stops import StopPieces, StopText

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from . import _core
    from .detokenizer import Detokenizer
    from .options import Options
    from .prefix import Prefix
    from .results import FinishReason
    from .tokenizer import Tokenizer


class Decoding:
    """The sequences of one call on their way.

    A sequence that waits for its turn is nothing here: what is known of it comes with its first token, and goes into
    its `Output` with the last one.

    Args:
        core: The native model.
        prompts: What each prompt begins with, at least one id each.
        options: Resolved options of the call.
        tokenizer: Makes the text; None for ids alone.
        load_seconds: How long the model took to load, for the outputs' timings.
        keep: Whether what its only sequence has in the cache at its end is kept, see `kept`; of several ones, and of
            beams, nothing is.

    Raises:
        ContextLengthError: A prompt and its new tokens are more than the model's context holds.
        OptionError: An id is beyond the vocabulary, `max_length` leaves no room, or a sequence alone would take more
            than `cache_bytes`.
    """

    def __init__(
        self,
        core: _core.Model,
        prompts: _core.Prompts,
        options: Options,
        tokenizer: Tokenizer | None,
        load_seconds: float,
        *,
        keep: bool = False,
    ) -> None:
        self._began = time.perf_counter()
        self._load_seconds = load_seconds
        self._options = options
        self._count = len(prompts) * options.num_return_sequences
        self._keeps = keep and self._count == 1 and options.num_beams == 1
        self._left: Prefix | None = None
        self._writer = (
            None if tokenizer is None else _Writer(tokenizer, options, has_encoder=core.has_encoder)
        )
        # Sequences that have begun and are not finished.
        self._rows: dict[int, _Row] = {}
        self._generation = core.generate(
            prompts,
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
            keep=self._keeps,
            watched=bool(options.stop or options.stop_strings),
        )

    def advance(self) -> list[Chunk] | None:
        """Waits for a step, or leads one; it may give no text yet. None when all sequences are finished."""
        return self._chunks_of(self._generation.advance())

    def take(self) -> list[Chunk] | None:
        """As `advance`, but without waiting: what steps that others led have given."""
        return self._chunks_of(self._generation.take())

    def _chunks_of(
        self, events: list[_core._Event] | None, outputs: list[Any] | None = None
    ) -> list[Chunk] | None:
        """What new tokens come to: pieces of text or, where there is a list for them, the outputs that are finished."""
        if events is None:
            return None
        now = time.perf_counter()
        chunks: list[Chunk] = []
        ended: set[int] = set()  # sequences that have met a stop string; the engine may be some tokens ahead
        for index, token, reason, logprob, top, score, first_seconds, cached in events:
            if index in ended:
                continue
            row = self._rows.get(index)
            if row is None:
                # A search gives out its tokens only at its end.
                first = now if first_seconds is None else min(now, self._began + first_seconds)
                row = self._rows[index] = self._begin(index, first, cached or 0)
            if logprob is not None:
                row.logprobs.append(TokenLogprob(token, logprob, top or []))
            row.score = score
            chunk = row.push(token, reason, now)
            if chunk is not None and outputs is None:
                chunks.append(chunk)
            if row.reason is None:
                continue
            ended.add(index)
            del self._rows[index]
            if reason is None:
                self._generation.finish(index)
            if outputs is not None:
                outputs[index] = row.output(self._began, self._load_seconds)
        return chunks

    def _begin(self, index: int, first: float, cached_tokens: int) -> _Row:
        """A sequence that has its first token."""

        def prompt_end(most: int) -> list[int]:
            return self._generation.prompt_end(index, most)

        text = None if self._writer is None else _Text(self._writer, prompt_end)
        prompt_tokens = self._generation.prompt_tokens(index)
        usage = Usage(prompt_tokens, 0, cached_tokens)
        return _Row(index, usage, text, first, want_logprobs=self._options.logprobs is not None)

    def cancel(self) -> None:
        """Stops a step that is running in another thread, and every later one."""
        self._generation.cancel()

    def refuse_beams(self) -> None:
        """Refuses to give out pieces of a beam search.

        Raises:
            OptionError: There are beams.
        """
        if (beams := self._options.num_beams) > 1:
            expected = "1 for a stream (which beam wins is known only at the end; generate and run search with beams)"
            raise OptionError(
                f"num_beams: expected {expected}, got {beams}",
                option="num_beams",
                expected=expected,
                got=str(beams),
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
            self._end()

    def outputs(self) -> list[Output]:
        """Runs to the end and returns every sequence, prompt by prompt."""
        outputs: list[Any] = [None] * self._count
        try:
            while self._chunks_of(self._generation.advance(), outputs) is not None:
                pass
        finally:
            self._end()
        return outputs

    def _end(self) -> None:
        """Nobody reads on: the work stops, and what is to be kept is taken."""
        try:
            self.kept()
        finally:
            self.cancel()

    def kept(self) -> Prefix | None:
        """Ends the call, and gives what its only sequence has in the cache: its prompt, and the new ids that were read.

        For whoever goes on behind it (`Chat`): a call that is started with `_start(..., reuse=prefix)` computes
        only what its prompt does not have in common with it. It is a `Prefix` of token ids, and its owner closes
        it. The ids may be some more than those that were given out, as the engine runs ahead of a stream's reader,
        and lack the last new one, which was never fed back. None without `keep`, where nothing was read, after an
        error that ended the call, and in a forked child that has not gone on with the call.
        """
        if self._keeps and self._left is None:
            from .prefix import Prefix

            core = self._generation.kept()
            self._left = None if core is None else Prefix(core, core.tokens)
        return self._left


class _Writer:
    """What makes the texts of a call.

    Args:
        tokenizer: Makes the text.
        options: Resolved options of the call.
        has_encoder: Whether every prompt begins with the model's start token.
    """

    def __init__(self, tokenizer: Tokenizer, options: Options, *, has_encoder: bool) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.pieces = StopPieces(tokenizer, options.stop_strings) if options.stop_strings else None
        self._has_encoder = has_encoder

    def detokenizer(
        self, prompt_end: Callable[[int], list[int]], *, skip_special_tokens: bool
    ) -> Detokenizer:
        """A detokenizer for new ids: behind a start token alone, a text begins as any text does."""
        start = prompt_end(2)
        if len(start) == 1 and (self._has_encoder or self.tokenizer.is_special(start[0])):
            return self.tokenizer.detokenizer(skip_special_tokens=skip_special_tokens)
        return after_prompt(self.tokenizer, prompt_end, skip_special_tokens=skip_special_tokens)


class _Text:
    """The text of one sequence on its way: what is held back, and what ends it.

    Args:
        writer: What it is made with.
        prompt_end: Gives the last ids of the prompt.
    """

    def __init__(self, writer: _Writer, prompt_end: Callable[[int], list[int]]) -> None:
        options, self._pieces = writer.options, writer.pieces
        self._unshown = options.unshown
        stops = options.stop or options.stop_strings
        self._shown = writer.detokenizer(prompt_end, skip_special_tokens=options.skip_special_tokens)
        # What ends a text does not depend on what is shown.
        self._searched = None
        if stops and options.skip_special_tokens:
            self._searched = writer.detokenizer(prompt_end, skip_special_tokens=False)
        before = ""
        if self._pieces is not None:
            self._ids = prompt_end(self._pieces.most)
            before = writer.tokenizer.decode(self._ids)
        self._has_stops = bool(stops)
        self._stop = StopText(stops, before)
        self._new = 0
        self._begins_with_space = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stop.stopped

    def push(self, token: int, *, last: bool) -> str:
        """Text that the next id completes.

        Args:
            token: The id.
            last: Whether no more come.
        """
        if last and token in self._unshown:
            return self._end()
        if not self._has_stops:
            return _piece(self._shown, token, ends=last)
        covered = None
        if self._pieces is not None:
            self._new += 1
            if self._new == 1:
                self._begins_with_space = self._pieces.begins_with_space(token)
            self._ids = [*self._ids, token][-self._pieces.most :]
            covered = self._pieces.match(self._ids)
        ends = last or covered is not None
        shown = _piece(self._shown, token, ends=ends)
        searched = shown if self._searched is None else _piece(self._searched, token, ends=ends)
        if searched and self._begins_with_space:
            # The first token of a text may lose a space that a stop string has.
            searched = searched if searched.startswith(" ") else " " + searched
            self._begins_with_space = False
        if covered is not None:
            return self._stop.end(searched, shown, in_prompt=covered > self._new)
        text = self._stop.push(searched, shown, search=self._pieces is None)
        return text + self._stop.finish() if last else text

    def _end(self) -> str:
        """What is left of the text where the last id is none of it."""
        shown = self._shown.finish()
        if not self._has_stops:
            return shown
        searched = shown if self._searched is None else self._searched.finish()
        return self._stop.push(searched, shown, search=self._pieces is None) + self._stop.finish()


def _piece(detokenizer: Detokenizer, token: int, *, ends: bool) -> str:
    piece = detokenizer.push([token])
    return piece + detokenizer.finish() if ends else piece


class _Row:
    """One sequence: its ids, its text so far and what is being held back."""

    def __init__(
        self, index: int, usage: Usage, text: _Text | None, first: float, *, want_logprobs: bool
    ) -> None:
        self._index = index
        self._usage = usage
        self._want_logprobs = want_logprobs
        self.logprobs: list[TokenLogprob] = []
        self.score: float | None = None
        self._text = text
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._given = 0  # ids that are in a chunk already
        self.reason: FinishReason | None = None
        self._first = self._last = first

    def push(self, token: int, reason: FinishReason | None, now: float) -> Chunk | None:
        """Takes the next id; a chunk when it completes a piece of text or ends the sequence.

        Args:
            token: The id.
            reason: Why it is the last one, or None.
            now: When it came.
        """
        self._last = now
        self._ids.append(token)
        text, self.reason = None, reason
        if self._text is not None:
            text = self._text.push(token, last=reason is not None)
            self.reason = "stop" if self._text.stopped else reason
        if text == "" and self.reason is None:
            return None
        ids = self._ids[self._given :]
        self._given = len(self._ids)
        if text:
            self._texts.append(text)
        return Chunk(text, ids, self._index, self.reason)

    def output(self, began: float, load_seconds: float) -> Output:
        """The finished sequence."""
        assert self.reason is not None
        new = len(self._ids)
        decode = self._last - self._first
        return Output(
            text=None if self._text is None else "".join(self._texts),
            token_ids=self._ids,
            finish_reason=self.reason,
            logprobs=self.logprobs if self._want_logprobs else None,
            score=self.score,
            usage=Usage(self._usage.prompt_tokens, new, self._usage.cached_tokens),
            timings=Timings(
                load_seconds, self._first - began, decode, (new - 1) / decode if decode > 0 else 0.0
            ),
        )
