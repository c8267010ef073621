"""Pipelines by task, as transformers 4 had them: texts in, dictionaries with the old keys and shapes out.

Transformers 5 dropped those for models with an encoder. Options come from the call, then from `pipeline(...)`,
then from the task's entry in config.json (task_specific_params), then from the model's folder, then from the
defaults of transformers 4.57.6. One thing differs on purpose: a length of a higher layer wins over any length
of a lower one (there, the default of 256 new tokens won over a caller's `max_length`). The tasks share all of
this, and stand in one file, a few lines longer than one should be.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .accepted import is_cpu, is_for_loading, of_load, of_pipeline, of_pipeline_call
from .arrays import bad_option
from .errors import FastdecodeWarning, OptionError, UnsupportedModelError
from .folder import as_whole, bad_field
from .model import LOADING, LanguageModel

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from .results import Output
    from .tokenizer import Tokenizer

Record = dict[str, Any]

# Options of which the highest layer that has any of them decides alone.
_LENGTHS = ("max_new_tokens", "max_length")
_MINIMA = ("min_new_tokens", "min_length")
# Texts that run side by side unless asked otherwise; it does not change results.
_BATCH = 8
_TASKS = '"translation_xx_to_yy", "translation", "summarization", "text2text-generation" or "text-generation"'


def pipeline(
    task: str,
    model: str | os.PathLike[str] | LanguageModel,
    *,
    batch_size: int | None = None,
    device: str | int | None = None,
    **options: Any,  # noqa: ANN401 (those of load, of the task and of generate)
) -> Pipeline:
    """A function from texts to dictionaries, as `transformers.pipeline` of version 4 made it.

    Args:
        task: "translation_xx_to_yy" (xx and yy as the model's config.json names them), "translation",
            "summarization", "text2text-generation" or "text-generation".
        model: A folder, a hub id, a demo model's name, or a loaded model.
        batch_size: Texts of a list that run side by side; it does not change results. None for 8.
        device: None, -1 or "cpu", a device of torch of this name included.
        **options: Arguments of `load` (unless the model is loaded), and whatever a call of the pipeline takes,
            as defaults for every call.

    Returns:
        A `Seq2SeqPipeline`, or for "text-generation" a `TextGenerationPipeline`.

    Raises:
        OptionError: There is no such task, or an option cannot be used.
        UnsupportedModelError: The model is not of the kind that the task needs.
        TokenizerMissing: The model has no tokenizer.
        ConfigError: The task's entry in config.json cannot be used.
        ModelNotFoundError: There is no such folder, demo model or hub id.

    Example:
        >>> tell = fastdecode.pipeline("text-generation", "demo-stories", max_new_tokens=20, seed=1)
        >>> [record] = tell("Once upon a time")
        >>> record["generated_text"].startswith("Once upon a time")
        True
    """
    kind = _kind(task)
    if not is_cpu(device):
        raise bad_option("device", 'None, -1 or "cpu" (fastdecode computes on the CPU)', repr(device))
    options = of_pipeline(options)
    loading = {name: options.pop(name) for name in (*options,) if name in LOADING or is_for_loading(name)}
    if not isinstance(model, LanguageModel):
        from .loading import load

        model = load(model, **loading)
    elif loading := of_load(loading, LOADING):
        name, value = next(iter(loading.items()))
        raise bad_option(name, "nothing with a model that is loaded", repr(value))
    assert isinstance(model, LanguageModel)
    if not model.has_decoder:
        expected, got = "a model with a decoder", f"{model.info()['architecture']}, an encoder alone"
        raise UnsupportedModelError(
            f"{task}: expected {expected}, got {got}, which gives hidden states (TextEncoder.encode)",
            expected=expected,
            got=got,
        )
    if model.has_encoder != kind.has_encoder:
        fitting = (
            "translation, summarization or text2text-generation" if model.has_encoder else "text-generation"
        )
        expected = "a model with an encoder" if kind.has_encoder else "a model without an encoder"
        got = f"{model.info()['architecture']}, which is for {fitting}"
        raise UnsupportedModelError(f"{task}: expected {expected}, got {got}", expected=expected, got=got)
    return kind(task, model, batch_size, of_pipeline_call(options, shows_input=not kind.has_encoder))


def _kind(task: object) -> type[Pipeline]:
    if task == "text-generation":
        return TextGenerationPipeline
    if task in ("translation", "summarization", "text2text-generation"):
        return Seq2SeqPipeline
    match task.split("_") if isinstance(task, str) else []:
        case ["translation", source, "to", target] if source and target:
            return Seq2SeqPipeline
    raise bad_option("task", _TASKS, repr(task))


class _Entry(NamedTuple):
    """What config.json says about a task.

    Attributes:
        task: The task's name there.
        prefix: Text that stands before every input.
        options: Options of `generate`.
    """

    task: str
    prefix: str
    options: Mapping[str, Any]


class Pipeline:
    """What the pipelines share: layers of options; texts, lists and iterators of them.

    Args:
        task: What it is for.
        model: A model of the right kind.
        batch_size: Texts of a list that run side by side; None for 8.
        options: Defaults for every call.

    Attributes:
        task: What it is for; a bare "translation" has become the pair that it stands for.
        model: The model.
        tokenizer: The model's tokenizer.
        prefix: Text that stands before every input.
    """

    has_encoder: bool
    # What transformers 4.57.6 takes where no other layer says anything, beside 256 new tokens.
    _defaults: Mapping[str, Any]
    # Options of a call that are not those of generate.
    _own: tuple[str, ...]

    def __init__(
        self, task: str, model: LanguageModel, batch_size: int | None, options: Mapping[str, Any]
    ) -> None:
        self.task = task
        self.model: Any = model
        self.tokenizer: Tokenizer = model._need_tokenizer(f"the task {task}")
        self._batch_size = _texts_at_once(batch_size, _BATCH)
        self._options = dict(options)
        self._entries = self._object("task_specific_params", model.config)
        self._entry = self._find_entry()
        self.task, self.prefix = self._entry.task, self._entry.prefix
        _, rest = self._divided({})
        self._check(self._settled(rest, self._entry), self._entry, rest)

    def __call__(self, inputs: Any, **options: Any) -> Any:  # noqa: ANN401 (see _answers)
        """Answers a text, a list of texts, or an iterator of them; see the two kinds of pipeline.

        Args:
            inputs: The texts.
            **options: Those of `GenerateOptions` and of the pipeline.
        """
        raise NotImplementedError

    def _find_entry(self) -> _Entry:
        return self._read_entry(self.task)

    def _object(self, name: str, container: Mapping[str, Any]) -> Mapping[str, Any]:
        value = container.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise bad_field("config.json", name, "an object or null", repr(value))
        return value or {}

    def _read_entry(self, task: str) -> _Entry:
        """What task_specific_params says about a task, which may be nothing."""
        from .options import OPTION_NAMES

        entry = self._object(task, self._entries)
        prefix = entry.get("prefix", self.model.config.get("prefix"))
        if not isinstance(prefix, (str, type(None))):
            raise bad_field("config.json", "prefix", "a text or null", repr(prefix))
        # What generate does not know is passed over, as transformers does it.
        known = {
            name: as_whole(value)
            for name, value in entry.items()
            if name in OPTION_NAMES and value is not None
        }
        return _Entry(task, prefix or "", known)

    def _divided(self, call: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The pipeline's own options, with the defaults of every call, and the call's options of generate."""
        call = of_pipeline_call(call, shows_input=not self.has_encoder)
        given = {**self._options, **call}
        own = {name: given.get(name) for name in self._own}
        own["batch_size"] = _texts_at_once(given.get("batch_size"), self._batch_size)
        return own, {name: value for name, value in call.items() if name not in own}

    def _settled(self, call: Mapping[str, Any], entry: _Entry) -> dict[str, Any]:
        """Options of generate from all layers but the folder's, which generate itself looks up."""
        from .options import BEAM_OPTIONS, SAMPLING_OPTIONS

        every = {name: value for name, value in self._options.items() if name not in self._own}
        settled: dict[str, Any] = {}
        for layer in (entry.options, every, call):
            for group in (_LENGTHS, _MINIMA):
                if any(layer.get(name) is not None for name in group):
                    settled = {name: value for name, value in settled.items() if name not in group}
            settled |= layer
        folder = self.model._defaults.values
        for name, value in self._defaults.items():
            draws = {**folder, **settled}.get("do_sample")
            if name not in settled and name not in folder and (draws or name not in SAMPLING_OPTIONS):
                settled[name] = value
        effective = {**folder, **settled}
        # What a lower layer asks of sampling or beams goes where a higher one wants neither.
        for switch, names, off in (
            ("do_sample", SAMPLING_OPTIONS, not effective.get("do_sample")),
            ("num_beams", BEAM_OPTIONS, effective.get("num_beams") in (None, 1)),
        ):
            for name in names if off else ():
                asked = name in call or (name in every and switch not in call)
                if not asked:
                    settled.pop(name, None)
        return settled

    def _check(self, settled: Mapping[str, Any], entry: _Entry, call: Mapping[str, Any]) -> None:
        """Holds options against the model; those of a task are the file's fault."""
        from .options import resolve

        alone = {name: value for name, value in settled.items() if name != "seed"}
        try:
            resolve(alone, self.model._defaults, 1, self.model.info()["context_length"])
        except OptionError as error:
            name = error.option
            if name in entry.options and name not in call and name not in self._options:
                field = f"task_specific_params.{entry.task}.{name}"
                raise bad_field("config.json", field, str(error.expected), str(error.got)) from error
            raise

    def _answers(
        self,
        inputs: object,
        answer: Callable[[list[str], dict[str, Any]], list[list[Record]]],
        settled: Mapping[str, Any],
        at_once: int,
    ) -> Any:  # noqa: ANN401 (a list for a text or a list of them, an iterator for an iterator)
        """Answers of a text, of a list of texts, or of an iterator of them, batch by batch."""
        if isinstance(inputs, str):
            return next(self._batches([inputs], answer, settled, at_once))
        if not isinstance(inputs, Iterable) or isinstance(inputs, (bytes, Mapping)):
            raise bad_option("inputs", "a text, or a list or an iterator of texts", f"{inputs!r:.80}")
        if isinstance(inputs, Iterator):
            return self._batches(inputs, answer, settled, at_once)
        return list(self._batches(inputs, answer, settled, at_once))

    def _batches(
        self,
        texts: Iterable[object],
        answer: Callable[[list[str], dict[str, Any]], list[list[Record]]],
        settled: Mapping[str, Any],
        at_once: int,
    ) -> Iterator[list[Record]]:
        seed = settled.get("seed")
        seeds = None if seed is None or isinstance(seed, int) else list(seed)
        if seeds is not None and isinstance(texts, Sequence) and len(seeds) != len(texts):
            raise bad_option("seed", f"one seed per text, {len(texts)} in all", f"{len(seeds)} seeds")
        source, done = iter(texts), 0
        while batch := list(itertools.islice(source, at_once)):
            for text in batch:
                if not isinstance(text, str):
                    raise bad_option("inputs", "texts", f"{text!r:.80}")
            options = dict(settled)
            if seed is not None:
                # Every text draws as it would alone, whatever runs beside it.
                options["seed"] = [seed] * len(batch) if seeds is None else seeds[done : done + len(batch)]
            done += len(batch)
            yield from answer([str(text) for text in batch], options)

    def _run(self, prompts: list[list[int]], options: Mapping[str, Any]) -> list[list[Output]]:
        """Outputs of every prompt."""
        outputs: list[Output] = self.model.run(prompts, **options)
        count = len(outputs) // len(prompts)
        return [outputs[at : at + count] for at in range(0, len(outputs), count)]

    def _ids(self, text: str, own: Mapping[str, Any], *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, cut where asked for: to the call's bound, or else the limit that the tokenizer names."""
        ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if not _truncates(own["truncation"]):
            return ids
        limit = own.get("source_length") or self.tokenizer.model_max_length
        if limit is None:
            warnings.warn(
                "truncation: the tokenizer's folder names no model_max_length, so that nothing is cut",
                FastdecodeWarning,
                stacklevel=2,
            )
            return ids
        if len(ids) <= limit:
            return ids
        # Special tokens around the text stay.
        body = self.tokenizer.encode(text, add_special_tokens=False)
        before = next(at for at in range(len(ids)) if ids[at : at + len(body)] == body)
        after = ids[before + len(body) :]
        room = max(limit - before - len(after), 0)
        left = self.tokenizer.truncation_side == "left"
        return ids[:before] + (body[len(body) - room :] if left else body[:room]) + after


class Seq2SeqPipeline(Pipeline):
    """Translation, summarization and text2text-generation; made by `pipeline`."""

    has_encoder = True
    _defaults: Mapping[str, Any] = {"num_beams": 4}
    _own = (
        "return_tensors",
        "return_text",
        "clean_up_tokenization_spaces",
        "truncation",
        "stop_sequence",
        "src_lang",
        "tgt_lang",
    )

    def __call__(self, inputs: Any, **options: Any) -> Any:  # noqa: ANN401 (see _answers)
        """Answers a text, a list of texts, or an iterator of them.

        Args:
            inputs: What to translate, to sum up or to answer.
            **options: Those of `GenerateOptions`, `batch_size`, and: `return_tensors` (ids instead of text, an
                int64 array with the start token), `return_text` (True, the default), `clean_up_tokenization_spaces`
                (default False), `truncation` (True cuts inputs to the tokenizer's model_max_length, the end
                token included), `stop_sequence` (its first token ends the output), and for translation
                `src_lang` and `tgt_lang` (a pair of the model's config.json, instead of the pipeline's). One
                `seed` lets every text draw as it would alone.

        Returns:
            For a text a list of dictionaries, one per returned sequence; for a list of texts a list of
            dictionaries, or of such lists where `num_return_sequences` is above 1; for an iterator an
            iterator of lists. The key is "translation_text", "summary_text" or "generated_text", and with
            return_tensors "translation_token_ids" and so on.

        Raises:
            OptionError: An option or an input cannot be used.
            UnknownOptionError: There is no such option.
        """
        own, call = self._divided(options)
        entry = self._entry_of_call(own)
        if own["stop_sequence"] is not None:
            call["eos_token_id"] = self._first_token(own["stop_sequence"])
        if own["return_text"] is False and not own["return_tensors"]:
            raise bad_option("return_text", "True, or return_tensors=True beside it", "False")
        _truncates(own["truncation"])
        settled = self._settled(call, entry)
        self._check(settled, entry, call)
        answers = self._answers(
            inputs,
            lambda texts, chosen: self._answer(texts, chosen, own, entry),
            settled,
            own["batch_size"],
        )
        if isinstance(inputs, str) or not isinstance(answers, list):
            return answers
        alone = all(len(records) == 1 for records in answers)
        return [records[0] for records in answers] if alone else answers

    def _answer(
        self, texts: list[str], options: dict[str, Any], own: Mapping[str, Any], entry: _Entry
    ) -> list[list[Record]]:
        if entry.prefix and any(text.startswith(entry.prefix) for text in texts):
            message = (
                f"an input begins with {entry.prefix!r}, which the task {entry.task} puts before it again"
            )
            warnings.warn(message, FastdecodeWarning, stacklevel=2)
        sources = [self._ids(entry.prefix + text, own) for text in texts]
        return [[self._record(output, own) for output in outputs] for outputs in self._run(sources, options)]

    def _record(self, output: Output, own: Mapping[str, Any]) -> Record:
        name = "generated"
        if self.task != "text2text-generation":
            name = "summary" if self.task == "summarization" else "translation"
        ids = [self.model._start_token(), *output.token_ids]
        if own["return_tensors"]:
            import numpy as np

            return {f"{name}_token_ids": np.array(ids, dtype=np.int64)}
        clean = bool(own["clean_up_tokenization_spaces"])
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=clean)
        return {f"{name}_text": text}

    def _find_entry(self) -> _Entry:
        if self.task != "translation":
            return self._read_entry(self.task)
        own, _ = self._divided({})
        if own["src_lang"] is not None or own["tgt_lang"] is not None:
            return self._read_entry(f"translation_{own['src_lang']}_to_{own['tgt_lang']}")
        first = next((name for name in self._entries if name.startswith("translation_")), None)
        if first is None:
            return self._read_entry(self.task)
        message = f"the task translation stands for many pairs; the first of config.json is taken: {first}"
        warnings.warn(message, FastdecodeWarning, stacklevel=5)
        return self._read_entry(first)

    def _entry_of_call(self, own: Mapping[str, Any]) -> _Entry:
        """The entry of the languages that a call names, or else the pipeline's."""
        if own["src_lang"] is None and own["tgt_lang"] is None:
            return self._entry
        task = f"translation_{own['src_lang']}_to_{own['tgt_lang']}"
        if self.task.startswith("translation") and task in self._entries:
            return self._read_entry(task)
        if task != self.task:
            message = f"src_lang and tgt_lang have no effect: config.json has no task {task}"
            warnings.warn(message, FastdecodeWarning, stacklevel=3)
        return self._entry

    def _first_token(self, stop_sequence: object) -> int:
        if not isinstance(stop_sequence, str) or not stop_sequence:
            raise bad_option("stop_sequence", "a text that is not empty", repr(stop_sequence))
        ids = self.tokenizer.encode(stop_sequence, add_special_tokens=False)
        if not ids:
            raise bad_option("stop_sequence", "a text of at least one token", repr(stop_sequence))
        if len(ids) > 1:
            message = (
                f"stop_sequence {stop_sequence!r} has {len(ids)} tokens, and its first alone ends the output"
            )
            warnings.warn(f"{message} (stop= knows whole texts)", FastdecodeWarning, stacklevel=3)
        return ids[0]


class TextGenerationPipeline(Pipeline):
    """Text generation without an encoder; made by `pipeline`."""

    has_encoder = False
    _defaults: Mapping[str, Any] = {"do_sample": True, "temperature": 0.7}
    _own = (
        "return_full_text",
        "return_tensors",
        "return_text",
        "clean_up_tokenization_spaces",
        "truncation",
        "stop_sequence",
        "prefix",
        "add_special_tokens",
        "skip_special_tokens",
    )

    def __call__(self, inputs: Any, **options: Any) -> Any:  # noqa: ANN401 (see _answers)
        """Continues a text, a list of texts, or an iterator of them.

        Args:
            inputs: What to continue.
            **options: Those of `GenerateOptions`, `batch_size`, and: `return_full_text` (True, the default,
                puts the input before the new text), `return_tensors` (lists of ids instead of text), `return_text`,
                `clean_up_tokenization_spaces` (default True; not for BPE, as in transformers 5), `truncation`
                (True cuts inputs to the tokenizer's model_max_length), `stop_sequence` (each of its tokens
                ends the text), `prefix` (text before the input, not returned), `add_special_tokens` and
                `skip_special_tokens` (both True). One `seed` lets every text draw as it would alone.

        Returns:
            For a text a list of dictionaries, one per returned sequence; for a list of texts a list of such
            lists; for an iterator an iterator of lists. The key is "generated_text", or with return_tensors
            "generated_token_ids", those of the input first.

        Raises:
            OptionError: An option or an input cannot be used.
            UnknownOptionError: There is no such option.
        """
        own, call = self._divided(options)
        both = [
            name for name in ("return_full_text", "return_tensors", "return_text") if own[name] is not None
        ]
        if len(both) > 1:
            raise bad_option(both[0], f"nothing beside {both[1]}", repr(own[both[0]]))
        if own["stop_sequence"] is not None:
            if not isinstance(own["stop_sequence"], str) or not own["stop_sequence"]:
                raise bad_option("stop_sequence", "a text that is not empty", repr(own["stop_sequence"]))
            call["eos_token_id"] = self.tokenizer.encode(own["stop_sequence"], add_special_tokens=False)
        if _truncates(own["truncation"]):
            own["source_length"] = self._bound(call)
        settled = self._settled(call, self._entry)
        self._check(settled, self._entry, call)
        return self._answers(
            inputs, lambda texts, chosen: self._answer(texts, chosen, own), settled, own["batch_size"]
        )

    def _bound(self, call: dict[str, Any]) -> int | None:
        """What `max_length` bounds the input to; beside `max_new_tokens` it bounds nothing else."""
        length, new = (
            self._options.get(name) if call.get(name) is None else call[name]
            for name in ("max_length", "max_new_tokens")
        )
        if length is None:
            return None
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise bad_option("max_length", "an integer of at least 1", repr(length))
        if new is not None:
            call.pop("max_length", None)
            call["max_new_tokens"] = new
        return length

    def _answer(
        self, texts: list[str], options: dict[str, Any], own: Mapping[str, Any]
    ) -> list[list[Record]]:
        prefix = self.prefix if own["prefix"] is None else own["prefix"]
        special = own["add_special_tokens"] is not False
        prompts = [self._ids(prefix + text, own, add_special_tokens=special) for text in texts]
        together = zip(texts, prompts, self._run(prompts, options), strict=True)
        return [
            [self._record(text, prompt, output, own) for output in outputs]
            for text, prompt, outputs in together
        ]

    def _record(self, text: str, prompt: list[int], output: Output, own: Mapping[str, Any]) -> Record:
        if own["return_tensors"]:
            bos = self.model._defaults.bos_token_id
            return {"generated_token_ids": [*(prompt or [bos]), *output.token_ids]}

        def decode(ids: list[int]) -> str:
            return self.tokenizer.decode(
                ids,
                skip_special_tokens=own["skip_special_tokens"] is not False,
                clean_up_tokenization_spaces=own["clean_up_tokenization_spaces"] is not False,
            )

        new = decode([*prompt, *output.token_ids])[len(decode(prompt)) :]
        return {"generated_text": new if own["return_full_text"] is False else text + new}


def _texts_at_once(given: object, usual: int) -> int:
    if given is None:
        return usual
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise bad_option("batch_size", "an integer of at least 1", repr(given))
    return given


def _truncates(value: object) -> bool:
    if value in (None, False, "do_not_truncate"):
        return False
    if value in (True, "longest_first", "only_first"):
        return True
    raise bad_option(
        "truncation", 'True, False, "longest_first", "only_first" or "do_not_truncate"', repr(value)
    )
