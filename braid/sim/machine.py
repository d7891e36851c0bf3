"""A machine to simulate: its step times and its scheduler's numbers, as ``braid calibrate`` measured them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from braid.core.errors import BraidError
from braid.policy.calibration import cost_from_data
from braid.policy.cost import StepCost
from braid.sched.config import SchedulerConfig

VERSION = 1


class MachineError(BraidError, ValueError):
    """A file holds no machine."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a simulation needs to know.

    Args:
        config: of the engine that was measured; capacity must be equal for times to be.
        dtype: of weights and KV.
        errors: by kind of step, how far predictions were from steps that the tables had not seen.
    """

    cost: StepCost
    config: SchedulerConfig
    model: str
    dtype: str
    errors: dict[str, float]

    @property
    def words(self) -> str:
        errors = ", ".join(f"{kind} {error:.1%}" for kind, error in self.errors.items())
        return f"{self.cost.profile} (median error of step times: {errors})"


def load_machine(path: Path) -> Machine:
    """Read what ``braid calibrate`` wrote.

    Raises:
        MachineError: it is not that.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise MachineError(f"{path}: was not written by braid calibrate (or by another version of it)")
        return Machine(
            cost=cost_from_data(data["cost"]),
            config=SchedulerConfig(
                **{"num_units": data.get("machine", {}).get("cores", 1), **data["scheduler"]}
            ),
            model=str(data["model"]),
            dtype=str(data["dtype"]),
            errors={str(kind): float(error) for kind, error in data["held_out_error"].items()},
        )
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BraidError):
            raise
        raise MachineError(f"{path}: holds no machine: {error}") from None
