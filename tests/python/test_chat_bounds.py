"""Templates that would never end, or fill the memory: each is an error within its bounds, in any thread."""

# Templates are lines of their own.
# ruff: noqa: E501
from __future__ import annotations

import resource
import sys
import threading
import time
from typing import Any

import pytest
from fastdecode import chat_bounds, chat_render, errors

SHARED = (
    "{% set ns = namespace(x=(1,), y=(1,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}"
    "{% set ns.y = (ns.y, ns.y) %}{% endfor %}"
)
DOUBLED = (
    "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = EXPRESSION %}{% endfor %}"
)
BIG = "{% set b = 'a' * 1000000 %}"

# Each would make gigabytes, at least.
TOO_MUCH = {
    "*": "{{ 'a' * 10**9 }}",
    "* from the left": "{{ 10**9 * 'a' }}",
    "* of lists": "{{ ([0] * 10**9) | length }}",
    "**": "{{ 10 ** 1000000000 }}",
    "** again and again": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "%": "{{ '%1000000000d' % 1 }}",
    "% precision": "{{ '%.1000000000f' % 1 }}",
    "% star": "{{ '%*d' % (10**9, 1) }}",
    "% name": "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "% of lists": SHARED + "{{ '%s' % [ns.x] }}",
    "+": DOUBLED.replace("EXPRESSION", "ns.x + ns.x"),
    "+ of lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "~": DOUBLED.replace("EXPRESSION", "ns.x ~ ns.x"),
    "~ of many": BIG + "{{ " + " ~ ".join(["b"] * 100) + " }}",
    "~ of lists": SHARED + "{{ 'a' ~ ns.x }}",
    "center": "{{ 'a' | center(10**9) }}",
    "center in a map": "{{ ['a'] | map('center', 10**9) | list }}",
    "center at once": "{{ 'a' | center(1000000000) | length }}",
    "indent": "{{ 'a\nb' | indent(10**9) }}",
    "indent of lines": "{{ ('a\n' * 10**6) | indent(1000) }}",
    "indent of text": "{{ ('a\n' * 10**6) | indent('x' * 1000) }}",
    "join": "{{ range(100000) | join('a' * 10000) }}",
    "join of a generator": "{{ range(10000) | map('string') | join('a' * 10000) }}",
    "join by name": "{{ ([{'a': 'x' * 10**6}] * 100) | join(attribute='a') }}",
    "replace": "{{ ('a' * 100000) | replace('a', 'b' * 1000) }}",
    "replace of nothing": "{{ ('a' * 100000) | replace('', 'b' * 1000) }}",
    "tojson": SHARED + "{{ ns.x | tojson }}",
    "tojson indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "tojson of many lines": "{{ range(100000) | list | tojson(indent=10000) }}",
    "tojson separators": "{{ range(100000) | list | tojson(separators=('x' * 10000, ':')) }}",
    "format": "{{ '%1000000000d' | format(1) }}",
    "wordwrap": "{{ ('a' * 100000) | wordwrap(1, wrapstring='x' * 1000) }}",
    "urlize": "{{ ('http://a.b ' * 50000) | urlize(target='x' * 1000) }}",
    "xmlattr": "{{ {'a': 'b' * 10000000} | xmlattr }}",
    "escape": "{{ ('<' * 10000000) | escape }}",
    "batch": "{{ [1] | batch(10**9, 'x') | list | length }}",
    "slice": "{{ [1] | slice(10**9) | list | length }}",
    "round": "{{ 1.5 | round(10**9, 'floor') }}",
    "sum": "{{ (range(100000) | batch(1) | list) | sum(start=[]) | length }}",
    "truncate": BIG + "{{ 'abc' | truncate(1, true, b * 17) }}",
    "string": SHARED + "{{ ns.x | string | length }}",
    "pprint": SHARED + "{{ ns.x | pprint }}",
    "upper": BIG + "{% for i in range(10000) %}{% set x = (b * 15).upper() %}{% endfor %}",
    "sort": SHARED + "{{ [ns.x, ns.y] | sort }}",
    "groupby": SHARED + "{{ [{'k': ns.x}, {'k': ns.y}] | groupby('k') }}",
    "unique": SHARED + "{{ [ns.x, ns.y] | unique | list }}",
    "==": SHARED + "{{ ns.x == ns.y }}",
    "in": SHARED + "{{ ns.x in [ns.y] }}",
    "is eq": SHARED + "{{ ns.x is eq ns.y }}",
    "select": SHARED + "{{ [ns.x] | select('equalto', ns.y) | list }}",
    "a key": SHARED + "{{ {ns.x: 1} }}",
    "an item": SHARED + "{{ {}[ns.x] }}",
    "get": SHARED + "{{ {}.get(ns.x) }}",
    "index": SHARED + "{{ [ns.x].index(ns.y) }}",
    "changed": SHARED + "{% for i in [1, 2] %}{{ loop.changed(ns.x if i == 1 else ns.y) }}{% endfor %}",
    "output": SHARED + "{{ ns.x }}",
    "namespaces in a namespace": BIG
    + "{% set o = namespace(v=b) %}{% for i in range(60) %}{% set o.v = namespace(a=o.v, b=o.v) %}{% endfor %}{{ o.v }}",
    "a text of a namespace": BIG + "{{ 'a' ~ namespace(v=[b] * 1000) }}",
    "dictionaries": "{% set n = namespace(l=[]) %}{% for i in range(1000) %}{% set n.l = n.l + [dict.fromkeys(range(100000))] %}{% endfor %}",
    "parts of texts": (
        "{% set n = namespace(l=[]) %}{% for i in range(1000) %}{% set n.l = n.l + [('ab ' * 600000).split()] %}{% endfor %}"
    ),
    "letters of texts": (
        "{% set n = namespace(l=[]) %}{% for i in range(1000) %}{% set n.l = n.l + [('\\u6c49' * 600000) | list] %}{% endfor %}"
    ),
    "str.format": "{{ '{:1000000000}'.format(1) }}",
    "str.format, nested": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "str.format, precision": "{{ '{:.1000000000f}'.format(1.0) }}",
    "str.format, often": "{{ ('{0}' * 10000).format('a' * 10000) }}",
    "str.format_map": "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "str.format of markup": "{{ ('{:1000000000}' | escape).format(1) }}",
    "str.ljust": "{{ 'a'.ljust(10**9) }}",
    "str.rjust": "{{ 'a'.rjust(10**9) }}",
    "str.zfill": "{{ 'a'.zfill(10**9) }}",
    "str.center": "{{ 'a'.center(10**9) }}",
    "str.expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "str.replace": "{{ ('a' * 100000).replace('a', 'b' * 1000) }}",
    "str.join": "{{ ('a' * 10000).join(['b'] * 10000) }}",
    "str.join of letters": "{{ ('a' * 10000).join('b' * 10000) }}",
    "str.join of a generator": "{{ ('a' * 10000).join(range(10000) | map('string')) }}",
    "str.join of keys": "{{ ('a' * 1000000).join(dict.fromkeys(range(1000) | map('string')).keys()) }}",
    "str.join of bytes": "{{ ('a' * 10000).encode().join(['b'.encode()] * 10000) }}",
    "str.translate of a list": "{{ ('a' * 10000).translate(['b' * 10000] * 100) }}",
    "a method by attr": "{{ ('a' | attr('center'))(10**9) }}",
    "str.format by attr": "{{ ('{:1000000000}' | attr('format'))(1) }}",
    "str.format by item": "{{ '{:1000000000}'['format'](1) }}",
    "str.strip": "{{ ('a' * 8000000).strip('b' * 8000000 ~ 'a') | length }}",
    "str.rfind": "{{ ('a' * 8000000).rfind('ab' ~ 'a' * 4000000) }}",
    "str.rsplit": "{{ ('a' * 8000000).rsplit('ab' ~ 'a' * 4000000) | length }}",
    "trim": "{{ ('a' * 8000000) | trim('b' * 8000000 ~ 'a') | length }}",
    "str.translate": "{{ ('a' * 10000).translate({97: 'b' * 10000}) }}",
    "str.split": "{{ ('a,' * 7000000).split(',') | length }}",
    "int.to_bytes": "{{ (1).to_bytes(10**9, 'big') | length }}",
    "a block": BIG + "{% set x %}{% for i in range(10000) %}{{ b }}{% endfor %}{% endset %}",
    "a filter's block": BIG
    + "{% filter upper %}{% for i in range(10000) %}{{ b }}{% endfor %}{% endfilter %}",
    "a macro": BIG
    + "{% macro m() %}{% for i in range(10000) %}{{ b }}{% endfor %}{% endmacro %}{{ m() | length }}",
    "many values": BIG
    + "{% set n = namespace(l=[]) %}{% for i in range(10000) %}{% set n.l = n.l + [b ~ i] %}{% endfor %}",
    "the whole": "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
    "its own text": "{% for i in range(100000) %}" + "a" * 1000 + "{% endfor %}",
    "a date": "{{ strftime_now('%c' * 100000) }}",
}

