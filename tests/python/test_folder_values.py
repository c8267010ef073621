"""What people's config.json and generation_config.json hold: files are drawn, and ids are those of transformers.

Whole floats for integers, lists of one, NaN and Infinity, explicit nulls, texts in the place of numbers, keys of
generation in config.json, keys of nobody. Both may raise; where transformers alone raises, we are more lenient, and
where we alone raise, the file asks for something that is not supported, or has NaN, a text or a list in a field that
counts.
"""

from __future__ import annotations

import json
import math
import os
import random
import warnings
from typing import TYPE_CHECKING, Any

import fastdecode
import pytest
import tiny
import torch
from families import FAMILIES
from fastdecode import errors
from reference import Reference
from reference_seq2seq import Seq2SeqReference

if TYPE_CHECKING:
    from pathlib import Path

DRAWS = 30 * int(os.environ.get("FASTDECODE_EXAMPLES", "1"))
IDS = [1, 2, 3, 4]
TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")

NUMBERS: dict[str, list[Any]] = {
    "max_length": [9, 12],
    "max_new_tokens": [4, 7],
    "min_length": [0, 6],
    "min_new_tokens": [3],
    "num_beams": [1, 3],
    "top_k": [0, 50, 5],
    "no_repeat_ngram_size": [0, 2],
    "encoder_no_repeat_ngram_size": [0, 2],
    "num_return_sequences": [1],
    "num_beam_groups": [1],
    "eos_token_id": [5, 1, 139, 200],
    "pad_token_id": [0, 2],
    "bos_token_id": [3, 0],
    "decoder_start_token_id": [0, 2],
    "forced_eos_token_id": [5],
    "temperature": [0.5, 1.0],
    "top_p": [0.9, 1.0],
    "min_p": [0.05],
    "typical_p": [1.0, 0.9],
    "repetition_penalty": [1.3, 1.0],
    "encoder_repetition_penalty": [1.2, 1.0],
    "length_penalty": [2.0, 1.0, 0.0],
    "diversity_penalty": [0.0, 0.5],
    "epsilon_cutoff": [0.0],
    "guidance_scale": [1.0],
    "penalty_alpha": [0.0],
}
OTHERS: dict[str, list[Any]] = {
    "do_sample": [False, True],
    "early_stopping": [True, False, "never"],
    "use_cache": [True, False],
    "remove_invalid_values": [False, True],
    "renormalize_logits": [False],
    "output_scores": [False, True],
    "output_attentions": [False],
    "return_dict_in_generate": [False, True],
    "low_memory": [False],
    "bad_words_ids": [[], [[7]]],
    "suppress_tokens": [[], [7]],
    "sequence_bias": [{}],
    "transformers_version": ["4.10.0"],
    "_from_model_config": [True],
    "prefix": ["x"],
    "chat_format": ["chatml"],
    "of_one_s_own": ["x", 3, float("nan"), [None]],
    "task_specific_params": [{"summarization": {"num_beams": 4}}],
}
CONFIG = {
    "gpt2": [
        *(
            "attn_pdrop",
            "resid_pdrop",
            "layer_norm_epsilon",
            "initializer_range",
            "n_ctx",
            "n_inner",
            "n_head",
        ),
        *("n_layer", "n_positions", "n_embd", "vocab_size", "scale_attn_weights", "reorder_and_upcast_attn"),
        *("summary_first_dropout", "use_cache", "gradient_checkpointing", "tie_word_embeddings"),
    ],
    "t5": [
        *("dropout_rate", "layer_norm_epsilon", "initializer_factor", "relative_attention_num_buckets"),
        *("relative_attention_max_distance", "num_decoder_layers", "num_heads", "d_kv", "d_ff", "d_model"),
        *("vocab_size", "use_cache", "n_positions", "is_encoder_decoder", "tie_word_embeddings"),
    ],
}


