"""Set-up of every Python test: examples that hypothesis draws, shared models, excused choices shown at the end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import emulated
import fastdecode
import laws
import pytest
import tables
import tiny
import tries
from driver import Driver
from hypothesis import HealthCheck, settings
from tally import TALLY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import tokenizers

# Property tests take the number of examples from here; FASTDECODE_EXAMPLES multiplies them for a long run. Continuous
# integration draws the same examples every time, so that a change is judged by itself.
settings.register_profile(
    "fastdecode",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fastdecode")


def pytest_report_header() -> list[str]:
    here = tables.present()
    absent = ", ".join(name for name in tables.NEEDS if name not in here) or "none"
    return [
        f"property tests: {os.environ.get('FASTDECODE_EXAMPLES', '1')} times the usual examples",
        f"tables of kernels: {', '.join(here)}; NOT TESTED, because this CPU lacks them: {absent}",
    ]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run in which too many choices were excused, though each of its tests passed."""
    if session.exitstatus == pytest.ExitCode.OK and TALLY.excess():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.choices == 0:
        return
    terminalreporter.section("parity with transformers")
    terminalreporter.line(f"{TALLY.choices} choices compared, {len(TALLY.excused)} too close to call")
    for line in TALLY.excused:
        terminalreporter.line(f"  {line}")
    if excess := TALLY.excess():
        terminalreporter.line(f"FAILED: {excess}", red=True)


@pytest.fixture(scope="session")
def byte_level() -> tokenizers.Tokenizer:
    return tiny.byte_level(320)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, byte_level: tokenizers.Tokenizer) -> Path:
    """A folder with weights and a tokenizer; every id of the model has a text."""
    return tiny.write_folder(tmp_path_factory.mktemp("models") / "tiny", tokenizer=byte_level)


@pytest.fixture(scope="session")
def ids_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without a tokenizer."""
    return tiny.write_folder(tmp_path_factory.mktemp("models") / "ids", vocab_size=48)


@pytest.fixture(scope="session")
def model(folder: Path) -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load(folder, num_threads=2)


@pytest.fixture(scope="session")
def ids_model(ids_folder: Path) -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load(ids_folder, num_threads=1)


@pytest.fixture(params=laws.TYPES, ids=lambda types: "/".join(filter(None, types)))
def types(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of loading for every pair of a stored type and a type in which products are formed."""
    dtype, compute = request.param
    return {"dtype": dtype, "compute_dtype": compute}


@pytest.fixture(scope="session")
def emulator() -> Path:
    """The emulated CUDA driver with kernels that try it."""
    return emulated.build(tries.FILES)


@pytest.fixture
def begin(emulator: Path) -> Callable[..., Driver]:
    """Sets the emulated driver of this process anew, with knobs as FASTDECODE_EMU has them."""
    return lambda knobs="": Driver(emulator, knobs, tries.SOURCE)


@pytest.fixture
def driver(begin: Callable[..., Driver]) -> Driver:
    """The emulated driver as it is without knobs."""
    return begin()


@pytest.fixture(scope="session")
def emulated_gpu() -> Iterator[Any]:
    """An emulated GPU for this process, of which `report()` tells what was done on it."""
    import ctypes
    from types import SimpleNamespace

    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulated.environment().items():
            patch.setenv(name, value)
        driver = ctypes.CDLL(str(emulated.library()))
        yield SimpleNamespace(report=lambda: emulated.report(driver))
