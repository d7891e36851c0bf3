"""A sender process: ``python -m braid.lab.replay.sending.sender FOLDER K`` plays its share of a folder (``files.py``).

It says ``ready`` on stdout, reads one JSON line on stdin, ``{"start": monotonic seconds, "api_key": text or null}``,
and plays until every request has an outcome. SIGINT, SIGTERM, or the end of stdin stop it; it ends well then too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from braid.core.errors import BraidError
from braid.lab.replay.sending.folder import Folder
from braid.lab.replay.sending.ledger import Ledger
from braid.lab.replay.sending.player import Player

_MAX_LINE = 1 << 16


class Start(msgspec.Struct, frozen=True):
    """What is told on stdin. ``start`` is the run's beginning on ``time.monotonic()``."""

    start: float
    api_key: str | None = None


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for this system
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Control:
    """The parent's side: its line on stdin, the end of it, and signals."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._line = b""
        self._has_begun = False
        self._is_over = False
        self.crash: BaseException | None = None
        loop.set_exception_handler(self._crashed)

    def stop(self) -> None:
        """End the loop."""
        if not self._is_over:
            self._is_over = True
            self._loop.stop()

    def watch(self, player: Player) -> None:
        """Do with it as the parent says."""
        self._player = player
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, player.stop)
        os.set_blocking(sys.stdin.fileno(), False)
        self._loop.add_reader(sys.stdin.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = os.read(sys.stdin.fileno(), _MAX_LINE)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(sys.stdin.fileno())
            self._player.stop()
        elif not self._has_begun:
            self._line += data
            if b"\n" in data:
                self._has_begun = True
                start = _start(self._line.split(b"\n", 1)[0])
                self._player.begin(start.start, start.api_key)

    def _crashed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.stop()
        self.crash = self.crash or context.get("exception") or RuntimeError(context["message"])


def _start(line: bytes) -> Start:
    try:
        return msgspec.json.decode(line, type=Start)
    except (msgspec.MsgspecError, ValueError) as error:
        # The line holds a key: not a word of it.
        raise StartError(f"the line on stdin is no start: {type(error).__name__}") from None


class StartError(BraidError, ValueError):
    """A parent does not say when to begin."""


def play(path: Path, number: int) -> None:
    """Play sender ``number``'s share of a folder to its end, as the parent says.

    Raises:
        BraidError: it cannot be played, or the parent does not say when.
        OSError: the folder cannot be written.
    """
    folder = Folder(path)
    loop = _new_loop()
    asyncio.set_event_loop(loop)
    with Ledger(path, number) as ledger, contextlib.closing(loop):
        control = _Control(loop)
        control.watch(Player(folder, number, ledger, loop, control.stop))
        gc.collect()
        gc.freeze()
        gc.disable()  # Its pauses would be lags; connections leave no cycles behind.
        print("ready", flush=True)
        loop.run_forever()
        _settle(loop)
    if control.crash is not None:
        raise control.crash


def _settle(loop: asyncio.AbstractEventLoop) -> None:
    """Let what was hung up on be closed."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(asyncio.sleep(0), *tasks, return_exceptions=True))


def main(arguments: list[str]) -> int:
    """The exit status."""
    if len(arguments) != 2 or not arguments[1].isdecimal():
        print("usage: python -m braid.lab.replay.sending.sender FOLDER NUMBER", file=sys.stderr)
        return 2
    try:
        play(Path(arguments[0]), int(arguments[1]))
    except (BraidError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
