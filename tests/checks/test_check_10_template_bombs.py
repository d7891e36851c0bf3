"""Check 10: templates that would never end, or fill the memory, at load and through what a request may tell them.

A template comes with the model's file; ``braid serve`` tries it in a process of its own before anything else reads it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from braid.core.errors import BraidError, CheckpointError, InvalidParameterError
from braid.text import template_probe
from braid.text.template import ChatTemplate
from braid.text.template_probe import probe

from ..text.test_template import BOMBS
from .bodies import JSON, TALK, VALID, assert_refused
from .served import scripted

REFUSED_AT_LOAD = {
    "deep blocks": "{% if x %}" * 20_000 + "{% endif %}" * 20_000,
    "deep brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "many sums": "{{ 1" + "+1" * 100_000 + " }}",
    "an open block": "{% for message in messages %}",
}
NEVER_LET_IN = {
    "deep negations": "{{ " + "not " * 100_000 + "1 }}",
    "deep filters": "{{ x" + "|upper" * 100_000 + " }}",
    "deep values": "{% set ns = namespace(x=[1]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ns.x }}",
    "a wide indent": "{{ 'a\nb'|indent(10000000000) }}",
    "a join that multiplies": "{% set b = 'y' * 99999 %}{{ range(99999)|join(b)|length }}",
    "lists that double": "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}{{ ns.x|length }}",
    "lists of lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{{ ns.x|tojson }}",
}
"""These crash or stop whoever renders them, but for the few that newer versions of minijinja count against its fuel."""


@pytest.mark.parametrize("name", REFUSED_AT_LOAD)
@pytest.mark.timeout(60)
def test_sources_that_are_refused_at_load(name: str) -> None:
    with pytest.raises(CheckpointError):
        ChatTemplate(REFUSED_AT_LOAD[name])


def _render_once_let_in(source: str) -> None:
    probe(source, bos_token=None, eos_token=None)
    ChatTemplate(source).render(TALK)


@pytest.mark.parametrize("name", NEVER_LET_IN)
@pytest.mark.timeout(120)
def test_templates_that_fail_where_they_harm_nobody(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_probe, "SECONDS", 1.5)
    with pytest.raises((CheckpointError, InvalidParameterError), match="the chat template"):
        _render_once_let_in(NEVER_LET_IN[name])


BOMBED = ("/v1/chat/completions", "/v1/messages/count_tokens")


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.timeout(60)
async def test_bombs_are_one_requests_400(name: str) -> None:
    """Were one let in: each request that renders it is refused, and others go on."""
    async with scripted(reply="ok") as served:
        object.__setattr__(served.context, "chat_template", ChatTemplate(BOMBS[name]))
        for path in BOMBED:
            answer = await served.client.post(path, json=VALID[path])
            assert_refused(answer, path)
        assert (await served.client.post("/v1/completions", json=VALID["/v1/completions"])).status_code == 200
        assert len(served.engine.seen) == 1


THROUGH_KWARGS: dict[str, tuple[str, dict[str, Any]]] = {
    "a count": ("{% for i in range(n) %}{{ i }}{% endfor %}", {"n": 10**9}),
    "a product": ("{{ 'xx' * n }}", {"n": 10**9}),
    "loops in loops": (
        "{% for a in xs %}{% for b in xs %}{% for c in xs %}{{ c }}{% endfor %}{% endfor %}{% endfor %}",
        {"xs": list(range(3000))},
    ),
    "a text that doubles": (
        "{% set ns = namespace(x=s) %}{% for i in xs %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        {"s": "x" * 1000, "xs": list(range(60))},
    ),
    "JSON of JSON": ("{% for a in xs %}{{ xs|tojson }}{% endfor %}", {"xs": list(range(5000))}),
    "attributes": ("{{ x.__class__.__mro__ }}{{ raise_exception(x) }}", {"x": "seen"}),
}


@pytest.mark.parametrize("name", THROUGH_KWARGS)
@pytest.mark.timeout(60)
def test_what_a_request_tells_a_template_is_bounded(name: str) -> None:
    source, kwargs = THROUGH_KWARGS[name]
    with pytest.raises(InvalidParameterError):
        ChatTemplate(source).render(TALK, **kwargs)


DIALECTS = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/tokenize")


async def test_kwargs_that_are_refused_on_every_route() -> None:
    """Names that are taken, values too deep, and templates of the request's own."""
    async with scripted(reply="ok") as served:
        for path in DIALECTS:
            body = {**VALID[path], "messages": TALK} if path == "/tokenize" else VALID[path]
            body = {name: value for name, value in body.items() if path != "/tokenize" or name != "prompt"}
            for kwargs in (
                {"messages": []},
                {"tools": []},
                {"add_generation_prompt": False},
                {"bos_token": "x"},
                {"documents": []},
                [],
                "x",
                3,
            ):
                answer = await served.client.post(path, json={**body, "chat_template_kwargs": kwargs})
                assert answer.status_code == 400, (path, kwargs)
                assert_refused(answer, path)
            deep = json.dumps({**body, "chat_template_kwargs": {"x": "MARK"}})
            data = deep.replace('"MARK"', "[" * 100 + "]" * 100).encode()
            assert_refused(await served.client.post(path, content=data, headers=JSON), path)
            own = {**body, "chat_template": "{{ messages.__class__ }}"}
            assert_refused(await served.client.post(path, json=own), path)
        assert not served.engine.seen


async def test_a_template_in_a_message_is_text() -> None:
    async with scripted(reply="ok") as served:
        text = "{{ 7 * 7 }}{% for i in range(99999999) %}x{% endfor %}"
        for path, field in (
            ("/v1/chat/completions", "messages"),
            ("/v1/messages", "messages"),
            ("/v1/responses", "input"),
        ):
            body = {**VALID[path], field: [{"role": "user", "content": text}]}
            assert (await served.client.post(path, json=body)).status_code == 200
            assert text in served.engine.decode(list(served.engine.seen[-1].prompt_token_ids))


def test_braid_serve_tries_a_template_before_it_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The order matters: compiling alone can end a process."""
    from braid.cli import serve

    order: list[str] = []

    def fail(*args: object, **options: object) -> None:
        order.append("probe")
        raise CheckpointError("refused")

    monkeypatch.setattr(serve, "probe", fail)
    monkeypatch.setattr(serve, "ChatTemplate", lambda *args, **options: order.append("read"))
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")

    class Tokens:
        chat_template = bos_token = eos_token = None

    with pytest.raises(BraidError, match="refused"):
        serve.chat_template(Tokens(), file)  # type: ignore[arg-type]
    assert order == ["probe"]
