"""What programs of a trace are like, in the figures that papers give of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from braid.lab.synthetic.laws import memory_of
from braid.lab.synthetic.programs import Kind, Spread, turns_of
from braid.lab.table import Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Args:
    turns: per program.
    eta: what the turns done tell of the turns left.
    gap_s: between turns, seconds.
    tokens: of a program: its last prompt and answer together.
    answer_tok: output tokens of a turn.
    """

    programs: int
    requests: int
    turns: Spread
    eta: float
    gap_s: Spread
    tokens: Spread
    answer_tok: Spread


def figures(trace: Trace) -> Figures:
    """Of all programs of a trace; nan where it does not say."""
    rows = trace.frame.filter(pl.col("program_id").is_not_null()).sort("program_id", "turn")
    programs = rows.group_by("program_id").agg(
        pl.len().alias("turns"), (pl.col("in_tok") + pl.col("out_tok")).last().alias("tokens")
    )
    return Figures(
        programs=programs.height,
        requests=rows.height,
        turns=_spread(programs["turns"]),
        eta=memory_of(programs["turns"].to_numpy()),
        gap_s=_spread(rows.filter(pl.col("turn") > 0)["gap_before_s"]),
        tokens=_spread(programs["tokens"]),
        answer_tok=_spread(rows["out_tok"]),
    )


def wanted(kind: Kind, eta: float | None = None) -> dict[str, Spread]:
    """The same figures as they were asked for."""
    law = turns_of(kind, eta)
    asked = {name: getattr(kind, name) for name in ("gap_s", "tokens", "answer_tok")}
    return {"turns": Spread(law.mean, law.sd), **asked}


def report(made: Figures, asked: dict[str, Spread]) -> dict[str, Any]:
    """Both as JSON has them: ``{"turns": {"mean", "sd", "wanted_mean", "wanted_sd"}, ...}``."""
    spreads: dict[str, Any] = {}
    for name, spread in asked.items():
        got: Spread = getattr(made, name)
        spreads[name] = {"mean": got.mean, "sd": got.sd, "wanted_mean": spread.mean, "wanted_sd": spread.sd}
    return {"programs": made.programs, "requests": made.requests, "eta": made.eta, **spreads}


def _spread(values: pl.Series) -> Spread:
    values = values.drop_nulls().cast(pl.Float64)
    mean, sd = values.mean(), values.std()
    return Spread(*(float("nan") if value is None else float(value) for value in (mean, sd)))  # type: ignore[arg-type]
