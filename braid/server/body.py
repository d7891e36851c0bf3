"""Reading a request body: size, pace, content type, JSON.

All that is wrong with its form ends here, before anything shared is touched.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from braid.core.errors import InvalidParameterError
from braid.server.config import ServerConfig
from braid.server.errors import ClientDisconnectedError, HttpError

Model = TypeVar("Model", bound=BaseModel)

# Possessive, and content to end at the end of the input: linear on every input.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = bytes.maketrans(b"[{]}", b"(())")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LONGEST_ECHO = 40


async def read_json(request: Request, config: ServerConfig) -> tuple[dict[str, Any], int]:
    """The body as a JSON object, and its length in bytes.

    Raises:
        HttpError: 400 malformed or too deep, 408 too slow, 413 too long, 415 not JSON.
    """
    _check_content_type(request.headers.get("content-type"))
    try:
        async with asyncio.timeout(config.body_timeout):
            body = await _read(request, config.max_body_bytes)
    except TimeoutError:
        message = f"the request body did not arrive within {config.body_timeout:g} s"
        raise HttpError(408, message, headers={"connection": "close"}) from None
    return parse_object(body, config.max_json_depth), len(body)


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


def parse_object(body: bytes, max_depth: int) -> dict[str, Any]:
    """A JSON object; of duplicate keys the last wins.

    Raises:
        HttpError: 400 on malformed JSON, NaN, Infinity, bad UTF-8, lone surrogates, numbers out of range,
            nesting beyond ``max_depth``, or a body that is not an object.
    """
    if nesting_exceeds(body, max_depth):
        raise HttpError(400, f"the request body is nested deeper than {max_depth} levels")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = str(error) if isinstance(error, msgspec.DecodeError) else "not valid UTF-8 or too deep"
        raise HttpError(400, f"the request body is not valid JSON: {detail}") from None
    if not isinstance(value, dict):
        raise HttpError(400, "the request body must be a JSON object")
    return value


def nesting_exceeds(body: bytes, limit: int) -> bool:
    """Whether brackets outside strings nest deeper than ``limit``: at most ``limit`` linear passes."""
    if sum(body.count(bracket) for bracket in (b"[", b"{")) <= limit:
        return False
    brackets = _STRING.sub(b"", body).translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(limit):
        shorter = brackets.replace(b"()", b"")
        if len(shorter) == len(brackets):
            return brackets.count(b"(") > limit
        brackets = shorter
    return bool(brackets)


def validate(model: type[Model], value: dict[str, Any]) -> Model:
    """Fields as ``model`` types them, nothing coerced.

    Raises:
        InvalidParameterError: naming the first wrong field.
    """
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
