from __future__ import annotations

import pytest

from braid.core.errors import InvalidParameterError
from braid.core.request import Slo
from braid.policy.phases.catalog import NAMES, phases_policy
from braid.policy.phases.policy import Demand

DEMAND = Demand(0.0, 4, 2, 100, 500, 500, 0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "name", ["auto", "mixed", "mixed:64", "split", "layered:3", "prefill-first", "static:25/75"]
)
def test_every_way_is_called_what_it_was_asked_as(name: str) -> None:
    assert phases_policy(name, Slo()).name == name


def test_layers_of_a_chunk() -> None:
    assert phases_policy("layered", Slo()).name == "layered:1"
    division = phases_policy("layered:3", Slo()).divide(DEMAND)
    assert (division.is_mixed, division.num_layers) == (True, 3)
    assert phases_policy("mixed", Slo()).divide(DEMAND).num_layers == 0


@pytest.mark.parametrize("name", ["layered:", "layered:0", "layered:x", "mixed:0", "static:50", "Layered"])
def test_what_is_none_names_those_there_are(name: str) -> None:
    with pytest.raises(InvalidParameterError) as error:
        phases_policy(name, Slo())
    assert all(known in str(error.value) for known in NAMES)
