"""Every route that reads a body, found by enumeration, with a body that it takes; and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import httpx
from pydantic import BaseModel
from starlette.applications import Starlette

from braid.server.errors import is_anthropic
from braid.server.guard import body as body_module

TALK = [{"role": "user", "content": "hi there"}]
PIN = "/v1/sessions/{id:path}/pin"
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TALK, "max_tokens": 4},
    "/v1/completions": {"prompt": "hi there", "max_tokens": 4},
    "/v1/responses": {"model": "tiny", "input": "hi there", "max_output_tokens": 4},
    "/v1/messages": {"model": "tiny", "messages": TALK, "max_tokens": 4},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": TALK},
    "/v1/embeddings": {"model": "tiny", "input": "hi there"},
    "/tokenize": {"prompt": "hi there"},
    "/detokenize": {"tokens": [104, 105]},
    PIN: {"seconds": 1.0},
}
ANSWERS_WITHOUT_BODY = {
    "/v1/responses/{id}/cancel": 404,
    "/v1/sessions/{id:path}/close": 200,
    "/v1/sessions/{id:path}/prefetch": 200,
    "/v1/sessions/{id:path}/demote": 200,
}
"""Routes that read no body, and what they answer whatever it is."""
LIMITS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
}
"""The field that bounds the output, by generating route."""
SESSION = "known"
JSON = {"content-type": "application/json"}
LONGEST_ECHO = 40
"""Errors may repeat so many characters of a value, as documented; never more."""


def posts(app: Starlette) -> list[str]:
    return [route.path for route in app.routes if "POST" in route.methods]  # type: ignore[attr-defined]


def concrete(path: str) -> str:
    return path.replace("{id:path}", SESSION).replace("{id}", SESSION)


async def know_session(client: httpx.AsyncClient) -> None:
    """Make the program that session routes are asked about."""
    body = {**VALID["/v1/completions"], "session_id": SESSION}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text


async def models(client: httpx.AsyncClient, monkeypatch: Any) -> dict[str, type[BaseModel]]:
    """The fields of every body, as the routes themselves check them."""
    found: dict[str, type[BaseModel]] = {}
    validate = body_module.validate
    await know_session(client)
    for path, body in VALID.items():

        def note(model: type[BaseModel], value: dict[str, Any], path: str = path) -> BaseModel:
            found[path] = model
            return validate(model, value)

        with monkeypatch.context() as patch:
            patch.setattr(body_module, "validate", note)
            answer = await client.post(concrete(path), json=body)
        assert answer.status_code == 200, (path, answer.text)
    assert set(found) == set(VALID)
    return found


def assert_refused(
    answer: httpx.Response, path: str, statuses: Collection[int] = (400,), secret: str | None = None
) -> None:
    """A refusal in the shape of the path's dialect, with an id, in short, and without ``secret``."""
    assert answer.status_code in statuses, (path, answer.status_code, answer.text[:300])
    assert answer.headers["x-request-id"].startswith("req-")
    payload: Mapping[str, Any] = answer.json()
    error = payload["error"]
    if is_anthropic(concrete(path)):
        assert set(payload) == {"type", "error", "request_id"}
        assert payload["type"] == "error"
        assert set(error) == {"type", "message"}
    else:
        assert set(payload) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["param"], str | None)
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert 0 < len(error["message"]) < 600
    assert secret is None or secret not in answer.text, (path, answer.text[:300])
