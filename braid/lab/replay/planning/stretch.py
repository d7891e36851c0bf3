"""Which stretch of a long trace to replay: any, or one of little, middling or much load, drawn by a seed."""

from __future__ import annotations

from typing import Literal

import numpy as np

from braid.lab.table import Trace, TraceError

Which = Literal["given", "random", "low", "middle", "high"]
THIRDS = ("low", "middle", "high")


def window_start(trace: Trace, span_s: float, which: Which, seed: int) -> float:
    """The start of a stretch of ``span_s`` seconds that lies whole within the trace and holds requests.

    Stretches follow each other without overlap from the trace's start. ``random`` draws one of them; ``low``,
    ``middle`` and ``high`` one of the third of them with the fewest, middling, or most requests.

    Raises:
        TraceError: the trace has no times, or is too short for that.
    """
    times = trace.frame["t_s"].drop_nulls().to_numpy()
    num = int(trace.span_s // span_s) if span_s > 0 else 0
    if num < 1:
        text = f"{trace.info.source}: spans {trace.span_s:,.0f} s, too short for a stretch of {span_s:g} s"
        raise TraceError(text)
    places = np.minimum(((times - times.min()) // span_s).astype(np.int64), num)
    loads = np.bincount(places, minlength=num + 1)[:num]
    held = np.flatnonzero(loads)
    held = held[np.argsort(loads[held], kind="stable")]
    if which in THIRDS:
        if held.size < len(THIRDS):
            raise TraceError(f"{trace.info.source}: has {held.size} stretches of {span_s:g} s, 3 are needed")
        held = np.array_split(held, len(THIRDS))[THIRDS.index(which)]
    chosen = int(np.random.default_rng(seed).choice(held))
    return float(times.min() + chosen * span_s)
