"""A synthetic twin of BurstGPT_3.csv: its size, schema and published statistics, none of its rows.

Run: python benchmarks/lab_twin.py twin.csv [--rows 5344021] [--seed 3]. For speed and memory only: the file has the
real one's counts, ranges, medians and means, not its burstiness or its in-out relation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

ROWS = 5_344_021
START_S, END_S = 19_440_110, 28_943_983
SESSION_ROWS, SESSIONS = 233_617 / ROWS, 55_920 / ROWS
API_FAILED, CONVERSATION_FAILED = 0.0756, 0.008
IDENTICAL = 0.026
GPT4 = 754_536 / 4_956_058
REQUEST_MEDIAN, REQUEST_MEAN, REQUEST_MAX = 327, 478, 125_591
RESPONSE_MEDIAN, RESPONSE_SIGMA, RESPONSE_MAX = 70, 1.1, 5_383
TURN_GAP_P50, TURN_GAP_P90 = 131, 2_340
Z90 = 1.2816
WINDOW_S = 1_200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    twin(np.random.default_rng(args.seed), args.rows).write_csv(args.out, float_precision=1)
    print(f"{args.out}: {args.rows:,} synthetic rows, {args.out.stat().st_size / 1e6:.0f} MB")


def twin(rng: np.random.Generator, rows: int) -> pl.DataFrame:
    """The 8 columns, in order of time."""
    starts, sessions = _conversations(rng, round(rows * SESSION_ROWS), max(1, round(rows * SESSIONS)))
    times = np.concatenate([_arrivals(rng, rows - starts.size), starts])
    names = np.concatenate([np.full(rows - starts.size, -1), sessions])
    order = np.argsort(times, kind="stable")
    times, names = times[order], names[order]
    conversation = names >= 0
    failed = rng.random(rows) < np.where(conversation, CONVERSATION_FAILED, API_FAILED)
    asked, answered = _lengths(rng, failed)
    ids = pl.Series([_uuid(rng) for _ in range(int(sessions.max(initial=0)) + 1)])
    frame = pl.DataFrame(
        {
            "Timestamp": times.astype(np.float64),
            "Session ID": ids.gather(pl.Series(names).replace(-1, None)),
            "Elapsed time": np.where(failed, 0.0, 0.3 + answered * rng.gamma(4, 0.005, rows)),
            "Model": pl.Series(np.where(rng.random(rows) < GPT4, "GPT-4", "ChatGPT")),
            "Request tokens": asked,
            "Response tokens": answered,
            "Total tokens": asked + answered,
            "Log Type": pl.Series(np.where(conversation, "Conversation log", "API log")),
        }
    )
    return frame[_repeats(rng, ~conversation)]


def _repeats(rng: np.random.Generator, is_api: np.ndarray) -> np.ndarray:
    """Places to take rows from: some API rows become copies of the one before."""
    again = rng.random(is_api.size) < IDENTICAL
    again[1:] &= is_api[1:] & is_api[:-1]
    again[[0, -1]] = False
    return np.arange(is_api.size) - again


def _arrivals(rng: np.random.Generator, count: int) -> np.ndarray:
    """Whole seconds; the rate changes from window to window, log-normally."""
    windows = (END_S - START_S) // WINDOW_S
    rates = rng.lognormal(0, 1.3, windows)
    place = rng.choice(windows, count, p=rates / rates.sum())
    times = START_S + place * WINDOW_S + np.floor(rng.random(count) * WINDOW_S).astype(np.int64)
    times[:2] = START_S, END_S
    return times


def _conversations(rng: np.random.Generator, rows: int, sessions: int) -> tuple[np.ndarray, np.ndarray]:
    """Times and session numbers of conversation rows: every session has one, the rest fall on few (median 2)."""
    weights = rng.gamma(0.35, 1.0, sessions) + 1e-9
    further = rng.choice(sessions, rows - sessions, p=weights / weights.sum())
    number = np.sort(np.concatenate([np.arange(sessions), further]))
    gaps = rng.lognormal(np.log(TURN_GAP_P50), np.log(TURN_GAP_P90 / TURN_GAP_P50) / Z90, rows)
    first = np.flatnonzero(np.diff(number, prepend=-1))
    gaps[first] = 0
    total = np.cumsum(gaps)
    within = total - total[first][number]
    times = START_S + np.floor(rng.random(sessions)[number] * (END_S - START_S) * 0.98 + within)
    return np.minimum(times, END_S).astype(np.int64), number


def _lengths(rng: np.random.Generator, failed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sigma = np.sqrt(2 * np.log(REQUEST_MEAN / REQUEST_MEDIAN))
    asked = np.minimum(rng.lognormal(np.log(REQUEST_MEDIAN), sigma, failed.size), REQUEST_MAX)
    answered = np.minimum(
        rng.lognormal(np.log(RESPONSE_MEDIAN), RESPONSE_SIGMA, failed.size), RESPONSE_MAX - 1
    )
    asked[0], answered[0] = REQUEST_MAX, RESPONSE_MAX - 1
    silent = failed & (rng.random(failed.size) < 0.5)
    return np.where(silent, 0, asked).astype(np.int64), np.where(failed, 0, answered + 1).astype(np.int64)


def _uuid(rng: np.random.Generator) -> str:
    text = rng.bytes(16).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


if __name__ == "__main__":
    main()
