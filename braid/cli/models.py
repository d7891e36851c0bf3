"""``braid models`` and ``braid pull``: what can be served without asking the network, and how to get more."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from braid.checkpoint.listing import KnownModel, known_models
from braid.checkpoint.resolve import resolve
from braid.cli.progress import ConsoleProgress
from braid.cli.units import format_bytes


def pull(model: str) -> None:
    """Bring a model to this machine and print its weight files."""
    for path in resolve(model, progress=ConsoleProgress()).files:
        print(path)


def list_models() -> None:
    """Print what ``braid serve`` finds without network, and the aliases a package would add."""
    console = Console()
    known = known_models()
    console.print(models_table(known))
    if not any(model.kind == "hub" for model in known):
        console.print(
            "Nothing downloaded yet; `braid pull org/name` downloads a model.", style="dim", highlight=False
        )


def models_table(known: Sequence[KnownModel]) -> Table:
    """One row per model."""
    table = Table()
    table.add_column("model", overflow="fold")
    table.add_column("kind")
    table.add_column("what")
    table.add_column("on disk", justify="right")
    for model in known:
        size = format_bytes(model.size_bytes) if model.size_bytes else ""
        table.add_row(model.name, model.kind, model.detail, size)
    return table
