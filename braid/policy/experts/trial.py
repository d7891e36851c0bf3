"""Whether something pays, found by doing and not doing it in turn, and comparing how long steps took.

Rules:
    1. A trial is pairs of windows, one with and one without, in changing order, so that drifts cancel out.
    2. Only steps with the same number of rows are compared, by their medians; the first of a window are not counted.
    3. It is on after a trial in which most pairs, and the median of all, were shorter with it; else it is off.
    4. While it is on, a single pair is played now and then, and a loss begins a new trial. While it is off, a new trial
       begins after a while, which doubles with every one that was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from braid.core.errors import InvalidParameterError

MODES = ("auto", "on", "off")
WINDOW = 16
"""Steps."""
SKIPPED = 2
"""Of them, while what was done before still tells."""
PAIRS = 5
NEEDED = 4
"""Pairs that must agree."""
WIN = 0.99
"""Of the time without, at most."""
FEWEST = 4
"""Steps of as many rows in either window."""
CHECK_AFTER = 512
"""Steps, while it is on."""
RETRY_AFTER = 1024
"""Steps, after the first trial that was lost."""
MAX_DOUBLINGS = 5


class Trial:
    """Args:
    mode: ``on`` and ``off`` are never changed; ``auto`` begins with a trial.

    Raises:
        InvalidParameterError: another mode.
    """

    def __init__(self, mode: str = "auto") -> None:
        if mode not in MODES:
            raise InvalidParameterError(
                f"prefetching is one of {', '.join(MODES)}, got {mode!r}", param="expert_prefetch"
            )
        self.mode = mode
        self.state = "trial" if mode == "auto" else mode
        """``off``, ``trial`` or ``on``."""
        self.why = "nothing compared yet" if mode == "auto" else "as was asked for"
        self._is_check = False
        """One pair, while it is on."""
        self._windows: list[tuple[bool, dict[int, list[float]]]] = []
        self._ratios: list[float] = []
        self._steps = 0
        """Of this window, or since the state began."""
        self._num_lost = 0
        if mode == "auto":
            self._open(with_it=False)

    @property
    def is_on(self) -> bool:
        """Whether to do it in the step that comes."""
        return self._windows[-1][0] if self._windows else self.state == "on"

    def step_took(self, seconds: float, rows: int) -> None:
        if self.mode != "auto":
            return
        self._steps += 1
        if not self._windows:
            self._wait()
            return
        if self._steps > SKIPPED:
            self._windows[-1][1].setdefault(rows, []).append(seconds)
        if self._steps >= WINDOW:
            self._close()

    def _wait(self) -> None:
        """Rule 4."""
        if self.state == "on" and self._steps >= CHECK_AFTER:
            self._is_check = True
            self._open(with_it=True)
        elif self.state == "off" and self._steps >= RETRY_AFTER * 2 ** min(self._num_lost - 1, MAX_DOUBLINGS):
            self._begin_trial()

    def _open(self, *, with_it: bool) -> None:
        self._windows.append((with_it, {}))
        self._steps = 0

    def _begin_trial(self) -> None:
        self.state, self._is_check = "trial", False
        self._ratios.clear()
        self._windows.clear()
        self._open(with_it=False)

    def _close(self) -> None:
        """A window, and with every second one a pair."""
        if len(self._windows) == 1:
            self._open(with_it=not self._windows[0][0])
            return
        second_had_it = self._windows[-1][0]
        by_kind = dict(self._windows)
        ratio = _ratio(by_kind[True], by_kind[False])
        self._windows.clear()
        if ratio is not None:
            self._ratios.append(ratio)
        if self._is_check:
            self._judge_check(ratio)
        elif len(self._ratios) == PAIRS:
            self._judge()
        else:
            self._open(with_it=second_had_it)

    def _judge(self) -> None:
        """Rule 3."""
        middle = median(self._ratios)
        shorter = sum(ratio < 1 for ratio in self._ratios)
        self.state = "on" if middle <= WIN and shorter >= NEEDED else "off"
        self._num_lost = 0 if self.state == "on" else self._num_lost + 1
        self.why = (
            f"steps took {middle:.3f} of the time without it; {shorter} of {PAIRS} windows were shorter"
        )
        self._ratios.clear()
        self._steps = 0

    def _judge_check(self, ratio: float | None) -> None:
        self._ratios.clear()
        self._is_check = False
        self._steps = 0
        if ratio is not None and ratio > 1:
            self.why = f"a window took {ratio:.3f} of the time without it"
            self._begin_trial()


def _ratio(with_it: Mapping[int, list[float]], without: Mapping[int, list[float]]) -> float | None:
    """Of medians, over rows that both windows had, weighed by steps; None where they had none in common."""
    total = weight = 0.0
    for rows, samples in with_it.items():
        others = without.get(rows, ())
        count = min(len(samples), len(others))
        if count >= FEWEST:
            total += count * median(samples) / median(others)
            weight += count
    return total / weight if weight else None
