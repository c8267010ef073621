"""What a call of generate, run or stream asks for, and the one place where it is resolved.

Precedence: the call, then its generation_config, then the folder's generation_config.json (or, where that is
missing, the same keys of config.json, as transformers 5 does it), then the defaults of transformers. Two things
differ from transformers, on purpose: without any length 256 new tokens are made instead of 20 (or what the context or
the config's max_position_embeddings leaves), and a length given in the call wins over any length in the file.
Nothing here knows models, text or the native module.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .accepted import PassedOver, of_generate
from .arrays import bad_option, brief
from .chat_options import NAMES as CHAT_NAMES
from .chat_options import ChatOptions
from .checks import CHECKS
from .errors import FastdecodeWarning, OptionError, UnknownOptionError
from .folder import as_whole, bad_field

if TYPE_CHECKING:
    from .checks import EarlyStopping
    from .folder import Defaults
    from .prefix import Prefix

DEFAULT_NEW_TOKENS = 256
# Sequences of a call: prompts times `num_return_sequences`.
MAX_SEQUENCES = 2**24

LimitKind = Literal["new_tokens", "length", "up_to_new_tokens", "default"]


class GenerateOptions(ChatOptions, PassedOver, total=False):
    """Options of `generate`, `run`, `stream` and `astream`; names and meanings are those of transformers.

    An option that is not given comes from the model's folder, then from the default named here. None switches
    an option off, whatever the folder says. Options of transformers that change nothing here (`pad_token_id`,
    `use_cache`, `return_dict_in_generate=False` and their like, see `accepted.PassedOver`) are taken and passed over.
    Those that conversations take (`chat_template`, `tools`, ...) are described by `chat_options.ChatOptions`.

    Attributes:
        max_new_tokens: New tokens per sequence, at least 1. Without any length 256, or what the context leaves, or the
            `max_position_embeddings` of the config; a length that is given goes past the latter where positions are
            rotary.
        max_length: Prompt and new tokens together; `max_new_tokens` wins over it.
        min_new_tokens: New tokens before an end token may come; default 0.
        min_length: The same, counting the prompt.
        do_sample: Draw tokens instead of taking the most probable one; default False.
        temperature: Divides the logits, > 0; default 1.
        top_k: Draw among the `top_k` most probable tokens; 0 means all; default 50.
        top_p: Draw among the most probable tokens that together have this probability, 0 to 1; default 1.
        min_p: Drop tokens less probable than `min_p` times the most probable one, 0 to 1.
        seed: Integer: one stream of draws for the whole call, as with `torch.manual_seed`. List: one seed per
            prompt; then each prompt draws as it would alone. Without it every call draws anew.
        num_return_sequences: Sequences for each prompt; above 1 it needs do_sample (that many are drawn) or
            beams (the best of them come back, at most `num_beams`). All prompts together give at most 2**24.
        num_beams: Hypotheses that are kept side by side (beam search); default 1, which means none. Not for
            streams, stop strings and logprobs: which hypothesis wins is known only at the end.
        length_penalty: With beams: the sum of log-probabilities is divided by the number of new tokens to
            this power, so that values above 0 favour longer texts; default 1.
        early_stopping: With beams, when the search ends: True, as soon as `num_beams` hypotheses are
            finished; False, when the best running one is worse at its present length; "never", when no
            running one could become better. Default False.
        repetition_penalty: Divides positive and multiplies negative logits of tokens seen before, > 0;
            default 1.
        encoder_repetition_penalty: The inverse for tokens of the source (without an encoder: the prompt):
            above 1 they become more probable; > 0; default 1.
        no_repeat_ngram_size: No n-gram of this many tokens comes twice, the prompt counted; 0 means off.
        encoder_no_repeat_ngram_size: No n-gram of this many tokens of the source comes; 0 means off.
        eos_token_id: Token id or ids that end a sequence.
        stop: String or strings at which the new text ends (special tokens count, shown or not), instead of the
            folder's `stop_strings`, which end it as in transformers; the text is cut before it, token_ids are not.
        stop_token_ids: Token id or ids that end a sequence like eos does, with finish_reason "stop".
        logprobs: Report the log-probability of every new token and of this many best tokens; 0 or more.
        skip_special_tokens: Leave special tokens out of the text; default True.
        prefix: What `CausalLM.prefix` has read: every prompt of the call stands behind it. Not for models with an
            encoder.
        generation_config: A GenerationConfig of transformers, or a dict of its values. Those that are not None stand
            between the call's other options and the model's folder.
    """

    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int | None
    min_length: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | Sequence[int] | None
    num_return_sequences: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    repetition_penalty: float | None
    encoder_repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    encoder_no_repeat_ngram_size: int | None
    eos_token_id: int | Sequence[int] | None
    stop: str | Sequence[str] | None
    stop_token_ids: int | Sequence[int] | None
    logprobs: int | None
    skip_special_tokens: bool
    prefix: Prefix | None
    generation_config: object


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one call, resolved and checked; see `GenerateOptions` for what each means.

    Attributes:
        limit: "new_tokens" or "length" (prompt included): exactly this, or an error where the context is
            smaller; "up_to_new_tokens": this, or what the context leaves; "default": the same, and never past the
            config's max_position_embeddings.
        stop_strings: Those of the folder; none where the call has `stop`.
        unshown: Ids that are never shown where they end a text; none but those that end a turn of a conversation.
    """

    limit: tuple[LimitKind, int]
    min_new_tokens: int
    min_length: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float | None
    seed: int | tuple[int, ...] | None
    num_return_sequences: int
    num_beams: int
    length_penalty: float
    early_stopping: EarlyStopping
    repetition_penalty: float
    encoder_repetition_penalty: float
    no_repeat_ngram_size: int
    encoder_no_repeat_ngram_size: int
    eos_token_id: tuple[int, ...]
    stop: tuple[str, ...]
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    logprobs: int | None
    skip_special_tokens: bool
    unshown: frozenset[int] = frozenset()


