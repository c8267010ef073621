"""A causal language model and its verbs: text or ids in, text, ids, pieces or logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from .arrays import as_floats, bad_option, is_conversation, is_empty, is_message, is_one
from .chat_calls import Reading
from .chat_options import Asked
from .model import LanguageModel, Request
from .state import State

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence
    from typing import Unpack

    import numpy as np
    from numpy.typing import NDArray

    from .arrays import Prompt
    from .decoding import Decoding
    from .options import GenerateOptions
    from .results import Chunk, Output


class CausalLM(LanguageModel):
    """A causal language model, loaded by `load`, `CausalLM.load` or `CausalLM.from_tensors`.

    GPT-2, Llama, Qwen 2 and 3, Mistral, Phi and GPT-1 are.

    Any number of threads may call it at once, and forked processes too. Pickling keeps where it was loaded
    from, and loads it again.
    """

    has_encoder = False

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> str: ...
    @overload
    def generate(self, prompt: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[str]: ...
    def generate(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> str | list[str]:
        """Continues a prompt, or each of a list of prompts.

        Args:
            prompt: A string, a list of token ids, a conversation (a list of messages, mappings with `role` and
                `content`, which the folder's chat template makes a text of), or a list of such prompts. An empty
                prompt starts from the model's bos token. Prompts of a list do not influence each other, and any
                number of them is allowed: those that do not fit side by side begin as others end.
            **options: See `GenerateOptions`.

        Returns:
            The new text, which is what it adds to the prompt's; for a list of prompts, or `num_return_sequences`
            above 1, a list of texts, prompt by prompt.

        Raises:
            TokenizerMissing: The model has no tokenizer.
            UnknownOptionError: There is no such option.
            OptionError: An option or the prompt cannot be used.
            ChatTemplateError: There is no chat template for a conversation, or it fails with these messages.
            ContextLengthError: Prompt and new tokens are more than the model's context holds.

        Example:
            >>> stories = model.generate(["Once upon a time", "The wolf"], max_new_tokens=20)
            >>> len(stories)
            2
        """
        self._need_tokenizer("generate (run and stream work on token ids)")
        outputs = self.run(prompt, **options)
        if isinstance(outputs, list):
            return [str(output) for output in outputs]
        return str(outputs)

    @overload
    def run(  # type: ignore[overload-overlap]
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> Output: ...
    @overload
    def run(self, prompt: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[Output]: ...
    def run(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> Output | list[Output]:
        """As `generate`, with everything that is known about each sequence.

        Args:
            prompt: As in `generate`; without a tokenizer, ids only.
            **options: See `GenerateOptions`.

        Returns:
            An `Output`; for a list of prompts, or `num_return_sequences` above 1, a list of them, prompt by
            prompt.

        Raises:
            TokenizerMissing: Text or stop strings are given and the model has no tokenizer.
            UnknownOptionError: There is no such option.
            OptionError: An option or the prompt cannot be used.
            ContextLengthError: Prompt and new tokens are more than the model's context holds.

        Example:
            >>> output = model.run("Once upon a time", max_new_tokens=5, eos_token_id=None, logprobs=2)
            >>> output.finish_reason, len(output.token_ids), len(output.logprobs[0].top)
            ('length', 5, 2)
        """
        items, one = _items(prompt)
        outputs = self._start(items, options).outputs()
        return outputs[0] if one and len(outputs) == 1 else outputs

    def stream(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> Generator[Chunk]:
        """As `generate`, giving out each piece of text as soon as it is certain.

        Pieces never end within a character, and what may begin a stop string is held back. Leaving the loop
        (break, an exception, Ctrl-C) stops the work and frees its memory. A stream that is not read stays at most
        8 tokens ahead of its reader, and nobody waits for it.

        Args:
            prompt: As in `run`; `Chunk.index` says which sequence a piece belongs to. Those of a long list come in
                waves: sequences begin as others end.
            **options: See `GenerateOptions`.

        Returns:
            A generator of `Chunk`; arguments are checked before it is returned.

        Raises:
            TokenizerMissing: Text or stop strings are given and the model has no tokenizer.
            UnknownOptionError: There is no such option.
            OptionError: An option or the prompt cannot be used, or there are beams.
            ContextLengthError: Prompt and new tokens are more than the model's context holds.

        Example:
            >>> pieces = [str(piece) for piece in model.stream("Once upon a time", seed=1, max_new_tokens=20)]
            >>> "".join(pieces) == model.generate("Once upon a time", seed=1, max_new_tokens=20)
            True
        """
        items, _ = _items(prompt)
        return self._start(items, options).stream()

    def astream(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Chunk]:
        """As `stream`, for asyncio: all such streams of a model are led by one thread, and the loop is never blocked.

        The thread reads the arguments, too, and goes when no stream is open. Any number of streams may be.
        Cancelling the task, `aclose()` and the end of the event loop end a stream and free its memory.

        Args:
            prompt: As in `stream`.
            **options: See `GenerateOptions`.

        Returns:
            An asynchronous generator of `Chunk`; what `stream` raises comes with its first item.

        Example:
            >>> import asyncio
            >>> async def story(**options):
            ...     return [str(piece) async for piece in model.astream("Once upon a time", **options)]
            >>> pieces = asyncio.run(story(seed=1, max_new_tokens=20))
            >>> "".join(pieces) == model.generate("Once upon a time", seed=1, max_new_tokens=20)
            True
        """

        def start() -> Decoding:
            items, _ = _items(prompt)
            return self._start(items, options)

        return self._astream(start)

    def prefill(
        self, prompt: Prompt | None = None, *, embeddings: NDArray[np.floating[Any]] | None = None
    ) -> State:
        """Reads a prompt and returns its state, to go on from by hand.

        Args:
            prompt: A string or token ids; an empty one starts from the model's bos token.
            embeddings: Instead of a prompt: token embeddings of shape `(T, D)`, as `embed` returns them.
                Positions are added by the model.

        Raises:
            OptionError: Neither or both are given, or one of them cannot be used.
            ContextLengthError: The prompt is longer than the model's context.
            TokenizerMissing: Text is given and the model has no tokenizer.

        Example:
            >>> state = model.prefill("Once upon a time")
            >>> state.step(int(state.logits.argmax())).shape
            (4000,)
        """
        if (prompt is None) == (embeddings is None):
            got = "neither" if prompt is None else "both"
            raise bad_option("prompt", "either a prompt or embeddings=", got)
        if embeddings is None:
            assert prompt is not None
            ids = self._ids(prompt)
            core = self._core.start(len(ids))
            core.append(ids)
        else:
            rows = self._embedding_rows(embeddings)
            core = self._core.start(len(rows))
            core.append_embeddings(rows.data)
        return State(core, self._core.vocab_size)

    def logits(self, prompt: Prompt) -> NDArray[np.float32]:
        """Logits after every token of a prompt, in one pass.

        Args:
            prompt: A string or token ids.

        Returns:
            float32, shape `(T, V)`; row `t` is what follows tokens 0 to `t`.

        Raises:
            OptionError: The prompt cannot be used.
            ContextLengthError: The prompt is longer than the model's context.
            TokenizerMissing: Text is given and the model has no tokenizer.
        """
        ids = self._ids(prompt)
        return as_floats(self._core.start(len(ids)).append(ids, "every"), len(ids))

    def embed(self, prompt: Prompt) -> NDArray[np.float32]:
        """Token embeddings alone, without positions: float32, shape `(T, D)`.

        Args:
            prompt: A string or token ids.

        Raises:
            OptionError: The prompt cannot be used.
            TokenizerMissing: Text is given and the model has no tokenizer.
        """
        ids = self._encode_text(prompt)
        return as_floats(self._core.embed(ids)).reshape(len(ids), self._core.width)

    def trace(self, prompt: Prompt) -> dict[str, NDArray[np.float32]]:
        """Every activation of one pass over a prompt, by name, in the order of computation.

        For teaching, and for finding the layer where two implementations part.

        Args:
            prompt: A string or token ids.

        Raises:
            OptionError: The prompt cannot be used.
            ContextLengthError: The prompt is longer than the model's context.
        """
        ids = self._ids(prompt)
        return {name: as_floats(values).reshape(shape) for name, shape, values in self._core.trace(ids)}

    def _read(self, item: Prompt) -> Request:
        if is_conversation(item):
            expected = "prompts that are all conversations, or none of them"
            raise bad_option("prompt", expected, f"{item!r:.80} behind another prompt")
        return Request(self._ids(item))

    def _ids(self, prompt: Prompt) -> list[int]:
        if is_conversation(prompt):
            return self._known(Reading(self, Asked()).ids(prompt), "messages")
        ids = [] if is_empty(prompt) else self._encode_text(prompt)
        if ids:
            return ids
        if self._defaults.bos_token_id is None:
            file = self._defaults.file
            expected = f"at least one token (an empty prompt needs a bos_token_id, and {file} has none)"
            raise bad_option("prompt", expected, "an empty prompt")
        return [self._defaults.bos_token_id]

    def _embedding_rows(self, embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        import numpy as np

        rows = np.asarray(embeddings, dtype=np.float32, order="C")
        width = self._core.width
        if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != width:
            raise bad_option(
                "embeddings", f"an array of shape (T, {width}) with T of at least 1", f"shape {rows.shape}"
            )
        return rows


def _items(prompt: Prompt | Sequence[Prompt]) -> tuple[Sequence[Any], bool]:
    """The prompts of a call, and whether it was one that is not in a list."""
    if is_one(prompt):
        return [prompt], True
    prompts: Sequence[Any] = prompt if isinstance(prompt, (list, tuple)) else list(prompt)
    # What comes one by one may be the messages of one conversation.
    return ([prompts], True) if prompts and is_message(prompts[0]) else (prompts, False)
