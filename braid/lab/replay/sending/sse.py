"""Server-sent events out of bytes, in pieces of any size."""

from __future__ import annotations

Event = tuple[bytes, bytes]
"""The event's name (empty for none) and its data."""
MAX_EVENT = 1 << 20
"""Bytes of one line, and of the data of one event. Events of streamed tokens have a few hundred."""


class LongEventError(ValueError):
    """An event, or a line, of more than ``MAX_EVENT`` bytes."""


class EventReader:
    """Reads lines that end in LF, CRLF or CR; joins the data of an event; leaves out comments and other fields."""

    __slots__ = ("_data", "_is_clean", "_name", "_size", "_skip_lf", "_tail")

    def __init__(self) -> None:
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0
        self._skip_lf = False
        self._is_clean = True

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete.

        Raises:
            LongEventError: the reader cannot go on.
        """
        if (
            self._is_clean
            and data[-2:] == b"\n\n"
            and data[:5] == b"data:"
            and data.find(b"\n") == len(data) - 2
            and data.find(b"\r") < 0
        ):
            return [(b"", data[5:-2].strip())]  # nearly all there ever is
        events = self._feed(data)
        self._is_clean = not (self._tail or self._data or self._name or self._skip_lf)
        return events

    def _feed(self, data: bytes) -> list[Event]:
        if self._skip_lf or b"\r" in data:
            data = self._plain(data)
        end = data.rfind(b"\n")
        if end < 0:
            self._keep(data)
            return []
        lines = bytes(self._tail + data[:end]).split(b"\n")
        self._tail.clear()
        self._keep(data[end + 1 :])
        return self._events(lines)

    def end(self) -> list[Event]:
        """What was not closed by an empty line when the stream ended."""
        lines = [bytes(self._tail), b""]
        self._tail.clear()
        return self._events(lines)

    def _plain(self, data: bytes) -> bytes:
        """All line ends as LF; one CRLF may be split between two pieces."""
        if self._skip_lf and data.startswith(b"\n"):
            data = data[1:]
            self._skip_lf = False
        if data:
            self._skip_lf = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _keep(self, rest: bytes) -> None:
        self._tail += rest
        if len(self._tail) > MAX_EVENT:
            raise LongEventError(f"a line of more than {MAX_EVENT} bytes")

    def _events(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            if not line:
                if self._data:
                    events.append((self._name, b"\n".join(self._data).strip()))
                self._data, self._name, self._size = [], b"", 0
            elif line.startswith(b"data:"):
                self._data.append(line[5:])
                self._size += len(line)
                if self._size > MAX_EVENT:
                    raise LongEventError(f"an event of more than {MAX_EVENT} bytes")
            elif line.startswith(b"event:"):
                self._name = line[6:].strip()
        return events
