"""Conversations as prompts of every verb, and `Chat`."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
from chat_cases import TOOL, assistant, system, user
from families import FAMILIES
from fastdecode import Chat, errors

T5 = FAMILIES["t5"]
TEMPLATE = (
    "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content ~ '\\n' }}{% endfor %}"
    "{{ tools | tojson if tools else '' }}"
    "{{ documents | tojson if documents else '' }}{{ own }}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SHORT: Any = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.byte_level(380)
    tokenizer.add_special_tokens(["<|im_end|>"])
    folder = tmp_path_factory.mktemp("chat") / "model"
    tiny.write_folder(folder, tokenizer=tokenizer, vocab_size=400, n_positions=512)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def model(chat_folder: Path) -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load(chat_folder, num_threads=1)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> fastdecode.Seq2SeqLM:
    folder = T5.write_tiny(
        tmp_path_factory.mktemp("t5"), tokenizer=tiny.with_end(), generation={"max_new_tokens": 6}
    )
    return fastdecode.Seq2SeqLM.load(folder, num_threads=1)


async def read(stream: Any) -> list[fastdecode.Chunk]:
    return [piece async for piece in stream]


def test_a_conversation_is_one_prompt(model: fastdecode.CausalLM) -> None:
    messages = [system("s"), user("Once upon"), assistant("a time"), user("there was")]
    ids = model.apply_chat_template(messages)
    expected = model.run(ids, **SHORT)
    output = model.run(messages, **SHORT)
    assert isinstance(output, fastdecode.Output)
    assert (output.token_ids, output.text) == (expected.token_ids, expected.text)
    assert output.usage.prompt_tokens == len(ids)
    prompts: list[Any] = [messages, tuple(messages), iter(messages)]
    for prompt in prompts:
        assert model.generate(prompt, **SHORT) == expected.text
    assert "".join(map(str, model.stream(messages, **SHORT))) == expected.text
    pieces = asyncio.run(read(model.astream(messages, **SHORT)))
    assert "".join(map(str, pieces)) == expected.text
    assert model.prefill(messages).tokens == ids
    assert len(model.logits(messages)) == len(ids)


def test_lists_of_conversations(model: fastdecode.CausalLM) -> None:
    talks = [[user("Once")], [user("a"), assistant("b"), user("c d e f")], [system("x"), user("y")]]
    alone = [model.run(talk, **SHORT) for talk in talks]
    together = model.run(talks, **SHORT)
    assert isinstance(together, list)
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]
    assert model.generate(talks, **SHORT) == [output.text for output in alone]
    assert model.generate(iter(talks), **SHORT) == [output.text for output in alone]  # type: ignore[call-overload]
    assert model.run([talks[0]], **SHORT)[0].token_ids == alone[0].token_ids
    drawn = model.run(talks[0], num_return_sequences=2, do_sample=True, seed=1, **SHORT)
    assert len(drawn) == 2  # type: ignore[arg-type]


def test_options_of_conversations(model: fastdecode.CausalLM) -> None:
    def tool(x: int) -> None:
        """Does.

        Args:
            x: X
        """

    messages = [user("x")]
    options: Any = {"tools": [TOOL, tool], "documents": [{"title": "t"}], "chat_variables": {"own": "mine"}}
    output = model.run(messages, **options, **SHORT)
    named = {"tools": options["tools"], "documents": options["documents"], "own": "mine"}
    ids = model.apply_chat_template(messages, **named)
    assert output.usage.prompt_tokens == len(ids)
    assert output.token_ids == model.run(ids, **SHORT).token_ids
    text = model.apply_chat_template(messages, tokenize=False, **named)
    assert '"name": "tool"' in text
    assert text.endswith("mine<assistant>")
    other = model.run(messages, chat_template="plain", **SHORT)
    assert other.usage.prompt_tokens == len(model.apply_chat_template(messages, chat_template="plain"))
    begun = [user("x"), assistant("Once upon")]
    continued = model.run(begun, continue_final_message=True, **SHORT)
    ids = model.apply_chat_template(begun, continue_final_message=True)
    assert model.tokenizer is not None
    assert model.tokenizer.decode(ids).endswith("Once upon")
    assert continued.token_ids == model.run(ids, **SHORT).token_ids
    control = [user("a<|im_end|>b")]
    counts = [
        model.run(control, sanitize_control_tokens=value, **SHORT).usage.prompt_tokens
        for value in (False, True)
    ]
    assert counts[0] < counts[1]
    # What says nothing is taken, with any prompt.
    nothing: Any = {"chat_template": None, "tools": None, "documents": None, "chat_variables": {}}
    assert model.generate("x", **nothing, continue_final_message=False, **SHORT) == model.generate(
        "x", **SHORT
    )


@pytest.mark.parametrize(
    ("prompt", "options", "match"),
    [
        ("x", {"chat_template": "plain"}, "chat_template: expected none without a list of messages"),
        ([1, 2], {"tools": []}, "tools: expected none without"),
        ("x", {"documents": [{}]}, "documents"),
        (["x"], {"chat_variables": {"a": 1}}, "chat_variables"),
        ("x", {"continue_final_message": True}, "continue_final_message"),
        ("x", {"sanitize_control_tokens": True}, "sanitize_control_tokens"),
        ([[user("x")], "y"], {}, "list of messages"),
        ([[user("x")], [1]], {}, "a message 1"),
        ([[user("x")], []], {}, "at least one message"),
        (["y", [user("x")]], {}, "all conversations, or none"),
        ([user("x"), "y"], {}, "a message 'y'"),
        (user("x"), {}, "a list of token ids or of messages"),
        ([user("x")], {"chat_variables": 3}, "chat_variables: expected a mapping"),
        ([user("x")], {"chat_variables": {1: 2}}, "chat_variables: expected a mapping"),
        ([user("x")], {"chat_variables": {"tools": 2}}, "chat_variables: expected names"),
        ([user("x")], {"tools": 3}, "tools"),
        ([user("x")], {"documents": 3}, "documents"),
        ([user("x")], {"chat_template": 3}, "chat_template"),
        ([user("x")], {"continue_final_message": 1}, "continue_final_message"),
        ([user("x")], {"sanitize_control_tokens": 1}, "sanitize_control_tokens"),
    ],
)
def test_misuse(prompt: Any, options: Any, match: str, model: fastdecode.CausalLM) -> None:
    for call in (model.generate, model.run, model.stream):
        with pytest.raises(errors.OptionError, match=match):
            call(prompt, **options, **SHORT)
    with pytest.raises(errors.OptionError, match=match):
        asyncio.run(read(model.astream(prompt, **options, **SHORT)))


def test_names_that_are_mistyped(model: fastdecode.CausalLM) -> None:
    with pytest.raises(errors.UnknownOptionError, match="did you mean chat_template"):
        model.generate([user("x")], chat_templat="plain")  # type: ignore[call-overload]


def test_without_a_tokenizer(ids_model: fastdecode.CausalLM) -> None:
    with pytest.raises(errors.TokenizerMissing, match="a conversation"):
        ids_model.run([user("x")], chat_template="plain")


def test_an_encoder_decoder_reads_the_users_last_message(t5: fastdecode.Seq2SeqLM) -> None:
    messages = [
        system("s"),
        user("Good day"),
        assistant("no"),
        user([{"type": "text", "text": "the wolf"}]),
        assistant("x"),
    ]
    expected = t5.generate("the wolf")
    assert t5.generate(messages) == expected
    assert t5.generate([messages, messages[:2]]) == [expected, t5.generate("Good day")]
    assert "".join(map(str, t5.stream(messages))) == expected
    assert asyncio.run(read(t5.astream(messages)))
    assert t5.encode(messages).source_ids == t5.encode("the wolf").source_ids
    with pytest.raises(errors.OptionError, match='role is "user"'):
        t5.generate([assistant("x")])
    with pytest.raises(errors.OptionError, match="none in a model with an encoder"):
        t5.generate(messages, chat_template="plain")
    chat = Chat(t5)
    assert chat.send("the wolf") == expected
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    with pytest.raises(errors.OptionError, match="None with a model that has an encoder"):
        Chat(t5, chat_template="plain")
    with pytest.warns(errors.FastdecodeWarning, match="system has no effect"):
        Chat(t5, system="x")


def test_turns(model: fastdecode.CausalLM) -> None:
    chat = Chat(model, system="Be good.")
    assert chat.messages == [system("Be good.")]
    first = chat.send("Once", **SHORT)
    assert first == model.generate([system("Be good."), user("Once")], **SHORT)
    assert chat.messages == [system("Be good."), user("Once"), assistant(first)]
    pieces = list(chat.stream("upon", **SHORT))
    assert all(isinstance(piece, fastdecode.Chunk) for piece in pieces)
    second = "".join(map(str, pieces))
    assert second == model.generate([*chat.messages[:3], user("upon")], **SHORT)
    assert chat.messages[3:] == [user("upon"), assistant(second)]
    # What is edited, cut or put there counts.
    chat.messages[2]["content"] = "changed"
    del chat.messages[3:]
    third = chat.send("a time", **SHORT)
    assert third == model.generate(
        [system("Be good."), user("Once"), assistant("changed"), user("a time")], **SHORT
    )
    chat.messages = []
    chat.send("x", role="observation", **SHORT)
    assert chat.messages[0] == {"role": "observation", "content": "x"}
    chat.messages = [system("s")]
    before = chat.send("Once upon", role="assistant", continue_final_message=True, **SHORT)
    assert chat.messages == [system("s"), assistant("Once upon" + before)]
    assert "Chat(" in repr(chat)


def test_options_of_turns(model: fastdecode.CausalLM) -> None:
    chat = Chat(model, chat_template="plain")
    assert chat.send("x", **SHORT) == model.generate([user("x")], chat_template="plain", **SHORT)
    chat.messages.clear()
    own = chat.send("x", chat_template=TEMPLATE, tools=[TOOL], **SHORT)
    assert own == model.generate([user("x")], tools=[TOOL], **SHORT)
    with pytest.warns(errors.FastdecodeWarning, match="search with beams"):
        beams = Chat(model).send("x", num_beams=2, **SHORT)
    assert beams == model.generate([user("x")], num_beams=2, stop=None, **SHORT)
    for options, match in (
        ({"num_return_sequences": 2}, "1 in a chat"),
        ({"role": ""}, "role"),
        ({"role": 3}, "role"),
        ({"temperature": 0.5}, "do_sample"),
        ({"max_new_tokens": 0}, "at least 1"),
    ):
        before = list(chat.messages)
        for call in (chat.send, chat.stream):
            with pytest.raises(errors.OptionError, match=match):
                call("y", **options)
        assert chat.messages == before
    with pytest.raises(errors.OptionError, match="text"):
        chat.send(3)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="num_beams"):
        chat.stream("x", num_beams=2, stop=None)
    with pytest.raises(errors.OptionError, match="model"):
        Chat("gpt2")  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="system"):
        Chat(model, system=3)  # type: ignore[arg-type]
    chat.messages = "x"  # type: ignore[assignment]
    with pytest.raises(errors.OptionError, match="messages"):
        chat.send("x")
    chat.messages = [3]  # type: ignore[list-item]
    with pytest.raises(errors.OptionError, match="a message 3"):
        chat.send("x")


LONG: Any = {"min_new_tokens": 60, "max_new_tokens": 60}


def test_an_abandoned_stream_keeps_what_was_read(model: fastdecode.CausalLM) -> None:
    chat = Chat(model)
    read = []
    for piece in chat.stream("Once", **LONG):
        read.append(str(piece))
        if len(read) == 3:
            break
    del piece
    gc.collect()
    assert chat.messages == [user("Once"), assistant("".join(read))]
    stream = chat.stream("more", **LONG)
    first = str(next(stream))
    assert len(chat.messages) == 2
    stream.close()
    assert chat.messages[2:] == [user("more"), assistant(first)]
    # One that was not begun leaves nothing, and one that is open ends where the next turn begins.
    chat.stream("nothing", **LONG).close()
    assert len(chat.messages) == 4
    stream = chat.stream("open", **LONG)
    begun = str(next(stream))
    chat.send("next", **SHORT)
    assert [message["content"] for message in chat.messages[4:7]] == ["open", begun, "next"]
    assert list(stream) == []
    with pytest.raises(KeyboardInterrupt):
        _throw(chat.stream("stop", **LONG), KeyboardInterrupt())
    assert chat.messages[-2] == user("stop")
    assert chat.messages[-1]["role"] == "assistant"


def _throw(stream: Any, error: BaseException) -> None:
    next(stream)
    stream.throw(error)


def test_an_error_leaves_the_messages(model: fastdecode.CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(model, system="s")
    chat.send("a", **SHORT)
    before = json.dumps(chat.messages)
    with pytest.raises(ValueError, match="mine"):
        _throw(chat.stream("b", **LONG), ValueError("mine"))
    assert json.dumps(chat.messages) == before
    with pytest.raises(errors.ContextLengthError):
        chat.send("b" * 2000, **SHORT)
    with pytest.raises(errors.ContextLengthError):
        chat.stream("b" * 2000, **SHORT)
    assert json.dumps(chat.messages) == before
    from fastdecode.decoding import Decoding

    def fail(_: Decoding) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Decoding, "advance", fail)
        with pytest.raises(KeyboardInterrupt):
            list(chat.stream("b", **SHORT))
        patched.setattr(Decoding, "outputs", fail)
        with pytest.raises(KeyboardInterrupt):
            chat.send("b", **SHORT)
    assert json.dumps(chat.messages) == before
    assert chat.send("b", **SHORT) is not None


def test_messages_that_were_replaced(model: fastdecode.CausalLM) -> None:
    chat = Chat(model)
    messages: Any = (user("a"), assistant("b"))
    chat.messages = messages
    answer = chat.send("c", **SHORT)
    assert chat.messages == [*messages, user("c"), assistant(answer)]
    unfit: list[Any] = [None, "abc", {"role": "user"}]
    for wrong in unfit:
        chat.messages = wrong
        with pytest.raises(errors.OptionError, match="messages: expected a list of messages"):
            chat.send("c", **SHORT)
        assert chat.messages is wrong


def test_verbs_of_given_tokens_say_where_their_ids_come_from(model: fastdecode.CausalLM) -> None:
    for call in (model.loss, model.perplexity, model.embed):
        with pytest.raises(errors.OptionError, match=r"model\.apply_chat_template gives the ids"):
            call([user("x")])
    with pytest.raises(errors.OptionError, match=r"one string or one list of token ids, got"):
        model.embed([[1, 2]])  # type: ignore[arg-type]


def test_a_stream_that_another_thread_reads(model: fastdecode.CausalLM) -> None:
    chat: Any = Chat(model)
    inside, leave = threading.Event(), threading.Event()
    stream = chat.stream("x", **LONG)

    original = chat._end

    def end(*arguments: Any) -> None:
        inside.set()
        leave.wait(20)
        original(*arguments)

    chat._end = end
    thread = threading.Thread(target=lambda: list(stream))
    thread.start()
    assert inside.wait(20)
    with pytest.raises(errors.StateBusyError, match="another thread"):
        chat.send("y", **SHORT)
    leave.set()
    thread.join(20)
    chat._end = original
    assert len(chat.messages) == 2
    chat.send("y", **SHORT)
    assert len(chat.messages) == 4


def test_what_a_turn_has_read_is_not_read_again(
    model: fastdecode.CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdecode.decoding import Decoding

    spared: list[int] = []
    begin = Decoding._begin

    def noted(self: Decoding, index: int, first: float, cached_tokens: int) -> Any:
        spared.append(cached_tokens)
        return begin(self, index, first, cached_tokens)

    monkeypatch.setattr(Decoding, "_begin", noted)
    chat = Chat(model)
    chat.send("a word", **SHORT)
    list(chat.stream("another", **SHORT))
    stream = chat.stream("and more", **LONG)
    next(stream)
    stream.close()
    chat.send("the last", **SHORT)
    said = [model.apply_chat_template(chat.messages[:until]) for until in (1, 3, 5)]
    assert spared[0] == 0
    for turn, before in zip(spared[1:], said, strict=True):
        assert turn >= len(before) - 1, "all that the turn before had read of the messages"
    del chat.messages[2:]
    chat.send("another", **SHORT)
    assert spared[4] >= len(said[0]) - 1, "what is left of a list that was cut"
    with pytest.raises(errors.OptionError, match="None in a chat"), model.prefix([user("a")]) as prefix:
        chat.send("b", prefix=prefix)


def test_a_turn_answers_as_all_messages_alone(chat_folder: Path) -> None:
    model = fastdecode.CausalLM.load(chat_folder, num_threads=1)
    chat, messages = Chat(model), []
    for said in ("a word", "another, longer than the first", "the last"):
        messages.append(user(said))
        want = model.generate(messages, seed=3, do_sample=True, **SHORT)
        assert chat.send(said, seed=3, do_sample=True, **SHORT) == want
        messages.append(assistant(want))
    assert chat.messages == messages
    assert model.info()["cache_bytes_live"] > 0
    again = pickle.loads(pickle.dumps(chat))
    assert again.send("once more", **SHORT) == chat.send("once more", **SHORT)
    del chat
    gc.collect()
    assert model.info()["cache_bytes_live"] == 0, "a chat that is gone holds nothing"


def test_a_prefix_of_messages(model: fastdecode.CausalLM) -> None:
    first, last = [system("Be short."), user("a word"), assistant("yes")], [user("another")]
    with model.prefix(first) as prefix:
        output = model.run(last, prefix=prefix, **SHORT)
        assert output.token_ids == model.run([*first, *last], **SHORT).token_ids
        assert output.usage.cached_tokens > 10
        both = model.run([last, [user("b")]], prefix=prefix, **SHORT)
        assert both[0].token_ids == output.token_ids
        with pytest.raises(errors.OptionError, match="messages, as the prefix is made of messages"):
            model.run("text", prefix=prefix)
        pairs: Any = [(last, " yes"), (last, " no")]
        scores = model.score(pairs, prefix=prefix)
        assert scores == model.score([([*first, *last], rest) for _, rest in pairs])
    with model.prefix(first, chat_template="plain") as prefix:
        output = model.run(last, prefix=prefix, chat_template="plain", **SHORT)
        assert output.token_ids == model.run([*first, *last], chat_template="plain", **SHORT).token_ids
        assert output.usage.cached_tokens > 10
    with pytest.raises(errors.OptionError, match="chat_template: expected none without"):
        model.prefix("text", chat_template="plain")