# Values of transformers 5.24 (generation/configuration_utils.py), but for the lengths; see the top of this
# file.
_FALLBACKS: dict[str, Any] = {
    "max_new_tokens": None,
    "max_length": None,
    "min_new_tokens": None,
    "min_length": 0,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "seed": None,
    "num_return_sequences": 1,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": (),
    "stop": (),
    "stop_token_ids": (),
    "logprobs": None,
    "skip_special_tokens": True,
}

# What None in a call means where it is not the fallback.
_OFF: dict[str, Any] = {"top_k": 0}

# Options that change nothing unless tokens are drawn, with the values that change nothing even then (as
# transformers warns about the others only). A seed is not among them: greedy decoding draws nothing, with or
# without one.
_SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0,),
    "top_k": (50, 0),
    "top_p": (1.0,),
    "min_p": (0.0,),
}

# The same for options that change nothing without beams.
_BEAMS: dict[str, tuple[Any, ...]] = {"length_penalty": (1.0,), "early_stopping": (False,)}

# For those who put layers of options together.
SAMPLING_OPTIONS, BEAM_OPTIONS = tuple(_SAMPLING), tuple(_BEAMS)

# Fields of a generation_config.json of transformers 5.24 that would change the ids and are not supported,
# with the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None, []),
    "guidance_scale": (None, 1),
    "max_time": (None,),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0.0),
    "prompt_lookup_num_tokens": (None,),
    # All logits are finite, or a model's weights are not.
    "remove_invalid_values": (None, True, False),
    "renormalize_logits": (None, False),
    "sequence_bias": (None, {}, []),
    "suppress_tokens": (None, []),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}
OPTION_NAMES = frozenset((*CHECKS, *_UNSUPPORTED))
_UNSUPPORTED_SAMPLING = frozenset({"epsilon_cutoff", "eta_cutoff", "top_h", "typical_p"})

# Options of a call that no generation_config has.
_OF_CALLS_ALONE = frozenset({"logprobs", "seed", "skip_special_tokens", "stop", "stop_token_ids"})

# Names that other libraries use.
_ALIASES = {
    "beam_size": "num_beams",
    "best_of": "num_return_sequences",
    "eos": "eos_token_id",
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "n": "num_return_sequences",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "stop_strings": "stop",
    "temp": "temperature",
    "top_logprobs": "logprobs",
}


def resolve(
    call: Mapping[str, Any], defaults: Defaults, prompts: int, context_limit: int | None = None
) -> Options:
    """The options of a call, with everything that it leaves open filled in.

    Args:
        call: Options as given by the caller.
        defaults: What the model's folder asks for.
        prompts: Number of prompts of the call.
        context_limit: Positions of the model, or None without a limit.

    Raises:
        UnknownOptionError: No option has this name; the message suggests one.
        OptionError: An option has a value that it cannot have, or one that has no effect with the others.
        ConfigError: The same for a value from the folder.
    """
    config = config_values(call.get("generation_config"))
    call = of_generate({name: value for name, value in call.items() if name != "generation_config"}, defaults)
    _check_names(call)
    if config:
        defaults = _with_config(config, call, defaults)
    do_sample = bool(_value("do_sample", call, defaults))
    _check_unsupported(call, defaults, do_sample=do_sample)
    values: dict[str, Any] = {}
    beams: int = _value("num_beams", call, defaults)
    for name in CHECKS:
        if name in _SAMPLING and not do_sample:
            _refuse(
                name, call, _SAMPLING[name], "do_sample=True beside it (without sampling it has no effect)"
            )
            values[name] = _FALLBACKS[name]
        elif name in _BEAMS and beams == 1:
            _refuse(name, call, _BEAMS[name], "num_beams above 1 beside it (without beams it has no effect)")
            values[name] = _FALLBACKS[name]
        else:
            values[name] = _value(name, call, defaults)

    _settle_minimum(values, call)
    _check_sequences(values, prompts)
    seed = values["seed"]
    if isinstance(seed, tuple) and len(seed) != prompts:
        raise bad_option("seed", f"one seed per prompt, {prompts} in all", f"{len(seed)} seeds")
    limit = _limit(values.pop("max_new_tokens"), values.pop("max_length"), call, context_limit)
    values |= {"stop_strings": ()} if "stop" in call else {"stop_strings": values["stop"], "stop": ()}
    return Options(limit=limit, **values)


