"""The tiers that an engine's experts are in: slots above a file, and main memory between them where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch

from braid.checkpoint.expert_file import ExpertFile
from braid.core.config import EngineConfig
from braid.core.errors import CapacityError, InvalidParameterError
from braid.core.faults import Faults
from braid.core.units import Amount, parse_amount
from braid.device.machine import probe
from braid.policy.experts.budget import ExpertDemand, decimal
from braid.policy.experts.catalog import expert_cache
from braid.policy.experts.sides import PlannedSides, Sides
from braid.policy.experts.slots import SlotTable
from braid.policy.experts.times import LearntTimes, prior_times
from braid.policy.fit import human
from braid.runner.experts.host import HostTier
from braid.runner.experts.store import ExpertStore

HOST_FRACTION = 0.8
"""Of main memory that is available, what experts below a GPU may take unasked."""
AUTO = "auto"


def check_host(config: EngineConfig, device: torch.device) -> None:
    """Whether the device can have the tier that is wanted below it; asked before anything is loaded.

    Raises:
        InvalidParameterError: saying why not.
    """
    if config.expert_host_memory is not None and not has_host_tier(device):
        raise InvalidParameterError(
            "expert_host_memory is main memory below a GPU; on a CPU all slots are in main memory: expert_memory says "
            "how much of it they take",
            param="expert_host_memory",
        )


def has_host_tier(device: torch.device) -> bool:
    """Main memory is another memory than the device's."""
    return device.type != "cpu"


def open_store(
    config: EngineConfig,
    demand: ExpertDemand,
    file: ExpertFile,
    num_slots: int,
    device: torch.device,
    *,
    faults: Faults,
) -> ExpertStore:
    """Slots on ``device``, and the tier below them that it can have.

    Raises:
        InvalidParameterError: not one expert fits into what was asked for main memory.
        CapacityError: there is not so much memory.
    """
    with ExitStack() as undo:
        host: HostTier | None = None
        sides: Callable[[SlotTable], Sides] | None = None
        if has_host_tier(device):
            host = HostTier(_open_host(config, demand, file, faults))
            undo.callback(host.store.close)
            if config.expert_dispatch == AUTO:
                learnt = LearntTimes(prior_times(demand.slot_bytes))
                sides = partial(PlannedSides, learnt=learnt, is_below=host.store.has)
        try:
            store = ExpertStore(
                file,
                num_slots,
                expert_cache(config.expert_cache, demand.shape, scope=config.expert_scope),
                device=device,
                prefetch=config.expert_prefetch,
                faults=faults,
                host=host,
                sides=sides,
            )
        except (OSError, RuntimeError) as error:
            size = human((num_slots + demand.num_staging) * demand.slot_bytes)
            raise CapacityError(
                f"expert_memory: there is no memory for {num_slots} slots ({size}): {error}"
            ) from error
        undo.pop_all()
        return store


def _open_host(config: EngineConfig, demand: ExpertDemand, file: ExpertFile, faults: Faults) -> ExpertStore:
    asked = parse_amount(config.expert_host_memory or AUTO, "expert_host_memory")
    available = int(probe().ram_available_bytes * (HOST_FRACTION if asked == Amount() else 1.0))
    num_slots = demand.host_slots(asked, available - (config.kv_host or 0))
    cache = expert_cache(config.expert_cache, demand.shape, scope=config.expert_scope)
    try:
        return ExpertStore(file, num_slots, cache, faults=faults, pinned=torch.cuda.is_available())
    except (OSError, RuntimeError) as error:
        size = human((num_slots + demand.num_staging) * demand.slot_bytes)
        raise CapacityError(
            f"expert_host_memory: there is no main memory for {num_slots} experts ({size}): {error}"
        ) from error


def host_lines(config: EngineConfig, host: HostTier | None) -> list[str]:
    """As rows for people."""
    if host is None:
        return []
    store = host.store
    slots, total = store.table.num_slots, store.shape.total
    pinned = "pinned" if store.is_pinned else "not pinned"
    missing = (
        "computed there or fetched, as is planned to be done first"
        if config.expert_dispatch == AUTO
        else "fetched"
    )
    return [
        f"in main memory: {slots} = {decimal(slots * store.layout.record_bytes)} ({slots / total:.0%}), {pinned}; "
        f"experts that the device has not are {missing}"
    ]
