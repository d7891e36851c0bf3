from __future__ import annotations

import pytest

from braid.core.sampling import SamplingParams
from braid.core.step import SampleSpec, Work
from braid.policy.cost import Estimate, Grid, Line, StepCost

LINE = Line((1, 10, 100), (1.0, 2.0, 20.0))
GRID = Grid((1, 3), (0, 10), ((1.0, 2.0), (3.0, 8.0)))
SPEC = SampleSpec(SamplingParams(), 0, [], 0)


@pytest.mark.parametrize(
    ("x", "seconds", "extrapolated"),
    [
        (0, 0.0, False),
        (1, 1.0, False),
        (5.5, 1.5, False),
        (10, 2.0, False),
        (55, 11.0, False),
        (200, 40.0, True),
    ],
)
def test_lines(x: float, seconds: float, extrapolated: bool) -> None:
    estimate = LINE.at(x)
    assert estimate == (pytest.approx(seconds), extrapolated)


def test_below_the_table_is_extrapolated_and_never_negative() -> None:
    assert Line((10, 20), (1.0, 20.0)).at(1) == Estimate(0.0, True)


@pytest.mark.parametrize(
    ("row", "column", "seconds", "extrapolated"),
    [(1, 0, 1.0, False), (3, 10, 8.0, False), (2, 5, 3.5, False), (2, 20, 8.0, True), (5, 0, 5.0, True)],
)
def test_grids(row: float, column: float, seconds: float, extrapolated: bool) -> None:
    assert GRID.at(row, column) == (pytest.approx(seconds), extrapolated)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Line((1,), (1.0,)),
        lambda: Line((1, 1), (1.0, 2.0)),
        lambda: Line((1, 2), (1.0,)),
        lambda: Grid((1, 2), (1, 2), ((1.0, 2.0), (1.0,))),
    ],
)
def test_tables_that_are_none_are_refused(build) -> None:
    with pytest.raises(ValueError):
        build()


def test_a_step_adds_its_parts() -> None:
    zero = Line((0.5, 1000), (0.0, 0.0))
    flat = Grid((1, 100), (0, 1000), ((0.0, 0.0), (0.0, 0.0)))
    parts = {"dense": zero, "head": zero, "prefill": flat, "decode": flat}
    decodes = [Work("a", [1], 9, [0], SPEC), Work("b", [1], 19, [0], SPEC)]
    chunk = Work("c", [1, 2], 4, [0], None)

    def seconds(works: list[Work], **changed: object) -> float:
        return StepCost(profile="test", **(parts | changed)).step(works).seconds

    assert seconds([*decodes, chunk], dense=Line((1, 10), (1.0, 10.0))) == pytest.approx(4.0)
    assert seconds([*decodes, chunk], head=Line((1, 10), (1.0, 10.0))) == pytest.approx(2.0)
    assert seconds([*decodes, chunk], host=0.5) == pytest.approx(0.5)
    by_context = Grid((1, 100), (0, 1000), ((0.0, 1000.0), (0.0, 1000.0)))
    assert seconds(decodes, decode=by_context) == pytest.approx(15.0)
    assert seconds([chunk], prefill=by_context) == pytest.approx(4.0)
    assert seconds([*decodes, chunk], decode=by_context, mixing=2.0) == pytest.approx(30.0)
    assert seconds(decodes, decode=by_context, mixing=2.0) == pytest.approx(15.0)
