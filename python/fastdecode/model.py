"""What every loaded model has: its parts, how it is built and pickled, and how a call begins.

`causal` and `seq2seq` add the verbs. Nothing here computes, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from . import _core
from .accepted import of_load
from .arrays import as_ids, as_tensor, bad_option, brief, is_conversation, is_empty, is_one
from .chat_calls import Conversing, Reading, first_is_conversation
from .chat_options import asked, divided, refuse
from .errors import (
    ConfigError,
    FastdecodeError,
    FastdecodeWarning,
    OptionError,
    TokenizerMissing,
    UnsupportedModelError,
)
from .families import FAMILIES, model_types, tokenizer_files
from .folder import NO_DEFAULTS, Config, config_defaults, folder_defaults, read_json
from .foreign import refuse_foreign
from .hub import locate
from .load_options import LOADING, is_profiled, load_options
from .prefix import of_call

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
    from pathlib import Path
    from typing import Unpack

    from numpy.typing import NDArray

    from .arrays import Prompt
    from .decoding import Decoding
    from .folder import Defaults
    from .load_options import AnyLoadOptions, ComputeDtype, Dtype, Int4Group
    from .prefix import Prefix
    from .results import Chunk
    from .streams import Streams
    from .tokenizer import Tokenizer

M = TypeVar("M", bound="LanguageModel")


# Classes, for people, by whether their models have an encoder and a decoder.
_CLASSES = {(False, True): "CausalLM", (True, True): "Seq2SeqLM", (True, False): "TextEncoder"}


def read_model(classes: Sequence[type[M]], model: str | os.PathLike[str], given: Mapping[str, Any]) -> M:
    """Finds and reads a model, and makes it an instance of the class that it is for.

    Args:
        classes: The classes.
        model: Where it is.
        given: Arguments of loading, those of transformers that are passed over included.

    Raises:
        UnsupportedModelError: It is for none of them.
    """
    began = time.perf_counter()
    options = of_load(given, LOADING)
    own = options.get("tokenizer")
    tokenizer = None if own is None else _given_tokenizer(own)
    native = load_options(
        options.get("dtype", "auto"),
        options.get("compute_dtype"),
        options.get("num_threads"),
        options.get("cache_bytes"),
        options.get("max_rows"),
        options.get("prefix_cache_bytes", 0),
        options.get("int4_group", 64),
        options.get("device", "cpu"),
    )
    source = locate(
        model,
        revision=options.get("revision"),
        token=options.get("token"),
        cache_dir=options.get("cache_dir"),
        local_files_only=options.get("local_files_only", False),
    )
    found = None
    if options.get("adapter") is not None or (source.folder / "adapter_config.json").is_file():
        from . import adapters

        found = adapters.find(source, options)
        source = found.base
    refuse_foreign(source.folder)
    part = classes[0]._part if len(classes) == 1 else "folder"
    read = (
        ()
        if found is None
        else [
            adapters.read_adapter(item.folder, source.folder, encoder_alone=part == "encoder")
            for item in found.adapters
        ]
    )
    # Before config.json is read here: the native side says best what is wrong with a folder.
    core, loaded_as = _built(
        classes, lambda: _core.Model.load(str(source.folder), *native, part, read), str(source.folder)
    )
    config = read_json(source.folder / "config.json")
    kept = {key: value for key, value in options.items() if key != "token"} | {"revision": source.revision}
    defaults = folder_defaults(source.folder, config) if core.has_decoder else NO_DEFAULTS
    folder = source.folder
    if found is not None:
        config["vocab_size"] = core.vocab_size  # which an adapter may have changed
        kept["adapter"] = found.added
        folder = found.tokenizer
    loaded = loaded_as(core, config, defaults, folder, tokenizer, (source.name, kept))
    loaded._adapters = [] if found is None else [item.name for item in found.adapters]
    loaded._load_seconds = time.perf_counter() - began
    return loaded


def _built(
    classes: Sequence[type[M]], build: Callable[[], _core.Model], file: str
) -> tuple[_core.Model, type[M]]:
    """A native model, and the class of several that it is for."""
    try:
        core = build()
    except UnsupportedModelError as error:
        if error.got not in FAMILIES:
            import difflib

            near = difflib.get_close_matches(str(error.got), FAMILIES, n=1)
            hint = f"; the nearest is {near[0]}, which computes something else" if near else ""
            raise UnsupportedModelError(
                f"{error}{hint}", file=error.file, expected=error.expected, got=error.got
            ) from None
        # A model_type that is known has no encoder, which was asked for.
        raise classes[0].refusal(error.got, (False, True), file) from None
    parts = core.has_encoder, core.has_decoder
    for cls in classes:
        if (cls.has_encoder, cls.has_decoder) == parts:
            return core, cls
    raise classes[0].refusal(core.info()["architecture"], parts, file)


def _given_tokenizer(own: object) -> Tokenizer:
    from .tokenizer_objects import as_tokenizer

    return as_tokenizer(own)


def _reload(cls: type[LanguageModel], name: str, keywords: dict[str, Any]) -> LanguageModel:
    return cls.load(name, **keywords)


def _no_prefix(got: str) -> OptionError:
    expected = (
        "none for a model with an encoder (memory= takes what model.encode gives: calls share a source by it)"
    )
    return bad_option("prefix", expected, got)


class Request(NamedTuple):
    """What one sequence, or those that share its prompt, begins with.

    Attributes:
        prompt: Ids that the decoder reads first.
        source: Ids for the encoder, or what it made of them; None in a model without one.
    """

    prompt: list[int]
    source: Sequence[int] | _core.Memory | None = None


class LanguageModel(Conversing):
    """A loaded model of any kind.

    Any number of threads may call it at once, and forked processes too. Pickling keeps where it was loaded
    from, and loads it again.
    """

    # Whether models of the class have an encoder, and a decoder.
    has_encoder: ClassVar[bool]
    has_decoder: ClassVar[bool] = True
    # What the class reads of a folder: all that there is, or the encoder alone.
    _part: ClassVar[Literal["whole", "encoder"]] = "whole"

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
        self._adapters: list[str] = []
        self._tokenizer = tokenizer
        self._tokenizer_read = tokenizer is not None
        self._tokenizer_damaged = False
        self._streams: dict[int, Streams] = {}
        # Of chat templates: those that were read, what ends a turn in each, and the roles that each is known to write.
        self._templates: dict[Path, Any] = {}
        self._turn_ends: dict[str, Any] = {}
        self._kept_roles: set[tuple[str, str]] = set()
        if is_profiled():
            from .profile import show_at_exit

            show_at_exit(self)
        if unknown := core.info()["unknown_tensors"]:
            message = f"the checkpoint has tensors that the model does not use: {', '.join(unknown)}"
            warnings.warn(message, FastdecodeWarning, stacklevel=4)

    @classmethod
    def from_tensors(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, NDArray[Any]],
        *,
        dtype: Dtype = "auto",
        int4_group: Int4Group = 64,
        compute_dtype: ComputeDtype | None = None,
        num_threads: int | None = None,
        cache_bytes: int | None = None,
        max_rows: int | None = None,
        prefix_cache_bytes: int = 0,
        device: str = "cpu",
        tokenizer: object = None,
    ) -> Self:
        """Builds a model from weights in memory, which are copied.

        Args:
            config: What config.json would hold; its keys for generation count too.
            tensors: Arrays by their names in a checkpoint: float32, float16 or bfloat16 (of ml_dtypes, or its
                bits as uint16).
            dtype: As in `load`.
            int4_group: As in `load`.
            compute_dtype: As in `load`.
            num_threads: As in `load`.
            cache_bytes: As in `load`.
            max_rows: As in `load`.
            prefix_cache_bytes: As in `load`.
            device: As in `load`.
            tokenizer: As in `load`; there is none otherwise.

        Raises:
            UnsupportedModelError: `config` names an architecture that is not supported, or one of the other class.
            OptionError: An argument cannot be used.
            ConfigError: A value in `config` cannot be used.
            CheckpointError: A tensor is missing, or has the wrong shape or type.
        """
        import json

        began = time.perf_counter()
        options = load_options(
            dtype, compute_dtype, num_threads, cache_bytes, max_rows, prefix_cache_bytes, int4_group, device
        )
        given = None if tokenizer is None else _given_tokenizer(tokenizer)
        try:
            text = json.dumps(dict(config))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"config: expected values that JSON can hold, got: {error}",
                file="config",
                expected="values that JSON can hold",
                got=str(error),
            ) from error
        arrays = [as_tensor(*item) for item in tensors.items()]
        core, _ = _built(
            (cls,), lambda: _core.Model.from_tensors(text, arrays, *options, cls._part), "config"
        )
        config = json.loads(text)
        defaults = config_defaults(config, "config") if cls.has_decoder else NO_DEFAULTS
        loaded = cls(core, config, defaults, None, given, None)
        loaded._load_seconds = time.perf_counter() - began
        return loaded

    @classmethod
    def load(cls, model: str | os.PathLike[str], **options: Unpack[AnyLoadOptions]) -> Self:
        """As `fastdecode.load`, for models of this class only.

        Args:
            model: As in `fastdecode.load`.
            **options: Its other arguments.

        Raises:
            UnsupportedModelError: The folder holds another kind of model, or an architecture that is not supported.
        """
        return read_model((cls,), model, options)

    @classmethod
    def refusal(cls, model_type: str, parts: tuple[bool, bool], file: str) -> UnsupportedModelError:
        """The error for a model that is not for this class, by whether it has an encoder and a decoder."""
        kind = "a model with an encoder" if cls.has_encoder else "a causal model"
        if cls.has_encoder and not parts[1]:
            kind += " and a decoder"
        expected = f"{kind} ({model_types(has_encoder=cls.has_encoder)})"
        got = model_type if parts[1] else f"{model_type}, an encoder alone"
        other = _CLASSES[parts]
        return UnsupportedModelError(
            f"{file}: {cls.__name__} expected {expected}, got {got}; {other} or fastdecode.load takes it",
            file=file,
            expected=expected,
            got=got,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            raise TypeError(
                "a model built by from_tensors cannot be pickled; save it to a folder and load that"
            )
        return _reload, (type(self), *self._source)

    def __repr__(self) -> str:
        info = self._core.info()
        return f"{type(self).__name__}({info['architecture']}, {info['parameters']:,} parameters, {info['dtype']})"

    @property
    def config(self) -> Config:
        """The contents of config.json."""
        return self._config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, read when first asked for; None where the folder has none."""
        if not self._tokenizer_read:
            if self._folder is not None:
                from .tokenizer_files import read_folder

                self._tokenizer = read_folder(self._folder, self._config)
            self._tokenizer_read = True
        return self._tokenizer

    def info(self) -> dict[str, Any]:
        """What was loaded and how it computes.

        Returns:
            `architecture`, `parameters` (tied ones counted once), `weight_bytes` (packed), `step_weight_bytes`
            (those that a step of decoding reads, or a source in an encoder alone), `cache_bytes_per_token`,
            `dtype` (every type that occurs), `parts` (a dict for every kind of matrix: `name` with `*` for the layer,
            `dtype`, `group` of inputs or None, `matrices`, `bytes`, and `shared_with`, the name of the matrix that
            it is, or None; their bytes add up to `weight_bytes`), `compute_dtype`, `device` ("cpu" or "cuda:N"),
            `device_reason` (why "auto" came to the CPU; None otherwise), `isa` (of a GPU its architecture),
            `num_threads`, `cache_bytes` (what running requests may reserve; None
            without a limit), `max_rows`, `prefix_cache_bytes`, `context_length` (the most positions of a sequence; None
            without a limit), `max_position_embeddings` (where a call ends that asks for no length; None without such
            an end), `vocab_size`, `num_hidden_layers`, `num_attention_heads`, `num_key_value_heads` and `head_dim`
            (of the decoder, or of an encoder alone), `sliding_window` (keys that a token sees at most in layers with
            a window; None without any), `sliding_window_layers` (how many layers have it), `rope_type` (None without
            rotary positions), `unknown_tensors` (names), `adapters` (folders or hub ids, in the order in which they
            were applied) and `load_seconds`; and, in bytes at this moment, `cache_bytes_live` (keys and values that
            sequences, states, prefixes and memories of this model hold), `cache_bytes_held` (those and free ones
            that are kept for reuse), `prefix_cache_bytes_live` (live ones that are kept from one call to the next, in
            `prefix_cache_entries` prefixes) and `activation_bytes` (of running and coming steps of all models in
            this process).
        """
        return self._core.info() | {"adapters": list(self._adapters), "load_seconds": self._load_seconds}

    def prefix(self, prompt: Any) -> Prefix:  # noqa: ANN401 (what a prompt is, the class of the model says)
        """Models with an encoder have no prefixes: what many of their calls share is a source.

        Args:
            prompt: Whatever it is.

        Raises:
            OptionError: Always; it names `memory=`, which shares a source.
        """
        raise _no_prefix(brief(prompt))

    def _start(
        self,
        items: Collection[Any],
        options: Mapping[str, Any],
        *,
        reuse: Prefix | None = None,
        keep: bool = False,
    ) -> Decoding:
        """Resolves the options of a call and reads its items; nothing is computed yet.

        Args:
            items: Prompts or sources, read one after the other: what is kept of each are its ids, on the native side.
            options: Options as given by the caller.
            reuse: A prefix that is joined to no prompt: what they have in common with it is not computed.
            keep: Whether `Decoding.kept` is to give what its only sequence has in the cache at its end.
        """
        from .decoding import Decoding
        from .options import resolve

        prefix = self._own_prefix(options.get("prefix"))
        chat, options = divided({name: value for name, value in options.items() if name != "prefix"})
        resolved = resolve(options, self._defaults, len(items), self._core.context_limit)
        read: Callable[[Any], Request] = self._read
        first = items if prefix is None or not items else [prefix.joined(next(iter(items)))]
        if first_is_conversation(first):
            reading = Reading(self, asked(chat))
            resolved = reading.with_turn_end(resolved, options)

            def read(item: Any) -> Request:  # noqa: ANN401 (as `_read`)
                return Request(self._known(reading.ids(item), "messages"))

        else:
            refuse(
                chat,
                "none in a model with an encoder, which reads the text of the user's last message"
                if self.has_encoder
                else "none without a list of messages as the prompt",
            )
        if resolved.stop or resolved.stop_strings:
            self._need_tokenizer("stop")
        known = reuse if prefix is None else prefix
        prompts = self._core.prompts(None if known is None else known.core)
        for item in items:
            prompts.push(*read(item if prefix is None else prefix.joined(item)))
        return Decoding(self._core, prompts, resolved, self._writer(), self._load_seconds, keep=keep)

    def _own_prefix(self, prefix: object) -> Prefix | None:
        """The prefix that a call was given."""
        known = of_call(prefix)
        if known is not None and self.has_encoder:
            raise _no_prefix(brief(known))
        return known

    def _writer(self) -> Tokenizer | None:
        """The tokenizer that writes the text of a call which reads none; a damaged one is worth a warning only."""
        if self._tokenizer_damaged:
            return None
        try:
            return self.tokenizer
        except (FastdecodeError, OSError) as error:
            self._tokenizer_damaged = True
            message = f"there are ids and no text, since the tokenizer cannot be read: {error}"
            warnings.warn(message, FastdecodeWarning, stacklevel=4)
            return None

    def _astream(self, start: Callable[[], Decoding]) -> AsyncGenerator[Chunk]:
        """A stream for asyncio, led by this model's thread for such streams."""
        from .streams import stream

        return stream(self._core, self._streams, start)

    def _read(self, item: Any) -> Request:  # noqa: ANN401 (what an item is, the class of the model says)
        """One item of a call as ids."""
        raise NotImplementedError

    def _encode_text(
        self, prompt: Prompt, option: str = "prompt", *, add_special_tokens: bool = True
    ) -> list[int]:
        """Ids of one prompt, which may be none."""
        if isinstance(prompt, str):
            tokenizer = self._need_tokenizer(f"a {option} of text")
            return self._known(tokenizer.encode(prompt, add_special_tokens=add_special_tokens), option)
        if not is_empty(prompt) and (is_conversation(prompt) or not is_one(prompt, option)):
            expected = "one string or one list of token ids"
            if is_conversation(prompt):
                expected += " (of messages, model.apply_chat_template gives the ids)"
            raise bad_option(option, expected, brief(prompt))
        ids: Any = prompt
        return as_ids(ids, self._core.vocab_size, option)

    def _known(self, ids: list[int], option: str) -> list[int]:
        """Ids of a text, when the model has all of them."""
        if ids and (highest := max(ids)) >= self._core.vocab_size:
            # A caller of text has not seen ids, so that the error is about the two vocabularies.
            tokenizer = self._need_tokenizer("text")
            expected = (
                f"a text within the model's vocabulary of {self._core.vocab_size} tokens; give the model its own "
                "tokenizer, load(..., tokenizer=...), or resize its embedding where tokens were added"
            )
            got = f"{tokenizer.decode([highest])!r}, id {highest} of a tokenizer of {tokenizer.vocab_size} tokens"
            raise bad_option(option, expected, got)
        return ids

    def _source_ids(self, source: Prompt) -> list[int]:
        """Ids of one source, which has at least one; of a conversation, the text of the user's last message."""
        if self.has_decoder and is_conversation(source):
            from .chat_messages import source_of

            source = source_of(source)
        ids = [] if is_empty(source) else self._encode_text(source, "source")
        if not ids:
            raise bad_option("source", "at least one token", "none")
        return ids

    def _need_tokenizer(self, what: str) -> Tokenizer:
        tokenizer = self.tokenizer
        if tokenizer is None:
            expected = f"a folder with {tokenizer_files()}; or load(..., tokenizer=...)"
            raise TokenizerMissing(
                f"{what} needs a tokenizer: expected {expected}, got none", expected=expected, got=what
            )
        return tokenizer
