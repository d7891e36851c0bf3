"""Figures with a name, a title and a text, drawn into PNG files. What they are drawn from is up to the caller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    plots: Sequence[Plot[Subject]], subject: Subject, progress: Progress | None = None
) -> tuple[Picture, ...]:
    """Those of ``plots`` that ``subject`` has numbers for, in order."""
    told = progress or NoProgress()
    pictures = []
    with in_style():
        for number, plot in enumerate(plots):
            told.update("drawing", number, len(plots))
            figure = plot.draw(subject)
            if figure is not None:
                pictures.append(Picture(name=plot.name, title=plot.title, text=plot.text, png=png(figure)))
    told.update("drawing", len(plots), len(plots))
    return tuple(pictures)


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
