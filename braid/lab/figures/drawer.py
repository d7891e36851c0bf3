"""The other end of ``process.DrawingProcess``: ``python -m braid.lab.figures.drawer``."""

from __future__ import annotations

import gc
import signal
import sys

import msgspec

from braid.lab.describe.description import Description
from braid.lab.figures.picture import draw_one
from braid.lab.figures.process import read_frame, write_frame
from braid.lab.figures.style import in_style
from braid.lab.figures.trace import PLOTS


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent closes our input
    gc.disable()
    shown = read_frame(sys.stdin.buffer)
    if shown is None:
        return
    description = msgspec.msgpack.decode(shown, type=Description)
    plots = {plot.name: plot for plot in PLOTS}
    with in_style():
        while name := read_frame(sys.stdin.buffer):
            write_frame(sys.stdout.buffer, draw_one(plots[name.decode()], description))


if __name__ == "__main__":
    main()
