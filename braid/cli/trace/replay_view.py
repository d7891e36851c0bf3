"""A replay as it goes, on stderr: a view that is redrawn on a terminal, a line now and then anywhere else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from braid.lab.replay.live import Reading

LINE_S = 10.0
RATE_S = 5.0
"""Rates are means of about so many seconds."""
SILENT_S = 3.0


class ReplayView:
    """A ``braid.lab.replay.live.Live`` that draws from its first update until it is left.

    ``on_start`` is called before it draws: two things that are redrawn do not go together.
    """

    def __init__(
        self, title: str, console: Console | None = None, on_start: Callable[[], None] = lambda: None
    ) -> None:
        self._title = title
        self._on_start = on_start
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._past: deque[tuple[float, int, int]] = deque()
        self._next_line = LINE_S
        self._word = ""

    def __enter__(self) -> ReplayView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, reading: Reading) -> None:
        """See ``braid.lab.replay.live.Live``."""
        rates = self._rates(reading)
        if self._console.is_terminal:
            if self._live is None:
                self._on_start()
                self._live = Live(console=self._console, transient=True, auto_refresh=False)
                self._live.start()
            self._live.update(self._picture(reading, rates), refresh=True)
        elif reading.elapsed_s >= self._next_line:
            self._next_line = (reading.elapsed_s // LINE_S + 1) * LINE_S
            self._line(f"{_clock(reading)}: {', '.join((*_counts(reading), *_speeds(reading, rates)))}")

    def stopping(self, why: str) -> None:
        """See ``braid.lab.replay.live.Live``."""
        self._word = why
        if self._live is None:
            self._line(why)

    def _rates(self, reading: Reading) -> tuple[float, float]:
        """Answers and output tokens per second."""
        now = (reading.elapsed_s, reading.counts["ok"], reading.counts["output_tokens"])
        self._past.append(now)
        while len(self._past) > 2 and now[0] - self._past[1][0] >= RATE_S:
            self._past.popleft()
        then = self._past[0]
        passed = now[0] - then[0]
        if passed <= 0:
            return 0.0, 0.0
        return (now[1] - then[1]) / passed, (now[2] - then[2]) / passed

    def _picture(self, reading: Reading, rates: tuple[float, float]) -> Group:
        top = Table.grid(padding=(0, 2))
        share = reading.ended / reading.planned if reading.planned else 1.0
        bar = ProgressBar(total=max(reading.planned, 1), completed=reading.ended, width=30)
        top.add_row(bar, f"{share:.0%}", _clock(reading))
        counts = [
            Text(fact, style="red" if reading.failed and "failed" in fact else "")
            for fact in _counts(reading)
        ]
        lines: list[RenderableType] = [Text(self._title, no_wrap=True, overflow="ellipsis"), top]
        lines += [Text("  ").join(counts), Text("  ".join(_speeds(reading, rates)))]
        if reading.silent_s > SILENT_S:
            lines.append(Text(f"a sender has told nothing for {reading.silent_s:.0f} s", style="yellow"))
        if self._word:
            lines.append(Text(self._word, style="yellow"))
        return Group(*lines)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _counts(reading: Reading) -> list[str]:
    counts, failed = reading.counts, reading.failed
    kinds = ", ".join(f"{name} {number:,}" for name, number in failed.items())
    told = [f"planned {reading.planned:,}"]
    told += [f"{name} {counts[name]:,}" for name in ("sent", "open", "ok")]
    told.append(f"failed {sum(failed.values()):,}" + (f" ({kinds})" if kinds else ""))
    return told + [f"{name} {counts[name]:,}" for name in ("cancelled", "unsent") if counts[name]]


def _speeds(reading: Reading, rates: tuple[float, float]) -> list[str]:
    told = [f"{rates[0]:,.1f} req/s", f"{rates[1]:,.0f} tok/s"]
    if reading.recent_ttft_s.size:
        told.append(f"TTFT p50 {_seconds(_at(reading, 0.5))} p99 {_seconds(_at(reading, 0.99))}")
    return [*told, f"send lag max {_seconds(reading.lag_max_s)}"]


def _at(reading: Reading, share: float) -> float:
    ordered: Sequence[float] = sorted(reading.recent_ttft_s.tolist())
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _clock(reading: Reading) -> str:
    """Time since the start, and what is to come."""
    if reading.elapsed_s < 0:
        return f"starts in {-reading.elapsed_s:.1f} s"
    left = reading.span_s - reading.elapsed_s
    if left > 0:
        return f"{_minutes(reading.elapsed_s)}, {_minutes(left)} to the last planned start"
    return f"{_minutes(reading.elapsed_s)}, {reading.planned - reading.ended:,} to go"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
