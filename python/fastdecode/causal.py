"""A causal language model and its verbs: text or ids in, text, ids, pieces or logits out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, overload

from .arrays import as_floats, bad_option, brief, is_conversation, is_empty, is_message, is_one, whole
from .chat_calls import Reading
from .chat_options import Asked, asked, refuse
from .errors import ContextLengthError
from .model import Request
from .prefix import Prefix, snapshot
from .scoring import IGNORED, Item, ScoringLM, as_labels, moved_spaces, windowed_losses
from .state import State

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence
    from typing import Unpack

    import numpy as np
    from numpy.typing import NDArray

    from .arrays import Labels, Prompt
    from .chat_options import ChatOptions
    from .decoding import Decoding
    from .options import GenerateOptions
    from .results import Chunk, Output


class CausalLM(ScoringLM):
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

    def prefix(self, prompt: Prompt, **chat: Unpack[ChatOptions]) -> Prefix:
        """Reads once what many prompts begin with: a system prompt, examples, a document.

        Calls that get it as `prefix=` give what they would give with both as one prompt, to the bit, and compute
        only what is new. `Usage.cached_tokens` says how much was not.

        Args:
            prompt: A string, token ids, or messages. Prompts behind it are of the same kind.
            **chat: How messages are read, see `chat_options.ChatOptions`; calls are given the same.

        Raises:
            ChatTemplateError: There is no template for messages, or it fails with them.
            OptionError: The prompt or an option cannot be used.
            ContextLengthError: It is longer than the model's context.
            TokenizerMissing: Text is given and the model has no tokenizer.

        Example:
            >>> with model.prefix("Once upon a time there was a wolf. ") as prefix:
            ...     output = model.run("The wolf", prefix=prefix, max_new_tokens=5)
            ...     len(prefix) - 1 <= output.usage.cached_tokens < output.usage.prompt_tokens
            True
        """
        if is_conversation(prompt):
            ids = self._known(Reading(self, asked(chat)).ids(prompt), "messages")
        else:
            refuse(chat, "none without a list of messages as the prompt")
            ids = self._ids(prompt)
        return Prefix(self._core.prefix(ids), snapshot(prompt))

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

    @overload
    def loss(self, prompt: Prompt, labels: Labels | None = None) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def loss(
        self, prompt: Sequence[Prompt], labels: Sequence[Labels | None] | None = None
    ) -> list[float]: ...
    def loss(
        self, prompt: Prompt | Sequence[Prompt], labels: Labels | Sequence[Labels | None] | None = None
    ) -> float | list[float]:
        """Mean cross-entropy of a text's tokens, all from one pass: transformers' `model(labels=...).loss`.

        The token at every place but the first is held against what the model says behind those before it.

        Args:
            prompt: A string, token ids, or a list of such prompts.
            labels: What each place is held against, as many as there are tokens: ids, or -100 where none counts. The
                first one never counts. None stands for the tokens themselves. A list of prompts has one such list, or
                None, for each.

        Returns:
            Nats per token that counts, summed in double precision; for a list of prompts one value each, as
            transformers gives it for that one alone.

        Raises:
            OptionError: A prompt or its labels cannot be used, the numbers differ, or no token counts (a single one
                has none before it), where transformers gives nan.
            ContextLengthError: A prompt is longer than the model's context.
            TokenizerMissing: Text is given and the model has no tokenizer.

        Example:
            >>> losses = model.loss(["Once upon a time there was a girl", "girl a was there time a upon Once"])
            >>> losses[0] < losses[1]
            True
        """
        prompts, one = _items(prompt)
        every: list[Any] = [labels] if one else [None] * len(prompts) if labels is None else _lists(labels)
        if len(every) != len(prompts):
            expected = f"a list of labels for each of {len(prompts)} prompts"
            raise bad_option("labels", expected, f"{len(every)} lists")
        losses = self._losses([self._labelled(*pair) for pair in zip(prompts, every, strict=True)])
        return losses[0] if one else losses

    def perplexity(self, text: Prompt, stride: int = 512, window: int | None = None) -> float:
        """Perplexity of a text of any length, in windows, as the Hugging Face guide to fixed-length models computes it.

        A window reads `window` tokens and begins `stride` tokens behind the one before it; what that one has scored
        is context only. The result is the exponential of the mean of the windows' losses, each weighted by its number
        of labels less one, as the guide weights it: where the model shifts labels, one of the first window's has
        nothing before it. A stride below the window gives every token more context, and costs as many more passes. One
        above it leaves tokens between two windows out.

        Args:
            text: A string or token ids; it may be shorter than a window.
            stride: Tokens from one window to the next, at least 1.
            window: Tokens of a window, at least 2. None stands for the model's context, or where it has no limit for
                `max_position_embeddings` in config.json.

        Raises:
            OptionError: An argument cannot be used, the text has fewer than two tokens, or the model names no length
                of its windows.
            ContextLengthError: The window is longer than the model's context.
            TokenizerMissing: Text is given and the model has no tokenizer.

        Example:
            >>> text = "Once upon a time there was a little girl. She lived in a house by the wood."
            >>> 1 < model.perplexity(text, stride=8, window=16) < 4000
            True
        """
        stride, window = whole(stride, "stride", 1), self._window(window)
        ids = [] if is_empty(text) else self._encode_text(text, "text")
        if len(ids) < 2:
            raise bad_option(
                "text", "at least two tokens (the first has nothing before it)", f"{len(ids)} tokens"
            )
        return math.exp(windowed_losses(ids, window, stride, self._losses))

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
            raise bad_option("prompt", expected, f"{brief(item)} behind another prompt")
        return Request(self._ids(item))

    def _labelled(self, prompt: Prompt, labels: Any) -> Item:  # noqa: ANN401 (checked here)
        ids = [] if is_empty(prompt) else self._encode_text(prompt)
        targets = ids if labels is None else as_labels(labels, self._core.vocab_size, "labels")
        if len(targets) != len(ids):
            raise bad_option("labels", f"one for each of {len(ids)} tokens", f"{len(targets)} labels")
        if not any(target is not None for target in targets[1:]):
            got = f"{len(ids)} tokens"
            if labels is not None:
                got += f" with no label but {IGNORED} behind the first"
            raise bad_option("prompt", "a token that counts behind the first one", got)
        return Item(ids[:-1], targets[1:], len(ids))

    def _pair(self, prompt: Any, continuation: Any) -> Item:  # noqa: ANN401 (checked here)
        before: list[int]
        if isinstance(prompt, str) and isinstance(continuation, str):
            kept, rest = moved_spaces(prompt, continuation)
            whole, front = self._begun(kept + rest)
            before = self._begun(kept)[0] if kept else whole[:front]
            targets = whole[len(before) :]
        else:
            before = self._begun(prompt)[0] if isinstance(prompt, str) else self._ids(prompt)
            targets = self._encode_text(continuation, "continuation", add_special_tokens=False)
        if not targets:
            expected = "at least one token behind those of the prompt"
            raise bad_option("continuation", expected, brief(continuation))
        ids = [*(before or [self._bos()]), *targets[:-1]]
        return Item(ids, targets, len(ids))

    def _begun(self, text: str) -> tuple[list[int], int]:
        """Ids of a text that goes on: without special tokens behind it. And how many are in front of it."""
        plain = self._encode_text(text, add_special_tokens=False)
        full = self._encode_text(text)
        for front in range(len(full) - len(plain), -1, -1):
            if full[front : front + len(plain)] == plain:
                return full[: front + len(plain)], front
        return full, 0

    def _ids(self, prompt: Prompt) -> list[int]:
        if is_conversation(prompt):
            return self._known(Reading(self, Asked()).ids(prompt), "messages")
        ids = [] if is_empty(prompt) else self._encode_text(prompt)
        return ids or [self._bos()]

    def _window(self, window: int | None) -> int:
        """Tokens of a window of a long text."""
        limit = self._core.context_limit
        if window is None:
            size = limit or self._config.get("max_position_embeddings")
            if isinstance(size, bool) or not isinstance(size, int) or size < 2:
                expected = "a number of tokens (config.json has no max_position_embeddings to take instead)"
                raise bad_option("window", expected, "None")
            return size
        size = whole(window, "window", 2)
        if limit is not None and size > limit:
            message = f"window: expected at most {limit} tokens, the model's context, got {brief(size)}"
            raise ContextLengthError(message, limit=limit, requested=size)
        return size

    def _bos(self) -> int:
        if self._defaults.bos_token_id is None:
            file = self._defaults.file
            expected = f"at least one token (an empty prompt needs a bos_token_id, and {file} has none)"
            raise bad_option("prompt", expected, "an empty prompt")
        return self._defaults.bos_token_id

    def _embedding_rows(self, embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        import numpy as np

        width = self._core.width
        expected = f"an array of shape (T, {width}) with T of at least 1"
        try:
            rows = np.asarray(embeddings, dtype=np.float32, order="C")
        except (TypeError, ValueError, OverflowError):
            raise bad_option("embeddings", expected, brief(embeddings)) from None
        if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != width:
            raise bad_option("embeddings", expected, f"shape {rows.shape}")
        return rows


def _lists(labels: object) -> list[Any]:
    """Labels for each prompt of a list."""
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise bad_option("labels", "a list of labels, or None, for each prompt", brief(labels))
    return list(labels)


def _items(prompt: Prompt | Sequence[Prompt]) -> tuple[Sequence[Any], bool]:
    """The prompts of a call, and whether it was one that is not in a list."""
    if is_one(prompt):
        return [prompt], True
    prompts: Sequence[Any] = prompt if isinstance(prompt, (list, tuple)) else list(prompt)
    # What comes one by one may be the messages of one conversation.
    return ([prompts], True) if prompts and is_message(prompts[0]) else (prompts, False)
