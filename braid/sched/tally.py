"""What is counted of turns: their tokens by origin, and how long first and later turns wait for their first token."""

from __future__ import annotations

from braid.core.metrics import HistogramCounter
from braid.sched.entry import Entry
from braid.sched.observer import Origins

# fmt: off
TTFT_BOUNDS = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280,
)
# fmt: on
PREEMPTION_BOUNDS = (0, 1, 2, 4, 8, 16)


class Tally:
    """Constant work per turn.

    A program's first turn is a newcomer's; a request without a program is one, too.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self.tokens = dict.fromkeys(Origins._fields, 0)
        """Of all starts. A turn that is preempted starts again, so the sum may exceed the prompts' tokens."""
        self.ttft_first = HistogramCounter(TTFT_BOUNDS)
        self.ttft_later = HistogramCounter(TTFT_BOUNDS)
        self.preemptions = HistogramCounter(PREEMPTION_BOUNDS)
        """How often a turn had been preempted when it ended."""

    def started(self, entry: Entry, num_found: int) -> Origins:
        """A turn has its blocks, ``num_found`` of them with content."""
        origins = (
            self._again(entry, num_found) if entry.request.num_preemptions else self._first(entry, num_found)
        )
        for name, count in zip(Origins._fields, origins, strict=True):
            self.tokens[name] += count
        return origins

    def first_token(self, entry: Entry, seconds: float) -> None:
        """Its first token came so long after its arrival."""
        (self.ttft_later if entry.program.num_turns else self.ttft_first).observe(seconds)

    def ended(self, entry: Entry) -> None:
        self.preemptions.observe(entry.request.num_preemptions)

    def _first(self, entry: Entry, num_found: int) -> Origins:
        size, known = self._block_size, max(num_found, entry.reusable)
        host, disk = self._reloaded(entry, num_found)
        return Origins(
            device_hit=(num_found - host - disk) * size,
            host_reload=host * size,
            disk_reload=disk * size,
            recompute=(known - num_found) * size,
            compulsory=entry.request.num_tokens - known * size,
        )

    def _again(self, entry: Entry, num_found: int) -> Origins:
        """Its tokens were counted when it started first: only what it had computed, and lost, is new."""
        size = self._block_size
        host, disk = self._reloaded(entry, num_found)
        return Origins(
            host_reload=host * size,
            disk_reload=disk * size,
            recompute=max(0, entry.num_lost - num_found * size),
        )

    def _reloaded(self, entry: Entry, num_found: int) -> tuple[int, int]:
        """Of what was copied up, what is still there."""
        end = min(num_found, entry.first_loaded + entry.num_host_blocks + entry.num_disk_blocks)
        left = max(0, end - entry.first_loaded)
        host = min(entry.num_host_blocks, left)
        return host, left - host