def config_values(config: object) -> dict[str, Any]:
    """What a generation_config sets: its values that are not None.

    Args:
        config: A GenerationConfig of transformers (or anything with its `to_diff_dict` or `to_dict`), a dict, or None.

    Raises:
        OptionError: It is something else.
    """
    values = config
    for method in ("to_diff_dict", "to_dict"):
        if not isinstance(config, (Mapping, type)) and callable(getattr(config, method, None)):
            values = getattr(config, method)()
            break
    if values is None:
        return {}
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        expected = "a GenerationConfig of transformers, a dict of its values, or None"
        raise bad_option("generation_config", expected, brief(config))
    return {name: as_whole(value) for name, value in values.items() if value is not None}


def _with_config(config: Mapping[str, Any], call: Mapping[str, Any], defaults: Defaults) -> Defaults:
    """The folder's defaults, with the values of a generation_config before them.

    Raises:
        UnknownOptionError: A generation_config has no such field.
        OptionError: A value cannot be used; one that has no effect with the others is passed over, as in the folder.
    """
    kept = of_generate({name: value for name, value in config.items() if name != "stop_strings"}, defaults)
    kept = {name: value for name, value in kept.items() if not name.startswith("_")}
    _check_names(kept)
    for name in kept:
        if name in _OF_CALLS_ALONE:
            message = f"{name}: no field of a generation_config; expected it as an option of the call"
            raise UnknownOptionError(message, option=name, expected="an option of the call")
    if "stop_strings" in config:
        kept["stop_strings"] = config["stop_strings"]
    draws = bool({**defaults.values, **kept, **call}.get("do_sample"))
    checked = {}
    for name, value in kept.items():
        if name in _UNSUPPORTED:
            unread = name in call or name in _unread({**defaults.values, **kept}, do_sample=draws)
            if not unread and not _is_among(value, _UNSUPPORTED[name]):
                raise _unsupported(name, value)
        else:
            option = "stop" if name == "stop_strings" else name
            if option == "eos_token_id":
                value = _without_none(value)
            checked[name] = value if option in call else checked_value(option, value)
    unsupported = {name: value for name, value in kept.items() if name in _UNSUPPORTED}
    return defaults._replace(values={**defaults.values, **unsupported, **checked})


def _without_none(eos: Any) -> list[Any]:  # noqa: ANN401 (a value of a file or of a caller)
    """End tokens without -1, which transformers takes for "none" (it matches nothing)."""
    return [as_whole(item) for item in (eos if isinstance(eos, (list, tuple)) else [eos]) if item != -1]


def _unread(values: Mapping[str, Any], *, do_sample: bool) -> frozenset[str]:
    """Options that are not supported, and which transformers does not read with the others of a file."""
    unread = frozenset() if do_sample else _UNSUPPORTED_SAMPLING
    # transformers 5 has no search that knows groups, and looks at this option nowhere else.
    return unread | {"diversity_penalty"} if values.get("num_beam_groups") in (None, 1) else unread


def _unsupported(name: str, value: object) -> OptionError:
    neutral = _UNSUPPORTED[name]
    return bad_option(name, f"{neutral[-1]!r} (this version does not support the option)", brief(value))


