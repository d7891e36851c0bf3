"""All figures of a description. Drawn from a ``Description`` alone; nothing here touches a trace."""

from __future__ import annotations

from braid.lab.describe.description import Description
from braid.lab.figures import bursts, failures, lengths, load, programs
from braid.lab.figures.picture import Picture, Plot, draw_plots
from braid.lab.figures.process import DrawingProcess
from braid.lab.progress import Progress

PLOTS: tuple[Plot[Description], ...] = (
    *load.PLOTS,
    *bursts.PLOTS,
    *lengths.PLOTS,
    *programs.PLOTS,
    *failures.PLOTS,
)
"""In the order of the page."""


def draw_all(
    description: Description, progress: Progress | None = None, beside: DrawingProcess | None = None
) -> tuple[Picture, ...]:
    """Every figure that the description has numbers for, in the order of the page; ``beside`` draws some of them."""
    if beside is None:
        return draw_plots(PLOTS, description, progress)
    beside.show(description)
    return draw_plots(PLOTS, description, progress, beside.draw)
