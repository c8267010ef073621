"""Parity with transformers (laws 4 and 5) on every table of kernels, required by name: logits and greedy ids.

A process chooses its table once, so that each table answers in a process of its own, which knows nothing of the
reference. The other parity tests run on the best table only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import pytest
import reference
import reference_t5
import tables
from fastdecode import errors
from reference import Reference, Run, assert_near, assert_same_ids
from reference_t5 import START, Seq2SeqReference

# Odd widths, every type of weights, a border of a chunk of 256 keys, and activations of several kinds.
GPT2 = [
    reference.Recipe(reference.config(), seed=41),
    reference.Recipe(reference.config(heads=5, head_dim=7, n_inner=33), dtype="bfloat16", seed=42),
    reference.Recipe(reference.config(activation_function="gelu"), dtype="float16", seed=43),
    reference.Recipe(reference.config(heads=2, head_dim=17, vocab=1000, positions=320), seed=44),
    reference.Recipe(reference.config(head_dim=1, vocab=17, activation_function="mish"), seed=45),
]
T5 = [
    reference_t5.Recipe(reference_t5.config(), seed=46),
    reference_t5.Recipe(
        reference_t5.config("mt5", feed_forward_proj="gated-gelu"), dtype="bfloat16", seed=47
    ),
    reference_t5.Recipe(
        reference_t5.config("umt5", heads=5, d_kv=7, d_ff=129, feed_forward_proj="gated-silu"),
        dtype="float16",
        seed=48,
    ),
    reference_t5.Recipe(reference_t5.config(d_model=17, d_ff=33, d_kv=17, vocab=257), seed=49),
]
NEW_TOKENS = 12

ANSWER = """
import json, sys
import fastdecode, numpy as np
where = sys.argv[1]
assert fastdecode.cpu_info()["isa"] == sys.argv[2], fastdecode.cpu_info()
logits, ids = {}, []
for at, case in enumerate(json.load(open(f"{where}/cases.json"))):
    model = fastdecode.load(case["folder"], num_threads=2)
    logits[str(at)] = model.logits(*case["of"])
    ids.append([list(output.token_ids) for output in model.run(case["inputs"], max_new_tokens=case["new"])])
np.savez(f"{where}/logits.npz", **logits)
json.dump(ids, open(f"{where}/ids.json", "w"))
"""


@dataclass(frozen=True)
class Case:
    """One folder, what is asked about it, and what transformers answers."""

    name: str
    asked: dict[str, Any]
    logits: Any
    own_error: Callable[[], float]
    greedy: Run


def drawn(seed: int, vocab: int, count: int, length: int) -> list[list[int]]:
    rows: list[list[int]] = np.random.default_rng(seed).integers(0, vocab, (count, length)).tolist()
    return rows


def own_error(theirs: Seq2SeqReference, source: list[int], decoder_ids: list[int]) -> float:
    return theirs.own_errors(source, decoder_ids)[1]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    cases = []
    for recipe in GPT2:
        folder = reference.write(recipe, tmp_path_factory.mktemp("tables"))
        theirs, vocab = Reference(folder), recipe.config["vocab_size"]
        whole = drawn(recipe.seed, vocab, 1, recipe.config["n_positions"])[0]
        inputs = drawn(recipe.seed + 1000, vocab, 3, 9)
        asked = {"folder": str(folder), "of": [whole], "inputs": inputs, "new": NEW_TOKENS}
        greedy = theirs.generate(inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        cases.append(Case(str(recipe), asked, theirs.logits(whole), partial(theirs.own_error, whole), greedy))
    for other in T5:
        folder = reference_t5.write(other, tmp_path_factory.mktemp("tables"))
        seq2seq = Seq2SeqReference(folder)
        source = drawn(other.seed, other.vocab, 1, 70)[0]
        decoder_ids = [START, *drawn(other.seed + 500, other.vocab, 1, 40)[0]]
        inputs = drawn(other.seed + 1000, other.vocab, 3, 9)
        asked = {"folder": str(folder), "of": [source, decoder_ids], "inputs": inputs, "new": NEW_TOKENS}
        greedy = seq2seq.generate(inputs, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
        logits = seq2seq.answers(source, decoder_ids)[1]
        cases.append(
            Case(str(other), asked, logits, partial(own_error, seq2seq, source, decoder_ids), greedy)
        )
    return cases


def test_the_cpu_has_the_tables_that_its_flags_promise() -> None:
    assert fastdecode.cpu_info()["available"] == tables.present()


@pytest.mark.parametrize("table", list(tables.NEEDS))
def test_every_table_gives_what_transformers_gives(table: str, cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(json.dumps([case.asked for case in cases]))
    run = subprocess.run(
        [sys.executable, "-c", ANSWER, str(tmp_path), table],
        env=os.environ | {"FASTDECODE_ISA": table},
        capture_output=True,
        text=True,
        check=False,
    )
    if table not in tables.present():  # the report's header names it as absent
        assert run.returncode != 0
        assert errors.IsaError.__name__ in run.stderr, run.stderr
        return
    assert run.returncode == 0, run.stderr
    ids = json.loads((tmp_path / "ids.json").read_text())
    with np.load(tmp_path / "logits.npz") as logits:
        for at, case in enumerate(cases):
            what = f"on {table}, {case.name}"
            assert_near(logits[str(at)], case.logits, case.own_error, what)
            assert_same_ids(case.greedy, ids[at], what)
