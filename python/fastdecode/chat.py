"""`Chat`: a conversation with a model, whose messages are a plain list.

Turns go through the same calls as every prompt; what is kept between them is the list of messages. Nothing here knows
templates or tokenizers.
"""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any

from .arrays import bad_option, brief
from .chat_messages import conversation, text_of
from .errors import FastdecodeWarning, StateBusyError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from typing import Unpack

    from .decoding import Decoding
    from .model import LanguageModel
    from .options import GenerateOptions
    from .results import Chunk

    Message = dict[str, Any]


class Chat:
    """A conversation with a model.

    Args:
        model: A `CausalLM`, or a `Seq2SeqLM`, which reads the user's last message alone.
        system: Text of a message that stands first, with the role "system".
        chat_template: As in `generate`, for every turn; a turn may name another one.

    Attributes:
        messages: The messages so far, dictionaries with `role` and `content`. They may be read, edited and cut: the
            next turn goes on from what is there.

    Raises:
        OptionError: `model` has no decoder, or `system` is no text.

    Example:
        >>> chat = fastdecode.Chat(model, chat_template="plain")
        >>> answer = chat.send("Tell me about a wolf.", max_new_tokens=12, seed=1)
        >>> [message["role"] for message in chat.messages]
        ['user', 'assistant']
        >>> chat.messages[-1]["content"] == answer
        True
    """

    def __init__(
        self, model: LanguageModel, system: str | None = None, chat_template: str | None = None
    ) -> None:
        if not getattr(model, "has_decoder", False) or not hasattr(model, "stream"):
            raise bad_option(
                "model", "a CausalLM or a Seq2SeqLM, as fastdecode.load returns it", brief(model)
            )
        if not isinstance(system, (str, type(None))):
            raise bad_option("system", "a text or None", brief(system))
        if model.has_encoder:
            if chat_template is not None:
                raise bad_option(
                    "chat_template", "None with a model that has an encoder", brief(chat_template)
                )
            if system is not None:
                message = (
                    "system has no effect: a model with an encoder reads the last message of the user alone"
                )
                warnings.warn(message, FastdecodeWarning, stacklevel=2)
        self._model: Any = model
        self._chat_template = chat_template
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        # What was read in the turn before, where the model keeps it, and the stream that is open.
        self._kept: object = None
        self._open: weakref.ref[Generator[Chunk]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Keys and values, and an open stream, belong to this process.
        return {**self.__dict__, "_kept": None, "_open": None}

    def __repr__(self) -> str:
        return f"Chat({self._model!r}, {len(self.messages)} messages)"

    def send(
        self,
        text: str | Sequence[Any],
        *,
        role: str = "user",
        **options: Unpack[GenerateOptions],
    ) -> str:
        """Says something, and waits for the whole answer.

        Args:
            text: What is said; a list of parts where the template takes any.
            role: Who says so: "user", "system", "tool", "observation" or whatever the template takes. Roles for which
                it writes nothing are worth a warning.
            **options: See `GenerateOptions`; one sequence comes back. With `continue_final_message=True` what is said
                is the beginning of a message, to which the answer is added.

        Returns:
            The new text, which is the content of the last of `messages` (or what was added to it). After an error, or
            Ctrl-C, `messages` are as they were.

        Raises:
            ChatTemplateError: There is no template, or it fails with these messages.
            OptionError: An option or the text cannot be used.
            ContextLengthError: The conversation and its answer are more than the model's context holds.
        """
        messages, decoding = self._start(text, role, options)
        [output] = decoding.outputs()
        self._end(messages, str(output), options)
        self._keep(decoding)
        return str(output)

    def stream(
        self,
        text: str | Sequence[Any],
        *,
        role: str = "user",
        **options: Unpack[GenerateOptions],
    ) -> Generator[Chunk]:
        """As `send`, giving out each piece of the answer as soon as it is certain.

        `messages` are changed when the stream ends. One that is left (break, `close()`, Ctrl-C) keeps what was read of
        it as the answer; the next turn closes one that is still open. After an error, or where nothing was read,
        `messages` are as they were.

        Args:
            text: As in `send`.
            role: As in `send`.
            **options: As in `send`.

        Returns:
            A generator of `Chunk`; arguments are checked before it is returned.

        Raises:
            ChatTemplateError: There is no template, or it fails with these messages.
            OptionError: An option or the text cannot be used, or there are beams.
            ContextLengthError: The conversation and its answer are more than the model's context holds.

        Example:
            >>> chat = fastdecode.Chat(model, chat_template="plain")
            >>> pieces = [str(piece) for piece in chat.stream("Tell me about a wolf.", max_new_tokens=8)]
            >>> chat.messages[-1]["content"] == "".join(pieces)
            True
        """
        messages, decoding = self._start(text, role, options)
        chunks = decoding.stream()
        stream = self._pieces(messages, decoding, chunks, options)
        self._open = weakref.ref(stream)
        return stream

    def _pieces(
        self, messages: list[Message], decoding: Decoding, chunks: Generator[Chunk], options: GenerateOptions
    ) -> Generator[Chunk]:
        read: list[str] = []
        given = 0
        try:
            for chunk in chunks:
                read.append(str(chunk))
                given += 1
                yield chunk
        except (GeneratorExit, KeyboardInterrupt):
            if given:
                self._end(messages, "".join(read), options)
                self._keep(decoding)
            raise
        finally:
            chunks.close()
        self._end(messages, "".join(read), options)
        self._keep(decoding)

    def _start(
        self, text: str | Sequence[Any], role: str, options: GenerateOptions
    ) -> tuple[list[Message], Decoding]:
        """The messages of a turn, and its answer on its way."""
        self._close()
        if not isinstance(role, str) or not role:
            raise bad_option("role", "the name of a role", brief(role))
        if not isinstance(text, (str, list, tuple)):
            raise bad_option("text", "a text, or a list of parts", brief(text))
        if options.get("num_return_sequences") not in (None, 1):
            raise bad_option("num_return_sequences", "1 in a chat", brief(options["num_return_sequences"]))
        said = {"role": role, "content": text}
        if options.get("prefix") is not None:
            raise bad_option(
                "prefix", "None in a chat, which keeps what it has read", brief(options["prefix"])
            )
        given: dict[str, Any] = {**options}
        if self._chat_template is not None:
            given.setdefault("chat_template", self._chat_template)
        if isinstance(self.messages, tuple):
            self.messages = [*self.messages]
        if not isinstance(self.messages, list):
            raise bad_option("messages", "a list of messages", brief(self.messages))
        # An edited list may hold anything.
        items = self._model._chat_items(conversation([*self.messages, said]))
        private = self._model._prefix_for_chat(self._kept)
        return [said], self._model._start(items, {**given, "num_return_sequences": 1}, **private)

    def _end(self, messages: list[Message], answer: str, options: GenerateOptions) -> None:
        """Puts a turn into the list."""
        continued = options.get("continue_final_message")
        if continued:
            field = continued if isinstance(continued, str) else "content"
            [said] = messages
            said[field] = (text_of(said) if field == "content" else str(said[field])) + answer
            self.messages += [said]
            return
        self.messages += [*messages, {"role": "assistant", "content": answer}]

    def _keep(self, decoding: Decoding) -> None:
        """Keeps what a turn has read for the next one: keys and values of the conversation and its answer."""
        self._kept = decoding.kept()

    def _close(self) -> None:
        """Ends the stream that is open, as if its reader had left it."""
        stream = None if self._open is None else self._open()
        self._open = None
        if stream is None:
            return
        try:
            stream.close()
        except ValueError as error:  # another thread is reading it
            expected, got = "one turn after the other", "a stream that another thread is reading"
            raise StateBusyError(
                f"chat: expected {expected}, got {got}", expected=expected, got=got
            ) from error
