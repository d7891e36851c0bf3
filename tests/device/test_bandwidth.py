from __future__ import annotations

from itertools import count

import pytest

from braid.device.bandwidth import read_bandwidth


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bytes_over_the_best_pass(threads: int) -> None:
    ticks = count()
    # The clock advances by one at every look, so each pass lasts one second.
    assert read_bandwidth(threads, size=1 << 12, seconds=3, clock=lambda: float(next(ticks))) == 1 << 12


def test_two_passes_however_slow() -> None:
    times = iter([0.0, 0.0, 100.0, 100.0, 120.0, 120.0])
    assert read_bandwidth(1, size=4000, seconds=0.1, clock=lambda: next(times)) == 200.0


def test_a_real_measurement_is_positive() -> None:
    assert read_bandwidth(1, size=1 << 20, seconds=0.01) > 0
