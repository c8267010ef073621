"""Layouts for folders without a template, and where a turn ends, in layouts and in templates."""

# Templates are lines of their own.
# ruff: noqa: E501
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
from chat_cases import TEMPLATES, TOOL, assistant, system, user
from fastdecode import errors
from fastdecode.chat_calls import Reading
from fastdecode.chat_options import Asked
from fastdecode.chat_turns import TurnEnd
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

MESSAGES = [system(" Be good.\n"), user(" Who? "), assistant("\nMe. "), user("Why?")]
WRITTEN = {
    "chatml": "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMe."
    "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    "alpaca": "Be good.\n\n### Instruction:\nWho?\n\n### Response:\nMe.</s>\n\n### Instruction:\nWhy?\n\n### Response:\n",
    "vicuna": "Be good. USER: Who? ASSISTANT: Me.</s>USER: Why? ASSISTANT:",
    "plain": "Be good.\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Why?\n\nAssistant:",
}
# The same as a template, from a table of what stands before and behind a text by role.
AS_TEMPLATE = (
    "{%- set parts = %s -%}{%- for m in messages -%}{{ parts[m.role][0] + m.content.strip() + parts[m.role][1] }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ %s }}{%- endif -%}"
)


def made(folder: Path, tokens: list[str], **settings: Any) -> fastdecode.CausalLM:
    """A model whose tokenizer has these special tokens, and begins every text with `<s>`."""
    tokenizer = tiny.byte_level(380)
    tokenizer.add_special_tokens(["<s>", "</s>", *tokens])
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tiny.write_folder(folder, tokenizer=tokenizer, vocab_size=400, n_positions=256)
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return fastdecode.CausalLM.load(folder, num_threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> fastdecode.CausalLM:
    return made(tmp_path_factory.mktemp("layouts") / "model", ["<|im_end|>", "<|im_start|>"])


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_layout_writes(name: str, model: fastdecode.CausalLM) -> None:
    assert model.tokenizer is not None
    text = model.apply_chat_template(MESSAGES, chat_template=name, tokenize=False)
    assert text == WRITTEN[name]
    # No layout writes a token that begins a text, so that the tokenizer adds its own.
    ids = model.apply_chat_template(MESSAGES, chat_template=name)
    assert ids == model.tokenizer.encode(text)
    assert ids.count(model.tokenizer.bos_token_id or -1) == 1
    closed = model.apply_chat_template(
        MESSAGES, chat_template=name, tokenize=False, add_generation_prompt=False
    )
    assert text.startswith(closed)
    opened = model.apply_chat_template(
        MESSAGES[:3], chat_template=name, tokenize=False, continue_final_message=True
    )
    assert opened.endswith("Me.")
    assert closed.startswith(opened)
    parts = [*MESSAGES[:3], user([{"type": "text", "text": " Wh"}, {"type": "text", "text": "y? "}])]
    assert model.apply_chat_template(parts, chat_template=name, tokenize=False) == text
    plain = model.apply_chat_template([user("</s>a")], chat_template=name, sanitize_control_tokens=True)
    assert (model.tokenizer.eos_token_id in plain) is False
    assert plain[0] == model.tokenizer.bos_token_id


@pytest.mark.parametrize("name", WRITTEN)
def test_a_layout_is_the_template_of_its_table(name: str, model: fastdecode.CausalLM) -> None:
    from fastdecode.chat_layouts import LAYOUTS

    layout = LAYOUTS[name]
    table = {role: [before, behind.replace("\0", "</s>")] for role, (before, behind) in layout.roles.items()}
    template = AS_TEMPLATE.replace("%s", json.dumps(table), 1).replace("%s", json.dumps(layout.opening), 1)
    theirs = AutoTokenizer.from_pretrained(model._folder)
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[:3]):
        for opens in (True, False):
            expected = theirs.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=opens, tokenize=False
            )
            got = model.apply_chat_template(
                messages, chat_template=name, add_generation_prompt=opens, tokenize=False
            )
            assert got == expected