ENDLESS = {
    "nested ranges": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}"
    ),
    "nested generators": "{{ range(99999) | map('string') | map('list') | map('join') | map('length') | sum }}",
    "namespaces in namespaces": (
        "{% set o = namespace(v=1) %}{% for i in range(60) %}{% set o.v = namespace(a=o.v, b=o.v) %}{% endfor %}{{ o.v }}"
    ),
    "lipsum": "{{ lipsum(n=10000000) }}",
    "one line": "{{ range(100000) | map('batch', 1) | list }}{% for a in range(100000) %}{{ range(100000) | sum }}{% endfor %}",
}


def render(template: str, **variables: Any) -> str:
    return chat_render.render(
        template,
        [{"role": "user", "content": "x"}],
        name="the template",
        tools=None,
        documents=None,
        add_generation_prompt=False,
        continue_final_message=False,
        variables=variables,
    )


@pytest.mark.parametrize("name", TOO_MUCH)
def test_text_is_bounded_before_it_is_made(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(errors.ChatTemplateError, match="too much text") as caught:
        render(TOO_MUCH[name])
    assert caught.value.message is not None
    # Kilobytes; what a rendering may hold at once is bounded, too.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000
    assert sys.gettrace() is None or "pytest" not in repr(sys.gettrace())


@pytest.mark.parametrize("name", ENDLESS)
def test_time_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_bounds, "DEADLINE", 0.3)
    began = time.monotonic()
    with pytest.raises(errors.ChatTemplateError, match=r"longer than|too much text"):
        render(ENDLESS[name])
    assert time.monotonic() - began < 5


