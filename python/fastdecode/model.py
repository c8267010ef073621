"""A loaded model and its verbs: text or ids in, text, ids, pieces or logits out.

Checks arguments at the edge, makes ids of prompts and hands the work to `decoding` and `state`. Nothing here
computes, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, Literal, overload

from . import _core
from .arrays import as_floats, as_ids, as_tensor, bad_option, is_empty, is_one
from .errors import ConfigError, FastdecodeWarning, TokenizerMissing
from .folder import Config, config_defaults, folder_defaults, read_json
from .hub import locate
from .state import EMBEDDING, State
from .tokenizer import Tokenizer, as_tokenizer, read_folder

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
    from pathlib import Path
    from typing import Unpack

    import numpy as np
    from numpy.typing import NDArray

    from .arrays import Prompt
    from .decoding import Decoding
    from .folder import Defaults
    from .options import GenerateOptions, Options
    from .results import Chunk, Output

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
ComputeDtype = Literal["float32", "bfloat16"]


def load(
    model: str | os.PathLike[str],
    *,
    dtype: Dtype = "auto",
    compute_dtype: ComputeDtype | None = None,
    num_threads: int | None = None,
    tokenizer: object = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> CausalLM:
    """Loads a model from a Hugging Face folder, the hub, or the package's own demo models.

    Weights are read once, packed for this CPU and kept; the tokenizer is read when text first needs it.

    Args:
        model: A folder with config.json and safetensors, a hub id, or "demo-stories".
        dtype: How weights are stored. "auto" keeps the checkpoint's values exactly; "float32", "float16" and
            "bfloat16" round every tensor, as `.to(dtype)` in PyTorch does.
        compute_dtype: How products are formed: "float32" (the default), or "bfloat16" for bfloat16 weights,
            which also rounds activations and halves the cache.
        num_threads: Threads to compute with; None for all that this process may use. It does not change
            results.
        tokenizer: Used instead of the folder's: a folder, a tokenizer.json, or an object of tokenizers or
            transformers.
        revision: Branch, tag or commit on the hub.
        token: Access token of the hub; True for the stored one.
        cache_dir: Where downloads are kept, instead of the hub's usual place.
        local_files_only: Use only what has been downloaded before.

    Raises:
        ModelNotFoundError: There is no such folder, demo model or hub id.
        UnsupportedModelError: The folder holds another architecture.
        ConfigError: A value in config.json or generation_config.json cannot be used.
        CheckpointError: The weights are malformed, incomplete or not what config.json says.
        OutOfMemoryError: The system refused the memory.

    Example:
        >>> model = fastdecode.load("demo-stories")
        >>> story = model.generate("Once upon a time", max_new_tokens=40, seed=1)
        >>> story == model.generate("Once upon a time", max_new_tokens=40, seed=1)
        True
    """
    began = time.perf_counter()
    source = locate(
        model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
    )
    given = None if tokenizer is None else as_tokenizer(tokenizer)
    # Before config.json is read here: the native side says best what is wrong with a folder.
    core = _core.Model.load(str(source.folder), *_load_options(dtype, compute_dtype, num_threads))
    config = read_json(source.folder / "config.json")
    keywords = {
        "dtype": dtype,
        "compute_dtype": compute_dtype,
        "num_threads": num_threads,
        "tokenizer": tokenizer,
        "revision": source.revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
    }
    defaults = folder_defaults(source.folder, config)
    loaded = CausalLM(core, config, defaults, source.folder, given, (source.name, keywords))
    loaded._load_seconds = time.perf_counter() - began
    return loaded


def _load_options(
    dtype: str, compute_dtype: str | None, num_threads: int | None
) -> tuple[str, str | None, int | None]:
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise bad_option("dtype", '"auto", "float32", "float16" or "bfloat16"', repr(dtype))
    if compute_dtype not in (None, "float32", "bfloat16"):
        raise bad_option("compute_dtype", 'None, "float32" or "bfloat16"', repr(compute_dtype))
    if num_threads is not None and (
        isinstance(num_threads, bool) or not isinstance(num_threads, int) or not 1 <= num_threads < 2**31
    ):
        raise bad_option("num_threads", "None or an integer of at least 1", repr(num_threads))
    return dtype, compute_dtype, num_threads


def _reload(name: str, keywords: dict[str, Any]) -> CausalLM:
    return load(name, **keywords)


class CausalLM:
    """A causal language model, loaded by `load` or `CausalLM.from_tensors`.

    Any number of threads may call it at once, and forked processes too. Pickling keeps where it was loaded
    from, and loads it again.
    """

    def __init__(
        self,
        core: _core.Model,
        config: Mapping[str, Any],
        defaults: Defaults,
        folder: Path | None,
        tokenizer: Tokenizer | None,
        source: tuple[str, dict[str, Any]] | None,
    ) -> None:
        self._core = core
        self._config = Config(config)
        self._defaults = defaults
        self._folder = folder
        self._source = source
        self._load_seconds = 0.0
        self._tokenizer = tokenizer
        self._tokenizer_read = tokenizer is not None
        if unknown := core.info()["unknown_tensors"]:
            message = f"the checkpoint has tensors that the model does not use: {', '.join(unknown)}"
            warnings.warn(message, FastdecodeWarning, stacklevel=3)

    @classmethod
    def from_tensors(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, NDArray[Any]],
        *,
        dtype: Dtype = "auto",
        compute_dtype: ComputeDtype | None = None,
        num_threads: int | None = None,
        tokenizer: object = None,
    ) -> CausalLM:
        """Builds a model from weights in memory, which are copied.

        Args:
            config: What config.json would hold; its keys for generation count too.
            tensors: Arrays by their names in a checkpoint: float32, float16 or bfloat16 (of ml_dtypes, or its
                bits as uint16).
            dtype: As in `load`.
            compute_dtype: As in `load`.
            num_threads: As in `load`.
            tokenizer: As in `load`; there is none otherwise.

        Raises:
            UnsupportedModelError: `config` names another architecture.
            ConfigError: A value in `config` cannot be used.
            CheckpointError: A tensor is missing, or has the wrong shape or type.
        """
        import json

        began = time.perf_counter()
        options = _load_options(dtype, compute_dtype, num_threads)
        given = None if tokenizer is None else as_tokenizer(tokenizer)
        try:
            text = json.dumps(dict(config))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"config: expected values that JSON can hold, got: {error}",
                file="config",
                expected="values that JSON can hold",
                got=str(error),
            ) from error
        core = _core.Model.from_tensors(text, [as_tensor(*item) for item in tensors.items()], *options)
        config = json.loads(text)
        loaded = cls(core, config, config_defaults(config, "config"), None, given, None)
        loaded._load_seconds = time.perf_counter() - began
        return loaded

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            raise TypeError(
                "a model built by from_tensors cannot be pickled; save it to a folder and load that"
            )
        return _reload, self._source

    def __repr__(self) -> str:
        info = self._core.info()
        return f"CausalLM({info['architecture']}, {info['parameters']:,} parameters, {info['dtype']})"

    @property
    def config(self) -> Config:
        """The contents of config.json."""
        return self._config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, read when first asked for; None where the folder has none."""
        if not self._tokenizer_read:
            if self._folder is not None:
                self._tokenizer = read_folder(self._folder, self._config)
            self._tokenizer_read = True
        return self._tokenizer

    def info(self) -> dict[str, Any]:
        """What was loaded and how it computes.

        Returns:
            `architecture`, `parameters` (tied ones counted once), `weight_bytes` (packed),
            `cache_bytes_per_token`, `dtype`, `compute_dtype`, `isa`, `num_threads`, `context_length`,
            `vocab_size`, `unknown_tensors` (names) and `load_seconds`.
        """
        return self._core.info() | {"load_seconds": self._load_seconds}

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
            prompt: A string, a list of token ids, or a list of such prompts. An empty prompt starts from the
                model's bos token. Prompts of a list do not influence each other.
            **options: See `GenerateOptions`.

        Returns:
            The new text without the prompt; for a list of prompts, or `num_return_sequences` above 1, a list
            of texts, prompt by prompt.

        Raises:
            TokenizerMissing: The model has no tokenizer.
            UnknownOptionError: There is no such option.
            OptionError: An option or the prompt cannot be used.
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
        prompts, one, resolved = self._resolve(prompt, options)
        outputs = self._start(prompts, resolved).outputs()
        return outputs[0] if one and len(outputs) == 1 else outputs

    def stream(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> Generator[Chunk]:
        """As `generate`, giving out each piece of text as soon as it is certain.

        Pieces never end within a character, and what may begin a stop string is held back. Leaving the loop
        (break, an exception, Ctrl-C) stops the work and frees its memory.

        Args:
            prompt: As in `run`. The sequences of a list advance together; `Chunk.index` says which one it is.
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
        prompts, _, resolved = self._resolve(prompt, options)
        return self._start(prompts, resolved).stream()

    def astream(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Chunk]:
        """As `stream`, for asyncio: steps run in the event loop's executor, and the loop is never blocked.

        Cancelling the task, or leaving the loop, stops the step that is running and frees its memory.

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
            prompts, _, resolved = self._resolve(prompt, options)
            return self._start(prompts, resolved)

        from .decoding import astream

        return astream(start)

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
            logits = core.append(ids, "last")
            return State(core, ids, {}, as_floats(logits), self._core.vocab_size)
        rows = self._embedding_rows(embeddings)
        core = self._core.start(len(rows))
        logits = core.append_embeddings(rows.data, "last")
        places = [EMBEDDING] * len(rows)
        return State(core, places, dict(enumerate(rows)), as_floats(logits), self._core.vocab_size)

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
        ids = self._encode(prompt)
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

    def _need_tokenizer(self, what: str) -> Tokenizer:
        tokenizer = self.tokenizer
        if tokenizer is None:
            expected = (
                "a folder with tokenizer.json or vocab.json and merges.txt, or load(..., tokenizer=...)"
            )
            raise TokenizerMissing(
                f"{what} needs a tokenizer: expected {expected}, got none", expected=expected, got=what
            )
        return tokenizer

    def _resolve(
        self, prompt: Prompt | Sequence[Prompt], options: Mapping[str, Any]
    ) -> tuple[list[list[int]], bool, Options]:
        from .options import resolve

        one = is_one(prompt)
        prompts: list[Any] = [prompt] if one else list(prompt)
        resolved = resolve(options, self._defaults, len(prompts), self._core.context_limit)
        if resolved.stop:
            self._need_tokenizer("stop")
        return [self._ids(item) for item in prompts], one, resolved

    def _start(self, prompts: list[list[int]], options: Options) -> Decoding:
        from .decoding import Decoding

        return Decoding(self._core, prompts, options, self.tokenizer, self._load_seconds)

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._need_tokenizer("a prompt of text").encode(prompt)
        if not is_one(prompt) and not is_empty(prompt):
            raise bad_option("prompt", "one string or one list of token ids", repr(prompt)[:80])
        return as_ids(prompt, self._core.vocab_size)

    def _ids(self, prompt: Prompt) -> list[int]:
        ids = [] if is_empty(prompt) else self._encode(prompt)
        if ids:
            return ids
        if self._defaults.bos_token_id is None:
            file = self._defaults.file
            expected = f"at least one token (an empty prompt needs a bos_token_id, and {file} has none)"
            raise bad_option("prompt", expected, "an empty prompt")
        return [self._defaults.bos_token_id]

    def _embedding_rows(self, embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        import numpy as np

        rows = np.array(embeddings, dtype=np.float32, order="C")  # a copy: truncation reads it again
        width = self._core.width
        if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != width:
            raise bad_option(
                "embeddings", f"an array of shape (T, {width}) with T of at least 1", f"shape {rows.shape}"
            )
        return rows
