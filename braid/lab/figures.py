"""All figures of a description, one style. Drawn from a ``Description`` alone; nothing here touches a trace.

Colours are Okabe and Ito's, told apart by every kind of colour vision; lines differ in their dashes, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    FuncFormatter,
    LogFormatter,
    NullFormatter,
    PercentFormatter,
)
from scipy.special import zeta

from braid.lab.describe.arrays import QUANTILES
from braid.lab.describe.burst import MIN_GAPS
from braid.lab.describe.description import Description, PanelDescription
from braid.lab.describe.lengths import LengthLaw
from braid.lab.describe.mixture import mixture_density
from braid.lab.progress import NoProgress, Progress

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442",
)  # fmt: skip
INK, SOFT, FAINT = "#22303c", "#6b7a88", "#dfe5ea"
HEAT = "cividis"
DPI = 130
WIDTH = 9.0
ROUND_S = (1e-6, 1e-4, 1e-2, 0.1, 1, 10, 60, 600, 3600, 36000, 864000)
"""Where a logarithmic axis of durations has its labels."""

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A drawn figure. ``text`` says what it shows and how to read it, for the page."""

    name: str
    title: str
    text: str
    png: bytes


@dataclass(frozen=True, slots=True)
class _Plot:
    """A figure that can be drawn: ``draw`` gives None where the description lacks what it needs."""

    name: str
    title: str
    text: str
    draw: Callable[[Description], Figure | None]


def draw_all(description: Description, progress: Progress | None = None) -> tuple[Picture, ...]:
    """Every figure that the description has numbers for, in the order of the page."""
    told = progress or NoProgress()
    pictures = []
    with _style():
        for number, plot in enumerate(PLOTS):
            told.update("drawing", number, len(PLOTS))
            figure = plot.draw(description)
            if figure is not None:
                pictures.append(Picture(name=plot.name, title=plot.title, text=plot.text, png=_png(figure)))
    told.update("drawing", len(PLOTS), len(PLOTS))
    return tuple(pictures)


# Helpers


@contextmanager
def _style() -> Iterator[None]:
    with rc_context(STYLE):
        yield


