"""Memory comes back: what a process holds follows what is alive, by the count of the system."""

from __future__ import annotations

import json
import subprocess
import sys

import fastdecode
import pytest
from families import FAMILIES

# Resident bytes are read where the process is alone: other tests' memory would count as well.
STATES = """
import gc, json, resource, fastdecode
def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
model = fastdecode.load("demo-stories")
ids = [1 + i % 200 for i in range(200)]
model.prefill(ids)
before = resident()
kept, held = [], []
for number in range(4):
    states = [model.prefill(ids) for _ in range(300)]
    kept += states[number::37][:8]
    del states
    held.append(resident() - before)
live = len(kept) * 208 * model.info()["cache_bytes_per_token"]
logits = kept[0].fork().step(7)
alone = model.logits([*ids, 7])[-1]
kept.clear()
print(json.dumps({"held": held, "live": live, "end": resident() - before, "same": bool((logits == alone).all())}))
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="RESIDENT MEMORY IS NOT TESTED: /proc/self/statm is Linux's"
)
def test_states_that_stay_do_not_keep_the_memory_of_those_that_went() -> None:
    """Of four rounds of 300 states of 200 tokens 8 each stay; the memory of the others goes back, and at last all."""
    result = subprocess.run([sys.executable, "-c", STATES], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    bound = 110 * 10**6
    assert seen["live"] > 20 * 10**6, "the states that stay count"
    assert seen["held"][-1] <= seen["live"] + bound, seen
    assert max(seen["held"]) <= seen["live"] + bound, seen
    assert seen["end"] <= bound, seen
    assert seen["same"], "a state that stayed is what it was"


def test_activations_of_a_large_step_go_back() -> None:
    """A padded row of logits for each of 512 tokens takes 103 MB; at most 64 MB are kept, of all models together."""
    config = FAMILIES["gpt2"].tiny_config(vocab_size=50257, n_positions=512, n_embd=16, n_head=2, n_layer=1)
    weights = FAMILIES["gpt2"].tiny_weights(config)
    model = fastdecode.CausalLM.from_tensors(config, weights, num_threads=2)
    model.logits([1] * 512)
    assert model.info()["activation_bytes"] <= 64 << 20
    few = model.logits([2, 3])
    assert 0 < model.info()["activation_bytes"] <= 64 << 20, "what is kept is counted"
    assert (few == model.logits([2, 3])).all()
