"""Arguments of transformers that change nothing here: which there are, and with which values.

A program that comes from transformers passes them along, so they are taken wherever they change nothing and then
forgotten. A value that would change the ids, or that asks for something that is not given back, is an error that
names it. The lists are those of transformers 5.24 (generation/configuration_utils.py, `generate`,
`from_pretrained`) and, for pipelines, 4.57.6. Nothing here knows what the arguments that count mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from .arrays import bad_option, brief, has_lone_surrogate, is_whole, spelt
from .errors import UnknownOptionError

if TYPE_CHECKING:
    from .folder import Defaults


class PassedOver(TypedDict, total=False):
    """Options of transformers' `generate` that change no id of a call here; they are taken and forgotten.

    Those that would change something with another value (`output_scores=True`, say) are an error with it.
    """

    assistant_confidence_threshold: Any
    assistant_ensemble_weight: Any
    assistant_lookbehind: Any
    assistant_model: None
    assistant_tokenizer: None
    attention_mask: Any
    bos_token_id: int | None
    cache_config: Any
    cache_implementation: str | None
    compile_config: Any
    continuous_batching_config: None
    custom_generate: None
    decoder_attention_mask: Any
    decoder_start_token_id: int | None
    disable_compile: bool | None
    is_assistant: bool | None
    logits_processor: Any
    low_memory: bool | None
    max_cache_len: int | None
    max_matching_ngram_size: int | None
    negative_prompt_attention_mask: None
    negative_prompt_ids: None
    num_assistant_tokens: Any
    num_assistant_tokens_schedule: Any
    output_attentions: bool | None
    output_hidden_states: bool | None
    output_logits: bool | None
    output_scores: bool | None
    pad_token_id: int | None
    past_key_values: None
    position_ids: None
    prefill_chunk_size: int | None
    prefix_allowed_tokens_fn: None
    return_dict_in_generate: bool | None
    speculation_type: None
    stop_strings: None
    stopping_criteria: Any
    streamer: None
    synced_gpus: bool | None
    target_lookbehind: Any
    token_type_ids: None
    tokenizer: None
    transformers_version: str | None
    trust_remote_code: bool | None
    use_cache: bool | None
    use_model_defaults: bool | None
    use_mtp: bool | None


class PassedOverInLoading(TypedDict, total=False):
    """Arguments of transformers' `from_pretrained`: another name of `dtype`, and what changes nothing here."""

    torch_dtype: Any
    device_map: Any
    adapter_kwargs: Any
    adapter_name: str | None
    allow_all_kernels: bool | None
    attn_implementation: str | None
    code_revision: str | None
    config: None
    device_mesh: None
    distributed_config: None
    experts_implementation: str | None
    force_download: bool | None
    from_flax: bool | None
    from_tf: bool | None
    gguf_file: None
    ignore_mismatched_sizes: bool | None
    kernel_config: None
    key_mapping: None
    load_in_4bit: bool | None
    load_in_8bit: bool | None
    low_cpu_mem_usage: bool | None
    max_memory: Any
    mirror: None
    offload_buffers: bool | None
    offload_folder: Any
    offload_state_dict: bool | None
    output_loading_info: bool | None
    proxies: Any
    quantization_config: None
    resume_download: bool | None
    state_dict: None
    subfolder: str | None
    tp_plan: None
    tp_size: None
    tqdm_class: Any
    trust_remote_code: bool | None
    use_auth_token: None
    use_fast: bool | None
    use_kernels: bool | None
    use_safetensors: bool | None
    variant: None
    weights_only: bool | None


# Whether a value changes nothing, and which values those are.
_Rule = tuple[Callable[[Any], bool], str]


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return value is None or is_whole(value)


def _one_of(values: Sequence[object]) -> _Rule:
    """None or one of these, of the same type: 1 is not True."""

    def fits(value: object) -> bool:
        return value is None or any(type(value) is type(known) and value == known for known in values)

    return fits, " or ".join(repr(value) for value in (*values, None))


def _is_none_or_empty(value: object) -> bool:
    return value is None or (isinstance(value, (list, tuple, dict)) and not value)


def _hides_nothing(mask: object) -> bool:
    """Whether a mask, which may be an array of any library, holds ones alone."""
    if mask is None:
        return True
    if hasattr(mask, "tolist"):
        mask = mask.tolist()
    if isinstance(mask, (list, tuple)):
        return all(_hides_nothing(item) for item in mask)
    return not isinstance(mask, (str, bytes)) and mask == 1