def test_what_a_layout_has_no_place_for(model: fastdecode.CausalLM) -> None:
    for name in WRITTEN:
        with pytest.raises(errors.OptionError, match="system, user, assistant, got 'tool'"):
            model.apply_chat_template([user("a"), {"role": "tool", "content": "b"}], chat_template=name)
        for options in ({"tools": [TOOL]}, {"documents": [{"title": "a"}]}, {"own": 1}):
            with pytest.raises(errors.OptionError, match="no place"):
                model.apply_chat_template([user("a")], chat_template=name, **options)
        with pytest.raises(errors.OptionError, match="content"):
            model.apply_chat_template([user("a")], chat_template=name, continue_final_message="thinking")
        with pytest.raises(errors.OptionError, match="content that is a text"):
            model.apply_chat_template([{"role": "user"}], chat_template=name)


def ends(model: fastdecode.CausalLM, template: str, **options: Any) -> TurnEnd:
    return Reading(model, Asked(template, **options)).turn_end()


def test_where_a_turn_ends(model: fastdecode.CausalLM) -> None:
    tokenizer: Any = model.tokenizer
    eos, im_end, im_start = (tokenizer.token_id(token) for token in ("</s>", "<|im_end|>", "<|im_start|>"))
    assert ends(model, "chatml") == TurnEnd((eos, im_end, im_start))
    assert ends(model, "alpaca") == TurnEnd((eos,), ("### Instruction:",))
    assert ends(model, "vicuna") == TurnEnd((eos,), ("USER:",))
    assert ends(model, "plain") == TurnEnd((eos,), ("\nHuman:",))
    for name in ("qwen2.5", "qwen3", "smollm3"):
        assert ends(model, TEMPLATES[name]) == TurnEnd((im_end,))
    for name in ("llama2", "zephyr"):
        assert ends(model, TEMPLATES[name]) == TurnEnd((eos,))
    assert ends(model, TEMPLATES["phi-3-mini"]) == TurnEnd((), ("<|end|>",))
    assert ends(model, TEMPLATES["gemma"]) == TurnEnd((), ("<end_of_turn>",))
    assert ends(model, TEMPLATES["llama3"]) == TurnEnd((), ("<|eot|>",))
    # Nothing stands behind an answer but what the next message begins with.
    assert ends(model, TEMPLATES["instruct"]) == TurnEnd((), ("[INST]",))
    users = "{% for m in messages %}{{ '\\n\\nUser: ' if m.role == 'user' else '\\nBot: ' }}{{ m.content }}{% endfor %}"
    assert ends(model, users) == TurnEnd((), ("\nUser:",))
    # A template that needs what the call gives, and one that never writes what is said.
    needs = "{{ own + '' }}{% for m in messages %}{{ m.content }} END\nof it{% endfor %}"
    assert ends(model, needs) == TurnEnd()
    assert ends(model, needs, variables={"own": "x"}) == TurnEnd((), ("END",))
    assert ends(model, "{{ 1 }}") == TurnEnd()
    assert ends(model, "{{ raise_exception('no') }}") == TurnEnd()


def test_a_layout_whose_tokens_the_model_does_not_have(tmp_path: Path) -> None:
    model = made(tmp_path / "model", [])
    with pytest.warns(
        errors.FastdecodeWarning, match=r"chatml writes '<\|im_end\|>' and '<\|im_start\|>', no token"
    ):
        model.run([user("a")], chat_template="chatml", max_new_tokens=1)
    end = ends(model, "chatml")
    assert end.strings == ("<|im_end|>", "<|im_start|>")


def forced(model: fastdecode.CausalLM, messages: Any, **options: Any) -> list[int]:
    """The new ids of a conversation, whatever ends a turn."""
    ids = model.apply_chat_template(messages, chat_template=options.pop("chat_template"))
    found: list[int] = model.run(ids, eos_token_id=None, **options).token_ids
    return found


