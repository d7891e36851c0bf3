"""Failures against load: do requests fail more where there are more of them?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from braid.lab.arrays import Floats, floats, ints, rounded
from braid.lab.describe.relation import spearman

WINDOW_S = 1200.0
CLASSES = 10
SCATTER = 2000
Z95 = 1.959964


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """Failed requests, and their share per window of ``window_s`` by the window's load.

    Args:
        statuses: rows by status.
        share: failed rows of all rows with a known status; by panel in ``panel_share``.
        load: requests per second of each class of windows (tenths of the windows, by load): the class's mean.
        num, failed: requests of each class.
        class_share, low, high: failed share of each class, with Wilson's 95 % interval (it takes requests as
            independent, which failures in bursts are not: read it as a lower bound of the uncertainty).
        spearman: rank correlation of a window's load and its failed share.
        scatter: pairs (requests per second, failed share) of up to ``SCATTER`` windows, evenly taken.
    """

    statuses: dict[str, int]
    share: float | None
    panel_share: Floats
    window_s: float
    load: Floats
    num: tuple[int, ...]
    failed: tuple[int, ...]
    class_share: Floats
    low: Floats
    high: Floats
    spearman: float | None
    scatter: tuple[Floats, ...]


def failures(
    t_s: np.ndarray | None,
    failed: np.ndarray,
    known: np.ndarray,
    statuses: dict[str, int],
    panels: list[tuple[np.ndarray, np.ndarray]],
) -> Failures:
    """Describe failures.

    Args:
        t_s: ascending arrivals; None where the trace has no times, and then nothing is said of load.
        failed, known: per row, whether it failed and whether its status is known.
        statuses: rows by status.
        panels: ``failed`` and ``known`` of each panel.
    """
    share = _share(failed, known)
    windows = _Windows.of(t_s, failed) if t_s is not None and t_s.size and failed.any() else _Windows.none()
    classes = _classes(windows)
    num, bad = (
        np.array([values[part].sum() for part in classes]) for values in (windows.num, windows.failed)
    )
    low, high = wilson(bad, num)
    every = max(windows.num.size // SCATTER, 1)
    shares = windows.failed / np.maximum(windows.num, 1)
    return Failures(
        statuses=statuses,
        share=share,
        panel_share=tuple(_share(*panel) for panel in panels),
        window_s=WINDOW_S,
        load=floats(windows.num[part].mean() / WINDOW_S for part in classes),
        num=ints(num),
        failed=ints(bad),
        class_share=floats(bad / np.maximum(num, 1)),
        low=floats(low),
        high=floats(high),
        spearman=_spearman(windows.num, shares),
        scatter=tuple(
            floats(pair, 4) for pair in zip(windows.num[::every] / WINDOW_S, shares[::every], strict=True)
        ),
    )


def wilson(hits: np.ndarray, num: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a share (1927); zero rows give [0, 1]."""
    total = np.maximum(num, 1e-9)
    share, square = hits / total, Z95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 * np.sqrt(share * (1 - share) / total + square / (4 * total**2)) / (1 + square / total)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


@dataclass(frozen=True, slots=True)
class _Windows:
    """Windows that hold a request. Shapes ``(windows,)``."""

    num: np.ndarray
    failed: np.ndarray

    @classmethod
    def of(cls, t_s: np.ndarray, failed: np.ndarray) -> _Windows:
        starts = t_s[0] + WINDOW_S * np.arange(int((t_s[-1] - t_s[0]) // WINDOW_S) + 1)
        num, bad = (_per_window(times, starts) for times in (t_s, t_s[failed]))
        return cls(num[num > 0], bad[num > 0])

    @classmethod
    def none(cls) -> _Windows:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))


def _per_window(t_s: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.diff(np.append(np.searchsorted(t_s, starts), t_s.size))


def _classes(windows: _Windows) -> list[np.ndarray]:
    order = np.argsort(windows.num, kind="stable")
    return [part for part in np.array_split(order, min(CLASSES, max(order.size // 3, 1))) if part.size]


def _share(failed: np.ndarray, known: np.ndarray) -> float | None:
    num = np.count_nonzero(known)
    return rounded(np.count_nonzero(failed & known) / num) if num else None


def _spearman(load: np.ndarray, share: np.ndarray) -> float | None:
    if load.size < CLASSES:
        return None
    return spearman(load, np.unique(share, return_inverse=True)[1])
