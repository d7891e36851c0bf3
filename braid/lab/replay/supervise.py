"""The sender processes of a run: started, begun at one instant, watched, stopped, and their outcomes gathered."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

import msgspec

from braid.core.errors import BraidError
from braid.lab.replay.files import RunSpec
from braid.lab.replay.live import Board, Live
from braid.lab.replay.outcome import Outcome

POLL_S = 0.25
LEAD_S = 0.25
"""From the senders being ready to the start of a run."""
_LENGTH = 4


class ReplayError(BraidError, RuntimeError):
    """A run cannot be started; the text says why."""


class Stop:
    """A run's stop switch: pressed once, nothing more is sent and what is there is kept; twice, at once."""

    def __init__(self) -> None:
        self.presses = 0
        self.armed = False

    def press(self) -> None:
        self.presses += 1

    @classmethod
    @contextlib.contextmanager
    def on_interrupt(cls) -> Iterator[Stop]:
        """Ctrl-C and SIGTERM press it while a run is on, and are an ordinary interrupt otherwise."""
        stop = cls()

        def pressed(number: int, frame: FrameType | None) -> None:
            if not stop.armed:
                raise KeyboardInterrupt
            stop.press()

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, pressed) for number in numbers]
        try:
            yield stop
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


class Played(NamedTuple):
    """What came of it. ``reasons[k]``: why requests of sender ``k`` have no outcome, where they have none."""

    outcomes: list[Outcome]
    problems: tuple[str, ...]
    reasons: tuple[str, ...]
    stopped: str


class Senders:
    """Processes that play a folder. As a context manager it leaves none behind."""

    def __init__(self, folder: Path, num: int) -> None:
        self._folder = folder
        self._logs = [folder / f"sender-{number}.log" for number in range(num)]
        self._all: list[subprocess.Popen[bytes]] = []
        self._told = 0

    def __enter__(self) -> Senders:
        try:
            for number, log in enumerate(self._logs):
                with log.open("wb") as errors:
                    command = [
                        sys.executable,
                        "-m",
                        "braid.lab.replay.sending.sender",
                        str(self._folder),
                        str(number),
                    ]
                    # A session of its own: Ctrl-C in a terminal goes to us, and we say when they stop.
                    self._all.append(
                        subprocess.Popen(
                            command,
                            stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE,
                            stderr=errors,
                            start_new_session=True,
                        )
                    )
            for number, sender in enumerate(self._all):
                assert sender.stdout is not None
                if sender.stdout.readline().strip() != b"ready":
                    sender.wait()
                    raise ReplayError(f"sender {number} did not start: {self._last_words(number)}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sender in self._all:
            if sender.poll() is None:
                sender.kill()
            sender.wait()
            for pipe in (sender.stdin, sender.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def begin(self, start: float, api_key: str | None) -> None:
        """Tell all the instant, on ``time.monotonic()``, from which the plan's times count, and the key."""
        line = msgspec.json.encode({"start": start, "api_key": api_key}) + b"\n"
        for sender in self._all:
            assert sender.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it died: seen when its end is looked at
                sender.stdin.write(line)
                sender.stdin.flush()

    def wait(self, timeout_s: float) -> bool:
        """True when all have ended."""
        end = time.monotonic() + timeout_s
        for sender in self._all:
            try:
                sender.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                return False
        return True

    def stop(self, presses: int) -> None:
        """As a ``Stop`` says; telling it again changes nothing."""
        if presses == self._told:
            return
        self._told = presses
        for sender in self._all:
            if sender.poll() is None:
                sender.send_signal(signal.SIGTERM if presses == 1 else signal.SIGKILL)

    def deaths(self) -> dict[int, str]:
        """Those that did not end well, and why."""
        return {
            number: f"sender {number} died ({_status(sender.returncode)}): {self._last_words(number)}"
            for number, sender in enumerate(self._all)
            if sender.returncode
        }

    def _last_words(self, number: int) -> str:
        lines = self._logs[number].read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def play(
    folder: Path,
    spec: RunSpec,
    *,
    num_requests: int,
    span_s: float,
    api_key: str | None,
    live: Live,
    stop: Stop,
    lead_s: float = LEAD_S,
) -> Played:
    """Play a folder to its end.

    Args:
        num_requests, span_s: of the plan, for the view.
        lead_s: from the senders being ready to the run's start. A negative one makes every early request late, by
            a known time.

    Raises:
        ReplayError: a sender cannot start.
    """
    board = Board(folder, spec.num_senders, num_requests, span_s)
    with Senders(folder, spec.num_senders) as senders:
        stop.armed = True
        start = time.monotonic() + lead_s
        senders.begin(start, api_key)
        try:
            _watch(senders, board, start, live, stop)
        finally:
            stop.armed = False
        deaths = senders.deaths()
    killed = stop.presses > 1
    outcomes, problems = read_outcomes(folder, spec.num_senders)
    stopped = "interrupted" if stop.presses else ""
    reasons = [_reason(number, deaths, stopped) for number in range(spec.num_senders)]
    return Played(outcomes, (*(() if killed else deaths.values()), *problems), tuple(reasons), stopped)


def read_outcomes(folder: Path, num_senders: int) -> tuple[list[Outcome], list[str]]:
    """All records, and what is wrong with them; a last one that was not written to its end is left out."""
    outcomes: list[Outcome] = []
    problems: list[str] = []
    for number in range(num_senders):
        path = folder / f"outcomes-{number}.mp"
        data = path.read_bytes() if path.exists() else b""
        try:
            outcomes += records(data)
        except msgspec.MsgspecError as error:
            problems.append(f"the outcomes of sender {number} cannot be read: {error}")
    seen: set[int] = set()
    twice = [o.request for o in outcomes if o.request in seen or seen.add(o.request)]  # type: ignore[func-returns-value]
    if twice:
        problems.append(f"{len(twice)} requests have two outcomes, such as request {twice[0]}")
    return outcomes, problems


def records(data: bytes) -> Iterator[Outcome]:
    """The records of one file.

    Raises:
        msgspec.MsgspecError: one is none.
    """
    decode = msgspec.msgpack.Decoder(Outcome).decode
    at = 0
    while at + _LENGTH <= len(data):
        end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH], "little")
        if end > len(data):
            return
        yield decode(data[at + _LENGTH : end])
        at = end


def missing(groups: Sequence[int], outcomes: Sequence[Outcome], reasons: Sequence[str]) -> list[Outcome]:
    """``unsent`` for every planned request without an outcome; ``groups[i]`` is request ``i``'s."""
    known = {outcome.request for outcome in outcomes}
    return [
        Outcome(request=number, status="unsent", reason=reasons[group % len(reasons)])
        for number, group in enumerate(groups)
        if number not in known
    ]


def _watch(senders: Senders, board: Board, start: float, live: Live, stop: Stop) -> None:
    told = 0
    while not senders.wait(POLL_S):
        live.update(board.read(time.monotonic() - start))
        if stop.presses > told:
            told = stop.presses
            live.stopping("stopping; Ctrl-C again to stop at once" if told == 1 else "stopping at once")
        senders.stop(min(told, 2))
    live.update(board.read(time.monotonic() - start))


def _reason(number: int, deaths: dict[int, str], stopped: str) -> str:
    if stopped:
        return "the run was stopped"
    return "sender died" if number in deaths else "the sender told no outcome"


def _status(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
