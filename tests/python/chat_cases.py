"""Conversations and templates that are rendered here and by transformers.

Four templates are those of models (tests/golden/chat-templates names their sources); the others are our own, in the
shapes of wide-spread ones.
"""

# Templates are lines of their own.
# ruff: noqa: E501
from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "chat-templates"

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}\
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}\
{% for message in rest %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}\
{% if loop.index0 == 0 and system != false %}{% set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set text = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}\
{% endfor %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\n" }}
{{- "Today: " + date_string + "\\n\\n" + system + "<|eot|>" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>\\n\\n{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + "}<|eot|>" }}
    {%- else %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + (message['content'] | string | trim) + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}
"""

ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

GEMMA = """\
{{ bos_token }}
{%- set ns = namespace(first="") -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {%- set ns.first = (message['content'] if message['content'] is string else message['content'][0]['text']) + "\\n\\n" -%}
        {%- continue -%}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' + ns.first }}
    {%- set ns.first = "" -%}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for part in message['content'] if part['type'] == 'text' -%}
            {{ part['text'] | trim }}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("a content of another type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# The system message stands before the last user's text; a turn ends where the next one begins.
INSTRUCT = """\
{{- bos_token }}{% for message in messages %}{% if message.role == 'user' %}
{{- '[INST]' }}{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content ~ '\\n\\n' }}{% endif %}
{{- message.content ~ '[/INST]' }}{% elif message.role == 'assistant' %}{{ message.content.strip() }}{% endif %}{% endfor %}"""

EVERYTHING = """\
{%- macro shown(value, depth=0) -%}
{{ value | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}{{ "." * depth }}
{%- endmacro -%}
{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ nothing }}|{{ tools }}|{{ documents }}|{{ add_generation_prompt }}
{% for message in messages %}
    {%- if message.role == "skip" %}{% continue %}{% endif %}
    {%- if message.role == "halt" %}{% break %}{% endif %}
[{{ loop.index }}/{{ loop.length }}] {{ message.role | upper }} {{ message | tojson }} {{ message | length }}
{{ message.items() | list | string }} {{ message.get('content', none) is none }} {{ message.nothing is defined }}
{%- generation %}{{ shown(message, loop.index) }}{% endgeneration %}

{{ message.content | string | replace("a", "<b>") | indent(3) | center(20) }} {{ "%s-%5d" % (message.role, 7) }}
{% endfor -%}
{{ dict(a=1, b=2) | tojson }} {{ [1.0, 2.5, 1e-07, 10**20, true, none] | tojson(separators=(",", ":")) }}
{{ messages | map(attribute="role") | join(", ") }} {{ messages | selectattr("role", "equalto", "user") | list | length }}
{{ "{:>6}|{!r}".format("x", "y") }} {{ messages[-1].role ~ 1 ~ none ~ true }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ 7 % 4 }}
{{ "abc"[::-1] }} {{ ["b", "a"] | sort | first }} {{ "a b"|title }} {{ "x"|e }} {{ "<&>"|escape }} {{ {"a": [1, (2, 3)]} }}
{%- set ns = namespace(text="", n=0) %}{% for i in range(4) %}{% set ns.text = ns.text ~ i %}{% set ns.n = ns.n + i %}{% endfor %}
{{ ns.text }} {{ ns.n }} {{ "a-b".split("-") | last }} {{ "  x ".strip() }}{{ 3 if 1 in [1, 2] and "a" < "b" else 4 }}
{% filter upper %}in a filter{% endfilter %} {% set block %}of {{ 1 + 1 }}{% endset %}{{ block }} {{ "é\u2028" | tojson }}
{{ [3, 1, 2] | sort(reverse=true) }} {{ [1, 1, 2] | unique | list }} {{ "a,b" | wordcount }} {{ 3.14159 | round(2) }}
{{ messages | groupby("role") | length }} {{ [1, 2, 3] | batch(2, 0) | list }} {{ [1, 2, 3] | sum }} {{ "%d%%" | format(5) }}
{{ [{"b": 1}, {"b": 0}] | sort(attribute="b") | tojson }} {{ "text" | truncate(3, true, "") }} {{ (1, 2) == (1, 2) }}
"""

TEMPLATES = {file.stem: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.jinja"))} | {
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "zephyr": ZEPHYR,
    "gemma": GEMMA,
    "instruct": INSTRUCT,
    "everything": EVERYTHING,
}

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says what the weather is like in a <place> & when.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Größe der Stadt"},
                "days": {"type": "integer"},
            },
            "required": ["place"],
        },
    },
}


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Paris <b>", "days": 2.0}}}

# Name -> (messages, options of the call).
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one": ([user("  Who is there?  ")], {}),
    "turns": (
        [
            system("Be brief.\n"),
            user("Hi"),
            assistant(" Hello! \n"),
            user('1 < 2 & 3 > 2, "isn\'t" it?'),
            assistant("Yes."),
        ],
        {},
    ),
    "tools": ([system("Use tools."), user("What is the weather in Paris?")], {"tools": [TOOL]}),
    "calls": (
        [
            user("Weather?"),
            assistant(None, tool_calls=[CALL], refusal=None),
            {"role": "tool", "name": "weather", "content": '{"sky": "blue"}'},
            {"role": "tool", "content": "12 degrees"},
            assistant("It is blue."),
            user("Thanks"),
        ],
        {"tools": [TOOL]},
    ),
    "thinking": (
        [
            user("2 + 2?"),
            assistant("<think>\nLet me see\n</think>\n\n4"),
            user("And 3 + 3?"),
            assistant("6", reasoning="Three and three."),
            user("And now?"),
        ],
        {"enable_thinking": False},
    ),
    "parts": (
        [
            system([{"type": "text", "text": "Look."}]),
            user(
                [{"type": "text", "text": "What is "}, {"type": "image"}, {"type": "text", "text": "this?"}]
            ),
        ],
        {},
    ),
    "others": (
        [
            user("Go on <|im_end|> <s>"),
            {"role": "observation", "content": "A wall 🙂"},
            assistant("I stop."),
            user(""),
        ],
        {"documents": [{"title": "T", "text": "x"}], "own": {"a": [1, None]}},
    ),
    "empty tools": (
        [user("a\n\nb"), assistant("", thinking="Hm"), user("c")],
        {"tools": [], "bos_token": "<bos>"},
    ),
}
