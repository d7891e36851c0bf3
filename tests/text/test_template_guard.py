"""Templates that build values too large are stopped; others print what they did."""

from __future__ import annotations

import minijinja
import pytest

from braid.core.errors import CheckpointError, InvalidParameterError
from braid.text import template_probe
from braid.text.template import ChatTemplate
from braid.text.template_guard import CHARGE, guard
from braid.text.template_probe import probe

ASK = [{"role": "user", "content": "hello " * 20}]
MANY = "{% for i in range(60) %}"
HOSTILE = {
    "set": "{% set ns = namespace(a='xy') %}" + MANY + "{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "plus": "{% set ns = namespace(a='xy') %}" + MANY + "{%- set ns.a = ns.a + ns.a -%}{% endfor %}",
    "straight": "{% set a = 'xy' %}" + "{% set a = a ~ a %}" * 60,
    "pair": "{% set a, b = ['x', 'y'] %}" + "{% set a, b = [a ~ b, b ~ a] %}" * 60,
    "with": "{% set a = 'xy' %}" + "{% with a = a ~ a %}" * 40 + "{% endwith %}" * 40,
    "for": "{% set a = 'xy' %}" + "{% for a in [a ~ a] %}" * 40 + "{% endfor %}" * 40,
    "macro": "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ f('xy', 50) }}",
    "capture": "{% set a = 'xy' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "slow": "{% set ns = namespace(a='') %}{% for i in range(90000) %}"
    "{% set ns.a = ns.a ~ messages[0].content ~ messages[0].content %}{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_values_that_grow_without_end_are_stopped(name: str) -> None:
    template = ChatTemplate(HOSTILE[name] + "{{ 1 }}", max_chars=200_000)
    with pytest.raises(InvalidParameterError, match=r"characters|steps"):
        template.render(ASK)


@pytest.mark.parametrize(
    "source",
    [
        "a\n  {% set x = 'b' %}\n  c {{ x }}\n",
        "a\n  {%- set x = 'b' -%}\n  c {{ x }}\n",
        "a {%+ set x = 'b' +%}\n c{{ x }}",
        "{% for a, b in {'k': 'v', 'l': [1]}|items %}\n {{ a }}{{ b }}\n{% else %}none{% endfor %}",
        "{% for x in [1, 'two', [3], none] -%}\n {{ x }}\n{%- endfor %}.",
        "{% macro f(x, y='%}', z=(1)) %}\n{{ x }}{{ y }}{% endmacro %}{{ f('a') }}",
        "{% with a = 'x', b = [1, 2]|length %}{{ a }}{{ b }}{% endwith %}",
        "{% set x = '%} {% set y = 1 %}' %}{{ x }}",
        "{% raw %}{% set x = 1 %}{% endraw %}{# {% set y = 2 %} #}{{ '{% set z = 3 %}' }}",
        "{% set ns = namespace(a=1) %}{% set ns.a = 'b' == 'b' %}{{ ns.a }}",
        "{% set x = undefined_name %}{{ x is defined }}",
        "{% set x %}captured{% endset %}{{ x }}",
    ],
)
def test_checks_print_nothing(source: str) -> None:
    environment = minijinja.Environment(
        trim_blocks=True, lstrip_blocks=True, globals={CHARGE: lambda length: False}
    )
    assert environment.render_str(guard(source)) == environment.render_str(source)


def test_a_tag_joins_a_bounded_number_of_values() -> None:
    with pytest.raises(CheckpointError, match="joins more than"):
        ChatTemplate("{% set a = 'x' %}{{ a" + " ~ a" * 300 + " }}")


def test_a_request_cannot_touch_the_checks() -> None:
    with pytest.raises(InvalidParameterError, match="may not set"):
        ChatTemplate("x").render(ASK, **{CHARGE: None})


def test_the_probe_lets_good_templates_pass() -> None:
    probe("{% for m in messages %}{{ m.content }}{% endfor %}", bos_token="<s>", eos_token=None)
    probe("{{ raise_exception('not these') }}", bos_token=None, eos_token=None)


def test_the_probe_finds_what_the_checks_cannot_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("braid.text.template_probe.SECONDS", 0.5)
    walk = (
        "{% set ns = namespace(a=[1, 2]) %}"
        + MANY
        + "{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a|length }}"
    )
    with pytest.raises(CheckpointError, match=r"0\.5 s"):
        probe(walk, bos_token=None, eos_token=None)


def test_the_probe_holds_where_the_system_keeps_no_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = "import time; held = bytearray(1 << 29); time.sleep(60)"
    monkeypatch.setattr(template_probe, "_CHILD", greedy)
    monkeypatch.setattr(template_probe, "MEMORY_BYTES", 256 << 20)
    with pytest.raises(CheckpointError, match="MiB"):
        probe("x", bos_token=None, eos_token=None)
