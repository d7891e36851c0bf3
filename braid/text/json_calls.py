"""Tool calls written as JSON, read as they grow: a call's name once it is known, its arguments as they come.

A pure state machine over text. It checks no more of JSON than it must to know where a value ends, so that arguments
pass through as the model wrote them; what is no call at all is told apart before anything was given out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any, NamedTuple

_BLANK = " \t\r\n"
_IN_STRING = re.compile(r'[^"\\]*')
_BETWEEN = re.compile(r'[^"{}\[\]]*')
_ODD = re.compile(r"[^\s\d:,+\-.eEtrufalsn]")
_SCALAR = re.compile(r"[^\s,}\]]*")


class Shape(Enum):
    """How JSON makes calls."""

    OBJECT = auto()
    """``{"name": ..., "arguments": ...}``"""
    LIST = auto()
    """A list of such objects."""
    ARGUMENTS = auto()
    """The arguments alone; the name was said before."""


class Keys(NamedTuple):
    """Where an object holds a call's name and its arguments."""

    name: str = "name"
    arguments: str = "arguments"


class Begin(NamedTuple):
    """A call: its name is known and its arguments have begun."""

    name: str


class More(NamedTuple):
    """More of its arguments."""

    text: str


class End(NamedTuple):
    """It is complete."""


Step = Begin | More | End


class State(Enum):
    """What the reader of calls waits for."""

    OPEN = auto()
    DONE = auto()
    """The value is complete."""
    NO_CALL = auto()
    """It was no call, or what follows the last one is none."""
    BROKEN = auto()
    """A call has begun and goes on as something else than JSON."""


class Value:
    """Finds the end of one JSON value."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_kind", "done", "odd")

    def __init__(self) -> None:
        self._kind = ""
        self._depth = 0
        self._in_string = self._escaped = False
        self.done = False
        self.odd = False
        """A character came that no JSON value holds at its place."""

    def advance(self, text: str, at: int) -> int:
        """Where in ``text`` the value ends, or the text does. The first character must be the value's own."""
        if not self._kind and at < len(text):
            self._kind = text[at] if text[at] in '"{[' else "scalar"
        if self._kind == "scalar":
            return self._scalar(text, at)
        while at < len(text) and not (self.done or self.odd):
            at = self._string(text, at) if self._in_string else self._bracket(text, at)
        return at

    def _scalar(self, text: str, at: int) -> int:
        match = _SCALAR.match(text, at)
        assert match is not None
        self.done = match.end() < len(text)
        return match.end()

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        match = _IN_STRING.match(text, at)
        assert match is not None
        at = match.end()
        if at == len(text):
            return at
        self._escaped = text[at] == "\\"
        if not self._escaped:
            self._in_string = False
            self.done = self._depth == 0
        return at + 1

    def _bracket(self, text: str, at: int) -> int:
        match = _BETWEEN.match(text, at)
        assert match is not None
        odd = _ODD.search(text, at, match.end())
        if odd is not None:
            self.odd = True
            return odd.start()
        at = match.end()
        if at == len(text):
            return at
        if text[at] == '"':
            self._in_string = True
        else:
            self._depth += 1 if text[at] in "{[" else -1
            self.done = self._depth <= 0
        return at + 1


class _Expect(Enum):
    OPEN = auto()
    NEXT = auto()
    KEY = auto()
    COLON = auto()
    BEFORE_VALUE = auto()
    VALUE = auto()
    BEFORE_ARGUMENTS = auto()
    ARGUMENTS = auto()


