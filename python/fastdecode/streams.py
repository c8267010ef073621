"""Streams for asyncio: all those of a model are led by one thread, while there are any.

The thread reads arguments and prompts, leads one step at a time and makes text of the tokens; an event loop only hears
of finished pieces, by `call_soon_threadsafe`. So loops are never blocked, their default executors stay free for others,
and a process that wants to exit waits for one step at most.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from . import _core
from .errors import CancelledError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable
    from concurrent.futures import ThreadPoolExecutor

    from .decoding import Decoding
    from .results import Chunk

    # Pieces, or None at the end, or what went wrong.
    Answer = list[Chunk] | BaseException | None


class _Stream:
    """One open stream.

    Attributes:
        start: Makes the decoding.
        loop: Whose coroutine reads it.
        decoding: Made by the leading thread.
        answer: What the coroutine waits for.
        left: Whether nobody reads it any more.
    """

    __slots__ = ("answer", "decoding", "left", "loop", "start")

    def __init__(self, start: Callable[[], Decoding], loop: asyncio.AbstractEventLoop) -> None:
        self.start = start
        self.loop = loop
        self.decoding: Decoding | None = None
        self.answer: asyncio.Future[list[Chunk] | None] | None = None
        self.left = False

    def take(self) -> Answer:
        """What there is: an empty list for nothing yet."""
        try:
            if self.decoding is None:
                decoding = self.start()
                decoding.refuse_beams()
                self.decoding = decoding
                if self.left:
                    decoding.cancel()
            return self.decoding.take()
        except BaseException as error:
            return error

    def tell(self, answer: Answer) -> None:
        """Gives the coroutine its answer; in the thread of its loop."""
        future = self.answer
        if future is None or future.done():
            return
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def leave(self) -> None:
        """Nobody reads it any more."""
        self.left = True
        if self.decoding is not None:
            self.decoding.cancel()


class Streams:
    """The open streams of a model.

    Args:
        core: The native model.
    """

    def __init__(self, core: _core.Model) -> None:
        self._core = core
        self._reset()

    def _reset(self) -> None:
        self._process = _core.process_number()
        self._lock = threading.Lock()
        # How many streams are open, those whose coroutines wait, and whether the thread is at work.
        self._open = 0
        self._waiting: list[_Stream] = []
        self._busy = False
        self._executor: ThreadPoolExecutor | None = None

    async def stream(self, start: Callable[[], Decoding]) -> AsyncGenerator[Chunk]:
        """All pieces of a call.

        Args:
            start: Reads its arguments and prompts; called in the leading thread.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        stream = _Stream(start, loop)
        if self._process != _core.process_number():
            self._reset()  # a forked child has none of its parent's threads
        with self._lock:
            self._open += 1
        try:
            while True:
                stream.answer = loop.create_future()
                self._wait(stream)
                chunks = await stream.answer
                if chunks is None:
                    return
                for chunk in chunks:
                    yield chunk
        finally:
            stream.leave()
            self._close()

    def _wait(self, stream: _Stream) -> None:
        """A stream's coroutine waits; the thread is set to work."""
        with self._lock:
            self._waiting.append(stream)
            if not self._busy:
                self._busy = True
                self._submit()

    def _submit(self) -> None:
        """One more round of the thread; with the lock."""
        if self._executor is None:
            from concurrent.futures import ThreadPoolExecutor

            self._executor = ThreadPoolExecutor(1, thread_name_prefix="fastdecode-streams")
        self._executor.submit(self._round)

    def _close(self) -> None:
        """A stream has ended; the last one takes the thread with it."""
        with self._lock:
            self._open -= 1
            executor, self._executor = (self._executor, None) if self._open == 0 else (None, self._executor)
        if executor is not None:
            executor.shutdown(wait=False)

    def _round(self) -> None:
        """Answers those who wait; leads a step where there is nothing for any of them."""
        answered = self._answer()
        if not answered and self._waiting:
            try:
                self._core.step()
            except BaseException as error:
                self._fail(error)
            self._answer()
        with self._lock:
            self._busy = bool(self._waiting)
            if self._busy:
                try:
                    self._submit()
                except RuntimeError:  # the interpreter ends, and nobody will wait any more
                    self._busy = False

    def _answer(self) -> bool:
        """Tells those who wait what there is for them; whether there was anything."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        told: dict[asyncio.AbstractEventLoop, list[tuple[_Stream, Any]]] = {}
        still = []
        for stream in waiting:
            if stream.left:
                continue
            if stream.loop.is_closed():
                stream.leave()
                continue
            answer = stream.take()
            if isinstance(answer, list) and not answer:
                still.append(stream)
            elif not (stream.left and isinstance(answer, CancelledError)):
                told.setdefault(stream.loop, []).append((stream, answer))
        with self._lock:
            self._waiting = still + self._waiting
        for loop, answers in told.items():
            _tell(loop, answers)
        return bool(told)

    def _fail(self, error: BaseException) -> None:
        """Tells everybody who waits what went wrong."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for stream in waiting:
            _tell(stream.loop, [(stream, error)])


def _tell(loop: asyncio.AbstractEventLoop, answers: list[tuple[_Stream, Any]]) -> None:
    """Gives coroutines of a loop their answers; where the loop is closed, their streams end."""

    def tell() -> None:
        for stream, answer in answers:
            stream.tell(answer)

    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:
        for stream, _ in answers:
            stream.leave()
