"""Streams for asyncio: all those of a model are led by one thread, while there are any.

The thread reads arguments and prompts, leads one step at a time and makes text of the tokens; an event loop only hears
of finished pieces, by `call_soon_threadsafe`. So loops are never blocked, their default executors stay free for others,
and a process that wants to exit waits for one step at most.
"""

from __future__ import annotations

import threading
import weakref
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
        start: Makes the decoding; None when it has done so.
        loop: Whose coroutine reads it.
        decoding: Made by the leading thread.
        answer: What the coroutine waits for.
        left: Whether nobody reads it any more.
    """

    __slots__ = ("__weakref__", "answer", "decoding", "left", "loop", "start")

    def __init__(self, start: Callable[[], Decoding], loop: asyncio.AbstractEventLoop) -> None:
        self.start: Callable[[], Decoding] | None = start
        self.loop = loop
        self.decoding: Decoding | None = None
        self.answer: asyncio.Future[list[Chunk] | None] | None = None
        self.left = False

    def take(self) -> Answer:
        """What there is: an empty list for nothing yet."""
        try:
            if self.start is not None:
                # What the caller gave is let go of as soon as it is read.
                start, self.start = self.start, None
                decoding = start()
                decoding.refuse_beams()
                self.decoding = decoding
                if self.left:
                    decoding.cancel()
            assert self.decoding is not None
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
    """The open streams of a model in one process.

    Args:
        core: The native model.
    """

    def __init__(self, core: _core.Model) -> None:
        self._core = core
        self._process = _core.process_number()
        self._lock = threading.Lock()
        # Those that are open (one that was dropped without being closed is not), those whose coroutines wait, and
        # whether the thread is at work.
        self._open: weakref.WeakSet[_Stream] = weakref.WeakSet()
        self._waiting: list[_Stream] = []
        self._busy = False
        self._executor: ThreadPoolExecutor | None = None

    def wait(self, stream: _Stream) -> None:
        """A stream's coroutine waits; the thread is set to work."""
        with self._lock:
            is_new = stream not in self._open
            self._open.add(stream)
            self._waiting.append(stream)
            if not self._busy:
                self._submit()
            closed = [other for other in self._open if other.loop.is_closed()] if is_new else []
        for other in closed:
            self._leave(other)

    def close(self, stream: _Stream) -> None:
        """A stream has ended; the last one takes the thread with it."""
        if self._process != _core.process_number():
            return  # a forked child has none of its parent's threads, and one of them may have held the lock
        with self._lock:
            self._open.discard(stream)
            self._retire()

    def _submit(self) -> None:
        """One more round of the thread; with the lock."""
        if self._executor is None:
            from concurrent.futures import ThreadPoolExecutor

            self._executor = ThreadPoolExecutor(1, thread_name_prefix="fastdecode-streams")
        try:
            self._executor.submit(self._round)
            self._busy = True
        except RuntimeError:  # the interpreter ends, and nobody will wait any more
            self._busy = False

    def _retire(self) -> None:
        """Lets the thread go where no stream is open; with the lock. It ends what it is at."""
        if not self._open and self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

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
            self._waiting = [stream for stream in self._waiting if not stream.left]
            if self._waiting:
                self._submit()
            else:
                self._busy = False
                self._retire()

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
                self._leave(stream)
                continue
            answer = stream.take()
            if isinstance(answer, list) and not answer:
                still.append(stream)
            elif not (stream.left and isinstance(answer, CancelledError)):
                told.setdefault(stream.loop, []).append((stream, answer))
        with self._lock:
            self._waiting = still + self._waiting
        for loop, answers in told.items():
            self._tell(loop, answers)
        return bool(told)

    def _fail(self, error: BaseException) -> None:
        """Tells everybody who waits what went wrong."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for stream in waiting:
            self._tell(stream.loop, [(stream, error)])

    def _tell(self, loop: asyncio.AbstractEventLoop, answers: list[tuple[_Stream, Any]]) -> None:
        """Gives coroutines of a loop their answers; where the loop is closed, their streams end."""

        def tell() -> None:
            for stream, answer in answers:
                stream.tell(answer)

        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:
            for stream, _ in answers:
                self._leave(stream)

    def _leave(self, stream: _Stream) -> None:
        """The loop of a stream is closed, so that its coroutine will not close it."""
        stream.leave()
        self.close(stream)


async def stream(
    core: _core.Model, by_process: dict[int, Streams], start: Callable[[], Decoding]
) -> AsyncGenerator[Chunk]:
    """All pieces of a call.

    Args:
        core: The native model.
        by_process: Its open streams in this process and in those that it was forked from.
        start: Reads the call's arguments and prompts; called in the leading thread.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    stream, streams = _Stream(start, loop), None
    del start
    try:
        while True:
            stream.answer = loop.create_future()
            process = _core.process_number()
            # Of threads that come at once, one makes it.
            streams = by_process.get(process) or by_process.setdefault(process, Streams(core))
            streams.wait(stream)
            chunks = await stream.answer
            if chunks is None:
                return
            for chunk in chunks:
                yield chunk
    finally:
        stream.leave()
        if streams is not None:
            streams.close(stream)