class CallObject:
    """One call: an object, or its arguments alone where ``name`` is given."""

    def __init__(self, keys: Keys, name: str | None, accept: Callable[[str], bool]) -> None:
        self._keys = keys
        self._accept = accept
        self.name = name
        self._bare = name is not None
        self._key = ""
        self._value: Value | None = None
        self._pieces: list[str] = []
        self._early: str | None = None
        """Arguments that came before the name."""
        self._expects = _Expect.BEFORE_ARGUMENTS if self._bare else _Expect.OPEN
        self.begun = False
        self.state = State.OPEN

    @property
    def is_complete(self) -> bool:
        """Its arguments have come to their end."""
        return self.begun and self._expects is not _Expect.ARGUMENTS

    def feed(self, text: str, at: int) -> Iterator[Step | int]:
        """Reads on; gives steps, and at last the place it came to."""
        while at < len(text) and self.state is State.OPEN:
            if self._value is not None:
                begin, at = at, self._value.advance(text, at)
                yield from self._read(text[begin:at], self._value)
                continue
            at = _skip_blank(text, at)
            if at < len(text):
                at += self._expected(text[at])
        yield at

    def _expected(self, char: str) -> int:
        """Takes the next character between values: 1 where it is used up, 0 where a value or the end begins with it."""
        match self._expects, char:
            case (_Expect.OPEN, "{") | (_Expect.NEXT, ","):
                self._expects = _Expect.NEXT
            case _Expect.NEXT, "}":
                self.state = State.DONE
            case _Expect.COLON, ":":
                wanted = self._key == self._keys.arguments and not self.begun and self._early is None
                self._expects = _Expect.BEFORE_ARGUMENTS if wanted else _Expect.BEFORE_VALUE
            case _Expect.NEXT, '"':
                return self._begin(_Expect.KEY)
            case _Expect.BEFORE_ARGUMENTS, "{":
                return self._begin(_Expect.ARGUMENTS)
            case (_Expect.BEFORE_VALUE, _) | (_Expect.BEFORE_ARGUMENTS, _) if not self._bare:
                return self._begin(_Expect.VALUE)
            case _:
                self._fail()
                return 0
        return 1

    def _begin(self, expects: _Expect) -> int:
        self._expects, self._value = expects, Value()
        return 0

    def _fail(self) -> None:
        """What comes is no part of a call; one that has begun was complete before."""
        self.state = State.DONE if self.begun else State.NO_CALL

    def _read(self, piece: str, value: Value) -> Iterator[Step]:
        streams = self._expects is _Expect.ARGUMENTS and self.name is not None
        if streams and self.name is not None:
            if not self.begun:
                self.begun = True
                yield Begin(self.name)
            if piece:
                yield More(piece)
        else:
            self._pieces.append(piece)
        if value.odd and streams:
            self.state = State.BROKEN
        elif value.odd:
            self._fail()
        elif value.done:
            self._value = None
            if streams:
                self._expects = _Expect.NEXT
            else:
                yield from self._keep()
            if self._bare:
                self.state = State.DONE
                yield End()

    def _keep(self) -> Iterator[Step]:
        """A value that was collected is complete."""
        text, is_key = "".join(self._pieces), self._expects is _Expect.KEY
        self._pieces = []
        self._expects = _Expect.COLON if is_key else _Expect.NEXT
        if is_key:
            key = _load(text)
            self._key = key if isinstance(key, str) else ""
            if key is None:
                self._fail()
        elif self._key == self._keys.name and self.name is None:
            self.name = _name(text)
            if self.name is None or not self._accept(self.name):
                self._fail()
                return
        elif self._key == self._keys.arguments and not self.begun and self._early is None:
            self._early = _as_object(text)
            if self._early is None:
                self._fail()
        if self.name is not None and self._early is not None and not self.begun:
            self.begun = True
            yield Begin(self.name)
            yield More(self._early)


class JsonCalls:
    """The calls of one region.

    Args:
        shape: how the JSON makes calls.
        keys: where an object holds its parts.
        name: of the call, where the shape is ARGUMENTS.
        lenient: an object with a name and without arguments is a call without any.
        accept: whether a name makes an object a call.
    """

    def __init__(
        self, shape: Shape, keys: Keys, name: str | None, *, lenient: bool, accept: Callable[[str], bool]
    ) -> None:
        self._shape = shape
        self._keys = keys
        self._lenient = lenient
        self._accept = accept
        self._call = None if shape is Shape.LIST else CallObject(keys, name, accept)
        self._in_list = False
        self.state = State.OPEN

    def feed(self, text: str) -> Iterator[tuple[Step | None, int]]:
        """Reads on: each step with the place in ``text`` it came to; a last None with the place of the end."""
        at = 0
        while at < len(text) and self.state is State.OPEN:
            if self._call is None:
                at = self._between(text, at)
                continue
            for step in self._call.feed(text, at):
                if isinstance(step, int):
                    at = step
                else:
                    yield step, at
            yield from ((step, at) for step in self._after(self._call))
        yield None, at

    def finish(self) -> bool:
        """The text is over: whether a call that has begun is complete."""
        return self._call is not None and self._call.is_complete

    def _after(self, call: CallObject) -> Iterator[Step]:
        """What the state of one call means for all."""
        if call.state is State.DONE and self._shape is not Shape.ARGUMENTS:
            if not call.begun and call.name is not None and self._lenient:
                yield Begin(call.name)
                yield More("{}")
                call.begun = True
            if call.begun:
                yield End()
            else:
                call.state = State.NO_CALL
        if call.state is State.DONE and self._in_list:
            self._call = None
        elif call.state is not State.OPEN:
            self.state = call.state

    def _between(self, text: str, at: int) -> int:
        at = _skip_blank(text, at)
        if at == len(text):
            return at
        char = text[at]
        if not self._in_list and char == "[":
            self._in_list = True
        elif self._in_list and char == "]":
            self.state = State.DONE
        elif self._in_list and char == "{":
            self._call = CallObject(self._keys, None, self._accept)
            return at
        elif not (self._in_list and char == ","):
            self.state = State.NO_CALL
            return at
        return at + 1


def _skip_blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _load(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _name(text: str) -> str | None:
    name = _load(text)
    return name if isinstance(name, str) and name else None


def _as_object(text: str) -> str | None:
    """Arguments as the text of an object: written as one, as null, or as JSON text within a string."""
    if text.startswith("{"):
        return text
    value = _load(text)
    if isinstance(value, str):
        return value if isinstance(_load(value), dict) else None
    return "{}" if text == "null" else None
