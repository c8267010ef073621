"""Ctrl-C ends every call that takes long: loading, encoding, prompts by hand, traces."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from ctrl_c import seconds_to_stop
from families import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

# Seconds between Ctrl-C and the exception.
BOUND = 3
# Seconds after which the signal is sent; every call takes several times as long.
INTO_THE_CALL = 1.5


def interrupt(folder: Path, call: str) -> None:
    assert seconds_to_stop(folder, call, after=INTO_THE_CALL) < BOUND


def outcome(script: str) -> str:
    """What a script prints; it hears Ctrl-C as usual."""
    run = [sys.executable, "-c", script]
    found = subprocess.run(
        run, capture_output=True, text=True, timeout=300, preexec_fn=tiny.hear_ctrl_c, check=True
    )
    return found.stdout


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide and deep enough for the source below to take more than a minute."""
    sizes: Any = {
        "d_model": 64,
        "d_kv": 64,
        "num_heads": 4,
        "num_layers": 8,
        "num_decoder_layers": 1,
        "d_ff": 128,
    }
    return FAMILIES["t5"].write_tiny(tmp_path_factory.mktemp("long") / "t5", **sizes)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context in which a prompt takes more than a minute."""
    sizes: Any = {"n_positions": 2**16, "n_embd": 128, "n_layer": 8, "n_head": 2}
    return tiny.write_folder(tmp_path_factory.mktemp("long") / "gpt2", **sizes)


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 6 GB of zeros, of which the disk holds next to nothing."""
    folder = tiny.write_folder(tmp_path_factory.mktemp("long") / "large", n_embd=256, n_head=4, n_layer=1)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = 6_000_000
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header, values = json.loads(data[8:start]), data[start:]
    table = header["transformer.wte.weight"]
    end = len(values) + 4 * config["vocab_size"] * config["n_embd"]
    # The small table's bytes become a tensor that the model does not know.
    header["old"] = dict(table)
    table |= {"shape": [config["vocab_size"], config["n_embd"]], "data_offsets": [len(values), end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text + values)
        out.truncate(8 + len(text) + end)
    assert file.stat().st_blocks * 512 < 2**26
    return folder


@pytest.mark.parametrize(
    "call",
    [
        "model.encode([5] * 40_000)",
        "model.encode([[5] * 400] * 20_000)",
        "model.run([5] * 40_000, max_new_tokens=1)",
        # Sources that differ: one that comes again is encoded once.
        "model.run([[5 + i % 20, 5 + i // 20 % 20, 5 + i // 400] * 133 for i in range(20_000)], max_new_tokens=1)",
        "next(model.stream([5] * 40_000))",
        "model.trace([5] * 20_000, [1])",
    ],
)
def test_sources(t5_folder: Path, call: str) -> None:
    interrupt(t5_folder, call)


@pytest.mark.parametrize(
    "call",
    [
        "model.prefill([5] * 65_000)",
        "model.prefix([5] * 65_000)",
        "model.prefill(embeddings=model.embed([5] * 65_000))",
        "model.trace([5] * 20_000)",
        "model.loss([5] * 65_000)",
        "model.quality([5] * 65_000, dtypes='float32')",
        "model.score([([5, 6 + i % 7] * 3, [i % 99, 6]) for i in range(200_000)])",
    ],
)
def test_prompts(gpt2_folder: Path, call: str) -> None:
    interrupt(gpt2_folder, call)


def test_loading(gpt2_folder: Path, large_folder: Path) -> None:
    interrupt(gpt2_folder, f"fastdecode.load({str(large_folder)!r}, num_threads=2)")


def test_a_state_after_ctrl_c_is_as_before(gpt2_folder: Path) -> None:
    check = "state.tokens == [5, 6] and (state.logits == before).all() and (state.step(7) == after).all()"
    script = f"""
import fastdecode, os, signal, threading
model = fastdecode.load({str(gpt2_folder)!r}, num_threads=2)
after = model.logits([5, 6, 7])[-1]
state = model.prefill([5, 6])
before = state.logits
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    state._core.append([5] * 60_000)
    print("done")
except KeyboardInterrupt:
    print({check})
"""
    assert outcome(script) == "True\n"


def test_waiting_for_the_step_of_another_thread(t5_folder: Path) -> None:
    """The encoder reads a source in one step, which takes more than a minute here."""
    script = f"""
import fastdecode, os, signal, threading, time
model = fastdecode.load({str(t5_folder)!r}, num_threads=2)
worker = threading.Thread(target=lambda: model.encode([5] * 40_000), daemon=True)
worker.start()
time.sleep(0.5)
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
began = time.monotonic()
try:
    model.encode([5])
    print("done")
except KeyboardInterrupt:
    print(0.5 < time.monotonic() - began < {1 + BOUND} and worker.is_alive(), flush=True)
os._exit(0)
"""
    assert outcome(script) == "True\n"


def test_a_handler_may_compute_within_a_call(gpt2_folder: Path) -> None:
    script = f"""
import fastdecode, signal
model = fastdecode.load({str(gpt2_folder)!r}, num_threads=2)
def compute():
    return model.run([5, 6], max_new_tokens=3, eos_token_id=None).token_ids
expected, long, found = compute(), [5] * 6000, []
before = model.prefill(long).logits
signal.signal(signal.SIGALRM, lambda *_: found.append(compute()))
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
after = model.prefill(long).logits
signal.setitimer(signal.ITIMER_REAL, 0)
print(len(found) > 1, all(ids == expected for ids in found), (before == after).all())
"""
    assert outcome(script) == "True True True\n"


def test_a_handler_meets_the_generation_that_it_interrupts(gpt2_folder: Path) -> None:
    script = f"""
import fastdecode, gc, signal
model = fastdecode.load({str(gpt2_folder)!r}, num_threads=2)
met = []
stream = model.stream([5] * 12_000, max_new_tokens=2, eos_token_id=None)
def handler(*_):
    for running in [o for o in gc.get_objects() if type(o).__name__ == "Decoding"]:
        try:
            assert running._generation.prompt_tokens(0) == 12_000, "between two steps nobody is in its way"
        except fastdecode.errors.StateBusyError as error:
            met.append("same thread" in error.got)
    if not met:
        signal.setitimer(signal.ITIMER_REAL, 0.06)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
count = len(list(stream))
signal.setitimer(signal.ITIMER_REAL, 0)
print(count > 0, met)
"""
    assert outcome(script) == "True [True]\n"


# Calls of the main thread that are interrupted; each leads or waits for steps in which another call has rows, too.
BESIDE = {
    "a long prompt": "model.run([5] * 60_000, max_new_tokens=1)",
    "many tokens": "model.run([5], max_new_tokens=60_000, eos_token_id=None)",
    "a list": "model.run([[5] * 2000] * 200, max_new_tokens=50, eos_token_id=None)",
    "a stream": "list(model.stream([5] * 20_000, max_new_tokens=9, eos_token_id=None))",
}


@pytest.mark.parametrize("call", BESIDE)
def test_calls_in_the_same_steps_go_on(gpt2_folder: Path, call: str) -> None:
    """A step whose leader hears Ctrl-C is given up, and repeated for the others, who get each token once."""
    script = f"""
import fastdecode, os, signal, threading, time
model = fastdecode.load({str(gpt2_folder)!r}, num_threads=2)
options = dict(max_new_tokens=150, eos_token_id=None)
drawn = dict(options, do_sample=True, seed=4)
prompts = [[6, 7], [8] * 700]
def both():
    runs = model.run(prompts, **options), model.run(prompts, **drawn)
    return [[output.token_ids for output in outputs] for outputs in runs]
expected, found = both(), []
# The handler comes between two tokens as well as in the middle of a step.
for after in (0.05, 0.31, 0.57):
    worker = threading.Thread(target=lambda: found.append(both()))
    worker.start()
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    try:
        {BESIDE[call]}
        print("done")
    except KeyboardInterrupt:
        print("late" if time.monotonic() - began > after + 2 else "in time")
    worker.join()
print(found == [expected] * 3, model.info()["cache_bytes_live"])
"""
    assert outcome(script) == "in time\n" * 3 + "True 0\n"


def test_a_stream_goes_on_after_ctrl_c_in_another_call(gpt2_folder: Path) -> None:
    """A stream that the main thread reads by and by has rows in the step that is given up."""
    script = f"""
import fastdecode, os, signal, threading
model = fastdecode.load({str(gpt2_folder)!r}, num_threads=2)
options = dict(max_new_tokens=40, eos_token_id=None)
expected = model.run([6, 7], **options).token_ids
stream = model.stream([6, 7], **options)
ids = list(next(stream).token_ids)
threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    model.run([5] * 60_000, max_new_tokens=1)
    print("done")
except KeyboardInterrupt:
    ids += [token for chunk in stream for token in chunk.token_ids]
    print(ids == expected)
"""
    assert outcome(script) == "True\n"


def test_a_handler_may_generate_within_a_generation(gpt2_folder: Path) -> None:
    """Its step is one within a step of the call that it interrupts, whose result is what it would have been."""
    script = f"""
import fastdecode, signal
model = fastdecode.load({str(gpt2_folder)!r}, num_threads=2)
def compute():
    return model.run([[5, 6], [7]], max_new_tokens=3, eos_token_id=None)[1].token_ids
def long():
    return model.run([[5] * 3000, [6] * 2000], max_new_tokens=4, eos_token_id=None)[0].token_ids
expected, whole, found = compute(), long(), []
stream = model.stream([9], max_new_tokens=30, eos_token_id=None)
def handler(*_):
    found.append(compute())
    next(stream, None)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.05)
again = long()
signal.setitimer(signal.ITIMER_REAL, 0)
print(found != [], all(ids == expected for ids in found), again == whole)
"""
    assert outcome(script) == "True True True\n"
