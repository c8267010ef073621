"""A GPU in two stages: whether it gives what it should, and how fast it is beside its own limits and torch.

    python benches/gpu.py parity --out DIR     # ends within 4 minutes
    python benches/gpu.py bench --out DIR      # ends within 6 minutes

It runs where the wheel is installed beside torch with CUDA and transformers; nothing is downloaded. Every part has its
share of the time. One for which too little is left is named as not run, as is what the machine lacks. Results are in a
JSON file after every part, and a table is printed last. `--tiny` tries the script itself, with models of two layers and
without what needs torch on a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

# Seconds of a stage, for which a machine is lent.
LIMITS = {"parity": 225, "bench": 345}


def main() -> int:
    parser = argparse.ArgumentParser(description="Parity and speed on a GPU.")
    parser.add_argument("stage", choices=tuple(LIMITS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    parser.add_argument("--tiny", action="store_true", help="small models, and nothing of torch on the GPU")
    parser.add_argument("--limit", type=float, help="seconds that the stage may take, instead of its own")
    parser.add_argument("--only", metavar="TEXT", help="parts whose names have this text")
    parsed = parser.parse_args()

    from gpu_report import Report, machine

    report = Report(parsed.stage, parsed.out, parsed.limit or LIMITS[parsed.stage])
    from fastdecode import cuda

    try:
        report.about({"tiny": parsed.tiny, **machine(cuda.info())})
    except RuntimeError as error:
        print(f"benches/gpu.py: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="fastdecode-gpu-") as cache:
        if parsed.stage == "parity":
            from gpu_parity import parts
        else:
            from gpu_bench import parts
        found = parts(Path(cache), tiny=parsed.tiny)
        report.run([part for part in found if parsed.only is None or parsed.only in part.name])
        return report.show()


if __name__ == "__main__":
    sys.exit(main())