def _figure(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
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


def _png(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):  # mathematical text is slow to set
                _plain_log(axis)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def _array(values: Sequence[Any]) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def _eng(axis: Any) -> None:
    """``12 k`` for 12,000."""
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def _percent(axis: Any, decimals: int | None = 0) -> None:
    axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def _seconds_axis(axis: Any) -> None:
    axis.set_major_locator(FixedLocator(ROUND_S))
    axis.set_tick_params(labelsize=8)
    axis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
    axis.set_minor_formatter(NullFormatter())


def duration(seconds: float) -> str:
    """``90 s`` as ``1.5 min``, and so on."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"


def _clock(span_s: float) -> tuple[float, str]:
    """A unit for a time axis of ``span_s``: its length and its label."""
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if span_s >= 3 * size:
            return size, f"time since the trace's start ({unit})"
    return 1.0, "time since the trace's start (seconds)"


def _parts(description: Description) -> tuple[PanelDescription, ...]:
    return description.panels or (description.whole,)


def _grid_of(parts: Sequence[Any], height: float, **options: Any) -> tuple[Figure, list[Any]]:
    columns = 1 if len(parts) == 1 else 2
    rows = -(-len(parts) // columns)
    figure, axes = _figure(rows, columns, height * rows, **options)
    flat = list(axes.flat)
    for axis in flat[len(parts) :]:
        axis.set_axis_off()
    return figure, flat


# Load


def _load(description: Description) -> Figure | None:
    series = description.load
    if series is None:
        return None
    figure, axes = _figure(2, 1, 5.0, sharex=True)
    size, label = _clock(description.span_s)
    times = np.arange(len(series.requests)) * series.step_s / size
    top, bottom = axes[:, 0]
    top.fill_between(times, _array(series.requests), step="post", color=BLUE, alpha=0.25, linewidth=0)
    top.step(times, _array(series.requests), where="post", color=BLUE, linewidth=1.1)
    top.set_ylabel("requests / s")
    top.set_title(f"Requests, mean per {duration(series.step_s)}")
    for values, name, colour, dash in (
        (series.in_tok, "prompt", ORANGE, "-"),
        (series.out_tok, "output", GREEN, "-"),
    ):
        bottom.step(
            times, _array(values), where="post", color=colour, linewidth=1.2, linestyle=dash, label=name
        )
    bottom.set_yscale("symlog", linthresh=max(_floor(series.out_tok), 1e-3))
    bottom.set_title("Tokens")
    bottom.set_ylabel("tokens / s")
    bottom.set_xlabel(label)
    bottom.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.2))
    _eng(bottom.yaxis)
    top.set_ylim(bottom=0)
    top.margins(x=0.01)
    return figure


def _floor(values: Sequence[float | None]) -> float:
    positive = [value for value in values if value]
    return float(np.quantile(positive, 0.05)) if positive else 1.0


def _weekly(description: Description) -> Figure | None:
    parts = [part for part in _parts(description) if part.calendar]
    if not parts or description.span_s < 7 * 86400:
        return None
    figure, axes = _grid_of(parts, 3.4)
    for axis, part in zip(axes, parts, strict=False):
        days = _array(part.calendar.per_day)  # type: ignore[union-attr]
        weeks = np.pad(days, (0, -len(days) % 7), constant_values=np.nan).reshape(-1, 7)
        mesh = axis.pcolormesh(
            np.arange(8), np.arange(len(weeks) + 1), weeks, cmap=HEAT, vmin=0, rasterized=True
        )
        axis.invert_yaxis()
        axis.set_xticks(np.arange(7) + 0.5, [str(day) for day in range(7)])
        axis.set(title=part.panel.name, xlabel="day of the week (0: first day)", ylabel="week")
        axis.grid(False)
        bar = figure.colorbar(mesh, ax=axis, label="requests / day", pad=0.02)
        _eng(bar.ax.yaxis)
        bar.outline.set_visible(False)
    return figure


def _hourly(description: Description) -> Figure | None:
    parts = [part for part in _parts(description) if part.calendar]
    if not parts:
        return None
    figure, axes = _grid_of(parts, 3.1)
    for axis, part in zip(axes, parts, strict=False):
        _boxes(axis, part.calendar.hour_requests, BLUE)  # type: ignore[union-attr]
        share = part.calendar.daily_share  # type: ignore[union-attr]
        if share is not None:
            text = f"hour of day explains {share:.0%} of the variance"
            axis.annotate(
                text, (0.98, 0.95), xycoords="axes fraction", ha="right", va="top", color=SOFT, fontsize=9
            )
        axis.set(title=part.panel.name, xlabel="hour of the day", ylabel="requests / hour")
    return figure


def _tokens_hourly(description: Description) -> Figure | None:
    parts = [part for part in _parts(description) if part.calendar]
    if not parts:
        return None
    figure, axes = _grid_of(parts, 3.1)
    for axis, part in zip(axes, parts, strict=False):
        _boxes(axis, part.calendar.hour_in_tok, ORANGE, -0.2, "prompt")  # type: ignore[union-attr]
        _boxes(axis, part.calendar.hour_out_tok, GREEN, 0.2, "output")  # type: ignore[union-attr]
        axis.set_yscale("symlog", linthresh=1000)
        _eng(axis.yaxis)
        axis.set(title=part.panel.name, xlabel="hour of the day", ylabel="tokens / hour")
    axes[0].legend(loc="upper right", bbox_to_anchor=(1, 1.17), ncols=2)
    return figure


def _boxes(
    axis: Any, rows: Sequence[Sequence[Any]], colour: str, shift: float = 0.0, label: str = ""
) -> None:
    """Boxes p25-p75 with the median and whiskers to p5 and p95."""
    low, first, middle, third, high = _array(rows).T
    at = np.arange(len(rows)) + shift
    width = 0.34 if shift else 0.62
    axis.vlines(at, low, high, color=colour, linewidth=1, alpha=0.8)
    axis.bar(
        at,
        third - first,
        width,
        first,
        color=colour,
        alpha=0.35,
        edgecolor=colour,
        linewidth=0.8,
        label=label,
    )
    axis.hlines(middle, at - width / 2, at + width / 2, color=INK, linewidth=1.6)
    axis.set_xticks(range(0, len(rows), 3 if len(rows) > 12 else 1))
    axis.set_ylim(bottom=0)
    _eng(axis.yaxis)


# Bursts


def _bursts(description: Description) -> Figure | None:
    arrivals = description.burstiness
    if arrivals is None:
        return None
    windows = arrivals.windows
    size, label = _clock(description.span_s)
    figure, axes = _figure(3, 1, 6.4, sharex=True)
    at = _array(windows.start_s) / size
    many = len(at) > 150
    look: dict[str, Any] = (
        {"marker": ".", "markersize": 2, "linestyle": "none", "alpha": 0.5}
        if many
        else {"marker": "o", "markersize": 5, "drawstyle": "steps-mid"}
    )
    rate, shape, dispersion = axes[:, 0]
    middle = at + windows.window_s / size / 2
    rate.plot(middle, _array(windows.rate), color=BLUE, **look)
    rate.set(title=f"Rate per window of {duration(windows.window_s)}", ylabel="requests / s")
    shape.plot(middle, _array(windows.shape), color=RED, label="by moments, 1 / CV²", **look)
    if any(value is not None for value in windows.shape_mle):
        shape.plot(
            middle,
            _array(windows.shape_mle),
            color=SKY,
            label="maximum likelihood",
            **{**look, "marker": "s" if not many else "."},
        )
    shape.axhline(1, color=SOFT, linestyle="--", linewidth=1)
    _wide_log(shape)
    shape.set(
        title=f"Gamma shape of the gaps (1: Poisson, smaller: burstier; windows with {MIN_GAPS} gaps or more)",
        ylabel="shape",
    )
    shape.legend(loc="best", ncols=2)
    dispersion.plot(middle, _array(windows.idc), color=PURPLE, **look)
    dispersion.axhline(1, color=SOFT, linestyle="--", linewidth=1)
    _wide_log(dispersion)
    dispersion.set(
        title=f"Index of dispersion of counts per {duration(windows.idc_window_s)}, within each window",
        ylabel="Var / mean",
        xlabel=label,
    )
    rate.set_ylim(bottom=0)
    if many:
        for axis, values in ((rate, windows.rate), (shape, windows.shape), (dispersion, windows.idc)):
            axis.plot(middle, _running_median(_array(values)), color=INK, linewidth=1.3)
    return figure


def _running_median(values: np.ndarray, width: int = 73) -> np.ndarray:
    """Median of the ``width`` windows around each (73 of 20 min: a day)."""
    padded = np.pad(values, width // 2, constant_values=np.nan)
    views = np.lib.stride_tricks.sliding_window_view(padded, width)
    enough = np.isfinite(views).sum(axis=1) > width // 4
    return np.where(enough, np.nanmedian(np.where(enough[:, None], views, 0.0), axis=1), np.nan)


def _wide_log(axis: Any) -> None:
    """A logarithmic y axis where the data span a decade or more."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axis.get_lines()])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > 10 * values.min():
        axis.set_yscale("log")
        _plain_log(axis.yaxis)
    else:
        axis.set_ylim(bottom=0)


def _plain_log(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _dispersion(description: Description) -> Figure | None:
    arrivals = description.burstiness
    if arrivals is None:
        return None
    figure, axes = _figure(1, 2, 3.7)
    left, right = axes[0]
    for judged, colour, name in (
        (True, BLUE, "this trace"),
        (False, FAINT, "window shorter than the clock's grid"),
    ):
        points = [point for point in arrivals.dispersion_curve if point.judged is judged and point.idc]
        if points:
            left.plot(
                [p.window_s for p in points],
                [p.idc for p in points],
                "o-",
                color=colour,
                markersize=4,
                label=name,
            )
    marked = [point for point in arrivals.dispersion if point.idc and point.judged]
    for point in marked:
        left.annotate(
            f"{point.idc:.3g}", (point.window_s, point.idc), textcoords="offset points", xytext=(-3, 9),
            ha="right", fontsize=9, color=INK,
        )  # fmt: skip
    left.plot(
        [p.window_s for p in marked],
        [p.idc for p in marked],
        "D",
        color=RED,
        markersize=6,
        label="1, 10, 60, 600 s",
    )
    left.axhline(1, color=SOFT, linestyle="--", linewidth=1, label="Poisson")
    left.set(
        xscale="log",
        yscale="log",
        title="Index of dispersion",
        xlabel="window of the counts",
        ylabel="Var / mean",
    )
    left.legend(loc="best")
    left.margins(y=0.18)
    _seconds_axis(left.xaxis)
    _plain_log(left.yaxis)
    if arrivals.gap_curve and arrivals.gap_mean_s:
        gap, longer = _array(arrivals.gap_curve).T
        right.plot(gap, np.maximum(longer, 1e-12), color=BLUE, label="this trace")
        right.plot(
            gap,
            np.exp(-gap / arrivals.gap_mean_s),
            color=SOFT,
            linestyle="--",
            linewidth=1.2,
            label="exponential, same mean",
        )
        right.set(
            xscale="log",
            yscale="log",
            title="Gaps between arrivals",
            xlabel="gap",
            ylabel="share of gaps that are longer",
        )
        right.set_ylim(max(longer[longer > 0].min() / 2, 1e-7), 1.6)
        right.legend(loc="lower left")
        _seconds_axis(right.xaxis)
    else:
        right.set_axis_off()
    return figure


# Lengths


def _inputs(description: Description) -> Figure | None:
    parts = _parts(description)
    laws = [(f"{part.panel.name}: prompt", part.input) for part in parts]
    return _survivals(laws if len(parts) > 1 else [("prompt", parts[0].input), ("output", parts[0].output)])


def _survivals(laws: list[tuple[str, LengthLaw | None]]) -> Figure | None:
    known = [(name, law) for name, law in laws if law]
    if not known:
        return None
    figure, axes = _grid_of(known, 3.5)
    for axis, (name, law) in zip(axes, known, strict=False):
        length, at_least = _array(law.survival).T
        axis.plot(length, at_least, color=BLUE, label="data", linewidth=2.2)
        for fit, colour, dash, label in (
            (law.zeta, RED, "--", "Zipf from 1"),
            (law.tail, ORANGE, "-.", "Zipf tail"),
        ):
            if fit is None:
                continue
            over = np.geomspace(fit.first, length[-1], 200)
            line = fit.share * zeta(fit.exponent, over) / zeta(fit.exponent, fit.first)
            start = f" from {fit.first:,}" if fit is law.tail else ""
            text = f"{label}{start}: s = {fit.exponent:.2f}, KS {fit.distance.ks:.2f}"
            axis.plot(over, line, color=colour, linestyle=dash, label=text)
        axis.set(xscale="log", yscale="log", title=name, xlabel="tokens", ylabel="share at least that long")
        axis.set_ylim(max(at_least.min() / 2, 1e-7), 1.5)
        _eng(axis.xaxis)
        axis.legend(loc="lower left")
    return figure


def _outputs_tail(description: Description) -> Figure | None:
    return _survivals([(f"{part.panel.name}: output", part.output) for part in description.panels])


def _mixtures(description: Description) -> Figure | None:
    parts = [part for part in _parts(description) if part.output]
    laws = [(f"{part.panel.name}: output", part.output) for part in parts]
    if len(parts) == 1:
        laws = [("output", parts[0].output), ("prompt", parts[0].input)]
    known = [(name, law) for name, law in laws if law]
    if not known:
        return None
    figure, axes = _grid_of(known, 3.4)
    for axis, (name, law) in zip(axes, known, strict=False):
        _mixture(axis, name, law)
    return figure


def _mixture(axis: Any, name: str, law: LengthLaw) -> None:
    edges, counts = _array(law.histogram_edges), _array(law.histogram)
    height = counts / counts.sum() / np.diff(np.log(edges))
    axis.stairs(height, edges, fill=True, color=SKY, alpha=0.55, label="data")
    at = np.geomspace(edges[0], edges[-1], 500)
    axis.plot(
        at,
        mixture_density(law.single, at).sum(0),
        color=SOFT,
        linestyle="--",
        label=f"one log-normal, KS {law.single_distance.ks:.2f}",
    )
    parts = mixture_density(law.double, at)
    axis.plot(at, parts.sum(0), color=RED, label=f"two, KS {law.double_distance.ks:.2f}")
    for part in parts:
        axis.plot(at, part, color=RED, linewidth=0.9, linestyle=":")
    gain = law.bic_gain_per_row or 0.0
    axis.set(xscale="log", title=name, xlabel="tokens", ylabel="density per log unit")
    axis.set_ylim(0, 1.42 * min(float(height.max()), 1.6 * float(parts.sum(0).max())))
    axis.legend(loc="upper left", title=f"BIC gain of the second: {gain:.2g} per row", title_fontsize=9)
    _eng(axis.xaxis)


def _relation(description: Description) -> Figure | None:
    parts = [part for part in _parts(description) if part.relation]
    if not parts:
        return None
    figure, axes = _grid_of(parts, 4.0 if len(parts) == 1 else 3.4)
    for axis, part in zip(axes, parts, strict=False):
        found = part.relation
        assert found is not None
        grid = np.array(found.grid, dtype=np.float64).T
        mesh = axis.pcolormesh(
            _array(found.grid_in), _array(found.grid_out), np.where(grid > 0, grid, np.nan),
            cmap="Blues", norm=LogNorm(vmin=0.6, vmax=max(grid.max() * 1.6, 2)), rasterized=True,
        )  # fmt: skip
        edges, band = _array(found.edges), _array(found.band)
        middle = np.sqrt(edges[1:] * edges[:-1])
        kept = np.isfinite(band[:, 2])
        for column in (0, 4):
            axis.plot(
                middle[kept],
                band[kept, column],
                color=INK,
                linewidth=1,
                linestyle=":",
                label="90 % band" if column else None,
            )
        axis.plot(middle[kept], band[kept, 2], color=RED, linewidth=2.2, label="median")
        axis.plot(
            middle[kept], _array(found.mean)[kept], color=ORANGE, linestyle="--", linewidth=1.8, label="mean"
        )
        rank = "-" if found.spearman is None else f"{found.spearman:.2f}"
        axis.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="output tokens")
        axis.set_title(part.panel.name)
        axis.annotate(
            f"rank correlation {rank}",
            (0.98, 0.97),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=9,
        )
        axis.grid(False)
        for side in (axis.xaxis, axis.yaxis):
            _eng(side)
        bar = figure.colorbar(mesh, ax=axis, pad=0.01, label="requests")
        _eng(bar.ax.yaxis)
        bar.outline.set_visible(False)
    axes[0].legend(loc="lower left", ncols=1, frameon=True, framealpha=0.85, edgecolor="none")
    return figure


# Programs


def _turns(description: Description) -> Figure | None:
    found, between = description.turns, description.gaps
    if found is None and between is None:
        return None
    figure, axes = _figure(1, 2, 3.7)
    left, right = axes[0]
    if found is not None:
        at, at_least = _array(found.survival).T
        left.plot(at, at_least, "o-", color=BLUE, markersize=3.5, label=f"{found.num_programs:,} programs")
        over = np.geomspace(1, found.max, 200)
        text = f"geometric, p = {found.geometric_p:.3f}, KS {found.geometric_ks:.2f}"
        left.plot(over, (1 - found.geometric_p) ** (over - 1), color=RED, linestyle="--", label=text)
        left.set(
            yscale="log",
            xlabel="turns",
            ylabel="share of programs with at least as many",
            title="Turns per program",
        )
        if found.max > 40:
            left.set_xscale("log")
            _plain_log(left.xaxis)
        left.set_ylim(0.5 / found.num_programs, 1.6)
        left.legend(loc="lower left")
    else:
        left.set_axis_off()
    if between is not None and between.curve:
        gap, share = _array(between.curve).T
        right.plot(gap, share, color=GREEN, linewidth=2.2)
        right.fill_between(gap, share, color=GREEN, alpha=0.12, linewidth=0)
        for quantile, name in ((4, "p50"), (6, "p90"), (8, "p99")):
            value = between.quantiles_s[quantile]
            if value and value > 0:
                height = (0.5, 0.9, 0.99)[(quantile - 4) // 2]
                right.plot(value, height, "o", color=INK, markersize=4)
                right.annotate(
                    f"{name}: {duration(value)}",
                    (value, height),
                    textcoords="offset points",
                    xytext=(7, -11),
                    fontsize=9,
                )
        right.set(
            xscale="log",
            ylim=(0, 1.04),
            xlabel="gap between turns",
            ylabel="share of gaps at most that long",
            title="Think and tool time",
        )
        _seconds_axis(right.xaxis)
        _percent(right.yaxis)
    else:
        right.set_axis_off()
    return figure


def _growth(description: Description) -> Figure | None:
    found = description.growth
    if found is None or len(found.by_turn) < 2:
        return None
    figure, axes = _figure(1, 2, 3.6, width_ratios=(1.7, 1))
    left, right = axes[0]
    turn, programs, low, middle, high = _array(found.by_turn).T
    left.fill_between(turn, low, high, color=ORANGE, alpha=0.25, linewidth=0, label="half of the programs")
    left.plot(turn, middle, color=RED, label="median")
    left.set(title=f"Prompt by turn: {found.verdict}", xlabel="turn", ylabel="prompt tokens")
    left.set_ylim(bottom=0)
    left.legend(loc="upper left")
    _eng(left.yaxis)
    right.plot(turn, programs, color=BLUE)
    right.fill_between(turn, programs, color=BLUE, alpha=0.15, linewidth=0)
    right.set(title="Programs that reach it", xlabel="turn", ylabel="programs", ylim=(0, None))
    _eng(right.yaxis)
    return figure


def _sharing(description: Description) -> Figure | None:
    found = description.sharing
    if found is None:
        return None
    figure, axes = _figure(1, 2, 3.6, width_ratios=(1.7, 1))
    left, right = axes[0]
    if found.reuse:
        names = [f"{reuse.block_size:,}" for reuse in found.reuse]
        at = np.arange(len(names))
        for shift, rates, colour, label in (
            (-0.2, [reuse.block_hit_rate for reuse in found.reuse], BLUE, "of blocks"),
            (0.2, [reuse.token_hit_rate for reuse in found.reuse], ORANGE, "of tokens"),
        ):
            bars = left.bar(at + shift, rates, 0.38, color=colour, label=label)
            left.bar_label(bars, [f"{rate:.1%}" for rate in rates], fontsize=8.5, padding=2)
        left.set_xticks(at, names)
        left.set(
            title="Hit rate of a cache without limit", xlabel="block size (tokens)", ylabel="seen before"
        )
        left.legend(loc="upper right", ncols=2, bbox_to_anchor=(1.02, 1.0))
        highest = max(max(entry.block_hit_rate, entry.token_hit_rate) for entry in found.reuse)
        left.set_ylim(0, min(1.28 * max(highest, 0.01), 1.3))
        left.grid(axis="x", visible=False)
        _percent(left.yaxis)
    else:
        seen = found.cached_share or 0.0
        left.barh([0], [seen], color=BLUE, height=0.4)
        left.barh([0], [1 - seen], left=[seen], color=FAINT, height=0.4)
        left.annotate(
            f"{seen:.1%} seen before", (0.02, 0), va="center", color="white", fontsize=13, fontweight="bold"
        )
        left.set(title="Prompt tokens, as the source says", xlim=(0, 1), ylim=(-0.7, 0.7), yticks=[])
        left.grid(False)
        _percent(left.xaxis)
    right.plot(_array(found.hit_quantiles), QUANTILES, "o-", color=BLUE, markersize=4)
    right.set(
        title="Share of a prompt seen before",
        xlabel="share of the prompt",
        ylabel="requests with at most that",
        xlim=(-0.02, 1.02),
        ylim=(0, 1.03),
    )
    _percent(right.xaxis)
    _percent(right.yaxis)
    return figure


def _failures(description: Description) -> Figure | None:
    found = description.failures
    if not found.load:
        return None
    figure, axes = _figure(1, 1, 3.9)
    axis = axes[0, 0]
    load, share, low, high = (
        _array(values) for values in (found.load, found.class_share, found.low, found.high)
    )
    points = _array(found.scatter)
    axis.plot(
        points[:, 0],
        points[:, 1],
        ".",
        color=SKY,
        alpha=0.35,
        markersize=4,
        label=f"one window of {duration(found.window_s)}",
    )
    error = np.abs(np.stack([share - low, high - share]))
    axis.errorbar(load, share, error, fmt="o-", color=RED, capsize=3, label="windows by load, 95 % interval")
    if found.share is not None:
        axis.axhline(
            found.share, color=SOFT, linestyle="--", linewidth=1, label=f"whole trace: {found.share:.2%}"
        )
    rank = "" if found.spearman is None else f" (rank correlation {found.spearman:.2f})"
    axis.set(
        xscale="log",
        title=f"Failed requests against load{rank}",
        xlabel="requests / s in the window",
        ylabel="share that failed",
    )
    axis.set_ylim(0, min(1.02, max(1.3 * high.max(), float(np.quantile(points[:, 1], 0.97)) * 1.1)))
    _percent(axis.yaxis, None)
    _plain_log(axis.xaxis)
    axis.legend(loc="upper left")
    return figure


PLOTS = (
    _Plot(
        "load",
        "Load through time",
        "Requests and tokens per second. A partial last step counts its own length.",
        _load,
    ),
    _Plot(
        "weekly",
        "Weeks",
        "Requests per day, a row per week; the weekday of day 0 is not known.",
        _weekly,
    ),
    _Plot(
        "hourly",
        "Hours of the day",
        "Over all days: box p25 to p75 with the median, whiskers to p5 and p95.",
        _hourly,
    ),
    _Plot(
        "tokens_hourly",
        "Tokens by hour of the day",
        "Prompt and output tokens per hour, boxes as above.",
        _tokens_hourly,
    ),
    _Plot(
        "bursts",
        "Burstiness through time",
        "Gamma parameters of the gaps inside each window, which drift: one law for a whole trace hides it.",
        _bursts,
    ),
    _Plot(
        "dispersion",
        "Burstiness by time scale",
        "Var / mean of counts in full windows, 1 at every scale for Poisson. A good fit of the gaps alone "
        "proves little.",
        _dispersion,
    ),
    _Plot(
        "inputs",
        "Lengths and Zipf laws",
        "Survival functions and Zipf laws (discrete power laws) by maximum likelihood, of all lengths and "
        "of the tail that fits best.",
        _inputs,
    ),
    _Plot(
        "outputs",
        "Output lengths and Zipf laws",
        "The same for outputs.",
        _outputs_tail,
    ),
    _Plot(
        "mixtures",
        "One component or two",
        "Log-normal laws of one and two components; a gain in BIC speaks for two.",
        _mixtures,
    ),
    _Plot(
        "relation",
        "Output given prompt",
        "Median, mean and 90 % band by prompt length, over the density of the requests.",
        _relation,
    ),
    _Plot(
        "turns",
        "Turns and gaps",
        "How long programs are, and how long they pause between turns.",
        _turns,
    ),
    _Plot(
        "growth",
        "Prompts within programs",
        "Whether a prompt holds the turns before it.",
        _growth,
    ),
    _Plot(
        "sharing",
        "Prefixes seen before",
        "What a prefix cache without limit would hold when each prompt arrives.",
        _sharing,
    ),
    _Plot(
        "failures",
        "Failures against load",
        "Failed share per window by its load; the interval takes failures as independent, so it is too "
        "narrow where they come in bursts.",
        _failures,
    ),
)
"""All figures, in the order of the page."""
