"""One style for all figures of the lab: colours, axes with fixed margins, and labels of numbers and durations.

Colours are Okabe and Ito's, told apart by every kind of colour vision; lines differ in their dashes, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullFormatter, PercentFormatter

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442",
)  # fmt: skip
INK, SOFT, FAINT = "#22303c", "#6b7a88", "#dfe5ea"
HEAT = "cividis"
DPI = 130
WIDTH = 9.0
ROUND_S = (1e-6, 1e-4, 1e-2, 0.1, 1, 10, 60, 600, 3600, 36000, 864000)
"""Where a logarithmic axis of durations has its labels."""
FINE_S = (
    *(digit * 10.0**power for power in range(-6, 1) for digit in (1, 2, 3, 5)),
    *(10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 86400, 2 * 86400, 5 * 86400),
)
"""The same for short axes."""
LONGEST_TITLE = 44

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titley": 1.0,  # a title that looks for its place measures every label first
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, SKY]),
}


@contextmanager
def in_style() -> Iterator[None]:
    """Figures made inside look like the lab's."""
    with rc_context(STYLE):
        yield


def new_figure(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """Axes with fixed margins in inches: a layout that measures every label takes longer than the drawing."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    left, right, top, bottom = 0.92, 0.35, 0.42, 0.58
    between = 0.5 if options.get("sharex") else 0.98
    wide = (WIDTH - left - right - 1.05 * (columns - 1)) / columns
    high = (height - top - bottom - between * (rows - 1)) / rows
    figure.subplots_adjust(
        left=left / WIDTH,
        right=1 - right / WIDTH,
        top=1 - top / height,
        bottom=bottom / height,
        wspace=1.05 / wide,
        hspace=between / high,
    )
    return figure, axes


def array(values: Sequence[Any]) -> np.ndarray:
    """As float64; None becomes NaN."""
    return np.array(values, dtype=np.float64)


def eng(axis: Any) -> None:
    """``12 k`` for 12,000."""
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def percent(axis: Any, decimals: int | None = 0) -> None:
    """``50%`` for 0.5."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def titles(axes: Sequence[Any], names: Sequence[str]) -> None:
    """Titles over half of a figure each: all smaller where one is long, very long ones without their middle."""
    half = LONGEST_TITLE // 2
    short = [name if len(name) <= LONGEST_TITLE else f"{name[: half - 1]}…{name[-half:]}" for name in names]
    size = 11 if max(map(len, short)) <= 34 else 9
    for axis, name in zip(axes, short, strict=False):
        axis.set_title(name, fontsize=size)


def room_above(axis: Any, factor: float) -> None:
    """An axis from 0 to ``factor`` times what is drawn highest, so that words fit above it."""
    axis.set_ylim(0, factor * (axis.dataLim.y1 or 1.0))


def white(legend: Any) -> None:
    """A legend that what lies under it does not disturb."""
    legend.set_frame_on(True)
    legend.get_frame().set(alpha=0.85, edgecolor="none", facecolor="white")


class _RoundDurations(FixedLocator):
    """Durations in view that are not too close to the last one: of ``ROUND_S``, or of all where that are under two."""

    def __call__(self) -> Any:
        assert self.axis is not None
        low, high = sorted(np.log10(np.maximum(self.axis.get_view_interval(), 1e-9)))
        few = _spread(ROUND_S, low, high)
        return few if few.size > 1 else _spread(FINE_S, low, high)


def _spread(candidates: Sequence[float], low: float, high: float) -> np.ndarray:
    shown: list[float] = []
    for at in np.log10(candidates):
        if low <= at <= high and (not shown or at - shown[-1] >= 0.13 * (high - low)):
            shown.append(float(at))
    return np.asarray(10.0 ** np.array(shown))


def seconds_axis(axis: Any) -> None:
    """A logarithmic axis of durations, labelled at round ones."""
    axis.set_major_locator(_RoundDurations(ROUND_S))
    axis.set_tick_params(labelsize=8)
    axis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axis.set_minor_formatter(NullFormatter())


def duration(seconds: float) -> str:
    """``90 s`` as ``1.5 min``, and so on."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"


def clock(span_s: float) -> tuple[float, str]:
    """A unit for a time axis of ``span_s``: its length and its label."""
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if span_s >= 3 * size:
            return size, f"time since the trace's start ({unit})"
    return 1.0, "time since the trace's start (seconds)"


def grid_of(parts: Sequence[Any], height: float, **options: Any) -> tuple[Figure, list[Any]]:
    """Axes of ``height`` inches for each of ``parts``, two in a row; the one left over is off."""
    columns = 1 if len(parts) == 1 else 2
    rows = -(-len(parts) // columns)
    figure, axes = new_figure(rows, columns, height * rows, **options)
    flat = list(axes.flat)
    for axis in flat[len(parts) :]:
        axis.set_axis_off()
    return figure, flat


def wide_log(axis: Any) -> None:
    """A logarithmic y axis where the data span a decade or more."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axis.get_lines()])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > 10 * values.min():
        axis.set_yscale("log")
        plain_log(axis.yaxis)
    else:
        room_above(axis, 1.12)


def plain_log(axis: Any) -> None:
    """``100`` rather than a power of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
