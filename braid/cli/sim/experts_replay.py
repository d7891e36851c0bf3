"""What ``braid sim experts`` does with recorded routing: read, replay, show, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from braid.cli.sim.experts import ReplayFlags
from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import ALL_NAMES, ORACLE
from braid.sim.experts.replay import RULES, Replay, ceiling, replay
from braid.sim.experts.routes import Routes, read_routes

VERSION = 1


def run(flags: ReplayFlags, out: Path | None) -> None:
    """
    Raises:
        BraidError: the recording, a policy or a size cannot be used; the text says why.
    """
    from braid.cli.trace.reading import write_json

    names = policies_of(flags.policy)
    routes = read_routes(flags.path)
    slots = slots_of(routes.shape, flags.slots, flags.fraction)
    runs = {
        name: replay(routes, name, slots, scope=flags.scope, rules=RULES[flags.rules])
        for name in dict.fromkeys((*names, ORACLE))
    }
    report = report_of(flags, routes, [runs[name] for name in names], runs[ORACLE])
    show(report)
    if out is not None:
        write_json(report, out)


def policies_of(text: str) -> tuple[str, ...]:
    """
    Raises:
        InvalidParameterError: no name, or one that is not known.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in ALL_NAMES:
            raise InvalidParameterError(
                f"expert cache {name!r} is not known; choices: {', '.join(ALL_NAMES)}", param="policy"
            )
    if not names:
        raise InvalidParameterError(f"--policy names none; choices: {', '.join(ALL_NAMES)}", param="policy")
    return names


def slots_of(shape: ExpertShape, per_layer: int | None, fraction: float | None) -> int:
    """Of all layers together.

    Raises:
        InvalidParameterError: neither or both were said, or one that cannot be.
    """
    if (per_layer is None) == (fraction is None):
        raise InvalidParameterError(
            "say the size of the cache with --slots or with --fraction", param="slots"
        )
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise InvalidParameterError(
                f"fraction must be above 0 and at most 1, got {fraction:g}", param="fraction"
            )
        return round(fraction * shape.total)
    assert per_layer is not None
    if not 1 <= per_layer <= shape.per_layer:
        hint = (
            f"; {per_layer:,} in all are --fraction {per_layer / shape.total:g}"
            if per_layer <= shape.total
            else ""
        )
        raise InvalidParameterError(
            f"slots are counted per layer, and a layer has {shape.per_layer} experts; got {per_layer:,}{hint}",
            param="slots",
        )
    return per_layer * shape.layers


def report_of(flags: ReplayFlags, routes: Routes, runs: Sequence[Replay], best: Replay) -> dict[str, Any]:
    """As plain data: what the first policy gave, then all of them under ``policies``."""
    rows = [_row(each, best, routes.shape) for each in runs]
    distinct = routes.distinct()
    return {
        "version": VERSION,
        **rows[0],
        "policies": rows,
        "rules": flags.rules,
        "ceiling": ceiling(routes.routes),
        "trace": flags.path.name,
        "model": PurePosixPath(routes.model).name,
        "shape": routes.shape._asdict(),
        "prefill_tokens": routes.num_tokens(is_prefill=True),
        "decode_tokens": routes.num_tokens(is_prefill=False),
        "distinct_experts": {
            "mean": sum(distinct) / len(distinct),
            "min": min(distinct),
            "max": max(distinct),
        },
    }


def _row(each: Replay, best: Replay, shape: ExpertShape) -> dict[str, Any]:
    per_layer = each.slots / shape.layers
    return {
        "policy": each.policy,
        "scope": each.scope,
        "slots": int(per_layer) if per_layer.is_integer() else per_layer,
        "total_slots": each.slots,
        "decode_hit_rate": each.decode_hit_rate,
        "belady_hit_rate": best.decode_hit_rate,
        "by_layer": each.by_layer,
        "bypass_rate": each.bypass_rate,
    }


def show(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from braid.cli.trace.console import print_table

    console = Console()
    mean = ", shared by all layers" if report["scope"] == "global" else ""
    title = f"{report['slots']:g} slots per layer, {report['total_slots']:,} in all{mean}"
    table = Table(title=title, title_justify="left")
    table.add_column("policy", no_wrap=True)
    for name in ("decode hits", "to Belady", "worst layer", "best layer", "bypassed"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["policies"]:
        table.add_row(
            row["policy"],
            f"{row['decode_hit_rate']:.1%}",
            f"{row['belady_hit_rate'] - row['decode_hit_rate']:+.1%}",
            f"{min(row['by_layer']):.1%}",
            f"{max(row['by_layer']):.1%}",
            f"{row['bypass_rate']:.1%}",
        )
    print_table(console, table)
    shape, distinct = report["shape"], report["distinct_experts"]
    for line in (
        f"{report['model'] or report['trace']}: {shape['layers']} layers of {shape['per_layer']} experts, "
        f"{shape['top_k']} per token; {report['prefill_tokens']:,} tokens of prompts, {report['decode_tokens']:,} "
        "decoded",
        f"A layer's tokens use {distinct['mean']:.1f} of its experts ({distinct['min']} to {distinct['max']}); "
        f"Belady {report['belady_hit_rate']:.1%}, and if nothing were ever evicted {report['ceiling']:.1%}.",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
