"""Conversations to text and ids: to the byte and to the id what transformers' apply_chat_template makes of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import chat_cases
import fastdecode
import jinja2
import pytest
import tiny
from chat_cases import CONVERSATIONS, TEMPLATES, TOOL, assistant, system, user
from fastdecode import errors
from transformers import AutoTokenizer

SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
}
NAMED = "{{ '%s' }}{%% for m in messages %%}{{ m.content }}{%% endfor %%}"


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary has tokens of chats, special and not, and no template."""
    tokenizer = tiny.byte_level(400)
    tokenizer.add_special_tokens(["<|im_end|>", "<|im_start|>", "<s>"])
    tokenizer.add_tokens(["<think>", "[INST]"])
    folder = tmp_path_factory.mktemp("chats") / "model"
    tiny.write_folder(folder, tokenizer=tokenizer, vocab_size=420, n_positions=512)
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def ours(chat_folder: Path) -> fastdecode.CausalLM:
    return fastdecode.CausalLM.load(chat_folder, num_threads=1)


@pytest.fixture(scope="module")
def theirs(chat_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(chat_folder)


def answer(make: Any) -> Any:
    """What a call gives, or that it fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.FastdecodeWarning)
            return make()
    except errors.FastdecodeError:
        return "an error"
    except (ValueError, TypeError, NotImplementedError, jinja2.TemplateError):
        return "an error"


MODES = [(False, False), (True, False), (False, True)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_ids_are_those_of_transformers(name: str, ours: fastdecode.CausalLM, theirs: Any) -> None:
    failures = 0
    for (messages, options), (opens, continues) in product(CONVERSATIONS.values(), MODES):
        before = json.dumps(messages)
        given: Any = {
            "chat_template": TEMPLATES[name],
            "add_generation_prompt": opens,
            "continue_final_message": continues,
            **options,
        }
        text = answer(
            lambda given=given, messages=messages: theirs.apply_chat_template(
                messages, tokenize=False, **given
            )
        )
        assert answer(lambda g=given, m=messages: ours.apply_chat_template(m, tokenize=False, **g)) == text
        ids = answer(lambda g=given, m=messages: theirs.apply_chat_template(m, return_dict=False, **g))
        assert answer(lambda g=given, m=messages: ours.apply_chat_template(m, **g)) == ids
        plain = answer(
            lambda g=given, m=messages: theirs.apply_chat_template(
                m, return_dict=False, sanitize_control_tokens=True, **g
            )
        )
        got = answer(
            lambda g=given, m=messages: ours.apply_chat_template(m, sanitize_control_tokens=True, **g)
        )
        assert got == plain
        failures += text == "an error"
        assert json.dumps(messages) == before
    assert failures < len(CONVERSATIONS) * len(MODES) / 2


def test_the_four_templates_are_here() -> None:
    assert {"qwen2.5", "qwen3", "phi-3-mini", "smollm3"} <= TEMPLATES.keys()
    assert len(CONVERSATIONS) == 8


def test_control_tokens_of_a_user(ours: fastdecode.CausalLM, theirs: Any) -> None:
    end = theirs.convert_tokens_to_ids("<|im_end|>")
    messages = [user("a <|im_end|> b <think> [INST] \U000f0000<s>\U000f0001")]
    template = TEMPLATES["qwen2.5"]
    ids = ours.apply_chat_template(messages, chat_template=template)
    assert ids.count(end) == 3
    plain = ours.apply_chat_template(messages, chat_template=template, sanitize_control_tokens=True)
    assert plain.count(end) == 2
    assert plain == theirs.apply_chat_template(
        messages,
        chat_template=template,
        sanitize_control_tokens=True,
        return_dict=False,
        add_generation_prompt=True,
    )
    # A template that takes a text apart leaves marks alone.
    split = "{{ messages[0].content.split('|')|join('|') }}<think>{{ tools[0].function.name }}{{ own }}"
    more: Any = {"chat_template": split, "tools": [TOOL], "own": ["<s>", {"<s>": "<think>"}]}
    assert ours.apply_chat_template(
        messages, sanitize_control_tokens=True, **more
    ) == theirs.apply_chat_template(messages, sanitize_control_tokens=True, return_dict=False, **more)
    with pytest.raises(errors.OptionError, match="tokenize=False"):
        ours.apply_chat_template(messages, chat_template=split, sanitize_control_tokens=True, tokenize=False)


def test_reasoning_has_several_names(ours: fastdecode.CausalLM, theirs: Any) -> None:
    template = "{% for m in messages %}{{ m | tojson }}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}"
    for field in ("reasoning_content", "thinking", "reasoning"):
        messages = [
            user("a"),
            assistant("b", **{field: " why "}),
            assistant("c", reasoning=None, thinking="x"),
        ]
        for continues in (False, field, "content"):
            given: Any = {"chat_template": template, "continue_final_message": continues, "tokenize": False}
            opened = ours.apply_chat_template(messages[:2], add_generation_prompt=False, **given)
            assert opened == theirs.apply_chat_template(messages[:2], **given)
        assert ours.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=False
        ) == theirs.apply_chat_template(messages, chat_template=template, tokenize=False)


@dataclasses.dataclass
class Message:
    role: str
    content: Any
    name: str | None = None


class Dumped:
    def __init__(self, **values: Any) -> None:
        self.values = values
        self.role = values["role"]

    def model_dump(self) -> dict[str, Any]:
        return self.values


class Text(str):
    __slots__ = ()


def test_messages_may_be_objects(ours: fastdecode.CausalLM, theirs: Any) -> None:
    import numpy as np

    messages: list[Any] = [
        Message("system", Text("be")),
        Dumped(
            role="user",
            content=[Message("x", np.float32(0.5)), np.bool_(False), {1: b"bytes"}, (1, object())],
        ),
        {"role": "user", "content": "c", "more": np.arange(2)},
    ]
    template = "{% for m in messages %}{{ m }}{{ m.more }}{{ m.content is string }}{% endfor %}{{ own }}"
    own = Message("a", None)
    given: Any = {"chat_template": template, "tokenize": False, "own": own, "documents": [{"a": np.int64(3)}]}
    expected = theirs.apply_chat_template(messages, **given)
    assert ours.apply_chat_template(messages, add_generation_prompt=False, **given) == expected
    assert "<object>" in expected
    held = type("Held", (), {"messages": messages})()
    assert ours.apply_chat_template(held, **given) == expected
    both = theirs.apply_chat_template([messages[:1], messages], **given)
    assert ours.apply_chat_template([messages[:1], messages], **given) == both


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(SETTINGS | content)
        (folder / name).write_text(text, encoding="utf-8", newline="")


FORMS: dict[str, dict[str, Any]] = {
    "none": {},
    "jinja file": {"chat_template.jinja": NAMED % "file"},
    "config": {"tokenizer_config.json": {"chat_template": NAMED % "config"}},
    "config, null": {"tokenizer_config.json": {"chat_template": None}},
    "file before config": {
        "chat_template.jinja": NAMED % "file" + "\r\n\r\n",
        "tokenizer_config.json": {"chat_template": NAMED % "config"},
    },
    "list": {
        "tokenizer_config.json": {
            "chat_template": [
                {"name": "default", "template": NAMED % "default"},
                {"name": "tool_use", "template": NAMED % "tools"},
                {"name": "rag", "template": NAMED % "rag"},
            ]
        }
    },
    "list without default": {
        "tokenizer_config.json": {"chat_template": [{"name": "rag", "template": NAMED % "rag"}]}
    },
    "additional": {
        "chat_template.jinja": NAMED % "file",
        "additional_chat_templates/tool_use.jinja": NAMED % "tools",
        "additional_chat_templates/rag.jinja": NAMED % "rag",
        "additional_chat_templates/notes.txt": "no template",
        "tokenizer_config.json": {"chat_template": NAMED % "config"},
    },
    "additional alone": {
        "additional_chat_templates/rag.jinja": NAMED % "rag",
        "tokenizer_config.json": {"chat_template": NAMED % "config"},
    },
    "json file": {"chat_template.json": '{"chat_template": "{{ 1 }}"}'},
    "empty": {"tokenizer_config.json": {"chat_template": ""}},
}


@pytest.mark.parametrize("form", FORMS)
def test_where_templates_are_and_which_counts(form: str, chat_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(chat_folder, tmp_path, dirs_exist_ok=True)
    write(tmp_path, FORMS[form])
    ours, theirs = fastdecode.load(tmp_path, num_threads=1), AutoTokenizer.from_pretrained(tmp_path)
    given = fastdecode.load(chat_folder, tokenizer=theirs, num_threads=1)
    elsewhere = fastdecode.load(chat_folder, tokenizer=tmp_path, num_threads=1)
    messages = [user("x")]
    choices: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": [TOOL]}]
    choices += [{"chat_template": "rag"}, {"chat_template": NAMED % "own"}]
    for options in choices:
        if options.get("chat_template") == "rag" and not isinstance(theirs.chat_template, dict):
            continue  # a text that is no template; transformers writes it as it is
        expected = answer(lambda o=options: theirs.apply_chat_template(messages, tokenize=False, **o))
        for model in (ours, given, elsewhere):
            assert (
                answer(lambda o=options, m=model: m.apply_chat_template(messages, tokenize=False, **o))
                == expected
            )


def test_what_is_said_where_there_is_no_template(
    ours: fastdecode.CausalLM, chat_folder: Path, tmp_path: Path
) -> None:
    layouts = "chatml, alpaca, vicuna, plain"
    for call in (ours.apply_chat_template, ours.generate, ours.run, ours.stream):
        with pytest.raises(errors.ChatTemplateError, match=f"no chat template: .*{layouts}") as caught:
            call([user("x")])
        assert isinstance(caught.value, errors.OptionError)
        assert caught.value.option == "chat_template"
        assert caught.value.line is None
    shutil.copytree(chat_folder, tmp_path, dirs_exist_ok=True)
    write(tmp_path, FORMS["list"])
    model = fastdecode.load(tmp_path, num_threads=1)
    for name in ("ragg", "", "{ nothing }"):
        with pytest.raises(errors.ChatTemplateError, match=rf"\(default, rag, tool_use\).*\({layouts}\)"):
            model.apply_chat_template([user("x")], chat_template=name)
    with pytest.raises(errors.ChatTemplateError, match="text of a template"):
        model.apply_chat_template([user("x")], chat_template=3)
    write(tmp_path, FORMS["list without default"])
    model = fastdecode.load(tmp_path, num_threads=1)
    with pytest.raises(errors.ChatTemplateError, match="no default: expected chat_template= with one of rag"):
        model.generate([user("x")])
    # A layout's name means the folder's own template where that has it.
    write(
        tmp_path,
        {"tokenizer_config.json": {"chat_template": [{"name": "plain", "template": NAMED % "mine"}]}},
    )
    model = fastdecode.load(tmp_path, num_threads=1)
    assert model.apply_chat_template([user("x")], chat_template="plain", tokenize=False) == "minex"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (3, "a text, or a list"),
        (["a"], "a text, or a list"),
        ([{"name": "a"}], "a text, or a list"),
        ([{"name": "a", "template": 1}], "a text, or a list"),
    ],
)
def test_a_damaged_setting(value: Any, error: str, chat_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(chat_folder, tmp_path, dirs_exist_ok=True)
    write(tmp_path, {"tokenizer_config.json": {"chat_template": value}})
    model = fastdecode.load(tmp_path, num_threads=1)
    assert model.generate("text", max_new_tokens=2) is not None
    with pytest.raises(errors.ConfigError, match=error) as caught:
        model.apply_chat_template([user("x")])
    assert caught.value.field == "chat_template"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(errors.ConfigError, match="UTF-8"):
        fastdecode.load(tmp_path, num_threads=1).apply_chat_template([user("x")])


def test_a_template_that_fails_says_where(ours: fastdecode.CausalLM) -> None:
    def fail(template: str, messages: Any = None) -> errors.ChatTemplateError:
        with pytest.raises(errors.ChatTemplateError) as caught:
            ours.apply_chat_template(messages or [user("x")], chat_template=template)
        return caught.value

    raised = fail("a\n{{ raise_exception('roles must take turns') }}")
    assert (raised.line, raised.message) == (2, "roles must take turns")
    assert "line 2: roles must take turns" in str(raised)
    assert fail("{{ 1 }}\n\n{% if %}").line == 3
    undefined = fail("\n\n\n{{ nothing + 'x' }}")
    assert (undefined.line, undefined.message) == (4, "'nothing' is undefined")
    assert fail("{{ messages.append(1) }}").message is not None
    assert "unsafe" in str(fail("{{ ''.__class__.__mro__ }}"))
    assert "underscore" in str(fail("{% set ns = namespace() %}{% set ns._x = 1 %}"))
    assert "underscore" in str(fail("{{ namespace(__a=1) }}"))
    assert fail("{{ 1 / 0 }}").message == "ZeroDivisionError: division by zero"
    assert fail("{% include 'other' %}").line == 1
    assert fail("{{ messages[0].content.nothing() }}").message is not None
    import pickle

    again = pickle.loads(pickle.dumps(raised))
    assert (str(again), again.line, again.message) == (str(raised), raised.line, raised.message)


def test_misuse(ours: fastdecode.CausalLM) -> None:
    template = TEMPLATES["qwen2.5"]

    def refuse(match: str, messages: Any, **options: Any) -> None:
        with pytest.raises(errors.OptionError, match=match):
            ours.apply_chat_template(messages, chat_template=template, **options)

    refuse("at least one message, got an empty conversation", [])
    refuse("at least one message", [[user("x")], []])
    refuse("a message 'x'", ["x"])
    refuse("a message 3", [user("x"), 3])
    refuse("list of messages", "x")
    refuse("list of messages", user("x"))
    refuse("list of messages", 3)
    refuse("documents", [user("x")], documents=["x"])
    refuse("documents", [user("x")], documents={"a": 1})
    refuse("a last message with 'nothing'", [user("x")], continue_final_message="nothing")
    refuse("a field that the template reads", [user("x", zzz="y")], continue_final_message="zzz")
    refuse("with a text", [user([{"type": "image"}])], continue_final_message=True)
    refuse("return_dict", [user("x")], return_dict=True)
    refuse("return_tensors", [user("x")], return_tensors="pt")
    refuse("truncation", [user("x")], truncation=True)
    assert ours.apply_chat_template(
        [user("x")], chat_template=template, return_dict=False, padding=False, tokenizer_kwargs=None
    )
    for name in ("messages", "tools", "add_generation_prompt"):
        with pytest.raises(errors.OptionError, match=f"chat_variables: .*{name}"):
            ours.generate([user("x")], chat_template=template, chat_variables={name: 1}, max_new_tokens=1)
    with pytest.raises(errors.OptionError, match="as it is"):
        ours.apply_chat_template([user("x")], chat_template="{# content #}y", continue_final_message=True)


def test_a_role_that_the_template_drops_is_worth_a_warning(ours: fastdecode.CausalLM) -> None:
    template = TEMPLATES["qwen2.5"]
    messages = [user("a"), {"role": "observation", "content": "b"}]
    with pytest.warns(
        errors.FastdecodeWarning, match="writes nothing for a message whose role is 'observation'"
    ):
        ours.apply_chat_template(messages, chat_template=template)
    with pytest.warns(errors.FastdecodeWarning, match="'observation'"):
        ours.generate(messages, chat_template=template, max_new_tokens=1)
    # It is no other message's end that tells.
    talk = [user("a"), assistant("b"), {"role": "observation", "content": [{"type": "text", "text": "c"}]}]
    for last in (talk[2], {"role": "observation", "content": "c"}):
        with pytest.warns(errors.FastdecodeWarning, match="'observation'"):
            ours.apply_chat_template([*talk[:2], last], chat_template=TEMPLATES["qwen3"])
    # A message that is written otherwise than it is, or that a template needs, is none.
    ours.apply_chat_template(
        [system("s"), user("  a  "), assistant("<think>x</think>")], chat_template=template
    )
    ours.apply_chat_template([user("a"), assistant(" b "), user("c")], chat_template=chat_cases.LLAMA2)
    ours.apply_chat_template([user("")], chat_template=chat_cases.GEMMA)


def test_the_demo_has_a_template() -> None:
    model = fastdecode.load("demo-stories", num_threads=1)
    from fastdecode.hub import locate

    theirs = AutoTokenizer.from_pretrained(locate("demo-stories").folder)
    messages = [system(" S "), user("a"), assistant(" b"), user("c\n")]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert model.apply_chat_template(messages) == expected
    assert expected.count(0) == 1
    output = model.run(messages, max_new_tokens=60, seed=1)
    assert output.usage.prompt_tokens == len(expected)
    assert '"' not in output.text
    assert output.finish_reason in ("stop", "eos", "length")


def test_jinja2_is_imported_when_it_is_needed(tmp_path: Path) -> None:
    program = """
import sys, fastdecode
model = fastdecode.load("demo-stories")
model.generate("Once", max_new_tokens=2)
messages = [{"role": "user", "content": "x"}]
model.generate(messages, chat_template="plain", max_new_tokens=2)
assert "jinja2" not in sys.modules
sys.modules["jinja2"] = None
try:
    model.generate(messages)
except fastdecode.errors.ChatTemplateError as error:
    assert "fastdecode[chat]" in str(error) and error.got == "none", error
else:
    raise AssertionError("without jinja2")
del sys.modules["jinja2"]
import jinja2
jinja2.__version__ = "3.1.5"
try:
    model.generate(messages)
except fastdecode.errors.ChatTemplateError as error:
    assert "3.1.6" in str(error) and error.got == "jinja2 3.1.5", error
else:
    raise AssertionError("with an old jinja2")
jinja2.__version__ = "3.1.10"
model.generate(messages, max_new_tokens=2)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
