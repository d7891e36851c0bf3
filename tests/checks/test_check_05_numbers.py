"""Check 5: every numeric field of every body, found in the fields' own types, at the ends of its range and beyond."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from braid.server.programs.intent import FIELDS as WISHES

from .bodies import LIMITS, VALID, concrete, know_session, models
from .served import scripted

VALUES: tuple[Any, ...] = (
    -1, 0, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 0.5, -0.0, 1e-320, 1e308, -1e308,
    None, "x", "1", "", True, False, [], {}, [1], {"a": 1},
)  # fmt: skip
SURE_TO_FAIL = ("x", [], {"a": 1}, True)
"""No numeric field takes these."""
READ_ELSEWHERE = (
    "agent_hint.cache_control.ttl",
    "nvext.cache_control.ttl",
    "cache_control.ttl",
    *(field.path for field in WISHES if field.sets is not None),
)
"""Fields without a type of their own: their readers are in ``braid.server.programs``."""

Place = tuple[str, ...]


def numeric_places(annotation: Any, place: Place = ()) -> Iterator[Place]:
    """Where in a value of this type a number may stand; ``0`` is any entry of a list, ``"0"`` any key."""
    origin = get_origin(annotation)
    if annotation in (int, float):
        yield place
    elif origin in (typing.Union, types.UnionType):
        for inner in get_args(annotation):
            yield from numeric_places(inner, place)
    elif origin is typing.Annotated:
        yield from numeric_places(get_args(annotation)[0], place)
    elif origin is list:
        yield from numeric_places(get_args(annotation)[0], (*place, "[]"))
    elif origin is dict:
        yield from numeric_places(get_args(annotation)[1], (*place, "{}"))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            yield from numeric_places(_annotation(info), (*place, info.alias or name))


def _annotation(info: Any) -> Any:
    return info.annotation


def put(body: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """The body with ``value`` at ``place``, in objects and lists made for it."""
    for part in reversed(place[1:]):
        value = [value] if part == "[]" else {"0": value} if part == "{}" else _holder(place, part, value)
    return {**body, place[0]: value}


def _holder(place: Place, part: str, value: Any) -> dict[str, Any]:
    return {part: value, "type": "enabled"} if place[0] == "thinking" else {part: value}


@pytest.fixture
async def places(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Place]]:
    """Every numeric place of every route."""
    async with scripted() as served:
        found = {
            path: sorted(set(numeric_places(model)))
            for path, model in (await models(served.client, monkeypatch)).items()
        }
    for path in LIMITS:
        known = {place[0] for place in found[path]}
        found[path] += [tuple(name.split(".")) for name in READ_ELSEWHERE if name.split(".")[0] not in known]
    return found


async def test_introspection_finds_what_is_there(places: dict[str, list[Place]]) -> None:
    chat, messages = places["/v1/chat/completions"], places["/v1/messages"]
    assert {("temperature",), ("n",), ("seed",), ("logit_bias", "{}"), ("stop_token_ids", "[]")} <= set(chat)
    assert {("max_tokens",), ("thinking", "budget_tokens"), ("top_k",)} <= set(messages)
    assert ("agent_hints", "tool", "expected_s") in chat
    assert places["/v1/sessions/{id:path}/pin"] == [("seconds",)]
    assert places["/detokenize"] == [("tokens", "[]")]


async def test_every_number_at_and_beyond_its_ends(places: dict[str, list[Place]]) -> None:
    """A refusal or an answer, and the engine never sees a number that it would choke on."""
    async with scripted(reply="ok") as served:
        await know_session(served.client)
        for path, found in places.items():
            for place in found:
                for value in VALUES:
                    body = put(VALID[path], place, value)
                    answer = await served.client.post(concrete(path), json=body)
                    assert answer.status_code in (200, 400), (path, place, value, answer.text)
                    if answer.status_code == 400:
                        assert answer.json()["error"]["message"], (path, place, value)
        _check_seen(served.engine.seen)


def _check_seen(requests: list[Any]) -> None:
    for request in requests:
        params = request.params
        assert 1 <= params.n <= 16
        assert params.max_tokens is None or 1 <= params.max_tokens <= 1024
        assert 0 <= params.temperature < 1e6
        assert 0 <= params.top_p <= 1
        assert params.seed is None or abs(params.seed) < 2**64
        assert all(abs(bias) <= 100 and 0 <= token < 259 for token, bias in params.logit_bias.items())
        assert all(0 <= token < 259 for token in params.stop_token_ids)
        assert 0 <= request.priority < 2**31


async def test_wrong_types_are_refused_everywhere(places: dict[str, list[Place]]) -> None:
    async with scripted(reply="ok") as served:
        await know_session(served.client)
        for path, found in places.items():
            for place in found:
                for value in SURE_TO_FAIL:
                    if ".".join(place) in READ_ELSEWHERE and place[-1] not in ("priority", "osl"):
                        continue  # times and names may be texts
                    if place == ("logprobs",) and value is True and path == "/v1/chat/completions":
                        continue
                    answer = await served.client.post(concrete(path), json=put(VALID[path], place, value))
                    assert answer.status_code == 400, (path, place, value, answer.text)


async def test_integers_of_400_digits() -> None:
    async with scripted(reply="ok") as served:
        await know_session(served.client)
        for path, body in VALID.items():
            name = next(key for key, value in body.items() if key != "model")
            for other in {name, "seed", "max_tokens", "priority", "seconds"}:
                data = f'{{"{other}": {"9" * 400}}}'.encode()
                answer = await served.client.post(
                    concrete(path), content=data, headers={"content-type": "application/json"}
                )
                assert answer.status_code == 400, (path, other, answer.text)
                assert "9" * 50 not in answer.text
