"""Check 1: bytes that are no JSON, or JSON that no number or text can hold, end at the door of every route."""

from __future__ import annotations

import json

from .bodies import ANSWERS_WITHOUT_BODY, JSON, PIN, VALID, assert_refused, concrete, know_session, posts
from .served import scripted

SECRET = "customer-4711-has-a-private-diagnosis"


def malformed(good: bytes) -> dict[str, bytes]:
    """Damaged variants of a body that would be taken."""
    field = good[:-1]
    return {
        "empty": b"",
        "a blank": b" ",
        "truncated": field,
        "truncated in a string": good[: good.rindex(b'"')] + SECRET.encode(),
        "NaN": field + b', "temperature": NaN}',
        "Infinity": field + b', "temperature": Infinity}',
        "minus Infinity": field + b', "temperature": -Infinity}',
        "beyond floats": field + b', "temperature": 1e999}',
        "5000 digits": field + b', "seed": ' + b"7" * 5000 + b"}",
        "a bare word": field + b', "user": ' + SECRET.encode() + b"}",
        "bad UTF-8": field + b', "user": "\xff' + SECRET.encode() + b'"}',
        "overlong UTF-8": field + b', "user": "\xc0\xaf"}',
        "surrogates as UTF-8": field + b', "user": "\xed\xa0\x80"}',
        "UTF-16": good.decode().encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + good,
        "a lone surrogate": field + b', "user": "\\ud800 x"}',
        "a raw control character": field + b', "user": "a\nb"}',
        "two objects": good + good,
        "a trailing comma": field + b",}",
        "single quotes": good.replace(b'"', b"'"),
        "a comment": good + b" // done",
        "lists 100,000 deep": b"[" * 100_000,
        "objects 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "65 deep": field + b', "x": ' + b"[" * 64 + b"]" * 64 + b"}",
        "a list": b"[" + good + b"]",
        "a string": b'"' + SECRET.encode() + b'"',
        "a number": b"1",
        "null": b"null",
        "zeros": b"\x00" * 64,
    }


async def test_every_route_with_a_body_is_known() -> None:
    async with scripted() as served:
        assert set(posts(served.app)) == set(VALID) | set(ANSWERS_WITHOUT_BODY)


async def test_malformed_json_is_400_on_every_route() -> None:
    async with scripted() as served:
        await know_session(served.client)
        asked = len(served.engine.seen)
        for path, body in VALID.items():
            for name, data in malformed(json.dumps(body).encode()).items():
                answer = await served.client.post(concrete(path), content=data, headers=JSON)
                if path == PIN and answer.status_code == 413:  # it takes one number, and short bodies only
                    assert len(data) > 4000, name
                    continue
                assert answer.status_code == 400, (path, name, answer.text)
                assert_refused(answer, path, secret=SECRET)
        assert len(served.engine.seen) == asked
        assert not served.engine.verbs
        for path, body in VALID.items():
            assert (await served.client.post(concrete(path), json=body)).status_code == 200, path


async def test_routes_without_a_body_do_not_read_one() -> None:
    async with scripted() as served:
        for path, status in ANSWERS_WITHOUT_BODY.items():
            for data in (b"", b"{", b"\xff", b"[" * 100_000):
                await know_session(served.client)
                answer = await served.client.post(concrete(path), content=data, headers=JSON)
                assert answer.status_code == status, (path, answer.text)


async def test_of_duplicate_keys_the_last_counts() -> None:
    """Documented, and the same everywhere: no layer may have seen another value than the next."""
    async with scripted() as served:
        for path, body in VALID.items():
            name, value = next((key, value) for key, value in body.items() if key != "model")
            await know_session(served.client)
            double = b'{"%s": {"wrong": 1}, ' % name.encode() + json.dumps(body).encode()[1:]
            answer = await served.client.post(concrete(path), content=double, headers=JSON)
            assert answer.status_code == 200, (path, name, value, answer.text)