_ANYTHING: _Rule = (lambda _: True, "anything")
_FLAG: _Rule = (_is_flag, "True, False or None")
_WHOLE: _Rule = (_is_whole, "an integer or None")
_NONE: _Rule = _one_of([])
_NOT: _Rule = _one_of([False])


def _not_but(advice: str) -> _Rule:
    return _NOT[0], f"{_NOT[1]} ({advice})"


def _none_but(advice: str) -> _Rule:
    return _NONE[0], f"{_NONE[1]} ({advice})"


# Without an assistant model nothing reads what is for it.
_GENERATE: dict[str, _Rule] = {
    "_from_model_config": _ANYTHING,
    "assistant_confidence_threshold": _ANYTHING,
    "assistant_ensemble_weight": _ANYTHING,
    "assistant_lookbehind": _ANYTHING,
    "assistant_model": _NONE,
    "assistant_tokenizer": _NONE,
    "attention_mask": (_hides_nothing, "None or ones alone (prompts are taken as they are, without padding)"),
    "cache_config": _ANYTHING,
    # All but the quantized one hold the same keys and values.
    "cache_implementation": _one_of(["dynamic", "dynamic_full", "static", "offloaded", "offloaded_static"]),
    "compile_config": _ANYTHING,
    "continuous_batching_config": _NONE,
    "custom_generate": _NONE,
    "decoder_attention_mask": (_hides_nothing, "None or ones alone (prompts are taken as they are)"),
    "disable_compile": _FLAG,
    "is_assistant": _NOT,
    "logits_processor": (_is_none_or_empty, "None or an empty list"),
    "low_memory": _FLAG,
    "max_cache_len": _WHOLE,
    "max_matching_ngram_size": _WHOLE,
    "negative_prompt_attention_mask": _NONE,
    "negative_prompt_ids": _NONE,
    "num_assistant_tokens": _ANYTHING,
    "num_assistant_tokens_schedule": _ANYTHING,
    "output_attentions": _not_but("trace gives activations"),
    "output_hidden_states": _not_but("trace gives activations"),
    "output_logits": _not_but("logits gives them"),
    "output_scores": _not_but("logprobs=N gives log-probabilities, Output.score the score of a beam"),
    "pad_token_id": _WHOLE,
    "past_key_values": _none_but("a State from prefill is gone on from by hand"),
    "position_ids": _NONE,
    "prefill_chunk_size": _WHOLE,
    "prefix_allowed_tokens_fn": _NONE,
    "return_dict_in_generate": _not_but("run gives an Output with everything about a sequence"),
    "speculation_type": _NONE,
    "stopping_criteria": (_is_none_or_empty, "None or an empty list (stop= knows texts)"),
    "streamer": _none_but("stream gives the text in pieces"),
    "synced_gpus": _NOT,
    "target_lookbehind": _ANYTHING,
    "token_type_ids": _NONE,
    "transformers_version": _ANYTHING,
    "tokenizer": _none_but("the model has its own; load takes another one"),
    "trust_remote_code": _not_but("no code of a repository is ever run"),
    "use_cache": _FLAG,
    "use_model_defaults": _one_of([True]),
    "use_mtp": _NOT,
}

_LOAD: dict[str, _Rule] = {
    "adapter_kwargs": (_is_none_or_empty, "None or nothing in it"),
    "adapter_name": _one_of(["default"]),
    "allow_all_kernels": _NOT,
    "attn_implementation": _one_of(["eager", "sdpa"]),
    "code_revision": _ANYTHING,
    "config": _none_but("the folder's config.json counts"),
    "device_mesh": _NONE,
    "distributed_config": _NONE,
    "experts_implementation": _ANYTHING,
    "force_download": _NOT,
    "from_flax": _NOT,
    "from_tf": _NOT,
    "gguf_file": _none_but("GGUF is not read"),
    "ignore_mismatched_sizes": _NOT,
    "kernel_config": _NONE,
    "key_mapping": _NONE,
    "load_in_4bit": _not_but('dtype="int4" quantizes'),
    "load_in_8bit": _not_but('dtype="int8" quantizes'),
    "low_cpu_mem_usage": _FLAG,
    "max_memory": _ANYTHING,
    "mirror": _none_but("the environment's HF_ENDPOINT counts"),
    "offload_buffers": _FLAG,
    "offload_folder": _ANYTHING,
    "offload_state_dict": _FLAG,
    "output_loading_info": _NOT,
    "proxies": (_is_none_or_empty, "None (the environment's HTTPS_PROXY counts)"),
    "quantization_config": _none_but('dtype="int8" or "int4" quantizes'),
    "resume_download": _FLAG,
    "state_dict": _none_but("from_tensors takes weights in memory"),
    "subfolder": _one_of([""]),
    "tp_plan": _NONE,
    "tp_size": _NONE,
    "tqdm_class": _ANYTHING,
    "trust_remote_code": _not_but("no code of a repository is ever run"),
    "use_auth_token": _none_but("give it as token="),
    "use_fast": _FLAG,
    "use_kernels": _NOT,
    "use_safetensors": _one_of([True]),
    "variant": _NONE,
    "weights_only": _one_of([True]),
}

