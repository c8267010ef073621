"""Makes the small random folders under tests/golden with the reference's answers for them.

They let the core laws of parity run where torch is not installed. Weights are drawn by tests/python/reference.py from
fixed seeds; the answers are transformers' own, in float32. Run it with `make golden`; it replaces what is there.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "python"))

import numpy as np  # noqa: E402  (the line above makes the next import possible)
import reference  # noqa: E402 (as above)
import reference_t5  # noqa: E402 (as above)
import torch  # noqa: E402 (as above)
import transformers  # noqa: E402 (as above)
from reference import Recipe, config  # noqa: E402 (as above)
from reference_beams import BeamReference  # noqa: E402 (as above)
from safetensors.numpy import save_file  # noqa: E402 (as above)

# One folder per corner of the format; together about a megabyte. Seeds were chosen so that the greedy text varies and
# no choice in it is close.
RECIPES = {
    "random-plain": Recipe(config(), seed=49),
    "random-f16-sharded": Recipe(
        config(vocab=257), dtype="float16", prefix=False, shards=3, buffers=True, seed=40
    ),
    "random-bf16-untied": Recipe(
        config(vocab=100, tie_word_embeddings=False), "bfloat16", head="untied", seed=45
    ),
    "random-tied-different": Recipe(config(heads=2, head_dim=32, layers=1), head="tied, different", seed=2),
    "random-odd": Recipe(
        config(
            heads=3,
            head_dim=17,
            layers=3,
            activation_function="relu2",
            n_inner=1,
            scale_attn_by_inverse_layer_idx=True,
            scale_attn_weights=False,
            layer_norm_epsilon=1e-3,
        ),
        seed=16,
    ),
    "random-smallest": Recipe(config(heads=2, head_dim=1, vocab=3, positions=24, n_inner=5), seed=2),
}
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

# One folder per member of the T5 family, with the corners of the format spread over them. Seeds as above, and so that
# beams end at different lengths.
T5_RECIPES = {
    "seq2seq-t5": reference_t5.Recipe(
        reference_t5.config(d_kv=8, d_model=32, num_decoder_layers=1), seed=11, spread=1.4
    ),
    "seq2seq-gated": reference_t5.Recipe(
        reference_t5.config(
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, d_kv=9, d_model=32, d_ff=40
        ),
        dtype="float16",
        head="different",
        shards=2,
        stray_bias=True,
        seed=37,
        spread=1.4,
    ),
    "seq2seq-mt5": reference_t5.Recipe(
        reference_t5.config("mt5", layers=1, num_decoder_layers=2, relative_attention_max_distance=20),
        dtype="bfloat16",
        shared=False,
        encoder_tokens="equal",
        decoder_tokens="different",
        seed=23,
        spread=1.4,
    ),
    "seq2seq-umt5": reference_t5.Recipe(
        reference_t5.config("umt5", heads=2, d_model=24, d_ff=40, relative_attention_num_buckets=8),
        seed=30,
        spread=1.4,
    ),
}


def make(name: str, recipe: Recipe) -> None:
    """Writes one folder: config.json, weights, expected.json and the logits in expected.safetensors."""
    recipe = replace(recipe, spread=1.5)
    folder = ROOT / "tests" / "golden" / name
    shutil.rmtree(folder, ignore_errors=True)
    model = reference.Reference(reference.write(recipe, folder))
    prompt = np.random.default_rng(recipe.seed).integers(0, recipe.config["vocab_size"], 9).tolist()
    greedy = model.generate([prompt], do_sample=False, max_new_tokens=12)
    sampled = model.generate([prompt], seed=recipe.seed, **SAMPLING)
    margins = [float(step[0].topk(2).values.diff().abs()) for step in greedy.logits]
    bound = 2 * reference.tolerance(greedy.logits[0][0].numpy())
    assert min(margins) > bound, f"{name}: a greedy choice is too close to call; take another seed"
    expected = made() | {
        "prompt": prompt,
        "greedy": greedy.ids[0],
        "sampling": {**SAMPLING, "seed": recipe.seed},
        "sampled": sampled.ids[0],
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    save_file({"logits": model.logits(prompt)}, folder / "expected.safetensors")
    tell(folder)


def make_t5(name: str, recipe: reference_t5.Recipe) -> None:
    """Writes one folder of an encoder-decoder, with answers for hidden states, logits, loss and all kinds of ids."""
    folder = ROOT / "tests" / "golden" / name
    shutil.rmtree(folder, ignore_errors=True)
    model = reference_t5.Seq2SeqReference(reference_t5.write(recipe, folder))
    drawn = np.random.default_rng(recipe.seed)
    source = drawn.integers(2, recipe.vocab, 23).tolist()
    target = [*drawn.integers(2, recipe.vocab, 14).tolist(), 1]
    decoder_ids = [reference_t5.START, *target[:-1]]
    hidden, logits = model.answers(source, decoder_ids)
    greedy = model.generate([source], do_sample=False, max_new_tokens=12, **recipe.uncached)
    sampled = model.generate([source], seed=recipe.seed, **SAMPLING, **recipe.uncached)
    beams = BeamReference(model.model, [source]).search(**SEARCH, **recipe.uncached)
    margins = [float(step[0].topk(2).values.diff().abs()) for step in greedy.logits]
    bound = 2 * reference.tolerance(greedy.logits[0][0].numpy())
    assert min(margins) > bound, f"{name}: a greedy choice is too close to call; take another seed"
    with torch.no_grad():
        mask = torch.ones(1, len(source), dtype=torch.long)
        loss = model.model(torch.tensor([source]), attention_mask=mask, labels=torch.tensor([target])).loss
    expected = made() | {
        "source": source,
        "target": target,
        "loss": float(loss),
        "greedy": greedy.ids[0],
        "sampling": {**SAMPLING, "seed": recipe.seed},
        "sampled": sampled.ids[0],
        "search": SEARCH,
        "beams": beams.ids,
        "scores": beams.scores,
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    save_file({"hidden": hidden, "logits": logits}, folder / "expected.safetensors")
    tell(folder)


def made() -> dict[str, object]:
    """What made the answers."""
    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {"made_by": "tools/make_golden.py", "versions": versions}


def tell(folder: Path) -> None:
    """Says how large a folder has become."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    sys.stdout.write(f"{folder.name}: {size / 1e3:.0f} kB\n")


def main() -> None:
    for name, recipe in RECIPES.items():
        make(name, recipe)
    for name, t5 in T5_RECIPES.items():
        make_t5(name, t5)


if __name__ == "__main__":
    main()
