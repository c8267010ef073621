"""Set-up of every Python test: how many examples hypothesis draws, and the excused choices shown at the end."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import HealthCheck, settings

# Property tests take the number of examples from here; FASTDECODE_EXAMPLES multiplies them for a long run.
settings.register_profile(
    "fastdecode",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fastdecode")


def pytest_report_header() -> str:
    return f"property tests: {os.environ.get('FASTDECODE_EXAMPLES', '1')} times the usual examples"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reference = sys.modules.get("reference")
    if reference is None:
        return
    tally = reference.TALLY
    terminalreporter.section("parity with transformers")
    terminalreporter.line(f"{tally.choices} choices compared, {len(tally.excused)} too close to call")
    for line in tally.excused:
        terminalreporter.line(f"  {line}")