_PIPELINE: dict[str, _Rule] = {
    "args_parser": _ANYTHING,
    "binary_output": _FLAG,
    "feature_extractor": _NONE,
    "framework": _one_of(["pt"]),
    "image_processor": _NONE,
    "modelcard": _ANYTHING,
    "num_workers": _WHOLE,
    "pipeline_class": _NONE,
    "processor": _NONE,
    "video_processor": _NONE,
}

# In a call of a pipeline; `padding` changes no id, since nothing is padded.
_PIPELINE_CALL: dict[str, _Rule] = {
    "num_workers": _WHOLE,
    "padding": _one_of([True, False, "longest", "max_length", "do_not_pad"]),
}
# In a call of a pipeline that never shows its input.
_WITHOUT_ECHO: dict[str, _Rule] = {
    "continue_final_message": _FLAG,
    "documents": _NONE,
    "handle_long_generation": _NONE,
    "return_full_text": _FLAG,
    "tokenizer_encode_kwargs": (_is_none_or_empty, "None or nothing in it (give its values as options)"),
    "tools": _NONE,
}

_FLOATS = ("float32", "float16", "bfloat16")
_DTYPES = (*_FLOATS, "int8", "int4")


def is_for_loading(name: str) -> bool:
    """Whether this is an argument of transformers' `from_pretrained`."""
    return name in PassedOverInLoading.__annotations__


def _rest(given: Mapping[str, Any], rules: Mapping[str, _Rule]) -> dict[str, Any]:
    for name, value in given.items():
        if name in rules:
            fits, expected = rules[name]
            try:
                known = fits(value)
            except (TypeError, ValueError, RecursionError):
                known = False
            if not known:
                raise bad_option(name, expected, brief(value))
    return {name: value for name, value in given.items() if name not in rules}


