"""The KV tiers below the device, as an engine's options want them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn

import braid
from braid.core.config import EngineConfig
from braid.core.env import cache_dir
from braid.core.errors import CapacityError, InvalidParameterError
from braid.core.faults import Faults
from braid.policy.fit import human
from braid.runner.kv_store import KVStore
from braid.runner.lower.disk import FORMAT_VERSION, DiskSlots
from braid.runner.lower.host import HostSlots
from braid.runner.lower.lane import Slots, TierLane
from braid.runner.lower.views import block_views

logger = logging.getLogger(__name__)

SAMPLES = 4096
"""Numbers of every parameter that the fingerprint looks at."""


@dataclass(frozen=True, slots=True)
class Lower:
    """What an engine has below its device: slots by tier, content that was kept, and who copies."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    lane: TierLane | None = None

    def lines(self, block_size: int, block_bytes: int) -> list[str]:
        """As rows for people, like those of ``braid.policy.fit``."""
        rows = []
        for name, count in self.sizes.items():
            found = len(self.kept.get(name, ()))
            remark = f"{count} blocks = {count * block_size} tokens" + (
                f", {found} found again" if found else ""
            )
            rows.append(f"{f'KV: {name}':<12} {human(count * block_bytes):>10}  {remark}")
        return rows


def check_tiers(config: EngineConfig, device: torch.device) -> None:
    """Whether the device can have the tiers that are wanted; asked before anything is loaded.

    Raises:
        InvalidParameterError: saying why not.
    """
    if config.kv_host is not None and device.type == "cpu":
        raise InvalidParameterError(
            "kv_host is a tier in main memory below a GPU; on a CPU all KV is in main memory already: give "
            "kv_cache_memory more, or kv_disk a size",
            param="kv_host",
        )


def open_tiers(
    config: EngineConfig,
    model: nn.Module,
    kv: KVStore,
    configuration: Mapping[str, Any],
    *,
    faults: Faults | None = None,
) -> Lower:
    """Make the tiers ready. A disk without room is a warning, and the engine serves without.

    Args:
        configuration: the checkpoint's, which says how the weights are used.

    Raises:
        InvalidParameterError: not one block fits, or the folder cannot be written.
        CapacityError: there is not so much main memory.
    """
    tiers: list[Slots] = []
    sizes: dict[str, int] = {}
    kept: dict[str, list[tuple[int, bytes]]] = {}
    if config.kv_host is not None:
        sizes["host"] = _host_blocks(config.kv_host, kv)
        tiers.append(_open_host(kv, sizes["host"]))
    disk = (
        None
        if config.kv_disk is None
        else _open_disk(config, config.kv_disk, kv, fingerprint(model, kv, configuration))
    )
    if disk is not None:
        tiers.append(disk[0])
        sizes["disk"], kept["disk"] = disk[0].num_slots, disk[1]
    if not tiers:
        return Lower()
    return Lower(sizes, kept, TierLane(tiers, faults=faults))


def fingerprint(model: nn.Module, kv: KVStore, configuration: Mapping[str, Any]) -> bytes:
    """32 bytes that differ wherever the KV of equal tokens would: another model, format, block size or version.

    Of the weights a sample is looked at, spread over every parameter.
    """
    shapes = [[list(tensor.shape[1:]) for tensor in layer] for layer in kv.layers]
    parts = (FORMAT_VERSION, braid.__version__, str(kv.layers[0][0].dtype), kv.block_size, shapes)
    digest = blake2b(json.dumps((parts, configuration), sort_keys=True, default=str).encode(), digest_size=32)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        sample = flat[::step].contiguous().cpu().view(torch.uint8).numpy()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        digest.update(sample.data)
    return digest.digest()


def _host_blocks(num_bytes: int, kv: KVStore) -> int:
    block_bytes = kv.num_bytes // kv.num_blocks
    if num_bytes < block_bytes:
        raise InvalidParameterError(
            f"kv_host is {num_bytes} bytes, but one block takes {block_bytes}", param="kv_host"
        )
    return num_bytes // block_bytes


def _open_host(kv: KVStore, num_slots: int) -> HostSlots:
    try:
        return HostSlots(kv, num_slots)
    except RuntimeError as error:
        raise CapacityError(f"kv_host: there is no main memory for {num_slots} KV blocks: {error}") from error


def _open_disk(
    config: EngineConfig, num_bytes: int, kv: KVStore, name: bytes
) -> tuple[DiskSlots, list[tuple[int, bytes]]] | None:
    """With what was kept; None where the disk has no room, fails, or is in use."""
    folder = cache_dir() / "kv" if config.kv_disk_path is None else Path(config.kv_disk_path).expanduser()
    try:
        disk = DiskSlots(block_views(kv), folder, num_bytes, name, keeps=config.kv_disk_keep)
        with ExitStack() as stack:
            stack.callback(disk.close)
            kept = disk.kept()
            stack.pop_all()
        return disk, kept
    except BlockingIOError:
        logger.warning("the KV tier disk is off: another engine uses the file in %s", folder)
    except OSError as error:
        logger.warning("the KV tier disk is off: %s in %s", error.strerror or error, folder)
    return None
