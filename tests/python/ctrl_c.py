"""Ctrl-C into a call of a model, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import tiny

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import sys, fastdecode
model = fastdecode.load({folder!r}, num_threads=2)
def work():  # In CPython 3.11 a try block does not see what is raised at the jump back to its first statement.
    {call}
print("ready", flush=True)
try:
    work()
    print("done", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(len(model.run([1], max_new_tokens=3, eos_token_id=None).token_ids), flush=True)
"""


def seconds_to_stop(folder: Path, call: str, *, after: float) -> float:
    """Runs a call of `model`, sends Ctrl-C some seconds into it, and returns how long KeyboardInterrupt took.

    The process must hear it within the call, go on to generate with the same model, and end by itself.
    """
    script = SCRIPT.format(folder=str(folder), call=call)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, preexec_fn=tiny.hear_ctrl_c
    ) as process:
        watchdog = threading.Timer(300, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(after)
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            assert process.stdout.readline() == "interrupted\n"
            seconds = time.monotonic() - began
            assert process.stdout.readline() == "3\n"
            assert process.wait() == 0
            return seconds
        finally:
            process.kill()
            watchdog.cancel()
