"""Reading a request body: size, pace, content type, JSON.

All that is wrong with its form ends here, before anything shared is touched.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from braid.core.errors import InvalidParameterError
from braid.server.config import ServerConfig
from braid.server.errors import ClientDisconnectedError, HttpError
from braid.server.lifecycle import RECORD, RequestRecord

Model = TypeVar("Model", bound=BaseModel)

_BRACKETS = bytes.maketrans(b"[{]}", b"(())")
_NEITHER_QUOTES_NOR_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
_MAX_KEYS = 2048
"""Of an object that is a field: more than any field may have, so that not each of millions is found wrong."""
_LONGEST_ECHO = 40


async def read_json(
    request: Request, model: type[Model], config: ServerConfig, *, most: int | None = None
) -> tuple[Model, dict[str, Any], int]:
    """The body as ``model``'s fields, as the JSON object it was, and its length in bytes.

    Args:
        most: a lower limit than the configured one, in bytes, for bodies that no quota counts.

    Raises:
        HttpError: 400 malformed, too deep or of too many parts, 408 too slow, 413 too long, 415 not JSON.
        InvalidParameterError: naming the first wrong field.
    """
    _check_content_type(request.headers.get("content-type"))
    try:
        async with asyncio.timeout(config.body_timeout):
            body = await _read(request, min(most or config.max_body_bytes, config.max_body_bytes))
    except TimeoutError:
        message = f"the request body did not arrive within {config.body_timeout:g} s"
        raise HttpError(408, message, headers={"connection": "close"}) from None

    def parse() -> tuple[Model, dict[str, Any], int]:
        value = parse_object(body, config)
        return validate(model, value), value, len(body)

    fields, value, size = parse() if len(body) <= config.large_bytes else await asyncio.to_thread(parse)
    record: RequestRecord | None = request.scope.get(RECORD)
    if record is not None:
        record.body = value
    return fields, value, size


def _check_content_type(value: str | None) -> None:
    media, _, parameters = (value or "").partition(";")
    charset = parameters.lower().replace(" ", "").replace('"', "")
    utf8 = "charset=" not in charset or "charset=utf-8" in charset or "charset=utf8" in charset
    if media.strip().lower() != "application/json" or not utf8:
        raise HttpError(415, "content-type must be application/json in UTF-8")


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_long(limit)
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError("the client left while sending its request")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_long(limit)
        if not message.get("more_body", False):
            return bytes(body)


def _too_long(limit: int) -> HttpError:
    return HttpError(413, f"the request body is longer than {limit} bytes", headers={"connection": "close"})


def parse_object(body: bytes, config: ServerConfig) -> dict[str, Any]:
    """A JSON object; of duplicate keys the last wins.

    Raises:
        HttpError: 400 on too many brackets or commas, nesting beyond ``max_json_depth``, malformed JSON, NaN,
            Infinity, bad UTF-8, lone surrogates, numbers out of range, or a body that is not an object.
    """
    _check_parts(body, config)
    if nesting_exceeds(body, config.max_json_depth):
        raise HttpError(400, f"the request body is nested deeper than {config.max_json_depth} levels")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = str(error) if isinstance(error, msgspec.DecodeError) else "not valid UTF-8 or too deep"
        raise HttpError(400, f"the request body is not valid JSON: {detail}") from None
    if not isinstance(value, dict):
        raise HttpError(400, "the request body must be a JSON object")
    return value


def _check_parts(body: bytes, config: ServerConfig) -> None:
    """Bound what a body can become: parsed, ``{},`` takes 25 times its bytes, and no other thread runs meanwhile."""
    for kind, parts, limit in (
        ("brackets", (b"[", b"]", b"{", b"}"), config.max_json_brackets),
        ("colons", (b":",), config.max_json_colons),
        ("commas", (b",",), config.max_json_commas),
    ):
        if sum(map(body.count, parts)) > limit:
            raise HttpError(400, f"the request body has more than {limit} {kind}")


def nesting_exceeds(body: bytes, limit: int) -> bool:
    """Whether brackets outside strings nest deeper than ``limit``: at most ``limit`` linear passes over them."""
    if sum(map(body.count, (b"[", b"{"))) <= limit:
        return False
    brackets = _without_strings(body).translate(_BRACKETS)
    for _ in range(limit):
        shorter = brackets.replace(b"()", b"")
        if len(shorter) == len(brackets):
            return brackets.count(b"(") > limit
        brackets = shorter
    return bool(brackets)


def _without_strings(body: bytes) -> bytes:
    """The brackets that stand outside strings.

    Escapes go first, so that every quote left begins or ends a string. Two quotes with nothing between them may go
    too, whichever they are: what follows stays inside, or outside. That leaves fewer quotes than brackets.
    """
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = plain.translate(None, _NEITHER_QUOTES_NOR_BRACKETS).replace(b'""', b"")
    return b"".join(marks.split(b'"')[::2])


def validate(model: type[Model], value: dict[str, Any]) -> Model:
    """Fields as ``model`` types them, nothing coerced.

    Raises:
        InvalidParameterError: naming the first wrong field.
    """
    for name, entry in value.items():
        if isinstance(entry, dict) and len(entry) > _MAX_KEYS:
            message = f"{echo(name)} has {len(entry)} keys, at most {_MAX_KEYS} are allowed"
            raise InvalidParameterError(message, param=name[:_LONGEST_ECHO])
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _first_error(error) from None


def _first_error(error: ValidationError) -> InvalidParameterError:
    detail = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part)[:_LONGEST_ECHO] for part in detail["loc"])
    message = f"{place}: {detail['msg']}"
    if detail["type"] != "missing":
        message += f", got {echo(detail['input'])}"
    return InvalidParameterError(message, param=str(detail["loc"][0]) if detail["loc"] else None)


def echo(value: object) -> str:
    """A scalar as a short literal, anything else by its kind: errors repeat no more of the input than that."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= _LONGEST_ECHO else text[:_LONGEST_ECHO] + "..."
