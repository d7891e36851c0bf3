from __future__ import annotations

import pytest

from braid.lab.replay.sending.sse import MAX_EVENT, EventReader, LongEventError

STREAM = (
    b': hello\n\ndata: {"a":1}\n\nevent: error\ndata: one\ndata: two\nid: 7\n\ndata:x\n\ndata: [DONE]\n\n'
)
EVENTS = [(b"", b'{"a":1}'), (b"error", b"one\n two"), (b"", b"x"), (b"", b"[DONE]")]


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_how_bytes_come(line_end: bytes, size: int) -> None:
    reader = EventReader()
    data = STREAM.replace(b"\n", line_end)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS
    assert reader.end() == []


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_split_anywhere_changes_nothing(cut: int) -> None:
    reader = EventReader()
    assert reader.feed(STREAM[:cut]) + reader.feed(STREAM[cut:]) == EVENTS


def test_an_event_that_nothing_closed_comes_at_the_end() -> None:
    reader = EventReader()
    assert reader.feed(b"data: [DO") == []
    assert reader.feed(b"NE]") == []
    assert reader.end() == [(b"", b"[DONE]")]
    assert reader.end() == []


def test_a_line_without_end_is_refused() -> None:
    reader = EventReader()
    for _ in range(MAX_EVENT // 65536):
        assert reader.feed(b"x" * 65536) == []
    with pytest.raises(LongEventError):
        reader.feed(b"x" * 65536)


def test_an_event_of_many_lines_is_refused() -> None:
    reader = EventReader()
    line = b"data: " + b"x" * 65536 + b"\n"
    for _ in range(MAX_EVENT // len(line)):
        assert reader.feed(line) == []
    with pytest.raises(LongEventError):
        reader.feed(line)
