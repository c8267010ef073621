"""An encoder-decoder and its verbs: a source in, text, ids, pieces, logits, losses or hidden states out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from .arrays import as_floats, as_ids, bad_option, brief, is_empty, is_one
from .errors import ConfigError
from .folder import with_class_defaults
from .memory import Memory
from .model import Request
from .scoring import IGNORED, Item, ScoringLM, as_labels, moved_spaces
from .sources import memories_of, sources_of
from .state import State

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence
    from typing import Unpack

    import numpy as np
    from numpy.typing import NDArray

    from . import _core
    from .arrays import Prompt
    from .decoding import Decoding
    from .options import GenerateOptions
    from .results import Chunk, Output
    from .sources import Prompts, Sourced, Sources


class Seq2SeqLM(ScoringLM):
    """An encoder-decoder (T5, Flan-T5, mT5, UMT5), loaded by `load`, `Seq2SeqLM.load` or `from_tensors`.

    Any number of threads may call it at once, and forked processes too. Pickling keeps where it was loaded
    from, and loads it again.
    """

    has_encoder = True

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, source: Prompt, decoder_prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> str: ...
    @overload
    def generate(
        self, source: Sequence[Prompt], decoder_prompt: Prompts = None, **options: Unpack[GenerateOptions]
    ) -> list[str]: ...
    @overload
    def generate(
        self, *, memory: Memory, decoder_prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> str: ...
    @overload
    def generate(
        self, *, memory: Sequence[Memory], decoder_prompt: Prompts = None, **options: Unpack[GenerateOptions]
    ) -> list[str]: ...
    @overload
    def generate(
        self,
        source: Prompts = None,
        decoder_prompt: Prompts = None,
        *,
        memory: Memory | Sequence[Memory] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str | list[str]: ...
    def generate(
        self,
        source: Prompts = None,
        decoder_prompt: Prompts = None,
        *,
        memory: Memory | Sequence[Memory] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str | list[str]:
        """Generates the output for a source, or for each of a list of sources.

        Args:
            source: A string, a list of token ids, a conversation (a list of messages, of which the last one of a
                user is the source), or a list of such sources; texts get the tokenizer's end token, ids are taken as
                they are. Sources of a list do not influence each other, and those that do not fit side by side begin
                as others end.
            decoder_prompt: What the output begins with, as text or ids; a list has one per source. The model's
                start token comes first and is added where it is missing. One source with a list of prompts is
                encoded once.
            memory: Instead of a source: what `encode` made of it, or a list of such memories.
            **options: See `GenerateOptions`.

        Returns:
            The new text, which is what it adds to that of the decoder's prompt; for a list of sources, memories
            or prompts, or `num_return_sequences` above 1, a list of texts, source by source.

        Raises:
            TokenizerMissing: The model has no tokenizer.
            UnknownOptionError: There is no such option.
            OptionError: An option, the source or the decoder's prompt cannot be used.
            ConfigError: The folder names no decoder_start_token_id.

        Example:
            >>> texts = model.generate(["How old are you?", "Good day"], num_beams=2, max_new_tokens=8)
            >>> texts[1] == model.generate("Good day", num_beams=2, max_new_tokens=8)
            True
        """
        self._need_tokenizer("generate (run and stream work on token ids)")
        outputs = self.run(source, decoder_prompt, memory=memory, **options)
        if isinstance(outputs, list):
            return [str(output) for output in outputs]
        return str(outputs)

    @overload
    def run(  # type: ignore[overload-overlap]
        self, source: Prompt, decoder_prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> Output: ...
    @overload
    def run(
        self, source: Sequence[Prompt], decoder_prompt: Prompts = None, **options: Unpack[GenerateOptions]
    ) -> list[Output]: ...
    @overload
    def run(
        self, *, memory: Memory, decoder_prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> Output: ...
    @overload
    def run(
        self, *, memory: Sequence[Memory], decoder_prompt: Prompts = None, **options: Unpack[GenerateOptions]
    ) -> list[Output]: ...
    @overload
    def run(
        self,
        source: Prompts = None,
        decoder_prompt: Prompts = None,
        *,
        memory: Memory | Sequence[Memory] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Output | list[Output]: ...
    def run(
        self,
        source: Prompts = None,
        decoder_prompt: Prompts = None,
        *,
        memory: Memory | Sequence[Memory] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Output | list[Output]:
        """As `generate`, with everything that is known about each sequence.

        `Output.token_ids` are the new ids: without the start token and the decoder's prompt, with an end token
        that was generated.

        Args:
            source: A string, a list of token ids, or a list of such sources; texts get the tokenizer's end
                token, ids are taken as they are. Sources of a list do not influence each other, and those that
                do not fit side by side begin as others end.
            decoder_prompt: What the output begins with, as text or ids; a list has one per source. The model's
                start token comes first and is added where it is missing. One source with a list of prompts is
                encoded once.
            memory: Instead of a source: what `encode` made of it, or a list of such memories.
            **options: See `GenerateOptions`.

        Returns:
            An `Output`; for a list of sources, memories or prompts, or `num_return_sequences` above 1, a list
            of them, source by source.

        Raises:
            TokenizerMissing: Text or stop strings are given and the model has no tokenizer.
            UnknownOptionError: There is no such option.
            OptionError: An option, the source or the decoder's prompt cannot be used.
            ConfigError: The folder names no decoder_start_token_id.

        Example:
            >>> output = model.run("How old are you?", max_new_tokens=5, eos_token_id=None)
            >>> output.finish_reason, len(output.token_ids)
            ('length', 5)
            >>> prefix, rest = output.token_ids[:2], output.token_ids[2:]
            >>> rest == model.run("How old are you?", prefix, max_new_tokens=3, eos_token_id=None).token_ids
            True
        """
        items, one = self._items(source, decoder_prompt, memory)
        outputs = self._start(items, options).outputs()
        return outputs[0] if one and len(outputs) == 1 else outputs

    def stream(
        self,
        source: Prompts = None,
        decoder_prompt: Prompts = None,
        *,
        memory: Memory | Sequence[Memory] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generator[Chunk]:
        """As `generate`, giving out each piece of text as soon as it is certain.

        Pieces never end within a character, and what may begin a stop string is held back. Leaving the loop
        (break, an exception, Ctrl-C) stops the work and frees its memory. The source is encoded in a step of its
        own when the first piece is asked for. A stream that is not read stays at most 8 tokens ahead of its reader,
        and nobody waits for it.

        Args:
            source: A string, a list of token ids, or a list of such sources; texts get the tokenizer's end
                token, ids are taken as they are. Sources of a list do not influence each other, and those that
                do not fit side by side begin as others end.
            decoder_prompt: What the output begins with, as text or ids; a list has one per source. The model's
                start token comes first and is added where it is missing. One source with a list of prompts is
                encoded once.
            memory: Instead of a source: what `encode` made of it, or a list of such memories.
            **options: See `GenerateOptions`.

        Returns:
            A generator of `Chunk`, whose `index` says which sequence it belongs to; those of a long list come in
            waves, since sequences begin as others end. Arguments are checked before it is returned.

        Raises:
            TokenizerMissing: Text or stop strings are given and the model has no tokenizer.
            UnknownOptionError: There is no such option.
            OptionError: An option, the source or the decoder's prompt cannot be used, or
                there are beams.
            ConfigError: The folder names no decoder_start_token_id.

        Example:
            >>> "".join(str(piece) for piece in model.stream("Good day", max_new_tokens=8)) == model.generate(
            ...     "Good day", max_new_tokens=8
            ... )
            True
        """
        items, _ = self._items(source, decoder_prompt, memory)
        return self._start(items, options).stream()

    def astream(
        self,
        source: Prompts = None,
        decoder_prompt: Prompts = None,
        *,
        memory: Memory | Sequence[Memory] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Chunk]:
        """As `stream`, for asyncio: all such streams of a model are led by one thread, and the loop is never blocked.

        The thread reads the arguments, too, and goes when no stream is open. Any number of streams may be.
        Cancelling the task, `aclose()` and the end of the event loop end a stream and free its memory.

        Args:
            source: A string, a list of token ids, or a list of such sources; texts get the tokenizer's end
                token, ids are taken as they are. Sources of a list do not influence each other, and those that
                do not fit side by side begin as others end.
            decoder_prompt: What the output begins with, as text or ids; a list has one per source. The model's
                start token comes first and is added where it is missing. One source with a list of prompts is
                encoded once.
            memory: Instead of a source: what `encode` made of it, or a list of such memories.
            **options: See `GenerateOptions`.

        Returns:
            An asynchronous generator of `Chunk`; what `stream` raises comes with its first item.
        """

        def start() -> Decoding:
            items, _ = self._items(source, decoder_prompt, memory)
            return self._start(items, options)

        return self._astream(start)

    @overload
    def encode(self, source: Prompt) -> Memory: ...  # type: ignore[overload-overlap]
    @overload
    def encode(self, source: Sequence[Prompt]) -> list[Memory]: ...
    def encode(self, source: Prompt | Sequence[Prompt]) -> Memory | list[Memory]:
        """Runs the encoder over a source, or over a list of sources side by side, without padding.

        Args:
            source: As in `generate`.

        Returns:
            A `Memory` to generate, step and score from; for a list of sources a list of them, each the same
            to the bit as alone.

        Raises:
            OptionError: A source cannot be used.
            TokenizerMissing: Text is given and the model has no tokenizer.

        Example:
            >>> memory = model.encode("How old are you?")
            >>> memory.hidden.shape == (len(memory.source_ids), model.config["d_model"])
            True
            >>> model.generate(memory=memory, max_new_tokens=8) == model.generate("How old are you?", max_new_tokens=8)
            True
        """
        one = is_one(source, "source")
        sources: list[Any] = [source] if one else list(source)
        memories = [Memory(core) for core in self._core.encode([self._source_ids(item) for item in sources])]
        return memories[0] if one else memories

    def prefill(self, decoder_ids: Sequence[int] | None = None, *, memory: Memory) -> State:
        """Starts a decoder on a memory and returns its state, to go on from by hand.

        Args:
            decoder_ids: Ids that the decoder reads first, taken as they are: transformers' `decoder_input_ids`,
                the start token first. None stands for the start token alone.
            memory: What `encode` made of the source.

        Raises:
            OptionError: The ids or the memory cannot be used.
            ConfigError: There are no ids, and the folder names no decoder_start_token_id.

        Example:
            >>> state = model.prefill(memory=model.encode("Good day"))
            >>> for _ in range(3):
            ...     logits = state.step(int(state.logits.argmax()))
            >>> state.tokens[1:] == model.run("Good day", max_new_tokens=3, eos_token_id=None).token_ids
            True
        """
        ids = [self._start_token()] if decoder_ids is None else self._decoder_ids(decoder_ids)
        [memory] = memories_of([memory])
        core = self._core.start(len(ids), memory.core)
        core.append(ids)
        return State(core, self._core.vocab_size)

    def logits(self, source: Prompt | Memory, decoder_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after every decoder token, in one pass.

        Args:
            source: A string, token ids, or what `encode` made of them.
            decoder_ids: Ids of the decoder, taken as they are: the start token first.

        Returns:
            float32, shape `(T, V)`; row `t` is what follows decoder tokens 0 to `t`.

        Raises:
            OptionError: The source or the ids cannot be used.
            TokenizerMissing: Text is given and the model has no tokenizer.

        Example:
            >>> start = model.prefill(memory=model.encode("Good day")).tokens
            >>> model.logits("Good day", [*start, 5, 6]).shape == (3, model.config["vocab_size"])
            True
        """
        return self._logits(self._read_source(source), self._decoder_ids(decoder_ids))

    @overload
    def loss(self, source: Prompt | Memory, target: Prompt) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def loss(self, source: Sequence[Prompt | Memory], target: Sequence[Prompt]) -> list[float]: ...
    def loss(
        self, source: Prompt | Memory | Sequence[Prompt | Memory], target: Prompt | Sequence[Prompt]
    ) -> float | list[float]:
        """Mean cross-entropy of a target's tokens, all from one pass: transformers' `model(labels=...).loss`.

        The decoder reads the start token and the target without its last token.

        Args:
            source: A string, token ids, or what `encode` made of them; or a list of such sources.
            target: A string, which gets the tokenizer's end token, or ids; -100 marks tokens that do not count,
                and the decoder reads the pad token in their places. A list has one target per source.

        Returns:
            Nats per token that counts; for lists one value per pair, each as alone.

        Raises:
            OptionError: A source or target cannot be used, no token counts, or the lists differ in length.
            ConfigError: The folder names no decoder_start_token_id.
            TokenizerMissing: Text is given and the model has no tokenizer.

        Example:
            >>> memory = model.encode("How old are you?")
            >>> losses = [model.loss(memory, answer) for answer in ("I am six", "Nobody")]
            >>> min(losses) > 0
            True
        """
        if isinstance(source, Memory) or is_one(source, "source"):
            return self._losses([self._labelled(source, target)])[0]
        sources, targets = list(source), [target] if is_one(target, "target") else list(target)
        if len(sources) != len(targets):
            raise bad_option("target", f"one per source, {len(sources)} in all", f"{len(targets)} targets")
        return self._losses([self._labelled(*pair) for pair in zip(sources, targets, strict=True)])

    def trace(self, source: Prompt, decoder_ids: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        """Every activation of one pass, by name, in the order of computation: the encoder's, then the decoder's.

        For teaching, and for finding the layer where two implementations part. The decoder's last norm is shown
        with the scale of the outputs applied.

        Args:
            source: A string or token ids.
            decoder_ids: Ids of the decoder, taken as they are: the start token first.

        Raises:
            OptionError: The source or the ids cannot be used.
        """
        shown = self._core.trace(self._decoder_ids(decoder_ids), self._source_ids(source))
        return {name: as_floats(values).reshape(shape) for name, shape, values in shown}

    def _items(
        self,
        source: Prompts,
        decoder_prompt: Prompts,
        memory: Memory | Sequence[Memory] | None,
    ) -> tuple[Sources, bool]:
        """The sources of a call with their prompts, and whether it was one that is not in a list."""
        return sources_of(source, decoder_prompt, memory)

    def _read(self, item: Sourced) -> Request:
        start, prompt = self._start_token(), item.prompt
        ids: list[int] = []
        if prompt is not None and not is_empty(prompt):
            ids = self._encode_text(prompt, "decoder_prompt", add_special_tokens=False)
        if not ids or ids[0] != start:
            ids = [start, *ids]
        return Request(ids, self._read_source(item.source))

    def _read_source(self, source: Prompt | Memory) -> list[int] | _core.Memory:
        return source.core if isinstance(source, Memory) else self._source_ids(source)

    def _decoder_ids(self, decoder_ids: Sequence[int]) -> list[int]:
        if isinstance(decoder_ids, str) or not (is_empty(decoder_ids) or is_one(decoder_ids, "decoder_ids")):
            raise bad_option("decoder_ids", "one list of token ids", brief(decoder_ids))
        ids = as_ids(decoder_ids, self._core.vocab_size, "decoder_ids")
        if not ids:
            raise bad_option("decoder_ids", "at least one token (the start token)", "none")
        return ids

    def _start_token(self) -> int:
        start = self._defaults.decoder_start_token_id
        if start is None:
            raise self._no_token("decoder_start_token_id")
        return as_ids([start], self._core.vocab_size, "decoder_start_token_id")[0]

    def _no_token(self, field: str) -> ConfigError:
        file, expected = self._defaults.file, "a token id"
        message = f"{file}: {field}: expected {expected}, got none; add it to the file"
        return ConfigError(message, file=file, field=field, expected=expected, got="none")

    def _logits(self, source: list[int] | _core.Memory, ids: list[int]) -> NDArray[np.float32]:
        return as_floats(self._core.start(len(ids), source).append(ids, "every"), len(ids))

    def _labelled(self, source: Any, target: Any) -> Item:  # noqa: ANN401 (checked here)
        read: Any = self._read_source(source)
        labels: list[int | None]
        if isinstance(target, str):
            labels = list(self._encode_text(target, "target"))
        else:
            labels = as_labels(target, self._core.vocab_size, "target")
        if not any(label is not None for label in labels):
            raise bad_option("target", f"at least one token that is not {IGNORED}", f"{len(labels)} tokens")
        shifted = [self._start_token()]
        if None in labels[:-1]:
            pad = with_class_defaults(self._config).get("pad_token_id")
            if pad is None:
                raise self._no_token("pad_token_id")
            [pad] = as_ids([pad], self._core.vocab_size, "pad_token_id")
            shifted += [pad if label is None else label for label in labels[:-1]]
        else:
            shifted += [label for label in labels[:-1] if label is not None]
        return Item(shifted, labels, len(shifted), read)

    def _pair(self, prompt: Any, continuation: Any) -> Item:  # noqa: ANN401 (checked here)
        if isinstance(prompt, str) and isinstance(continuation, str):
            prompt, continuation = moved_spaces(prompt, continuation)
        target = self._encode_text(continuation, "continuation")
        if not target:
            raise bad_option("continuation", "at least one token", brief(continuation))
        ids = [self._start_token(), *target[:-1]]
        return Item(ids, target, len(ids), self._read_source(prompt))
