"""All figures of the lab, one style: ``style`` and ``picture`` serve every page, the others draw a description."""

from braid.lab.figures.picture import Picture, Plot, draw_plots
from braid.lab.figures.style import (
    BLUE,
    DPI,
    FAINT,
    GREEN,
    HEAT,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SOFT,
    STYLE,
    WIDTH,
    YELLOW,
    duration,
)
from braid.lab.figures.trace import draw_all

__all__ = [
    "BLUE", "DPI", "FAINT", "GREEN", "HEAT", "INK", "ORANGE", "PURPLE", "RED", "SKY", "SOFT", "STYLE", "WIDTH",
    "YELLOW", "Picture", "Plot", "draw_all", "draw_plots", "duration",
]  # fmt: skip
