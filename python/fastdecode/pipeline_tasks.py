"""The pipelines by task: translation, summarization and text2text-generation, and text-generation.

Keys, shapes and defaults are those of transformers 4.57.6; `handle_long_generation` and `generation_config` are those
of 5.24, which still has text-generation.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import pipeline_chats
from .arrays import bad_option, brief, is_conversation
from .encodings import Encoding, shortened, truncates
from .errors import FastdecodeWarning
from .pipeline_base import Asked, Entry, Pipeline, Record, matrix, stacked

if TYPE_CHECKING:
    from .results import Output


class Seq2SeqPipeline(Pipeline):
    """Translation, summarization and text2text-generation; made by `pipeline`."""

    has_encoder = True
    _defaults: Mapping[str, Any] = {"num_beams": 4}
    _fills_configs = False
    _own = (
        "return_tensors",
        "return_text",
        "return_type",
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
                int64 array with the start token), `return_text` (True, the default), `return_type` (of transformers: 0
                for ids, 1 for text), `clean_up_tokenization_spaces`
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
        answers = self._answers(inputs, self._asked(options))
        if isinstance(inputs, str) or not isinstance(answers, list):
            return answers
        alone = all(len(records) == 1 for records in answers)
        return [records[0] for records in answers] if alone else answers

    def _asked(self, options: Mapping[str, Any]) -> Asked:
        own, call = self._divided(options)
        entry = self._entry_of_call(own)
        if own["stop_sequence"] is not None:
            call["eos_token_id"] = self._first_token(own["stop_sequence"])
        if (kind := _kind_of_result(own["return_type"], 2)) is not None and own["return_tensors"] is None:
            own["return_tensors"] = kind == 0
        if own["return_text"] is False and not own["return_tensors"]:
            raise bad_option("return_text", "True, or return_tensors=True beside it", "False")
        truncates(own["truncation"])
        return Asked(own, self._settled(call, entry), entry)

    def _tokenized(self, text: Any, asked: Asked) -> Encoding:  # noqa: ANN401 (a text)
        prefix = asked.entry.prefix
        if prefix and text.startswith(prefix):
            message = (
                f"an input begins with {prefix!r}, which the task {asked.entry.task} puts before it again"
            )
            warnings.warn(message, FastdecodeWarning, stacklevel=2)
        return _one_row(self._ids(prefix + text, asked.own))

    def _joined(self, _: Mapping[str, Any], outputs: list[list[Output]], fill: int) -> Record:
        start = self.model._start_token()
        rows = [[[start, *output.token_ids] for output in of_row] for of_row in outputs]
        return {"output_ids": stacked(rows, fill)}

    def _records(self, outputs: Mapping[str, Any], own: Mapping[str, Any]) -> list[Record]:
        name = "generated"
        if self.task != "text2text-generation":
            name = "summary" if self.task == "summarization" else "translation"
        sequences = _first(outputs, "output_ids")
        if own["return_tensors"]:
            return [{f"{name}_token_ids": ids} for ids in sequences]
        clean = bool(own["clean_up_tokenization_spaces"])
        return [
            {
                f"{name}_text": self.tokenizer.decode(
                    ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=clean
                )
            }
            for ids in sequences
        ]

    def _find_entry(self) -> Entry:
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

    def _entry_of_call(self, own: Mapping[str, Any]) -> Entry:
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
            raise bad_option("stop_sequence", "a text that is not empty", brief(stop_sequence))
        ids = self.tokenizer.encode(stop_sequence, add_special_tokens=False)
        if not ids:
            raise bad_option("stop_sequence", "a text of at least one token", brief(stop_sequence))
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
    _fills_configs = True
    _own = (
        "return_full_text",
        "return_tensors",
        "return_text",
        "return_type",
        "clean_up_tokenization_spaces",
        "truncation",
        "handle_long_generation",
        "stop_sequence",
        "prefix",
        "add_special_tokens",
        "skip_special_tokens",
        *pipeline_chats.OWN,
    )

    def __call__(self, inputs: Any, **options: Any) -> Any:  # noqa: ANN401 (see _answers)
        """Continues a text or a conversation, a list of such, or an iterator of them.

        Args:
            inputs: What to continue: a text, or a conversation, which is a list of messages with `role` and `content`.
            **options: Those of `GenerateOptions`, `batch_size`, and: `return_full_text` (True, the default,
                puts the input before the new text), `return_tensors` (lists of ids instead of text), `return_text`,
                `return_type` (of transformers: 0 for ids, 1 for the new text, 2 for the whole),
                `clean_up_tokenization_spaces` (default True; not for BPE, as in transformers 5), `truncation`
                (True cuts inputs to the tokenizer's model_max_length), `handle_long_generation` ("hole" cuts the
                input's beginning where it and the new tokens are more than that), `stop_sequence` (each of its tokens
                ends the text), `prefix` (text before the input, not returned), `add_special_tokens` and
                `skip_special_tokens` (both True); for conversations `chat_template`, `tools`, `documents`,
                `chat_variables` (or `tokenizer_encode_kwargs`) and `continue_final_message` (whether the last message
                is continued, which it is by default where its role is "assistant"). One `seed` lets every text draw
                as it would alone.

        Returns:
            For a text a list of dictionaries, one per returned sequence; for a list of texts a list of such
            lists; for an iterator an iterator of lists. The key is "generated_text", or with return_tensors
            "generated_token_ids", those of the input first. Of a conversation "generated_text" is its messages with
            the answer as one more (or at the end of the last one), and with return_full_text=False the answer.

        Raises:
            OptionError: An option or an input cannot be used.
            UnknownOptionError: There is no such option.
        """
        return self._answers(pipeline_chats.as_inputs(inputs), self._asked(options))

    def _is_input(self, text: object) -> bool:
        return isinstance(text, str) or is_conversation(text)

    def _asked(self, options: Mapping[str, Any]) -> Asked:
        own, call = self._divided(options)
        both = [
            name for name in ("return_full_text", "return_tensors", "return_text") if own[name] is not None
        ]
        if len(both) > 1:
            raise bad_option(both[0], f"nothing beside {both[1]}", brief(own[both[0]]))
        if (kind := _kind_of_result(own["return_type"], 3)) is not None and not both:
            own["return_tensors"], own["return_full_text"] = kind == 0, kind == 2
        if own["stop_sequence"] is not None:
            if not isinstance(own["stop_sequence"], str) or not own["stop_sequence"]:
                raise bad_option("stop_sequence", "a text that is not empty", brief(own["stop_sequence"]))
            call["eos_token_id"] = self.tokenizer.encode(own["stop_sequence"], add_special_tokens=False)
        if not isinstance(own["prefix"], (str, type(None))):
            raise bad_option("prefix", "a text or None", brief(own["prefix"]))
        if own["handle_long_generation"] not in (None, "hole"):
            raise bad_option("handle_long_generation", '"hole" or None', brief(own["handle_long_generation"]))
        if truncates(own["truncation"]):
            own["source_length"] = self._bound(call)
        settled = self._settled(call, self._entry)
        own["lengths"] = self._lengths(settled)
        if own["handle_long_generation"] is not None:
            # In transformers a max_length of the call itself does not reach the hole.
            others = {name: value for name, value in call.items() if name != "max_length"}
            own["hole"] = self._lengths(self._settled(others, self._entry))
        self._make_room_for_prefix(own, settled)
        return Asked(own, settled, self._entry)

    def _prefix(self, own: Mapping[str, Any]) -> str:
        return self.prefix if own["prefix"] is None else str(own["prefix"])

    def _make_room_for_prefix(self, own: Mapping[str, Any], settled: dict[str, Any]) -> None:
        """A length in tokens of prompt and new text does not count the prefix."""
        if not (prefix := self._prefix(own)):
            return
        extra = len(self.tokenizer.encode(prefix, add_special_tokens=bool(own["add_special_tokens"])))
        new, length = own["lengths"]
        if new is None and length is not None:
            settled["max_length"] = length + extra
        least = {**self._below(settled), **settled}
        if least.get("min_new_tokens") is None and least.get("min_length"):
            settled["min_length"] = least["min_length"] + extra

    def _bound(self, call: dict[str, Any]) -> int | None:
        """What `max_length` bounds the input to; beside `max_new_tokens` it bounds nothing else."""
        length, new = (
            self._options.get(name) if call.get(name) is None else call[name]
            for name in ("max_length", "max_new_tokens")
        )
        if length is None:
            return None
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise bad_option("max_length", "an integer of at least 1", brief(length))
        if new is not None:
            call.pop("max_length", None)
            call["max_new_tokens"] = new
        return length

    def _tokenized(self, text: Any, asked: Asked) -> Encoding:  # noqa: ANN401 (a text or a conversation)
        own = asked.own
        if isinstance(text, str):
            pipeline_chats.refuse_for_texts(own)
            special = own["add_special_tokens"] is not False
            ids = self._ids(self._prefix(own) + text, own, add_special_tokens=special)
        else:
            ids = pipeline_chats.ids_of(self.model, text, own)
            if truncates(own["truncation"]):
                ids = shortened(
                    self.tokenizer, ids, own.get("source_length") or self.tokenizer.model_max_length
                )
        if own["handle_long_generation"] is not None:
            ids = self._with_hole(ids, *own["hole"])
        encoding = _one_row(ids)
        encoding["prompt_text"] = text
        return encoding

    def _with_hole(self, ids: list[int], new: int | None, length: int | None) -> list[int]:
        """The end of a prompt that leaves room for the new tokens within the tokenizer's limit."""
        from .options import DEFAULT_NEW_TOKENS

        limit = self.tokenizer.model_max_length
        if new is None:
            new = DEFAULT_NEW_TOKENS if length is None else length - len(ids)
        if new < 0:
            raise bad_option("max_length", f"at least the {len(ids)} tokens of the input", str(length))
        if limit is None or len(ids) + new <= limit:
            return ids
        if limit <= new:
            expected = f"None, or fewer new tokens than the tokenizer's model_max_length, {limit}"
            raise bad_option("handle_long_generation", expected, f"'hole' with {new} new tokens")
        return ids[new - limit :]

    def _joined(self, item: Mapping[str, Any], outputs: list[list[Output]], fill: int) -> Record:
        import numpy as np

        ids = np.asarray(item["input_ids"], dtype=np.int64)
        empty = ids.shape[1] == 0
        starts = [[self.model._defaults.bos_token_id]] * len(outputs) if empty else ids.tolist()
        rows = [
            [[*start, *output.token_ids] for output in of_row]
            for start, of_row in zip(starts, outputs, strict=True)
        ]
        return {
            "generated_sequence": stacked(rows, fill),
            "input_ids": None if empty else ids,
            "prompt_text": item.get("prompt_text"),
        }

    def _records(self, outputs: Mapping[str, Any], own: Mapping[str, Any]) -> list[Record]:
        sequences = _first(outputs, "generated_sequence")
        if own["return_tensors"]:
            return [{"generated_token_ids": ids.tolist()} for ids in sequences]

        def decode(ids: list[int]) -> str:
            return self.tokenizer.decode(
                ids,
                skip_special_tokens=own["skip_special_tokens"] is not False,
                clean_up_tokenization_spaces=own["clean_up_tokenization_spaces"] is not False,
            )

        ids, text = outputs.get("input_ids"), outputs.get("prompt_text")
        if is_conversation(text):
            messages: Any = text
            read = 0 if ids is None else matrix(outputs, "input_ids").shape[1]
            new = [decode(sequence.tolist()[read:]) for sequence in sequences]
            if own["return_full_text"] is False:
                return [{"generated_text": answer} for answer in new]
            return [{"generated_text": pipeline_chats.joined(messages, answer, own)} for answer in new]
        shown = 0 if ids is None else len(decode([int(token) for token in matrix(outputs, "input_ids")[0]]))
        before = text if isinstance(text, str) and own["return_full_text"] is not False else ""
        return [{"generated_text": before + decode(ids.tolist())[shown:]} for ids in sequences]


def _one_row(ids: list[int]) -> Encoding:
    """Ids of one text and their mask, as arrays of int64."""
    import numpy as np

    array = np.array([ids], dtype=np.int64)
    return Encoding(input_ids=array, attention_mask=np.ones_like(array))


def _first(outputs: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 (an array of shape (n, L))
    """The sequences of the first prompt."""
    import numpy as np

    if not isinstance(outputs, Mapping) or name not in outputs:
        raise bad_option("model_outputs", f"a dictionary with {name}, as forward returns it", brief(outputs))
    array = np.asarray(outputs[name])
    if array.ndim != 3 or len(array) == 0 or array.dtype.kind not in "iu":
        raise bad_option(name, "integers of shape (N, n, L)", f"{array.dtype} of shape {array.shape}")
    return array[0]


def _kind_of_result(value: object, kinds: int) -> int | None:
    """`return_type` of transformers: 0 for ids and above for texts, or a member of its ReturnType."""
    number = getattr(value, "value", value)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < kinds:
        raise bad_option(
            "return_type", f"a ReturnType of transformers, or from 0 to {kinds - 1}", brief(value)
        )
    return number