def test_what_ends_a_turn_is_not_in_its_text(model: fastdecode.CausalLM) -> None:
    messages = [user("Once upon a time")]
    assert model.tokenizer is not None
    options: Any = {"max_new_tokens": 24, "do_sample": True, "temperature": 2.0, "seed": 3}
    template = "{% for m in messages %}{{ m.content }}%s{% endfor %}"
    ids = forced(model, messages, chat_template=template.replace("%s", ""), **options)
    for place in (5, 11, 17):
        # Whatever token comes there is made the one that ends a turn.
        token = model.tokenizer.backend.id_to_token(ids[place])
        first = ids.index(ids[place])
        text = model.tokenizer.decode([ids[place]])
        if not text.strip() or "\ufffd" in text:
            continue
        given: Any = {**options, "chat_template": template.replace("%s", ""), "eos_token_id": None}
        output = model.run(messages, stop_token_ids=ids[place], **given)
        assert output.token_ids == ids[: first + 1], token
    with_end = template.replace("%s", "<|im_end|>\n")
    end = model.tokenizer.token_id("<|im_end|>")
    for skip in (True, False):
        for seed in range(40):
            given = {**options, "seed": seed, "max_new_tokens": 60, "top_k": 0, "temperature": 50.0}
            output = model.run(messages, chat_template=with_end, skip_special_tokens=skip, **given)
            assert "<|im_end|>" not in str(output.text)
            pieces = model.stream(messages, chat_template=with_end, skip_special_tokens=skip, **given)
            assert "".join(map(str, pieces)) == output.text
            if output.token_ids[-1] == end:
                assert output.finish_reason == "stop"
                assert end not in output.token_ids[:-1]
    ended = [
        model.run(
            messages,
            chat_template=with_end,
            **{**options, "seed": seed, "top_k": 0, "max_new_tokens": 60, "temperature": 50.0},
        )
        for seed in range(40)
    ]
    assert any(output.token_ids[-1] == end for output in ended)
    # None switches it off.
    open_end = [
        model.run(
            messages,
            chat_template=with_end,
            stop_token_ids=None,
            **{**options, "seed": seed, "top_k": 0, "max_new_tokens": 60, "temperature": 50.0},
        )
        for seed in range(40)
    ]
    assert any(end in output.token_ids[:-1] for output in open_end)


def test_texts_that_end_a_turn(model: fastdecode.CausalLM) -> None:
    messages = [user("Once upon a time")]
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    options: Any = {
        "max_new_tokens": 24,
        "do_sample": True,
        "temperature": 2.0,
        "seed": 8,
        "eos_token_id": None,
    }
    text = str(model.run(messages, chat_template=template, **options).text)
    at = next(
        at
        for at in range(6, len(text))
        if text[at : at + 2].isascii()
        and text[at : at + 2].isprintable()
        and text[at : at + 2].strip() == text[at : at + 2] != ""
    )
    end = text[at : at + 2]
    both = (
        "{% for m in messages %}{{ m.content }}{% if m.role != 'user' %}" + end + "\n{% endif %}{% endfor %}"
    )
    output = model.run(messages, chat_template=both, **options)
    assert output.text == text[: text.index(end)]
    assert output.finish_reason == "stop"
    assert "".join(map(str, model.stream(messages, chat_template=both, **options))) == output.text
    # Those of the call come beside it, None switches it off, and a search with beams does without.
    first = text[:1]
    assert model.run(messages, chat_template=both, stop=first, **options).text == ""
    assert model.run(messages, chat_template=both, stop=None, **options).text == text
    with pytest.warns(errors.FastdecodeWarning, match="does not look for"):
        model.run(messages, chat_template=both, num_beams=2, max_new_tokens=3)


def test_the_folders_stop_strings_stay(tmp_path: Path) -> None:
    model = made(tmp_path / "model", ["<|im_end|>"])
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    options: Any = {"max_new_tokens": 20, "eos_token_id": None, "chat_template": plain}
    text = str(model.run([user("Once upon")], **options).text)
    stop = next(
        text[at : at + 2]
        for at in range(3, len(text))
        if text[at : at + 2].isalpha() and text[at : at + 2].isascii()
    )
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"stop_strings": [stop]}))
    again = fastdecode.CausalLM.load(tmp_path / "model", num_threads=1)
    assert again.run([user("Once upon")], **options).text == text[: text.index(stop)]
    options["chat_template"] = plain.replace(
        "{% endfor", "{% if m.role != 'user' %}zzzz\n{% endif %}{% endfor"
    )
    assert again.run([user("Once upon")], **options).text == text[: text.index(stop)]
