"""Finding markers in text that grows. What is found depends on the text alone, never on how it was cut.

Rules:
    1. A place is judged by the text up to each further character in turn, whatever came with it at once.
    2. Of several markers at one place the longest wins; where one may still grow, the others wait.
    3. The cost is linear: what is decided is dropped, and a marker is at most ``MAX_MARKER`` characters long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from braid.core.errors import BraidError, CheckpointError

MAX_MARKER = 1024
_CONTEXT = 64
_ASCII = "".join(map(chr, range(128)))


class Span(NamedTuple):
    """A marker that is complete: where it ends, and what its named groups hold."""

    end: int
    groups: dict[str, str]


class _Pending:
    """The text so far may be the beginning of a marker."""


PENDING: Final = _Pending()
Outcome = Span | _Pending | None


class Marker:
    """What begins or ends a part of a reply: one of several literals, or a pattern of the ``regex`` package.

    Raises:
        CheckpointError: the pattern is not valid.
    """

    def __init__(self, *, literals: Sequence[str] = (), pattern: str | None = None) -> None:
        self.literals = tuple(sorted(literals, key=len, reverse=True))
        self._pattern = None if pattern is None else compile_pattern(pattern)
        # A pattern that looks back says nothing about the character it begins with.
        looks_back = pattern is not None and ("(?<=" in pattern or "(?<!" in pattern)
        self.starters = (
            _ASCII if looks_back else "".join(c for c in _ASCII if self.judge(c, 0, 1) is not None)
        )

    def judge(self, text: str, begin: int, end: int) -> Outcome:
        """Whether the marker is at ``begin``, with ``text[:end]`` known."""
        if self._pattern is not None:
            match = self._pattern.match(text, begin, end, partial=True)
            if match is None:
                return None
            return PENDING if match.partial or match.end() == end else _span(match)
        known = text[begin:end]
        if any(len(known) < len(literal) and literal.startswith(known) for literal in self.literals):
            return PENDING
        return self._literal(known, begin)

    def last(self, text: str, begin: int) -> Span | None:
        """Whether the marker is at ``begin``, with all text known."""
        if self._pattern is not None:
            match = self._pattern.match(text, begin)
            return None if match is None else _span(match)
        return self._literal(text[begin : begin + MAX_MARKER], begin)

    def _literal(self, known: str, begin: int) -> Span | None:
        found = next((literal for literal in self.literals if known.startswith(literal)), None)
        return None if found is None else Span(begin + len(found), {})


def _span(match: Any) -> Span:
    return Span(match.end(), {key: value for key, value in match.groupdict().items() if value is not None})


@lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> Any:
    """A pattern of the ``regex`` package; ``.`` is any character.

    Raises:
        BraidError: the package is not installed.
        CheckpointError: the pattern is not valid.
    """
    try:
        import regex
    except ImportError as error:
        raise BraidError(
            "reading replies needs the packages transformers and regex: pip install 'braid[engine]'"
        ) from error
    try:
        return regex.compile(pattern, regex.DOTALL)
    except regex.error as error:
        raise CheckpointError(f"response template: pattern {pattern[:80]!r} is not valid: {error}") from error


class Hit(NamedTuple):
    """A marker that was found: its number among those watched, its text, and its named groups."""

    number: int
    text: str
    groups: dict[str, str]


class Watch:
    """Markers looked for at the same time."""

    def __init__(self, markers: Sequence[Marker]) -> None:
        self._markers = tuple(markers)
        starters = "".join(sorted({char for marker in markers for char in marker.starters}))
        # Any character outside ASCII may begin a marker: there are too many to try.
        self._start = re.compile(f"[{re.escape(starters)}\x80-\U0010ffff]") if markers else None

    def candidate(self, text: str, begin: int) -> int | None:
        """The next place where a marker may begin."""
        match = None if self._start is None else self._start.search(text, begin)
        return None if match is None else match.start()

    def judge(self, text: str, begin: int, end: int) -> tuple[int, Span] | _Pending | None:
        """Which marker is at ``begin``, with ``text[:end]`` known."""
        outcomes = [marker.judge(text, begin, end) for marker in self._markers]
        if PENDING in outcomes:
            return PENDING
        return _longest([(i, out) for i, out in enumerate(outcomes) if isinstance(out, Span)])

    def last(self, text: str, begin: int) -> tuple[int, Span] | None:
        """Which marker is at ``begin``, with all text known."""
        spans = [(number, marker.last(text, begin)) for number, marker in enumerate(self._markers)]
        return _longest([(number, span) for number, span in spans if span is not None])


def _longest(found: Sequence[tuple[int, Span]]) -> tuple[int, Span] | None:
    return max(found, key=lambda item: item[1].end, default=None)


class Scanner:
    """The text that is not decided yet.

    Args:
        before: what came before it, for patterns that look back; empty at the very beginning.
    """

    __slots__ = ("_ended", "_judged", "_skip", "_text", "begin")

    def __init__(self, before: str = "") -> None:
        self._text = before[-_CONTEXT:]
        self._judged = 0
        self._ended = False
        self._skip = False
        self.begin = len(self._text)
        """Where the undecided text begins, within what is kept."""

    def add(self, text: str) -> None:
        """More text. A little of what was before stays, for patterns that look back."""
        cut = max(self.begin - _CONTEXT, 0)
        self._text = self._text[cut:] + text
        self.begin -= cut
        self._judged = max(self._judged - cut, 0)

    def end(self) -> None:
        """No more text comes."""
        self._ended = True

    @property
    def is_empty(self) -> bool:
        return self.begin >= len(self._text)

    def rest(self) -> str:
        return self._text[self.begin :]

    def advance(self, num_chars: int) -> None:
        self.begin += num_chars
        self._judged = 0
        self._skip = False

    def skip_once(self) -> None:
        """Look for no marker at this place: what began there was none."""
        self._skip = True

    def find(self, watch: Watch) -> tuple[str, Hit | None]:
        """The text before the next marker, and the marker; None where more text is needed for one."""
        free = place = self.begin
        if self._skip and not self.is_empty:
            place += 1
            self._skip = False
        while True:
            candidate = watch.candidate(self._text, place)
            if candidate is None:
                self.begin, self._judged = len(self._text), 0
                return self._text[free:], None
            found = self._judge(watch, candidate)
            if found is not None:
                self.begin = candidate
                before = self._text[free:candidate]
                return before, None if isinstance(found, _Pending) else self._take(found)
            place = candidate + 1

    def here(self, watch: Watch) -> Hit | _Pending | None:
        """The marker at this very place."""
        if self.is_empty:
            return None if self._ended else PENDING
        found = self._judge(watch, self.begin)
        if found is None or isinstance(found, _Pending):
            return found
        return self._take(found)

    def _take(self, found: tuple[int, Span]) -> Hit:
        number, span = found
        text = self._text[self.begin : span.end]
        self.begin, self._judged = span.end, 0
        return Hit(number, text, span.groups)

    def _judge(self, watch: Watch, begin: int) -> tuple[int, Span] | _Pending | None:
        known = max(self._judged, begin)
        while known < len(self._text):
            known += 1
            found = watch.judge(self._text, begin, known)
            if not isinstance(found, _Pending):
                self._judged = 0
                return found
            if known - begin >= MAX_MARKER:
                self._judged = 0
                return None
        self._judged = known
        if not self._ended:
            return PENDING
        self._judged = 0
        return watch.last(self._text, begin)
