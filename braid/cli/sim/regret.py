"""``braid sim regret``: how far the eviction in a log of turns was from the best that was possible."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from braid.cli.trace.load import JsonOut
from braid.core.errors import BraidError, InvalidParameterError

if TYPE_CHECKING:
    from braid.sim.belady import Hits, Regret, TurnLog

_EXPLAINED = (
    "Hits are tokens found on the device over tokens wanted, at the log's own timing; a running system's timing "
    "depends on its hits. Regret is what Belady's eviction, which knows the future, finds more."
)
_RELOADED = (
    "Reloaded is what the log's own engine found in the tiers below instead; Belady has the device alone."
)


def regret(
    log: Annotated[Path, Parameter(help="What braid serve --agent-log wrote.")],
    *,
    blocks: Annotated[
        str | None,
        Parameter(
            metavar="N[,N...]",
            help="Sizes of the pool, in blocks, that are tried.",
            show_default="the log's own",
        ),
    ] = None,
    json: JsonOut = None,
) -> int:
    """Replay a log of turns with LRU and with the best possible eviction, and compare."""
    from braid.cli.trace.reading import write_json
    from braid.sim.belady import LogError, read_logs, regrets

    sizes = _sizes(blocks)
    try:
        logs = read_logs(_lines(log))
    except LogError as error:
        raise BraidError(f"{log}: {error}") from None
    if not logs:
        raise BraidError(f"{log} is empty")
    rows = regrets(logs, sizes)
    _show(logs, rows)
    if json is not None:
        write_json(_report(logs, rows), json)
    return 0


def _sizes(text: str | None) -> list[int]:
    words = [] if text is None else [word.strip() for word in text.split(",")]
    for word in words:
        if not (word.isascii() and word.isdecimal() and 0 < len(word) <= 12 and int(word) > 0):
            raise InvalidParameterError(
                f"blocks must be integers >= 1 with commas between them, got {text!r}", param="blocks"
            )
    return [int(word) for word in words]


def _lines(path: Path) -> Iterator[Any]:
    """A last line that was cut off (the engine was killed) is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BraidError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json_text.loads(line)
        except ValueError:
            if number == len(lines) and not text.endswith("\n"):
                return
            raise BraidError(f"{path}: line {number} is no JSON") from None


def _show(logs: Sequence[TurnLog], rows: Sequence[Regret]) -> None:
    from rich.console import Console
    from rich.table import Table

    from braid.cli.trace.console import print_table

    console = Console()
    names = sorted({log.policy for log in logs})
    table = Table(title=f"{_num_turns(logs):,} turns under {', '.join(names)}", title_justify="left")
    has_tiers = any(row.reloaded is not None and row.reloaded.found for row in rows)
    for name in ("blocks", "tokens", "LRU", "regret", "logged", "regret", "Belady", "no eviction"):
        table.add_column(name, justify="right", no_wrap=True)
    if has_tiers:
        table.add_column("reloaded", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.num_blocks:,}",
            f"{row.num_blocks * logs[0].block_size:,}",
            *_pair(row.lru, row.best),
            *_pair(row.logged, row.best),
            f"{row.best.rate:.2%}",
            f"{row.endless.rate:.2%}",
            *((_share(row.reloaded),) if has_tiers else ()),
        )
    print_table(console, table)
    for line in (_EXPLAINED, *((_RELOADED,) if has_tiers else ()), *_warnings(logs)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _pair(hits: Hits | None, best: Hits) -> tuple[str, str]:
    return ("–", "–") if hits is None else (f"{hits.rate:.2%}", f"{best.rate - hits.rate:.2%}")


def _share(hits: Hits | None) -> str:
    return "–" if hits is None else f"{hits.rate:.2%}"


def _num_turns(logs: Sequence[TurnLog]) -> int:
    return sum(event.is_start for log in logs for event in log.events)


def _warnings(logs: Sequence[TurnLog]) -> Iterator[str]:
    dropped, unknown = sum(log.num_dropped for log in logs), sum(log.num_unknown for log in logs)
    if dropped or unknown:
        yield (
            f"The log is not whole: {dropped:,} lines were dropped, {unknown:,} refer to turns of which there is no "
            "line, whose blocks count as new."
        )
    if len(logs) > 1:
        yield f"The engine began {len(logs)} times; each time with an empty cache."


def _report(logs: Sequence[TurnLog], rows: Sequence[Regret]) -> dict[str, Any]:
    return {
        "turns": _num_turns(logs),
        "block_size": logs[0].block_size,
        "policies": sorted({log.policy for log in logs}),
        "lives": len(logs),
        "dropped": sum(log.num_dropped for log in logs),
        "unknown": sum(log.num_unknown for log in logs),
        "sizes": [
            {
                "blocks": row.num_blocks,
                "wanted_tokens": row.best.wanted,
                **{
                    name: None if hits is None else _numbers(hits, row.best)
                    for name, hits in row._asdict().items()
                    if name not in ("num_blocks", "reloaded")
                },
                "reloaded_tokens": None if row.reloaded is None else row.reloaded.found,
            }
            for row in rows
        ],
    }


def _numbers(hits: Hits, best: Hits) -> dict[str, float]:
    """What finds more than Belady evicts nothing."""
    return {"hit_tokens": hits.found, "hit_rate": hits.rate, "regret": max(0.0, best.rate - hits.rate)}