def _check_sequences(values: Mapping[str, Any], prompts: int) -> None:
    """What prompts may give, and what does not go together with beams."""
    sequences, beams = values["num_return_sequences"], values["num_beams"]
    if prompts * sequences > MAX_SEQUENCES:
        expected = f"at most {MAX_SEQUENCES} sequences, prompts x num_return_sequences"
        raise bad_option("num_return_sequences", expected, f"{prompts} x {sequences}")
    if beams == 1:
        if sequences > 1 and not values["do_sample"]:
            raise bad_option(
                "num_return_sequences",
                "1 unless do_sample=True or num_beams is as many (greedy decoding gives the same sequence "
                "every time)",
                sequences,
            )
        return
    if sequences > beams:
        raise bad_option("num_return_sequences", f"at most num_beams ({beams})", sequences)
    if values["logprobs"] is not None:
        expected = "None with num_beams above 1 (Output.score has the score of the whole sequence)"
        raise bad_option("logprobs", expected, values["logprobs"])
    if values["stop"]:
        expected = "none with num_beams above 1 (stop_token_ids and eos_token_id end a beam; or num_beams=1)"
        raise bad_option("stop", expected, brief(list(values["stop"])))


def _limit(
    new_tokens: int | None, length: int | None, call: Mapping[str, Any], context_limit: int | None
) -> tuple[LimitKind, int]:
    """A length of the call is meant as it is; one of the file gives way to it, and to the context."""
    if call.get("max_new_tokens") is not None:
        if call.get("max_length") is not None:
            message = "both max_new_tokens and max_length are given; max_new_tokens is used"
            warnings.warn(message, FastdecodeWarning, stacklevel=5)
        return "new_tokens", call["max_new_tokens"]
    if call.get("max_length") is not None:
        return "length", call["max_length"]
    if new_tokens is not None:
        return "up_to_new_tokens", new_tokens
    if length is not None:
        return "length", length if context_limit is None else min(length, context_limit)
    return "default", DEFAULT_NEW_TOKENS


def _settle_minimum(values: dict[str, Any], call: Mapping[str, Any]) -> None:
    """min_new_tokens wins over min_length, as in transformers; and one of the call over one of the file."""
    if call.get("min_length") is not None and call.get("min_new_tokens") is None:
        values["min_new_tokens"] = 0
    elif values["min_new_tokens"] is not None:
        values["min_length"] = 0
    values["min_new_tokens"] = values["min_new_tokens"] or 0


def _check_names(call: Mapping[str, Any]) -> None:
    for name in call:
        if name in CHECKS or name in _UNSUPPORTED:
            continue
        import difflib

        names = (*CHECKS, *CHAT_NAMES, "prefix")
        close = difflib.get_close_matches(name, names, n=1)
        meant = _ALIASES.get(name) or (close[0] if close else None)
        expected = meant if meant is not None else ", ".join(names)
        hint = f"did you mean {meant}?" if meant is not None else f"the options are: {expected}"
        raise UnknownOptionError(f"unknown option {name!r}; {hint}", option=name, expected=expected)


def _check_unsupported(call: Mapping[str, Any], defaults: Defaults, *, do_sample: bool) -> None:
    for name, neutral in _UNSUPPORTED.items():
        if name in call:
            if not _is_among(call[name], neutral):
                raise _unsupported(name, call[name])
        elif defaults.values.get(name) is not None and defaults.values[name] not in neutral:
            if name in _unread(defaults.values, do_sample=do_sample):
                continue
            raise bad_field(
                defaults.file,
                name,
                f"{neutral[-1]!r}, as this version does not support the option "
                f"(pass {name}={neutral[-1]!r} to go without it)",
                brief(defaults.values[name]),
            )


def _is_among(value: object, values: tuple[Any, ...]) -> bool:
    try:
        return value in values
    except (ValueError, TypeError, RuntimeError):  # an array, whose comparison has many answers
        return False


def _refuse(name: str, call: Mapping[str, Any], harmless: tuple[Any, ...], expected: str) -> None:
    value = call.get(name)
    if value is not None and (value := checked_value(name, value)) not in harmless:
        raise bad_option(name, expected, value)


def checked_value(name: str, value: object) -> Any:  # noqa: ANN401 (each option has a type of its own)
    """The value of an option of a call, as `Options` has it.

    Raises:
        OptionError: The option cannot have this value.
    """
    check, expected = CHECKS[name]
    try:
        return check(value)
    except (ValueError, TypeError, OverflowError):
        raise bad_option(name, expected, brief(value)) from None


def _value(name: str, call: Mapping[str, Any], defaults: Defaults) -> Any:  # noqa: ANN401 (as above)
    if name in call:
        value = call[name]
        if value is None:
            return _OFF.get(name, _FALLBACKS[name])
        return checked_value(name, value)
    key = "stop_strings" if name == "stop" else name
    value = defaults.values.get(key)
    if value is None or name in ("seed", "logprobs", "skip_special_tokens", "stop_token_ids"):
        return _FALLBACKS[name]
    if name == "eos_token_id":
        value = _without_none(value)
    check, expected = CHECKS[name]
    try:
        return check(as_whole(value))
    except (ValueError, TypeError, OverflowError):
        raise bad_field(defaults.file, key, expected, brief(value)) from None
