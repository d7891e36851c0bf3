"""Figures of lengths: prompts, outputs, their laws, and the one given the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.special import zeta

from braid.lab.describe.description import Description
from braid.lab.describe.lengths import LengthLaw
from braid.lab.figures.parts import parts_of
from braid.lab.figures.picture import Plot
from braid.lab.figures.style import BLUE, INK, ORANGE, RED, SKY, SOFT, array, eng, grid_of, titles, white
from braid.lab.laws.mixture import mixture_density


def _inputs(description: Description) -> Figure | None:
    parts = parts_of(description)
    laws = [(f"{part.panel.name}: prompt", part.input) for part in parts]
    return _survivals(laws if len(parts) > 1 else [("prompt", parts[0].input), ("output", parts[0].output)])


def _survivals(laws: list[tuple[str, LengthLaw | None]]) -> Figure | None:
    known = [(name, law) for name, law in laws if law]
    if not known:
        return None
    figure, axes = grid_of(known, 3.5)
    titles(axes, [name for name, _ in known])
    for axis, (_, law) in zip(axes, known, strict=False):
        length, at_least = array(law.survival).T
        axis.plot(length, at_least, color=BLUE, label="data", linewidth=2.2)
        for fit, colour, dash in ((law.zeta, RED, "--"), (law.tail, ORANGE, "-.")):
            if fit is None:
                continue
            over = np.geomspace(fit.first, length[-1], 200)
            line = fit.share * zeta(fit.exponent, over) / zeta(fit.exponent, fit.first)
            first = f"{fit.first:,}" if fit.first < 10_000 else f"{fit.first / 1000:.0f}k"
            text = f"Zipf from {first}: s = {fit.exponent:.2f}, KS {fit.distance.ks:.2f}"
            axis.plot(over, line, color=colour, linestyle=dash, label=text)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="share at least that long")
        axis.set_ylim(max(at_least.min() / 2, 1e-7), 1.5)
        eng(axis.xaxis)
        axis.legend(loc="lower left")
    return figure


def _outputs_tail(description: Description) -> Figure | None:
    return _survivals([(f"{part.panel.name}: output", part.output) for part in description.panels])


def _mixtures(description: Description) -> Figure | None:
    parts = [part for part in parts_of(description) if part.output]
    laws = [(f"{part.panel.name}: output", part.output) for part in parts]
    if len(parts) == 1:
        laws = [("output", parts[0].output), ("prompt", parts[0].input)]
    known = [(name, law) for name, law in laws if law]
    if not known:
        return None
    figure, axes = grid_of(known, 3.4)
    titles(axes, [name for name, _ in known])
    for axis, (_, law) in zip(axes, known, strict=False):
        _mixture(axis, law)
    return figure


def _mixture(axis: Any, law: LengthLaw) -> None:
    edges, counts = array(law.histogram_edges), array(law.histogram)
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
    axis.set(xscale="log", xlabel="tokens", ylabel="density per log unit")
    axis.set_ylim(0, 1.6 * min(float(height.max()), 1.6 * float(parts.sum(0).max())))
    axis.legend(loc="upper left", title=f"BIC gain of the second: {gain:.2g} per row", title_fontsize=9)
    eng(axis.xaxis)


def _relation(description: Description) -> Figure | None:
    parts = [part for part in parts_of(description) if part.relation]
    if not parts:
        return None
    figure, axes = grid_of(parts, 4.0 if len(parts) == 1 else 3.4)
    titles(axes, [part.panel.name for part in parts])
    for axis, part in zip(axes, parts, strict=False):
        found = part.relation
        assert found is not None
        grid = np.array(found.grid, dtype=np.float64).T
        mesh = axis.pcolormesh(
            array(found.grid_in), array(found.grid_out), np.where(grid > 0, grid, np.nan),
            cmap="Blues", norm=LogNorm(vmin=0.6, vmax=max(grid.max() * 1.6, 2)), rasterized=True,
        )  # fmt: skip
        edges, band = array(found.edges), array(found.band)
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
            middle[kept], array(found.mean)[kept], color=ORANGE, linestyle="--", linewidth=1.8, label="mean"
        )
        rank = "-" if found.spearman is None else f"{round(found.spearman, 2) + 0:.2f}"
        axis.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="output tokens")
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
            eng(side)
        bar = figure.colorbar(mesh, ax=axis, pad=0.01, label="requests")
        eng(bar.ax.yaxis)
        bar.outline.set_visible(False)
    white(axes[0].legend(loc="lower left"))
    return figure


PLOTS = (
    Plot(
        "inputs",
        "Lengths and Zipf laws",
        "Survival functions and Zipf laws (discrete power laws) by maximum likelihood, of all lengths and "
        "of the tail that fits best.",
        _inputs,
    ),
    Plot(
        "outputs",
        "Output lengths and Zipf laws",
        "The same for outputs.",
        _outputs_tail,
    ),
    Plot(
        "mixtures",
        "One component or two",
        "Log-normal laws of one and two components; a gain in BIC speaks for two.",
        _mixtures,
    ),
    Plot(
        "relation",
        "Output given prompt",
        "Median, mean and 90 % band by prompt length, over the density of the requests.",
        _relation,
    ),
)
"""In the order of the page."""
