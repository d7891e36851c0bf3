"""What a fit found and what a comparison says, as tables."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from braid.cli.trace.console import print_table
from braid.lab.compare import Row
from braid.lab.fidelity import Proof
from braid.lab.fit.clients import Clients
from braid.lab.fit.profile import Profile, Stream


def show_profile(profile: Profile, out: Path) -> None:
    """The candidates with their held-out scores, and the lengths' laws."""
    console = Console()
    for what, stream in (("requests", profile.requests), ("programs", profile.programs)):
        if stream is not None:
            _show_stream(console, what, stream)
    if profile.clients is not None:
        _show_clients(console, profile.clients)
    for note in profile.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"profile kept as {out}", markup=False, highlight=False, soft_wrap=True)


def _show_stream(console: Console, what: str, stream: Stream) -> None:
    if stream.arrivals is not None:
        windows = list(stream.arrivals.scores[0].idc) if stream.arrivals.scores else []
        title = f"arrivals of {what} on held-out time (index of dispersion: generated to seen)"
        table = Table(
            "model", *(f"IDC {w} s" for w in windows), "KS gaps", "", title=title, title_justify="left"
        )
        for score in stream.arrivals.scores:
            cells = (f"{score.idc.get(w, float('nan')):.2f}" for w in windows)
            table.add_row(score.name, *cells, f"{score.ks:.3f}", "chosen" if score.chosen else "")
        print_table(console, table)
    laws = Table("model", "kind", "share", "input law", "KS", "output law", "KS", title=f"lengths of {what}")
    laws.title_justify = "left"
    for mix in stream.mix:
        law_cells: list[str] = []
        for found in (mix.input_laws, mix.output_laws):
            law_cells += [found[0].family, f"{found[0].ks:.3f}"] if found else ["-", "-"]
        laws.add_row(mix.model or "-", mix.kind or "-", f"{mix.share:.1%}", *law_cells)
    print_table(console, laws)


def _show_clients(console: Console, clients: Clients) -> None:
    """The busiest first."""
    rates = sorted(
        ((sum(window.rate for window in each.windows), each) for each in clients.clients),
        key=lambda pair: -pair[0],
    )
    total = sum(rate for rate, _ in rates) or 1.0
    title = f"{len(rates)} clients, {clients.rate:.4g} requests/s over {clients.span_s / 3600:.1f} h"
    table = Table(
        "client", "share", "busy windows", "windows with lengths", title=title, title_justify="left"
    )
    for rate, each in rates[:10]:
        table.add_row(str(each.number), f"{rate / total:.1%}", str(len(each.windows)), str(len(each.periods)))
    print_table(console, table)


def show_rows(rows: list[Row]) -> None:
    """Pass or fail per statistic."""
    table = Table("statistic", "value", "95 %", "real to real", "bound", "")
    for row in rows:
        bound = _bound(row)
        verdict = ("[green]pass[/]" if row.passed else "[red]FAIL[/]") if row.judged else "[dim]not judged[/]"
        floor = "-" if row.floor is None else f"{row.floor:.3f}"
        table.add_row(row.name, f"{row.value:.3f}", f"{row.low:.3f} .. {row.high:.3f}", floor, bound, verdict)
    print_table(Console(), table)


def _bound(row: Row) -> str:
    low, high = row.limits
    return f"{low:.2f} .. {high:.2f}" if row.is_ratio else f"<= {high:.3f}"


def show_proof(proof: Proof, title: str = "generated to held out (index of dispersion: ratios)") -> None:
    """Every kind of arrivals beside the others, with the distance of the two real parts."""
    table = Table("statistic", "real to real", "bound", *proof, title=title, title_justify="left")
    others = {kind: {row.name: row for row in rows} for kind, rows in proof.items()}
    for row in next(iter(proof.values())):
        cells = (_proved(rows.get(row.name)) for rows in others.values())
        table.add_row(row.name, "-" if row.floor is None else f"{row.floor:.3f}", _bound(row), *cells)
    print_table(Console(), table)


def _proved(row: Row | None) -> str:
    if row is None:
        return "-"
    verdict = (" [green]pass[/]" if row.passed else " [red]FAIL[/]") if row.judged else ""
    return f"{row.value:.3f}{verdict}"
