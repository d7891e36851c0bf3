"""Which parts of a description get axes of their own."""

from __future__ import annotations

from braid.lab.describe.description import Description, PanelDescription


def parts_of(description: Description) -> tuple[PanelDescription, ...]:
    """The panels; the whole trace where it has only one."""
    return description.panels or (description.whole,)