def form(draw: random.Random, value: Any) -> Any:
    """A value as somebody's program has written it."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    forms = [value] * 11 + [None] * 2 + [[value]] * 2 + [float("nan"), float("inf"), str(value)]
    forms += [float(value) if whole else value] * 3
    if isinstance(value, float) and value.is_integer():
        forms += [int(value)]
    return draw.choice(forms)


def drawn(draw: random.Random, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(count):
        pool = draw.choice([NUMBERS, NUMBERS, OTHERS])
        name = draw.choice(sorted(pool))
        value = draw.choice(pool[name])
        values[name] = form(draw, value) if pool is NUMBERS else draw.choice([value, value, value, None])
    return values


def write(folder: Path, kind: str, config: dict[str, Any], draw: random.Random) -> tuple[Any, Any]:
    """Writes the two files; returns what is remarkable about each."""
    changes = drawn(draw, draw.choice([0, 0, 1, 3]))
    for name in draw.sample(CONFIG[kind], draw.choice([0, 0, 1, 2])):
        changes[name] = form(
            draw, config.get(name, 0.1 if name.endswith(("pdrop", "dropout", "rate", "range")) else None)
        )
    kept = {name: value for name, value in config.items() if name not in TOKENS or draw.random() > 0.1}
    (folder / "config.json").write_text(json.dumps(kept | changes))
    file = folder / "generation_config.json"
    file.unlink(missing_ok=True)
    if draw.random() < 0.4:
        return changes, None
    values = drawn(draw, draw.randint(0, 5))
    tokens = {name: config[name] for name in TOKENS if name in config and draw.random() > 0.1}
    file.write_text(json.dumps(tokens | values))
    return changes, tokens | values


def theirs(folder: Path, kind: str, call: dict[str, Any]) -> Any:
    """Ids of transformers, or what it raises."""
    try:
        model = (Reference if kind == "gpt2" else Seq2SeqReference)(folder).model
        torch.manual_seed(5)
        # Without a mask ids that are equal to a pad token would be hidden.
        mask = torch.ones(1, len(IDS), dtype=torch.int64)
        answer = model.generate(torch.tensor([IDS]), attention_mask=mask, **call)
    except Exception as error:  # whatever a file makes it raise
        return error
    rows = answer if isinstance(answer, torch.Tensor) else answer.sequences
    return rows[0, len(IDS) if kind == "gpt2" else 1 :].tolist()


def is_nonsense(error: errors.FastdecodeError, files: tuple[Any, Any]) -> bool:
    """Whether the field that an error names holds what no program writes there."""
    field = getattr(error, "field", None)
    values = [file[field] for file in files if file is not None and field in file]
    return any(
        isinstance(value, str)
        or (isinstance(value, float) and not math.isfinite(value))
        or (isinstance(value, list) and not str(field).endswith("_token_id"))
        for value in values
    )


def readable(values: dict[str, Any]) -> bool:
    """Whether the lengths are numbers, so that the end is not far."""
    return not any(isinstance(values.get(name), (list, str)) for name in ("max_length", "max_new_tokens"))


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_files_mean_what_they_mean_in_transformers(kind: str, tmp_path: Path) -> None:
    folder = FAMILIES[kind].write_tiny(tmp_path / kind, tokenizer=tiny.with_end())
    config = json.loads((folder / "config.json").read_text())
    counts = dict.fromkeys(("equal", "both raise", "they raise", "we raise"), 0)
    warnings.simplefilter("ignore")
    for place in range(DRAWS):
        draw = random.Random(f"{kind}-{place}")
        files = write(folder, kind, config, draw)
        values = files[0] if files[1] is None else files[1]
        call = {"max_new_tokens": 5}
        lengths = {values.get("max_length"), values.get("max_new_tokens")} if readable(values) else {None}
        if draw.random() < 0.4 and lengths <= {None, 4, 7, 9, 12} and lengths != {None}:
            call = {}
        wanted = theirs(folder, kind, call)
        said = f"{kind}-{place}: config.json {files[0]}, generation_config.json {files[1]}, call {call}"
        try:
            ids = fastdecode.load(folder, num_threads=1).run(IDS, seed=5, **call).token_ids
        except errors.FastdecodeError as error:
            counts["both raise" if isinstance(wanted, Exception) else "we raise"] += 1
            excused = "does not support" in str(error) or is_nonsense(error, files)
            if not isinstance(wanted, Exception) and not excused:
                pytest.fail(f"{said}: {error}, and transformers gives {wanted}")
            continue
        if isinstance(wanted, Exception):
            counts["they raise"] += 1
            continue
        counts["equal"] += 1
        assert ids == wanted, said
    print(f"{kind}: {counts}")
    assert counts["equal"] > DRAWS // 4