def of_generate(call: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """The options of a call that count.

    Args:
        call: Options as given by the caller.
        defaults: What the model's folder asks for.

    Raises:
        OptionError: One that is passed over has a value with which it would change something.
    """
    starts = {
        "bos_token_id": defaults.bos_token_id,
        "decoder_start_token_id": defaults.decoder_start_token_id,
    }
    rules = dict(_GENERATE)
    for name, own in starts.items():
        fits, values = _one_of([own])
        rules[name] = fits, f"{values} (the token of the model's folder)"
    # With texts it is an unknown option, for which another one is suggested.
    if call.get("stop_strings", ()) is None:
        rules["stop_strings"] = _NONE
    return _rest(call, rules)


def of_pipeline(options: Mapping[str, Any]) -> dict[str, Any]:
    """As `of_generate`, for what `pipeline(...)` is given beside the model; `model_kwargs` are spread out.

    Raises:
        OptionError: A value would change something.
    """
    spread = options.get("model_kwargs")
    if spread is not None and not isinstance(spread, Mapping):
        raise bad_option("model_kwargs", "arguments of load by name, or None", brief(spread))
    rest = {name: value for name, value in options.items() if name != "model_kwargs"}
    return _rest({**(spread or {}), **rest}, _PIPELINE)


def of_pipeline_call(call: Mapping[str, Any], *, shows_input: bool) -> dict[str, Any]:
    """As `of_generate`, for a call of a pipeline.

    Args:
        call: Options as given by the caller.
        shows_input: Whether its texts begin with the input.

    Raises:
        OptionError: A value would change something.
    """
    return _rest(call, _PIPELINE_CALL if shows_input else _PIPELINE_CALL | _WITHOUT_ECHO)


def of_load(options: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The arguments of loading that count, with `torch_dtype` as `dtype`.

    Args:
        options: Arguments as given by the caller.
        known: Names of those that count.

    Raises:
        UnknownOptionError: There is no such argument.
        OptionError: A value would change something, or there are two dtypes.
    """
    rest = _rest(options, _LOAD)
    if not _is_cpu(rest.pop("device_map", None)):
        expected = 'None, "auto" or "cpu" (fastdecode computes on the CPU)'
        raise bad_option("device_map", expected, brief(options["device_map"]))
    if (older := rest.pop("torch_dtype", None)) is not None:
        wanted = weight_types("torch_dtype", older)
        given = weight_types("dtype", rest.get("dtype", "auto"))
        if given != "auto" and not same_types(given, wanted):
            raise bad_option("torch_dtype", "the same as dtype, or one of the two alone", brief(older))
        rest["dtype"] = wanted
    elif "dtype" in rest:
        rest["dtype"] = weight_types("dtype", rest["dtype"])
    for name in rest:
        if name not in known:
            raise _unknown(name, known)
    return rest


def is_cpu(device: object) -> bool:
    """Whether this is what a caller names the CPU, a device of torch included."""
    if isinstance(device, bool):
        return False
    name = spelt(device)
    return device is None or name in ("cpu", "cpu:0") or (name == "-1" and not isinstance(device, str))


def _is_cpu(device_map: object) -> bool:
    if isinstance(device_map, Mapping):
        return all(_is_cpu(device) for device in device_map.values())
    return (isinstance(device_map, str) and device_map == "auto") or is_cpu(device_map)


def weight_types(option: str, value: object) -> str | dict[str, str]:
    """Our name of a type of weights, or our names by part of the model; which parts there are, the model says.

    What says the same is the same: a mapping with nothing but a default is that type, and a default of "auto" is left
    out of others.

    Args:
        option: What the caller gave it as.
        value: A name, a dtype of torch, or a mapping of names of parts to these.

    Raises:
        OptionError: It is neither.
    """
    if not isinstance(value, Mapping):
        return _dtype(option, value, brief(value))
    types = {}
    for part, name in value.items():
        if not isinstance(part, str) or not part or has_lone_surrogate(part):
            expected = 'types by "default", "lm_head", "embedding" or the name of a matrix'
            raise bad_option(option, expected, brief(part))
        types[part] = _dtype(option, name, f"{brief(name)} for {brief(part)}")
    if types.keys() <= {"default"}:
        return types.get("default", "auto")
    if types.get("default") == "auto":
        del types["default"]
    return types


def same_types(one: str | Mapping[str, str], other: str | Mapping[str, str]) -> bool:
    """Whether two types of weights, as `weight_types` gives them, say the same of every model.

    Of the keys that fit a matrix the closest counts, wherever it stands. Patterns with as many characters beside `*`
    may be equally close, and of these the first counts.
    """
    if one != other or isinstance(one, str) or isinstance(other, str):
        return one == other
    ties: dict[int, list[str]] = {}
    for key in one:
        if "*" in key:
            ties.setdefault(len(key.replace("*", "")), []).append(key)
    return all(
        len({one[key] for key in keys}) == 1 or keys == [key for key in other if key in keys]
        for keys in ties.values()
    )


def _dtype(option: str, value: object, got: str) -> str:
    """Our name of a type, which may be one of torch; its own text says which it is."""
    name = spelt(value)
    known: tuple[str, ...] = _DTYPES
    if type(value).__module__ == "torch":
        known = _FLOATS  # Those are types that tensors are cast to; the others say nothing of scales.
    if isinstance(value, str) or type(value).__module__ == "torch":
        name = name.removeprefix("torch.")
    if name == "auto" or name in known:
        return name
    expected = '"auto", "float32", "float16", "bfloat16", "int8" or "int4"'
    raise bad_option(option, f"{expected}, or a mapping of parts to these", got)


def _unknown(name: str, known: frozenset[str]) -> UnknownOptionError:
    import difflib

    close = difflib.get_close_matches(name, sorted(known), n=1)
    expected = close[0] if close else ", ".join(sorted(known))
    hint = f"did you mean {expected}?" if close else f"the arguments of load are: {expected}"
    return UnknownOptionError(f"unknown argument {name!r}; {hint}", option=name, expected=expected)
