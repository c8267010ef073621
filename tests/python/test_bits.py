"""What was computed before a change is computed after it, to the bit, on every table of kernels that this CPU has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import bits
import fastdecode
import pytest

GOLDEN: dict[str, dict[str, Any]] = json.loads(bits.FILE.read_text())


@pytest.mark.parametrize("isa", fastdecode._core.cpu_info()["available"])
def test_results_are_those_of_the_golden_file(isa: str) -> None:
    child = subprocess.run(
        [sys.executable, bits.__file__, "--print"],
        env=os.environ | {"FASTDECODE_ISA": isa},
        check=True,
        stdout=subprocess.PIPE,
    )
    [(kernels, got)] = json.loads(child.stdout).items()
    want = GOLDEN[kernels]
    if isa in bits.INTEGERS:
        want = {name: value for name, value in want.items() if name.rsplit(", ", 1)[1].startswith("int")}
    assert got.keys() == want.keys()
    # A trace may show more than it did.
    shown = {name: {at: got[name].get(at) for at in want[name]} for name in got if name.endswith(", trace")}
    different = {name: (value, want[name]) for name, value in (got | shown).items() if value != want[name]}
    assert not different, f"{kernels}: {len(different)} of {len(want)} differ: {different}"
