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
import tables
from families import FAMILIES
from fastdecode import errors
from parity import reference_of, whole
from reference import Run, assert_near, assert_same_ids

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


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    cases = []
    for family in FAMILIES.values():
        for recipe in family.tables:
            folder = family.write(recipe, tmp_path_factory.mktemp("tables"))
            theirs = reference_of(family, folder)
            item, inputs = whole(family, recipe, recipe.ids(1, 70)[0], 40), recipe.ids(3, 9, salt=2)
            of = [item.prompt] if item.source is None else [item.source, item.prompt]
            asked = {"folder": str(folder), "of": of, "inputs": inputs, "new": NEW_TOKENS}
            greedy = theirs.generate(
                inputs, do_sample=False, max_new_tokens=NEW_TOKENS, **recipe.for_transformers
            )
            own_error = partial(theirs.own_error, item, "logits")
            cases.append(Case(str(recipe), asked, theirs.answers(item)["logits"], own_error, greedy))
    return cases


def test_the_cpu_has_the_tables_that_its_flags_promise() -> None:
    assert fastdecode.cpu_info()["available"] == tables.present()


def answered(table: str, code: str, where: Path) -> bool:
    """Runs a program in a process with this table; false where the CPU has none of the name, which must be an error."""
    run = subprocess.run(
        [sys.executable, "-c", code, str(where), table],
        env=os.environ | {"FASTDECODE_ISA": table},
        capture_output=True,
        text=True,
        check=False,
    )
    if table not in tables.present():  # the report's header names it as absent
        assert run.returncode != 0
        assert errors.IsaError.__name__ in run.stderr, run.stderr
        return False
    assert run.returncode == 0, run.stderr
    return True


EIGHT_BITS = """
import sys
import fastdecode, numpy as np
assert fastdecode.cpu_info()["isa"] == sys.argv[2], fastdecode.cpu_info()
ids = np.random.default_rng(5).integers(0, 4000, 200).tolist()
stories = fastdecode.load("demo-stories", dtype="int8", num_threads=2)
text = "Once upon a time there was a little girl. She lived in a small house by the wood, and she had a dog. " * 6
translator = fastdecode.load("demo-en-fr", dtype="int8", num_threads=2)
np.savez(
    f"{sys.argv[1]}/{sys.argv[2]}.npz",
    text=stories.logits(text),
    ids=stories.logits(ids),
    pair=translator.logits("translate English to French: " + text[:80], ids[:60]),
)
"""


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the best table gives in int8."""
    where = tmp_path_factory.mktemp("int8")
    assert answered(tables.present()[0], EIGHT_BITS, where)
    return where


@pytest.mark.parametrize("table", list(tables.NEEDS))
def test_eight_bits_are_the_same_on_every_table(table: str, eight_bits: Path) -> None:
    """An activation that is rounded otherwise is followed by others: only the same bits keep a model the same."""
    if not answered(table, EIGHT_BITS, eight_bits):
        return
    with (
        np.load(eight_bits / f"{tables.present()[0]}.npz") as best,
        np.load(eight_bits / f"{table}.npz") as found,
    ):
        for name in best:
            assert np.array_equal(best[name], found[name]), f"{name} on {table}"


@pytest.mark.parametrize("table", list(tables.NEEDS))
def test_every_table_gives_what_transformers_gives(table: str, cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text(json.dumps([case.asked for case in cases]))
    if not answered(table, ANSWER, tmp_path):
        return
    ids = json.loads((tmp_path / "ids.json").read_text())
    with np.load(tmp_path / "logits.npz") as logits:
        for at, case in enumerate(cases):
            what = f"on {table}, {case.name}"
            assert_near(logits[str(at)], case.logits, case.own_error, what)
            assert_same_ids(case.greedy, ids[at], what)
