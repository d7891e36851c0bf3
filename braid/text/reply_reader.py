"""Reads a reply by the regions of its response template; keeps the rules of ``braid.text.reply``.

Blanks: content keeps its own; those after thinking, around calls and at both ends of thinking are dropped, except that
content going on after a call keeps the blanks from before it. A call whose arguments have begun stays a call, whatever
follows; what fails before that is content.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from braid.text.json_calls import Begin, End, JsonCalls, More, Shape, State, Step
from braid.text.markers import PENDING, Hit, Scanner, Watch
from braid.text.regions import Kind, Region
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart

_BLANK = " \t\r\n"


class WholeCalls(Protocol):
    """Reads a region whose syntax is not JSON."""

    def calls(self, text: str, tools: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """What a reader goes by.

    Args:
        regions: of the response template; calls only where there are tools.
        parser: reads WHOLE regions.
        tools: OpenAI's descriptions, which say the types of arguments.
        names: of the tools; a bare JSON object without markers is a call only where it names one.
        make_id: a call's id.
    """

    regions: Sequence[Region]
    parser: WholeCalls
    tools: Sequence[Mapping[str, Any]] = ()
    names: frozenset[str] = frozenset()
    make_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}"


class PartWriter:
    """Puts parts together, and decides about blanks."""

    def __init__(self, make_id: Callable[[], str]) -> None:
        self._make_id = make_id
        self._parts: list[ReplyPart] = []
        self._blanks: list[str] = []
        self._wrote = False
        self._after_block = False
        self._thoughts = 0
        self._thought: list[str] | None = None
        """Blanks held within thinking; None before its first character."""
        self._joint = ""
        self.num_calls = 0

    def take(self) -> list[ReplyPart]:
        parts, self._parts = self._parts, []
        return parts

    def content(self, text: str) -> None:
        if self._after_block:
            text = text.lstrip(_BLANK)
        body = text.rstrip(_BLANK)
        if not body:
            if text:
                self._blanks.append(text)
            return
        self._put(Content("".join(self._blanks) + body))
        self._blanks = [text[len(body) :]]
        self._wrote, self._after_block = True, False

    def content_region(self, joint: str) -> None:
        """Content in its own markers begins."""
        self._block()
        if self._wrote and not any(self._blanks):
            self._blanks = [joint]

    def begin_reasoning(self, joint: str) -> None:
        self._block()
        self._thought, self._joint = None, joint if self._thoughts else ""

    def reasoning(self, text: str) -> None:
        if self._thought is None:
            text = text.lstrip(_BLANK)
        body = text.rstrip(_BLANK)
        if not body:
            if text and self._thought is not None:
                self._thought.append(text)
            return
        self._put(Reasoning(self._joint + "".join(self._thought or ()) + body))
        self._thought, self._joint = [text[len(body) :]], ""
        self._thoughts += 1

    def step(self, step: Step) -> None:
        match step:
            case Begin(name):
                self._block()
                self._put(CallStart(self.num_calls, self._make_id(), name))
                self.num_calls += 1
            case More(text):
                self._put(CallArguments(self.num_calls - 1, text))
            case End():
                self._put(CallEnd(self.num_calls - 1))

    def finish(self) -> None:
        blanks = "".join(self._blanks)
        if blanks and not self._after_block:
            self._put(Content(blanks))
        self._blanks = []

    def _block(self) -> None:
        self._after_block = True
        if not self._wrote:
            self._blanks = []

    def _put(self, part: ReplyPart) -> None:
        self._parts.append(part)


class _Mode(Enum):
    OUTSIDE = auto()
    TEXT = auto()
    """Within thinking or content that has its own markers."""
    WHOLE = auto()
    JSON = auto()
    AFTER = auto()
    """After a JSON value, before the marker that closes its region."""
    BROKEN = auto()
    """Within arguments that are no JSON: they end at the closing marker."""


class RegionReader:
    """A ``ReplyReader`` for one output.

    Args:
        grammar: what to read by.
        opened: a region that the prompt has opened.
        before: the part of the reply that the prompt holds.
    """

    def __init__(self, grammar: Grammar, *, opened: Region | None = None, before: str = "") -> None:
        self._grammar = grammar
        self._opens = Watch([region.open for region in grammar.regions])
        self._scanner = Scanner(before)
        self._writer = PartWriter(grammar.make_id)
        self._region: Region | None = None
        self._calls: JsonCalls | None = None
        self._raw: list[str] = []
        """The text of a region that may turn out to be no call."""
        self._marks = ""
        """Markers that are left out if a region follows."""
        self._in_call = self._after_call = False
        self._mode = _Mode.OUTSIDE
        if opened is not None:
            self._open(opened, "", {})

    @property
    def region(self) -> Region | None:
        """The region that the text so far has opened."""
        return self._region

    @property
    def in_reasoning(self) -> bool:
        return self._region is not None and self._region.kind is Kind.REASONING

    @property
    def num_calls(self) -> int:
        return self._writer.num_calls

    def feed(self, text: str) -> list[ReplyPart]:
        if text:
            self._scanner.add(text)
            self._run()
        return self._writer.take()

    def finish(self) -> list[ReplyPart]:
        self._scanner.end()
        self._run()
        self._end()
        self._writer.content(self._marks)
        self._writer.finish()
        return self._writer.take()

    def _run(self) -> None:
        steps = {
            _Mode.OUTSIDE: self._outside,
            _Mode.TEXT: self._text,
            _Mode.WHOLE: self._whole,
            _Mode.JSON: self._json,
            _Mode.AFTER: self._after,
            _Mode.BROKEN: self._text,
        }
        while steps[self._mode]():
            pass

    # Each of these reads on in its mode, and says whether the mode changed: then there may be more to read.

    def _outside(self) -> bool:
        text, hit = self._scanner.find(self._opens)
        self._content(text)
        if hit is None:
            return False
        self._open(self._grammar.regions[hit.number], hit.text, hit.groups)
        return True

    def _text(self) -> bool:
        text, hit = self._to_close()
        if self._mode is _Mode.BROKEN:
            if text:
                self._writer.step(More(text))
        elif self.in_reasoning:
            self._writer.reasoning(text)
        else:
            self._writer.content(text)
        if hit is None:
            return False
        if self._mode is _Mode.BROKEN:
            self._step(End())
        self._close()
        return True

    def _whole(self) -> bool:
        text, hit = self._to_close()
        self._raw.append(text)
        if hit is None:
            return False
        self._raw.append(hit.text)
        raw = self._take_raw()
        calls = self._grammar.parser.calls(raw, self._grammar.tools)
        for name, arguments in calls:
            self._step(Begin(name))
            self._step(More(arguments))
            self._step(End())
        self._close()
        if not calls:
            self._content(raw)
        return True

    def _json(self) -> bool:
        assert self._calls is not None
        assert self._region is not None
        text, done = self._scanner.rest(), 0
        for step, at in self._calls.feed(text):
            self._raw.append(text[done:at])
            done = at
            if step is not None:
                self._step(step)
        self._scanner.advance(done)
        if self._in_call or (self._after_call and self._calls.state is State.DONE):
            self._raw = []
        match self._calls.state:
            case State.OPEN:
                return False
            case State.DONE if self._region.close is not None:
                self._mode = _Mode.AFTER
            case State.BROKEN:
                self._mode = _Mode.BROKEN
            case _:
                self._close_json()
        return True

    def _after(self) -> bool:
        assert self._region is not None
        assert self._region.close is not None
        text = self._scanner.rest()
        blank = text[: len(text) - len(text.lstrip(_BLANK))]
        if blank:
            self._raw.append(blank)
            self._scanner.advance(len(blank))
        found = self._scanner.here(self._region.close)
        if found is PENDING:
            return False
        if isinstance(found, Hit):
            self._raw.append(found.text)
        if self._after_call:
            self._raw = []
        self._close_json()
        return True

    def _to_close(self) -> tuple[str, Hit | None]:
        assert self._region is not None
        return self._scanner.find(self._region.close or _NEVER)

    def _open(self, region: Region, marker: str, groups: Mapping[str, str]) -> None:
        if region.kind is Kind.MARK:
            if not self._after_call:
                self._marks += marker
            return
        if region.kind in (Kind.REASONING, Kind.CONTENT):
            self._marks = ""
        self._region = region
        match region.kind:
            case Kind.REASONING:
                self._writer.begin_reasoning(region.joint)
                self._mode = _Mode.TEXT
            case Kind.CONTENT:
                self._writer.content_region(region.joint)
                self._mode = _Mode.TEXT
            case Kind.WHOLE:
                self._raw, self._mode = [marker], _Mode.WHOLE
            case Kind.JSON:
                self._raw, self._mode = [marker], _Mode.JSON
                name = groups.get("name", "") if region.shape is Shape.ARGUMENTS else None
                # A bare object is a call only where it names a tool.
                accept = (lambda name: True) if marker else self._grammar.names.__contains__
                self._calls = JsonCalls(region.shape, region.keys, name, lenient=bool(marker), accept=accept)
        self._after_call = False

    def _step(self, step: Step) -> None:
        if isinstance(step, Begin):
            self._marks = ""
        self._in_call = not isinstance(step, End)
        self._after_call = isinstance(step, End)
        if not isinstance(step, More):
            self._raw = []
        self._writer.step(step)

    def _close(self) -> None:
        self._region, self._calls, self._mode = None, None, _Mode.OUTSIDE

    def _close_json(self) -> None:
        """Leaves a JSON region; what it held beside calls is content, as it was written."""
        raw = self._take_raw()
        if not raw and not self._after_call:
            self._scanner.skip_once()
        self._close()
        self._content(raw)

    def _end(self) -> None:
        """The text is over within a region: what was held is content."""
        if self._calls is not None and self._in_call and self._calls.finish():
            self._step(End())
        self._close()
        self._content(self._take_raw())

    def _take_raw(self) -> str:
        raw, self._raw = "".join(self._raw), []
        return raw

    def _content(self, text: str) -> None:
        """Content, after the markers that no region followed."""
        if text.strip(_BLANK):
            text, self._marks, self._after_call = self._marks + text, "", False
            self._writer.content(text)
        elif self._marks:
            self._marks += text
        else:
            self._writer.content(text)


_NEVER = Watch([])