def test_the_deadline_is_five_seconds() -> None:
    assert chat_bounds.DEADLINE == 5
    assert chat_bounds.MOST_TEXT == 16_000_000


@pytest.mark.parametrize(
    "template",
    [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
        "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    ],
)
def test_what_calls_itself_ends(template: str) -> None:
    with pytest.raises(errors.ChatTemplateError):
        render(template)


def test_what_is_large_and_allowed() -> None:
    assert len(render("{{ 'a' * 15000000 }}")) == 15_000_000
    assert (
        render("{{ range(100000) | list | length }}{{ range(100000) | map('string') | list | length }}")
        == "100000" * 2
    )
    assert render("{{ 2 ** 1000 }}") == str(2**1000)
    assert (
        render("{{ ('word ' * 900000).split() | length }}{{ ('a' * 9000000).splitlines() | length }}")
        == "9000001"
    )
    assert render("{{ ('a' * 9000000 ~ '</think>b').rsplit('</think>', 1) | last }}") == "b"
    assert render("{{ (' ' * 9000000 ~ 'x').strip() }}{{ ('x' ~ ' ' * 900000) | trim }}") == "xx"
    text = render("{% for i in range(20000) %}{{ 'x' ~ i }}{{ '%d' % i }}{% endfor %}")
    assert text == "".join(f"x{i}{i}" for i in range(20000))


def test_a_debuggers_trace_comes_back() -> None:
    seen = []

    def trace(_frame: Any, event: str, _argument: Any) -> Any:
        seen.append(event)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        render("{{ 1 }}")
        with pytest.raises(errors.ChatTemplateError):
            render("{{ nothing.x }}")
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace
    assert seen


def test_renderings_in_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_bounds, "DEADLINE", 3.0)
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        try:
            template = "{{ 'a' * 10**9 }}" if number % 2 else "{% for i in range(2000) %}{{ n }}{% endfor %}"
            results[number] = render(template, n=number)
        except errors.ChatTemplateError as error:
            results[number] = error
        assert sys.gettrace() is None

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for number in range(6):
        if number % 2:
            assert isinstance(results[number], errors.ChatTemplateError)
        else:
            assert results[number] == str(number) * 2000
