"""What the recorded programs say of their cost, held against formulas by hand; rows that nobody wants cost little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fastdecode
from families import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path


def test_a_prompt_leaves_out_what_nobody_wants(tmp_path: Path) -> None:
    # GPT-2 and a prompt of 512, both a sixteenth in width, length and vocabulary: the same shares of the work.
    sizes: Any = {"n_embd": 48, "n_head": 12, "n_layer": 12, "vocab_size": 50257 // 16, "n_positions": 64}
    core = fastdecode.load(FAMILIES["gpt2"].write_tiny(tmp_path, **sizes), num_threads=1)._core
    width, layers, tokens = 48, 12, 32
    head = 2 * width * sizes["vocab_size"]
    block = 2 * 12 * width**2 * tokens + 4 * width * tokens * (tokens + 1) / 2
    assert core.flops(tokens, tokens) == layers * block + tokens * head
    # Of the last block the queries, keys and values of all rows, and of one row the rest.
    last = 2 * 3 * width**2 * tokens + 2 * 9 * width**2 + 4 * width * tokens
    assert core.flops(tokens, 1) == (layers - 1) * block + last + head
    assert core.flops(tokens, 0) == (layers - 1) * block + 2 * 3 * width**2 * tokens
    all_rows = layers * block + head
    assert core.flops(tokens, 1) <= 0.94 * all_rows


def test_a_source_and_a_step_over_it(tmp_path: Path) -> None:
    sizes: Any = {
        "d_model": 24,
        "d_kv": 8,
        "num_heads": 2,
        "d_ff": 40,
        "num_layers": 2,
        "num_decoder_layers": 3,
    }
    sizes["vocab_size"] = 320
    folder = FAMILIES["t5"].write_tiny(tmp_path, feed_forward_proj="gated-gelu", **sizes)
    core = fastdecode.load(folder, num_threads=1)._core
    width, heads, dense, source = 24, 16, 3 * 24 * 40, 10
    encoder = 2 * (2 * source * (4 * width * heads + dense) + 4 * heads * source**2)
    kept = 3 * 2 * source * 2 * width * heads
    assert core.flops(source, 0) == encoder + kept
    step = 3 * (2 * (6 * width * heads + dense) + 4 * heads * (source + 1)) + 2 * width * 320
    assert core.flops(source, 1) == encoder + kept + step
