"""A process of its own for code that must begin anew: another environment, another driver, a fork."""

from __future__ import annotations

import os
import subprocess
import sys


def python(code: str, **environment: str) -> str:
    """What the code prints, run by this interpreter with these variables beside those of the environment."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
