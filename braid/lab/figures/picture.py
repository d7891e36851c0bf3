"""Figures with a name, a title and a text, drawn into PNG files. What they are drawn from is up to the caller."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Generic, TypeVar

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from braid.lab.figures.style import in_style, plain_log
from braid.lab.progress import NoProgress, Progress

Subject = TypeVar("Subject")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A drawn figure. ``text`` says what it shows and how to read it, for the page."""

    name: str
    title: str
    text: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Plot(Generic[Subject]):
    """A figure that can be drawn: ``draw`` gives None where the subject lacks what it needs."""

    name: str
    title: str
    text: str
    draw: Callable[[Subject], Figure | None]


def draw_plots(
    plots: Sequence[Plot[Subject]],
    subject: Subject,
    progress: Progress | None = None,
    beside: Callable[[str], bytes] | None = None,
) -> tuple[Picture, ...]:
    """Those of ``plots`` that ``subject`` has numbers for, in order.

    Args:
        beside: draws the plot of a name elsewhere, while others are drawn here; no bytes where there is nothing to see.
    """
    left, drawn = deque(plots), dict[str, bytes]()

    def draw_from_the_end(draw: Callable[[str], bytes]) -> None:
        for plot in _taken(left.pop):
            drawn[plot.name] = draw(plot.name)

    with ThreadPoolExecutor(1) as pool, in_style(), _no_collection():
        other = pool.submit(draw_from_the_end, beside) if beside else None
        told = progress or NoProgress()
        try:
            for plot in _taken(left.popleft):
                told.update("drawing", len(drawn), len(plots))
                drawn[plot.name] = draw_one(plot, subject)
        finally:
            left.clear()
        if other:
            other.result()
    told.update("drawing", len(plots), len(plots))
    return tuple(
        Picture(name=plot.name, title=plot.title, text=plot.text, png=drawn[plot.name])
        for plot in plots
        if drawn[plot.name]
    )


def draw_one(plot: Plot[Subject], subject: Subject) -> bytes:
    """A plot as a PNG file; no bytes where the subject lacks what it needs."""
    figure = plot.draw(subject)
    return b"" if figure is None else png(figure)


def _taken(take: Callable[[], Plot[Subject]]) -> Iterator[Plot[Subject]]:
    """One after the other, until none is left; two may take from the same ones."""
    while True:
        try:
            plot = take()
        except IndexError:
            return
        yield plot


@contextmanager
def _no_collection() -> Iterator[None]:
    """Figures are made of a great many small objects, all in use until they are drawn: looking for garbage among them
    takes a seventh of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    for axes in figure.axes:
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):  # mathematical text is slow to set
                plain_log(axis)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 4})
    return buffer.getvalue()
