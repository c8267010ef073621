"""Prefixes that are read once: what a prompt takes behind one, beside a state that is there already.

    python benches/prefix.py .peers/models/llama-3.2-1b-bf16                 five minutes on two cores
    python benches/prefix.py demo-stories --turn 300 --shots 200 --rounds 3  a trial

Three questions, each with the first new token that follows. *A second turn*: 20 tokens behind 2,000 that a model has
read. *A chat's*: the same said to a `Chat`, its template and the tokens that it writes included. *Five shots*: prompts
of 60 tokens behind 1,000 that all of them share. Beside each other in every round: a call with a handle (`prefix=`);
one to a model that keeps prefixes by itself (`prefix_cache_bytes`); a call behind what an earlier one has left to its
reader, as `Chat` makes them; a fork of a state that reads the same new tokens in one pass, which is the least that can
be done, and (for the turn) in as many steps. Prompts are texts, so that tokenizing all of them is in the calls' time.
The aim is at most 1.15 times what the state takes; the whole prompt without a prefix is
told once, for comparison. Every first token must be that of the whole prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import fastdecode

if TYPE_CHECKING:
    from collections.abc import Callable

ONE: Any = {"max_new_tokens": 1, "eos_token_id": None, "do_sample": False}
AIM = 1.15
WORDS = [
    "the wolf",
    " said to",
    " the girl",
    " that she",
    " had seen",
    " a castle",
    " by the sea",
    " and went on",
]


def text_of(tokenizer: Any, tokens: int, salt: int) -> str:
    """Returns a text of about so many tokens, another one for another salt."""
    text, place = "", salt
    while len(tokenizer.encode(text)) < tokens:
        text += WORDS[(place * place + salt) % len(WORDS)]
        place += 1
    return text


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns how long a work takes, and what it gives."""
    begin = time.perf_counter()
    found = work()
    return time.perf_counter() - begin, found


def stepped(state: Any, ids: list[int]) -> int:
    """Reads ids one by one; returns the best next token."""
    fork = state.fork()
    for token in ids:
        fork.step(token)
    return int(fork.logits.argmax())


def read_at_once(state: Any, ids: list[int]) -> int:
    """Reads ids in one pass; returns the best next token."""
    fork = state.fork()
    fork._core.append(ids)
    return int(fork.logits.argmax())


def parting(one: list[int], other: list[int]) -> int:
    """Returns how many ids two lists have in common at their beginnings."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def measure(model: Any, keeping: Any, shared: str, new: int, turns: int, *, steps: bool) -> None:
    """Prints medians of prompts behind a shared text, and their ratios to a state's."""
    tokenizer = model.tokenizer
    own = [text_of(tokenizer, new, 11 + salt) for salt in range(turns + 1)]
    ids = [tokenizer.encode(shared + text) for text in own]
    begun = tokenizer.encode(shared)
    parted = min(parting(begun, whole) for whole in ids)
    state, prefix = model.prefill(begun[:parted]), model.prefix(shared)
    decoding = model._start([begun[:parted]], ONE, reuse=prefix, keep=True)
    decoding.outputs()
    left = decoding.kept()
    keeping.run(shared, **ONE)
    spent, [first] = seconds(lambda: model.run(shared + own[0], **ONE).token_ids)
    works: dict[str, Callable[[int], int]] = {
        "a state, at once": lambda turn: read_at_once(state, ids[turn][parted:]),
        "a handle": lambda turn: model.run(own[turn], prefix=prefix, **ONE).token_ids[0],
        "a kept call": lambda turn: (
            model._start([shared + own[turn]], ONE, reuse=left).outputs()[0].token_ids[0]
        ),
        "prefix_cache_bytes": lambda turn: keeping.run(shared + own[turn], **ONE).token_ids[0],
    }
    if steps:
        works["a state, step by step"] = lambda turn: stepped(state, ids[turn][parted:])
    took: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        told = {}
        for name in list(works) if turn % 2 else list(reversed(works)):
            elapsed, told[name] = seconds(partial(works[name], turn))
            if turn:  # the first one warms up
                took[name].append(elapsed)
        assert set(told.values()) == {first} if turn == 0 else len(set(told.values())) == 1, told
    least = took["a state, at once"]
    print(f"  {new} tokens behind {parted}; the whole prompt without a prefix takes {spent * 1e3:.0f} ms")
    for name, each in took.items():
        ratio = statistics.median(one / other for one, other in zip(each, least, strict=True))
        spread = f"{min(each) * 1e3:.1f} to {max(each) * 1e3:.1f}"
        aim = "" if name.startswith("a state") else f" (aim: {AIM})"
        print(
            f"  {name:22s} {statistics.median(each) * 1e3:8.1f} ms ({spread}), {ratio:.3f} of a state's{aim}"
        )


def measure_chat(model: Any, shared: str, new: int, turns: int) -> None:
    """Prints medians of a chat's second turn, and their ratio to a state that reads the ids which the turn adds."""
    chat = fastdecode.Chat(model, chat_template="plain")
    chat.send(shared, **ONE)
    begun = list(chat.messages)
    own = [text_of(model.tokenizer, new, 11 + salt) for salt in range(turns + 1)]
    said = [[*begun, {"role": "user", "content": text}] for text in own]
    ids = [model.apply_chat_template(messages, chat_template="plain") for messages in said]
    parted = min(parting(ids[0], whole) for whole in ids[1:])
    state = model.prefill(ids[0][:parted])
    took: dict[str, list[float]] = {"state": [], "chat": []}
    for turn in range(turns + 1):
        chat.messages = list(begun)
        works: dict[str, Callable[[], Any]] = {
            "state": partial(read_at_once, state, ids[turn][parted:]),
            "chat": partial(chat.send, own[turn], **ONE),
        }
        for name in list(works) if turn % 2 else list(reversed(works)):
            elapsed, _ = seconds(works[name])
            if turn:  # the first one warms up
                took[name].append(elapsed)
    ratio = statistics.median(one / other for one, other in zip(took["chat"], took["state"], strict=True))
    state_ms, chat_ms = (statistics.median(took[name]) * 1e3 for name in ("state", "chat"))
    print(
        f"  {len(ids[0]) - parted} tokens behind {parted}: a state {state_ms:.1f} ms, a chat {chat_ms:.1f} ms"
    )
    print(f"  {ratio:.3f} of a state's (aim: {AIM})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--turn", type=int, default=2000, help="tokens before the turn")
    parser.add_argument("--shots", type=int, default=1000, help="tokens that prompts share")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    options: Any = {"num_threads": given.num_threads, "dtype": given.dtype}
    model = fastdecode.load(given.model, **options)
    room = model.info()["cache_bytes_per_token"] * (given.turn + 2000)
    keeping = fastdecode.load(given.model, prefix_cache_bytes=room, cache_bytes=2 * room, **options)
    print(f"{given.model} on {model.info()['num_threads']} threads, {model.info()['isa']}")
    tokenizer = model.tokenizer
    print("A second turn")
    measure(model, keeping, text_of(tokenizer, given.turn, 1), 20, given.rounds, steps=True)
    print("A chat's second turn")
    measure_chat(model, text_of(tokenizer, given.turn, 3), 20, given.rounds)
    print("Five shots")
    measure(model, keeping, text_of(tokenizer, given.shots, 2), 60, 3 * given.rounds, steps=False)


if __name__ == "__main__":
    main()
