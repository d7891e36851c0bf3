from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from braid.lab.replay.asking.target import ServerFacts, Target, TargetError, probe
from braid.lab.replay.asking.words import WORDS
from braid.lab.replay.stub.server import running
from braid.lab.replay.stub.state import StubOptions

NUMBERS = {word: number for number, word in enumerate(WORDS)}
NATURAL = 3
"""Tokens after which the fake ends a reply by itself."""


@dataclass
class Fake:
    """A server with as many gaps as one likes.

    ``bos`` tokens stand before a text; words in ``odd`` are two tokens; ``merged`` words are one with the word before
    them. ``refused`` fields are answered with 400, ``ignored`` ones do nothing.
    """

    models: Any = None
    tokenize: str | None = "prompt"
    forms: tuple[str, ...] = ("ids", "text", "chat")
    usage: bool = True
    refused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    bos: int = 1
    template: int = 9
    pair: int | None = 6
    odd: frozenset[str] = frozenset()
    merged: frozenset[str] = frozenset()
    same_id: frozenset[str] = frozenset()
    ids_count_twice: bool = False
    tells_ids: bool = False
    key: str | None = None
    raw: dict[str, tuple[int, str, bytes]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in re.findall(r" ?[^\s]+", text):
            number = NUMBERS[piece] + 100 if piece in NUMBERS else 5000 + len(piece)
            if piece in self.merged and ids and ids[-1] != 5003:
                ids[-1] += 10_000
            elif piece in self.same_id:
                ids.append(7)
            else:
                ids += [number, 4000] if piece in self.odd else [number]
        return ids

    def answer(self, path: str, body: dict[str, Any], key: str) -> tuple[int, str, bytes]:
        if self.key is not None and key != f"Bearer {self.key}":
            return self.error(401, "who are you?")
        if path in self.raw:
            return self.raw[path]
        if path == "/v1/models":
            card = {"id": "fake", "owned_by": "tests", "max_model_len": 4096}
            return self.json({"data": [card] if self.models is None else self.models})
        if path == "/version":
            return self.json({"version": "7"})
        if path == "/tokenize" and self.tokenize is not None and self.tokenize in body:
            special = body.get("add_special_tokens") or body.get("add_special")
            ids = [1] * (self.bos if special else 0) + self.tokens(body[self.tokenize])
            return self.json({"tokens": ids})
        if path in ("/v1/completions", "/v1/chat/completions"):
            return self.generate(path, body)
        return self.error(404, f"no {path}")

    def generate(self, path: str, body: dict[str, Any]) -> tuple[int, str, bytes]:
        self.seen.append((path, body))
        prompt = body.get("prompt")
        form = "chat" if path.endswith("chat/completions") else "ids" if isinstance(prompt, list) else "text"
        if form not in self.forms:
            return self.error(404 if form == "chat" else 400, f"no {form} here")
        if wrong := [name for name in self.refused if name in body]:
            return self.error(400, f"unknown field {wrong[0]}")
        if (pairs := len(body.get("messages", ())) // 2) and self.pair is None:
            return self.error(400, "one message only")
        body = {name: value for name, value in body.items() if name not in self.ignored}
        if form == "ids":
            num = len(prompt) * (2 if self.ids_count_twice else 1)
        elif form == "text":
            num = self.bos + len(self.tokens(prompt))
        else:
            texts = [len(self.tokens(message["content"].strip())) for message in body["messages"]]
            num = self.template + sum(texts) + pairs * (self.pair or 0)
        wanted = body.get("max_completion_tokens") or body.get("max_tokens") or 16
        forced = body.get("ignore_eos") or body.get("min_tokens", 0) >= wanted
        return self.reply(body, num, wanted if forced else min(wanted, NATURAL))

    def reply(self, body: dict[str, Any], num: int, made: int) -> tuple[int, str, bytes]:
        def usage(so_far: int) -> dict[str, Any]:
            return {"usage": {"prompt_tokens": num, "completion_tokens": so_far}} if self.usage else {}

        if not body.get("stream"):
            return self.json({"choices": [{"text": "x"}], **usage(made)})
        options = body.get("stream_options") or {}
        events: list[Any] = []
        for at in range(made):
            choice: dict[str, Any] = {"text": "x", "finish_reason": "length" if at == made - 1 else None}
            if self.tells_ids and body.get("return_token_ids"):
                choice["token_ids"] = [3]
            more = usage(at + 1) if options.get("continuous_usage_stats") else {}
            events.append({"choices": [choice], **more})
        if options.get("include_usage"):
            events.append({"choices": [], **usage(made)})
        lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return 200, "text/event-stream", lines.encode()

    def json(self, value: Any) -> tuple[int, str, bytes]:
        return 200, "application/json", json.dumps(value).encode()

    def error(self, status: int, message: str) -> tuple[int, str, bytes]:
        return status, "application/json", json.dumps({"error": {"message": message}}).encode()


@contextmanager
def serving(fake: Fake) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._do({})

        def do_POST(self) -> None:
            self._do(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _do(self, body: dict[str, Any]) -> None:
            status, kind, raw = fake.answer(self.path, body, self.headers.get("authorization", ""))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


Ask = Callable[..., ServerFacts]


def ask(fake: Fake, form: Any = None, **target: Any) -> ServerFacts:
    with serving(fake) as url:
        return probe(Target(url=url, **target), form, timeout_s=10)


def failure(fake: Fake, form: Any = None, **target: Any) -> str:
    with pytest.raises(TargetError) as found:
        ask(fake, form, **target)
    assert str(found.value).isprintable()
    return str(found.value)


def test_a_server_that_can_do_everything() -> None:
    facts = ask(Fake(tells_ids=True))
    assert (facts.model, facts.max_tokens, facts.server, facts.form) == ("fake", 4096, "tests 7", "ids")
    assert facts.vocabulary.texts == WORDS
    assert facts.vocabulary.ids == tuple(range(100, 100 + len(WORDS)))
    assert (facts.overhead_tokens, facts.turn_overhead_tokens) == (0, 0)
    assert facts.output_enforced
    assert facts.continuous_usage
    assert facts.tells_ids
    assert not facts.reports_cached
    assert facts.notes == ()
    assert facts.length_fields == ("max_tokens", "min_tokens")
    assert facts.fields["stream"] is True
    assert facts.fields["ignore_eos"] is True


@pytest.mark.parametrize(("form", "prompt", "turn"), [("ids", 0, 0), ("text", 3, 0), ("chat", 10, 7)])
def test_what_the_server_adds_is_measured(form: str, prompt: int, turn: int) -> None:
    facts = ask(Fake(bos=2), form)
    assert (facts.form, facts.overhead_tokens, facts.turn_overhead_tokens) == (form, prompt, turn)


@pytest.mark.parametrize("extras", ["obeyed", "ignored", "refused"])
def test_the_stub(extras: Any) -> None:
    with running(StubOptions(extras=extras, natural_tokens=NATURAL, bos=True)) as stub:
        found = [probe(Target(url=stub.url), form) for form in (None, "text", "chat")]
    assert [facts.form for facts in found] == ["ids", "text", "chat"]
    assert [facts.overhead_tokens for facts in found] == [0, 2, 5]
    assert [facts.output_enforced for facts in found] == [extras == "obeyed"] * 3
    assert all(facts.reports_cached and facts.continuous_usage for facts in found)


def test_the_other_way_to_tokenise() -> None:
    assert ask(Fake(tokenize="content")).form == "ids"


def test_without_a_tokenizer_words_are_counted() -> None:
    odd = frozenset(WORDS[5:200:7])
    facts = ask(Fake(tokenize=None, odd=odd))
    assert facts.form == "text"
    assert set(facts.vocabulary.texts) == set(WORDS) - odd
    assert facts.vocabulary.ids == ()
    assert facts.overhead_tokens == 2


@pytest.mark.parametrize("why", ["odd", "merged", "same_id"])
def test_words_that_are_not_one_token_of_their_own_are_dropped(why: str) -> None:
    bad = frozenset(WORDS[1::50])
    kept = set(ask(Fake(**{why: bad})).vocabulary.texts)  # type: ignore[arg-type]
    assert not kept & bad
    assert len(kept) >= len(WORDS) - 2 * len(bad)


def test_a_tokenizer_with_too_few_words() -> None:
    fake = Fake(odd=frozenset(WORDS[40:]))
    assert "only 40 of 400" in failure(fake)
    assert "only 40 of 400" in failure(replace(fake, tokenize=None))


def test_forms_are_tried_in_turn() -> None:
    assert ask(Fake(forms=("text", "chat"))).form == "text"
    assert ask(Fake(forms=("chat",))).form == "chat"
    assert ask(Fake(ids_count_twice=True)).form == "text"


def test_a_form_that_was_asked_for_and_does_not_work() -> None:
    assert "400: no ids here" in failure(Fake(forms=("text",)), "ids")
    assert "no /tokenize" in failure(Fake(tokenize=None), "ids")
    assert "counts 256 tokens for 128 words" in failure(Fake(ids_count_twice=True), "ids")
    told = failure(Fake(forms=()))
    assert all(f"{form}: " in told for form in ("ids", "text", "chat"))


@pytest.mark.parametrize(
    ("refused", "lengths", "absent"),
    [
        (("min_tokens",), ("max_tokens",), {"min_tokens"}),
        (("ignore_eos",), ("max_tokens", "min_tokens"), {"ignore_eos"}),
        (("temperature",), ("max_tokens", "min_tokens"), {"temperature"}),
        (("stream_options",), ("max_tokens", "min_tokens"), {"stream_options"}),
        (("stream",), ("max_tokens", "min_tokens"), {"stream", "stream_options"}),
    ],
)
def test_a_field_that_is_refused_is_left_out(refused: Any, lengths: Any, absent: set[str]) -> None:
    facts = ask(Fake(refused=refused))
    everything = {"temperature", "ignore_eos", "stream", "stream_options"}
    assert set(facts.fields) == everything - absent
    assert facts.length_fields == lengths
    assert facts.output_enforced
    assert bool(facts.notes) == (refused != ("temperature",))


def test_chat_may_want_another_name_for_its_limit() -> None:
    facts = ask(Fake(refused=("max_tokens", "min_tokens", "ignore_eos", "temperature")), "chat")
    assert facts.length_fields == ("max_completion_tokens",)
    assert not facts.output_enforced
    assert "Output lengths are not enforced: the server has neither ignore_eos nor min_tokens." in facts.notes


def test_fields_that_are_silently_ignored() -> None:
    facts = ask(Fake(ignored=("min_tokens", "ignore_eos", "stream")), "chat")
    assert not facts.output_enforced
    assert "stream" not in facts.fields
    assert any("asked for 8 tokens, the server gave 3" in note for note in facts.notes)
    assert any("does not stream" in note for note in facts.notes)


def test_usage_only_at_the_end() -> None:
    fake = Fake()
    fake.reply = lambda body, num, made: Fake.reply(  # type: ignore[method-assign]
        fake, {**body, "stream_options": {"include_usage": True}} if body.get("stream") else body, num, made
    )
    facts = ask(fake)
    assert facts.output_enforced
    assert not facts.continuous_usage
    assert any("each counts as one" in note for note in facts.notes)


def test_no_usage_at_all() -> None:
    facts = ask(Fake(usage=False))
    assert (facts.form, facts.overhead_tokens, facts.output_enforced) == ("ids", 0, True)
    assert ask(Fake(usage=False, bos=4), "text").overhead_tokens == 5
    assert any("chat template" in note for note in ask(Fake(usage=False), "chat").notes)
    assert "neither" not in failure(Fake(usage=False, tokenize=None))


def test_a_chat_of_one_message_only() -> None:
    facts = ask(Fake(pair=None), "chat")
    assert facts.turn_overhead_tokens == 0
    assert any("pair of messages" in note for note in facts.notes)


def card(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, **more}


def test_the_model_is_named_or_the_only_one() -> None:
    two = [card("a", context_length=512), card("b")]
    assert ask(Fake(models=two), model="a").max_tokens == 512
    assert ask(Fake(models=two), model="b").max_tokens is None
    assert "name the model" in failure(Fake(models=two))
    assert "'a', 'b'" in failure(Fake(models=two), model="c")
    assert ask(Fake(models=[card("a", root="m"), card("b", root="m")])).model == "a"


@pytest.mark.parametrize("models", [[], [3, {"id": None}, None]])
def test_no_model(models: Any) -> None:
    assert "serves nothing" in failure(Fake(models=models))
    assert "serves nothing" in failure(Fake(models=models), model="a")


def test_names_from_a_server_are_printed_clean() -> None:
    assert "\x1b" not in failure(Fake(models=[card("\x1b[31ma\n"), card("b")]))


def test_a_context_of_another_server_kind() -> None:
    props = {"default_generation_settings": {"n_ctx": 2048}}
    raw = {"/props": (200, "application/json", json.dumps(props).encode())}
    assert ask(Fake(models=[card("a")], raw=raw)).max_tokens == 2048


HTML = (200, "text/html", b"<html>hello")


@pytest.mark.parametrize(
    "page", [HTML, (404, "text/plain", b""), (500, "text/plain", b"oops"), (200, "", b"[1]")]
)
def test_no_list_of_models(page: tuple[int, str, bytes]) -> None:
    assert "/v1/models answers" in failure(Fake(raw={"/v1/models": page}))


def test_a_named_model_needs_no_list() -> None:
    facts = ask(Fake(raw={"/v1/models": (404, "text/plain", b"")}), model="mine")
    assert facts.model == "mine"
    assert "lists nothing" in facts.notes[0]


@pytest.mark.parametrize(
    "page", [HTML, (500, "text/plain", b"oops"), (200, "application/json", b'{"choices":')]
)
def test_a_generation_that_is_rubbish(page: tuple[int, str, bytes]) -> None:
    raw = {"/v1/completions": page, "/v1/chat/completions": page}
    assert "takes no prompts" in failure(Fake(raw=raw))
    assert "takes no prompts" in failure(Fake(raw=raw), "chat")


def test_a_stream_that_is_rubbish() -> None:
    fake = Fake()
    fake.reply = lambda body, num, made: (  # type: ignore[method-assign]
        (200, "text/event-stream", b"data: {oh no\n\n")
        if body.get("stream")
        else Fake.reply(fake, body, num, made)
    )
    assert "nonsense" in failure(fake)


def test_a_stream_that_breaks_off_with_an_error() -> None:
    fake = Fake()
    lines = b'data: {"choices":[{"text":"x"}]}\n\ndata: {"error":{"message":"out of memory"}}\n\n'
    fake.reply = lambda body, num, made: (  # type: ignore[method-assign]
        (200, "text/event-stream", lines) if body.get("stream") else Fake.reply(fake, body, num, made)
    )
    assert "out of memory" in failure(fake)


@pytest.mark.parametrize("page", [HTML, (200, "application/json", b'{"tokens": ["a"]}'), (500, "", b"")])
def test_a_tokenizer_that_is_rubbish_is_none(page: tuple[int, str, bytes]) -> None:
    assert ask(Fake(raw={"/tokenize": page})).form == "text"


def test_a_key() -> None:
    assert ask(Fake(key="right"), api_key="right").model == "fake"
    assert "API key: 401: who are you?" in failure(Fake(key="right"), api_key="wrong").replace(
        ", or another one", ""
    )


def test_a_small_context_is_respected() -> None:
    for tokenize in ("prompt", None):
        fake = Fake(models=[card("a", max_model_len=256)], tokenize=tokenize)
        ask(fake)
        texts = [body["prompt"] for _, body in fake.seen]
        assert max(len(text) if isinstance(text, list) else len(fake.tokens(text)) for text in texts) <= 160


def test_prompts_hold_ordinary_words_only() -> None:
    fake = Fake()
    ask(fake, "text")
    assert all(re.fullmatch(r"The( [A-Za-z.]+)*", body["prompt"]) for _, body in fake.seen)
