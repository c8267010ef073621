"""Makes the small random folders under tests/golden with the reference's answers for them.

They let the core laws of parity run where torch is not installed. The families under tests/python/families say which
folders there are, and draw their weights from fixed seeds; the answers are transformers' own, in float32. Run it with
`make golden`; it replaces what is there.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "python"))

import numpy as np  # noqa: E402  (the line above makes the next imports possible)
import torch  # noqa: E402 (as above)
import transformers  # noqa: E402 (as above)
from families import FAMILIES, Family, Input, Recipe  # noqa: E402 (as above)
from reference import Reference, Run, tolerance  # noqa: E402 (as above)
from reference_beams import BeamReference  # noqa: E402 (as above)
from reference_seq2seq import Seq2SeqReference  # noqa: E402 (as above)
from safetensors.numpy import save_file  # noqa: E402 (as above)

# What goes into expected.json, and into expected.safetensors.
Answers = tuple[dict[str, Any], dict[str, Any]]

SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 20,
    "top_p": 0.95,
    "repetition_penalty": 1.2,
    "max_new_tokens": 12,
}


SEARCH: dict[str, Any] = {
    "num_beams": 4,
    "num_return_sequences": 3,
    "length_penalty": 0.6,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "eos_token_id": 1,
    "max_new_tokens": 12,
}


def make(family: Family, name: str, recipe: Recipe) -> None:
    """Writes one folder: config.json, weights, and the answers in expected.json and expected.safetensors."""
    folder = ROOT / "tests" / "golden" / name
    shutil.rmtree(folder, ignore_errors=True)
    family.write(recipe, folder)
    values, numbers = (answers_seq2seq if family.has_encoder else answers)(recipe, folder)
    (folder / "expected.json").write_text(json.dumps(made() | values, indent=1) + "\n")
    save_file(numbers, folder / "expected.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    sys.stdout.write(f"{name}: {size / 1e3:.0f} kB\n")


def answers(recipe: Recipe, folder: Path) -> Answers:
    """Logits, and greedy and sampled ids."""
    model = Reference(folder)
    prompt = np.random.default_rng(recipe.seed).integers(0, recipe.vocab, 9).tolist()
    greedy = model.generate([prompt], do_sample=False, max_new_tokens=12)
    sampled = model.generate([prompt], seed=recipe.seed, **SAMPLING)
    refuse_close_choices(folder.name, greedy)
    values = {
        "prompt": prompt,
        "greedy": greedy.ids[0],
        "sampling": {**SAMPLING, "seed": recipe.seed},
        "sampled": sampled.ids[0],
    }
    return values, {"logits": model.answers(Input(prompt))["logits"]}


def answers_seq2seq(recipe: Recipe, folder: Path) -> Answers:
    """Hidden states, logits, a loss, and all kinds of ids."""
    model = Seq2SeqReference(folder)
    drawn = np.random.default_rng(recipe.seed)
    source = drawn.integers(2, recipe.vocab, 23).tolist()
    target = [*drawn.integers(2, recipe.vocab, 14).tolist(), 1]
    numbers = model.answers(Input([*recipe.start, *target[:-1]], source))
    greedy = model.generate([source], do_sample=False, max_new_tokens=12, **recipe.for_transformers)
    sampled = model.generate([source], seed=recipe.seed, **SAMPLING, **recipe.for_transformers)
    beams = BeamReference(model.model, [source]).search(**SEARCH, **recipe.for_transformers)
    refuse_close_choices(folder.name, greedy)
    values = {
        "source": source,
        "target": target,
        "loss": model.loss(source, target),
        "greedy": greedy.ids[0],
        "sampling": {**SAMPLING, "seed": recipe.seed},
        "sampled": sampled.ids[0],
        "search": SEARCH,
        "beams": beams.ids,
        "scores": beams.scores,
    }
    return values, {"hidden": numbers["hidden states"], "logits": numbers["logits"]}


def refuse_close_choices(name: str, greedy: Run) -> None:
    """Ends the program where a choice in the greedy text is too close to call."""
    margins = [float(step[0].topk(2).values.diff().abs()) for step in greedy.logits]
    bound = 2 * tolerance(greedy.logits[0][0].numpy())
    assert min(margins) > bound, f"{name}: a greedy choice is too close to call; take another seed"


def made() -> dict[str, object]:
    """What made the answers."""
    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {"made_by": "tools/make_golden.py", "versions": versions}


def main() -> None:
    for family in FAMILIES.values():
        for name, recipe in family.goldens.items():
            make(family, name, recipe)


if __name__ == "__main__":
    main()
