"""Writes tests/golden/torch_rng.json: what torch's CPU generator gives for given seeds.

Run in an environment with torch and numpy:  python tools/make_rng_golden.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "torch_rng.json"

#: Seed, vocabulary, rows, consecutive calls, spread of the logits, draws per row.
CASES = [
    (0, 1, 1, 3, 1, 1),
    (1, 2, 3, 5, 2, 1),
    (2, 3, 2, 9, 4, 1),
    (3, 17, 1, 40, 2, 1),
    (4, 100, 4, 12, 1, 1),
    (5, 311, 7, 8, 4, 1),
    (6, 312, 1, 8, 4, 1),
    (7, 313, 3, 8, 8, 1),
    (42, 1000, 5, 6, 2, 1),
    (1234, 4000, 2, 8, 8, 1),
    (2**31, 50257, 1, 3, 4, 1),
    (2**32 - 1, 50257, 3, 4, 8, 1),
    (2**32, 32128, 2, 3, 1, 1),
    (2**32 + 5, 32128, 2, 3, 8, 1),
    (2**63 - 1, 50257, 2, 2, 2, 1),
    (2**64 - 1, 50257, 8, 2, 4, 1),
    (8, 12, 3, 6, 1, 8),
    (9, 200, 2, 5, 4, 8),
    (10, 4 * 4000, 2, 4, 8, 12),
]
SEEDS = [0, 1, 7, 123456789, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 1]


def logits(salt: int, rows: int, vocab_size: int, spread: int) -> torch.Tensor:
    """Hashed logits in [-spread, spread), shape (rows, vocab_size); exact in float32. The test has the same formula."""
    place = np.arange(rows * vocab_size, dtype=np.uint32) + np.uint32(salt)
    x = place * np.uint32(0x9E3779B1)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    x = x ^ (x >> np.uint32(16))
    values = (x >> np.uint32(8)).astype(np.float32) * np.float32(2 * spread / 2**24) - np.float32(spread)
    return torch.from_numpy(values.reshape(rows, vocab_size))


def main() -> None:
    """Draws with torch and writes the file."""
    exponentials = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        # Bits of the float32, since what matters is every one of them. 700 draws cross four blocks of the generator.
        bits = torch.empty(700).exponential_().view(torch.int32).numpy().view(np.uint32)
        exponentials.append({"seed": seed, "first": bits[:8].tolist(), "last": bits[-4:].tolist()})
    draws = []
    for seed, vocab_size, rows, calls, spread, count in CASES:
        torch.manual_seed(seed)
        ids = []
        for call in range(calls):
            probabilities = torch.softmax(logits(1000 * call, rows, vocab_size, spread), dim=-1)
            ids.append(torch.multinomial(probabilities, num_samples=count).tolist())
        case = {
            "seed": seed,
            "vocab_size": vocab_size,
            "rows": rows,
            "spread": spread,
            "count": count,
            "ids": ids,
        }
        draws.append(case)
    golden = {"torch": torch.__version__, "exponentials": exponentials, "multinomial": draws}
    GOLDEN.write_text(json.dumps(golden) + "\n")
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
