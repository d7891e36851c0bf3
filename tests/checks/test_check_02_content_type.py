"""Check 2: a body whose type is wrong, missing or not UTF-8 is 415, before it is read."""

from __future__ import annotations

import json

from .bodies import VALID, assert_refused, concrete, know_session
from .served import scripted

WRONG = (
    None,
    "",
    ";",
    "json",
    "text/plain",
    "text/json",
    "application/xml",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/octet-stream",
    "application/json-seq",
    "application/jsonp",
    "text/plain; application/json",
    "application/json; charset=utf-16",
    'application/json; charset="latin-1"',
    "application/json\x00",
    "application/json" * 1000,
)
RIGHT = (
    "application/json",
    "Application/JSON",
    "application/json; charset=UTF-8",
    'application/json;charset="utf-8"',
)


async def test_other_content_types_are_415_on_every_route() -> None:
    async with scripted() as served:
        await know_session(served.client)
        asked = len(served.engine.seen)
        for path, body in VALID.items():
            for media in WRONG:
                headers = {} if media is None else {"content-type": media}
                data = json.dumps(body).encode()
                answer = await served.client.post(concrete(path), content=data, headers=headers)
                assert_refused(answer, path, (415,))
        assert len(served.engine.seen) == asked
        assert not served.engine.verbs


async def test_spellings_of_json_are_taken_on_every_route() -> None:
    async with scripted() as served:
        await know_session(served.client)
        for path, body in VALID.items():
            for media in RIGHT:
                data = json.dumps(body).encode()
                answer = await served.client.post(
                    concrete(path), content=data, headers={"content-type": media}
                )
                assert answer.status_code == 200, (path, media, answer.text)
