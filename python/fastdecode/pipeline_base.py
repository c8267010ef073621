"""What the pipelines share: layers of options, and the way from texts to dictionaries in three steps.

Options come from the call, then from `pipeline(...)`, then from the task's entry in config.json
(task_specific_params), then from the model's folder, then from the defaults of transformers 4.57.6. A
`generation_config=` stands below the options that it is given with. One thing differs on purpose: a length of a
higher layer wins over any length of a lower one (there, the default of 256 new tokens won over a caller's
`max_length`).
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .accepted import of_pipeline_call
from .arrays import bad_option, brief
from .encodings import Encoding, truncated, truncates
from .errors import FastdecodeWarning, OptionError
from .folder import as_whole, bad_field

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .model import LanguageModel
    from .results import Output
    from .tokenizer import Tokenizer

Record = dict[str, Any]

# Options of which the highest layer that has any of them decides alone.
_LENGTHS = ("max_new_tokens", "max_length")
_MINIMA = ("min_new_tokens", "min_length")
# Texts that run side by side unless asked otherwise; it does not change results.
_BATCH = 8


class Entry(NamedTuple):
    """What config.json says about a task.

    Attributes:
        task: The task's name there.
        prefix: Text that stands before every input.
        options: Options of `generate`.
    """

    task: str
    prefix: str
    options: Mapping[str, Any]


class Asked(NamedTuple):
    """What a call asks for, once all layers have been put together.

    Attributes:
        own: The pipeline's own options.
        settled: Options of `generate`, but for those that the model's folder has.
        entry: What config.json says about the task.
    """

    own: dict[str, Any]
    settled: dict[str, Any]
    entry: Entry


class Pipeline:
    """What the pipelines share: layers of options; texts, lists and iterators of them.

    A call goes through three steps, which may be taken by hand, one text at a time; each takes the options of a call:
    `preprocess` makes ids, `forward` generates, `postprocess` makes dictionaries.

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

    Example:
        >>> pipe = fastdecode.pipeline("text-generation", model, max_new_tokens=8, do_sample=False)
        >>> inputs = pipe.preprocess("Once upon a time")
        >>> outputs = pipe.forward(inputs)
        >>> outputs["generated_sequence"].shape == (1, 1, inputs["input_ids"].shape[1] + 8)
        True
        >>> pipe.postprocess(outputs) == pipe("Once upon a time")
        True
    """

    has_encoder: bool
    # What transformers 4.57.6 takes where no other layer says anything, beside 256 new tokens.
    _defaults: Mapping[str, Any]
    # Options of a call that are not those of generate.
    _own: tuple[str, ...]
    # Whether those defaults fill what a call's generation_config leaves open.
    _fills_configs: bool

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
        self._settled(rest, self._entry)

    def __call__(self, inputs: Any, **options: Any) -> Any:  # noqa: ANN401 (see _answers)
        """Answers a text, a list of texts, or an iterator of them; see the two kinds of pipeline.

        Args:
            inputs: The texts.
            **options: Those of `GenerateOptions` and of the pipeline.
        """
        raise NotImplementedError

    def preprocess(self, inputs: str | Sequence[Mapping[str, Any]], **options: Any) -> Encoding:  # noqa: ANN401 (those of a call)
        """Makes ids of one text.

        Args:
            inputs: The text; for text-generation it may be a conversation.
            **options: As in a call.

        Returns:
            `input_ids` and `attention_mask` (of ones), both int64 of shape (1, S), and for text-generation
            `prompt_text`.

        Raises:
            OptionError: An option or the text cannot be used.
        """
        if not self._is_input(inputs):
            raise bad_option("inputs", "one text", brief(inputs))
        return self._tokenized(inputs, self._asked(options))

    def forward(self, model_inputs: Mapping[str, Any], **options: Any) -> Record:  # noqa: ANN401 (those of a call)
        """Generates from what `preprocess`, or a tokenizer, has made of a text.

        Args:
            model_inputs: `input_ids` of shape (N, S); where it has an `attention_mask` of that shape, ids whose mask
                is 0 are left out.
            **options: As in a call.

        Returns:
            Arrays of int64, with `num_return_sequences` n and L ids of the longest sequence (shorter ones end in the
            pad token): for models with an encoder `output_ids` of shape (N, n, L), from the start token on; for
            text-generation `generated_sequence` of that shape, from the prompt on, with `input_ids` (None for an
            empty prompt) and `prompt_text`.

        Raises:
            OptionError: An option or the ids cannot be used.
        """
        asked = self._asked(options)
        return self._generated([model_inputs], self._seeded(asked.settled, 1))[0]

    def postprocess(self, model_outputs: Mapping[str, Any], **options: Any) -> list[Record]:  # noqa: ANN401 (as above)
        """Makes the dictionaries of one text from what `forward` has returned.

        Args:
            model_outputs: What `forward` has returned for one text; of several the first one counts, as in
                transformers.
            **options: As in a call.

        Raises:
            OptionError: An option or the ids cannot be used.
        """
        return self._records(model_outputs, self._asked(options).own)

    def _asked(self, options: Mapping[str, Any]) -> Asked:
        """What a call asks for: its options, checked, with everything that other layers say."""
        raise NotImplementedError

    def _is_input(self, text: object) -> bool:
        """Whether this is one input."""
        return isinstance(text, str)

    def _tokenized(self, text: Any, asked: Asked) -> Encoding:  # noqa: ANN401 (an input)
        raise NotImplementedError

    def _prompts(self, inputs: Mapping[str, Any]) -> list[list[int]]:
        """The ids of each row of an input, without what its mask hides."""
        ids = matrix(inputs, "input_ids")
        if inputs.get("attention_mask") is None:
            return [[int(token) for token in row] for row in ids]
        mask = matrix(inputs, "attention_mask")
        if mask.shape != ids.shape or not ((mask == 0) | (mask == 1)).all():
            expected = f"zeros and ones of shape {ids.shape}, that of input_ids"
            raise bad_option("attention_mask", expected, f"shape {mask.shape}")
        return [
            [int(token) for token, seen in zip(row, shown, strict=True) if seen]
            for row, shown in zip(ids, mask, strict=True)
        ]

    def _generated(self, inputs: Sequence[Mapping[str, Any]], settled: Mapping[str, Any]) -> list[Record]:
        """Runs inputs side by side; what `forward` gives for each."""
        prompts = [self._prompts(item) for item in inputs]
        flat = [prompt for rows in prompts for prompt in rows]
        if not flat:
            return []
        options = dict(settled)
        if isinstance(options.get("seed"), list) and len(options["seed"]) != len(flat):
            # One input may have several rows, and each draws as it would alone.
            options["seed"] = [
                seed for seed, rows in zip(options["seed"], prompts, strict=True) for _ in rows
            ]
        outputs: list[Output] = self.model.run(flat, **options)
        count = len(outputs) // len(flat)
        by_prompt = iter([outputs[at : at + count] for at in range(0, len(outputs), count)])
        fill = self._fill(settled)
        return [
            self._joined(item, [next(by_prompt) for _ in rows], fill)
            for item, rows in zip(inputs, prompts, strict=True)
        ]

    def _joined(self, item: Mapping[str, Any], outputs: list[list[Output]], fill: int) -> Record:
        """What `forward` gives for one input: its sequences as an array."""
        raise NotImplementedError

    def _records(self, outputs: Mapping[str, Any], own: Mapping[str, Any]) -> list[Record]:
        raise NotImplementedError

    def _find_entry(self) -> Entry:
        return self._read_entry(self.task)

    def _object(self, name: str, container: Mapping[str, Any]) -> Mapping[str, Any]:
        value = container.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise bad_field("config.json", name, "an object or null", brief(value))
        return value or {}

    def _read_entry(self, task: str) -> Entry:
        """What task_specific_params says about a task, which may be nothing."""
        from .options import OPTION_NAMES

        entry = self._object(task, self._entries)
        prefix = entry.get("prefix", self.model.config.get("prefix"))
        if not isinstance(prefix, (str, type(None))):
            raise bad_field("config.json", "prefix", "a text or null", brief(prefix))
        # What generate does not know is passed over, as transformers does it.
        known = {
            name: as_whole(value)
            for name, value in entry.items()
            if name in OPTION_NAMES and value is not None
        }
        return Entry(task, prefix or "", known)

    def _divided(self, call: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The pipeline's own options, with the defaults of every call, and the call's options of generate."""
        call = of_pipeline_call(call, shows_input=not self.has_encoder)
        given = {**self._options, **call}
        own = {name: given.get(name) for name in self._own}
        for name, value in own.items():
            if getattr(value, "ndim", 0):
                raise bad_option(name, "one value", f"an array, {brief(value)}")
        own["batch_size"] = _texts_at_once(given.get("batch_size"), self._batch_size)
        return own, {name: value for name, value in call.items() if name not in own}

    def _settled(self, call: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
        """Options of generate from all layers but the folder's, which generate itself looks up; checked."""
        from .options import BEAM_OPTIONS, SAMPLING_OPTIONS, checked_value, config_values

        every = {name: value for name, value in self._options.items() if name not in self._own}
        config = config_values(call.get("generation_config"))
        defaults: Mapping[str, Any] = self._defaults
        of_task = entry.options
        if call.get("generation_config") is not None:
            # It takes the place of everything that the pipeline was made with.
            every, of_task = {}, {}
            defaults = self._defaults if self._fills_configs else {}
        elif every.get("generation_config") is not None:
            config = config_values(every["generation_config"])
            of_task = _without(of_task, config)
        settled: dict[str, Any] = {}
        for layer in (of_task, every, call):
            for group in (_LENGTHS, _MINIMA):
                if any(layer.get(name) is not None for name in group):
                    settled = {name: value for name, value in settled.items() if name not in group}
            settled |= layer
        below = {**self.model._defaults.values, **config}
        for name, value in defaults.items():
            draws = {**below, **settled}.get("do_sample")
            if name not in settled and name not in below and (draws or name not in SAMPLING_OPTIONS):
                settled[name] = value
        effective = {**below, **settled}
        # What a lower layer asks of sampling or beams goes where a higher one wants neither.
        for switch, names, off in (
            ("do_sample", SAMPLING_OPTIONS, not effective.get("do_sample")),
            ("num_beams", BEAM_OPTIONS, effective.get("num_beams") in (None, 1)),
        ):
            for name in names if off else ():
                asked = name in call or (name in every and switch not in call)
                if not asked:
                    settled.pop(name, None)
        self._check(settled, Entry(entry.task, entry.prefix, of_task), call)
        if settled.get("seed") is not None:
            settled["seed"] = checked_value("seed", settled["seed"])
        return settled

    def _check(self, settled: Mapping[str, Any], entry: Entry, call: Mapping[str, Any]) -> None:
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

    def _below(self, settled: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a generation_config and the model's folder say where the settled options say nothing."""
        from .options import config_values

        return {**self.model._defaults.values, **config_values(settled.get("generation_config"))}

    def _lengths(self, settled: Mapping[str, Any]) -> tuple[Any, Any]:
        """New tokens and the length that count, each or None."""
        for layer in (settled, self._below(settled)):
            if any(layer.get(name) is not None for name in _LENGTHS):
                new, length = layer.get("max_new_tokens"), layer.get("max_length")
                return as_whole(new), None if new is not None else as_whole(length)
        return None, None

    def _fill(self, settled: Mapping[str, Any]) -> int:
        """What follows the end of a sequence that is shorter than others, as transformers has it."""
        below = self._below(settled)
        pad = settled.get("pad_token_id", below.get("pad_token_id"))
        if pad is None:
            pad = getattr(self.tokenizer, "pad_token_id", None)
        eos = settled.get("eos_token_id", below.get("eos_token_id"))
        first = next(iter(eos), None) if isinstance(eos, (list, tuple)) else eos
        beams = {**below, **settled}.get("num_beams")
        if pad is None or (beams not in (None, 1) and not pad):  # a search takes a pad token 0 for none
            pad = first if first is not None and first >= 0 else pad
        return 0 if pad is None else int(as_whole(pad))

    def _answers(self, inputs: object, asked: Asked) -> Any:  # noqa: ANN401 (see below)
        """Answers of a text or of a list of texts as a list, and of an iterator of them as one, batch by batch."""
        if self._is_input(inputs):
            return next(self._batches([inputs], asked))
        # An array without dimensions says that it is iterable.
        alone = getattr(inputs, "ndim", 1) == 0
        if alone or not isinstance(inputs, Iterable) or isinstance(inputs, (bytes, Mapping)):
            raise bad_option("inputs", "a text, or a list or an iterator of texts", brief(inputs))
        if isinstance(inputs, Iterator):
            return self._batches(inputs, asked)
        return list(self._batches(inputs, asked))

    def _batches(self, texts: Iterable[object], asked: Asked) -> Iterator[list[Record]]:
        seed = asked.settled.get("seed")
        seeds = None if seed is None or isinstance(seed, int) else list(seed)
        if seeds is not None and isinstance(texts, Sequence) and len(seeds) != len(texts):
            raise bad_option("seed", f"one seed per text, {len(texts)} in all", f"{len(seeds)} seeds")
        source, done = iter(texts), 0
        while batch := list(itertools.islice(source, asked.own["batch_size"])):
            for text in batch:
                if not self._is_input(text):
                    raise bad_option("inputs", "texts", brief(text))
            options = self._seeded(asked.settled, len(batch))
            if seeds is not None:
                options["seed"] = seeds[done : done + len(batch)]
            done += len(batch)
            inputs = [self._tokenized(text, asked) for text in batch]
            for outputs in self._generated(inputs, options):
                yield self._records(outputs, asked.own)

    def _seeded(self, settled: Mapping[str, Any], count: int) -> dict[str, Any]:
        """Options with which every text draws as it would alone, whatever runs beside it."""
        seed = settled.get("seed")
        if seed is None:
            return dict(settled)
        return {**settled, "seed": list(seed) if isinstance(seed, Iterable) else [seed] * count}

    def _ids(self, text: str, own: Mapping[str, Any], *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, cut where asked for: to the call's bound, or else the limit that the tokenizer names."""
        if not truncates(own["truncation"]):
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        limit = own.get("source_length") or self.tokenizer.model_max_length
        if limit is None:
            warnings.warn(
                "truncation: the tokenizer's folder names no model_max_length, so that nothing is cut",
                FastdecodeWarning,
                stacklevel=2,
            )
        return truncated(self.tokenizer, text, limit, add_special_tokens=add_special_tokens)


def _without(entry: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of a task's options beside those of a generation_config, of which a length takes both."""
    gone = {*config}
    for group in (_LENGTHS, _MINIMA):
        if gone.intersection(group):
            gone.update(group)
    return {name: value for name, value in entry.items() if name not in gone}


def matrix(inputs: Mapping[str, Any], name: str) -> NDArray[Any]:
    """A table of integers that a step is given.

    Raises:
        OptionError: There is none, or it is something else.
    """
    import numpy as np

    if not isinstance(inputs, Mapping) or name not in inputs:
        raise bad_option("model_inputs", f"a dictionary with {name}", brief(inputs))
    try:
        array: NDArray[Any] = np.asarray(inputs[name])
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise bad_option(name, "integers of shape (N, S)", str(error)) from error
    if array.ndim != 2 or not len(array) or (array.size and array.dtype.kind not in "iub"):
        expected = "integers of shape (N, S), with one row or more"
        raise bad_option(name, expected, f"{array.dtype} of shape {array.shape}")
    return array


def stacked(rows: list[list[list[int]]], fill: int) -> NDArray[Any]:
    """Sequences of every prompt as one array of int64, shape (N, n, L)."""
    import numpy as np

    longest = max(len(row) for sequences in rows for row in sequences)
    filled = [[row + [fill] * (longest - len(row)) for row in sequences] for sequences in rows]
    return np.array(filled, dtype=np.int64)


def _texts_at_once(given: object, usual: int) -> int:
    if given is None:
        return usual
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise bad_option("batch_size", "an integer of at least 1", brief(given))
    return min(given, sys.maxsize)  # no list is longer
