"""What came of a simulation of agents, as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from braid.cli.trace.console import print_table


def show(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Policies side by side, then what the numbers rest on."""
    console = console or Console()
    config = report["config"]
    base = next(iter(report["policies"]))
    title = (
        f"{config['programs']} programs at {config['rate']:g}/s, "
        f"{config['setup']['kv_tokens']:,} tokens of KV, {len(config['seeds'])} seed(s); simulated"
    )
    print_table(console, _table(title, report["policies"], _times(base)))
    print_table(console, _table("where prompts' tokens came from", report["policies"], _TOKENS))
    for line in (f"times: {report['machine']}", *report["notes"]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


_Cell = Callable[[Mapping[str, Any]], str]


def _table(title: str, policies: Mapping[str, Any], columns: Mapping[str, _Cell]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("policy", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, numbers in policies.items():
        table.add_row(name, *(cell(numbers) for cell in columns.values()))
    return table


def _times(base: str) -> dict[str, _Cell]:
    """Seconds."""
    return {
        "JCT mean": _mean,
        f"{base} / it": lambda numbers: f"{numbers['versus']['jct_ratio']:.2f}",
        **{name: _second("jct_s", name) for name in ("p50", "p95", "p99")},
        "first TTFT p50": _second("ttft_first_s", "p50"),
        "first max": _second("ttft_first_s", "max"),
        "later p50": _second("ttft_later_s", "p50"),
        "later p99": _second("ttft_later_s", "p99"),
        "preempted": lambda numbers: f"{numbers['preemptions']:.0f}",
    }


_TOKENS: Mapping[str, _Cell] = MappingProxyType(
    {
        "all, M": lambda numbers: f"{_all(numbers) / 1e6:.1f}",
        "device": lambda numbers: _share(numbers, "device_hit"),
        "host": lambda numbers: _share(numbers, "host_reload"),
        "disk": lambda numbers: _share(numbers, "disk_reload"),
        "computed again": lambda numbers: _share(numbers, "recompute"),
        "new": lambda numbers: _share(numbers, "compulsory"),
        "again / new": lambda numbers: f"{numbers['recompute_per_compulsory']:.2f}",
    }
)


def _mean(numbers: Mapping[str, Any]) -> str:
    mean = _seconds(numbers["jct_s"]["mean"])
    if "intervals" not in numbers:
        return mean
    low, high = numbers["intervals"]["jct_s"]["mean"]
    return f"{mean} ±{_seconds((high - low) / 2)}"


def _second(group: str, name: str) -> _Cell:
    return lambda numbers: _seconds(numbers[group][name])


def _share(numbers: Mapping[str, Any], origin: str) -> str:
    return f"{numbers['tokens'][origin] / (_all(numbers) or 1.0):.1%}"


def _all(numbers: Mapping[str, Any]) -> float:
    return float(sum(numbers["tokens"].values()))


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
