"""How many experts may stay in memory: from what was asked to slots. Pure reckoning."""

from __future__ import annotations

from dataclasses import dataclass

from braid.core.errors import CapacityError, InvalidParameterError
from braid.core.experts import ExpertShape
from braid.core.units import Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertDemand:
    """What a model's routed experts want of memory.

    Args:
        parameters: of all of them; the rest of the model is resident anyway.
        slot_bytes: of one expert's record, the same in the file and in memory.
        num_staging: slots beside, through which experts go that get none of their own.
        asked: what the user said.
        pair_bytes: of one token of a step, for what its experts give until it is added up.
    """

    shape: ExpertShape
    parameters: int
    slot_bytes: int
    num_staging: int
    asked: Amount
    pair_bytes: int = 0

    @property
    def all_bytes(self) -> int:
        return self.shape.total * self.slot_bytes

    @property
    def staging_bytes(self) -> int:
        return self.num_staging * self.slot_bytes

    def asked_slots(self) -> int | None:
        """At most all; None where the machine decides.

        Raises:
            InvalidParameterError: not one expert fits.
        """
        return self._slots(self.asked, "expert_memory")

    def host_slots(self, asked: Amount, available_bytes: int) -> int:
        """Experts in main memory below a GPU's slots: what was asked, else all, or as many as there is room for.

        Args:
            available_bytes: of main memory, for these and for what they go through that have no room there.

        Raises:
            InvalidParameterError: not one expert fits into what was asked.
            CapacityError: there is not so much memory.
        """
        slots = self._slots(asked, "expert_host_memory")
        room = max(0, available_bytes - self.staging_bytes) // self.slot_bytes
        if slots is not None and slots > room:
            raise CapacityError(
                f"expert_host_memory: {slots} experts in main memory take {decimal(slots * self.slot_bytes)}, and "
                f"{decimal(room * self.slot_bytes)} are left for them"
            )
        return min(room, self.shape.total) if slots is None else slots

    def _slots(self, asked: Amount, param: str) -> int | None:
        num_bytes = asked.of(self.all_bytes)
        if num_bytes is None:
            return None
        if num_bytes < self.slot_bytes:
            share = "" if asked.share is None else f" ({asked.share:.3g} of all)"
            raise InvalidParameterError(
                f"{param} is {num_bytes} bytes{share}, but one expert takes {self.slot_bytes}", param=param
            )
        return min(num_bytes // self.slot_bytes, self.shape.total)

    def least_bytes(self) -> int:
        """What is set aside before anything else is reckoned: what was asked, or the experts of one token."""
        slots = self.asked_slots()
        return self.staging_bytes + self.slot_bytes * (self.shape.cycle if slots is None else slots)

    def slots_in(self, num_bytes: int) -> int:
        """Slots that so many bytes hold beside the staging, where ``least_bytes`` are among them."""
        slots = self.asked_slots()
        if slots is not None:
            return slots
        return min((num_bytes - self.staging_bytes) // self.slot_bytes, self.shape.total)

    def notes(self, num_slots: int) -> list[str]:
        """What a user should know of so many slots."""
        asked = self.asked.of(self.all_bytes)
        notes = []
        if asked is not None and asked > self.all_bytes:
            notes.append(
                f"expert_memory is {decimal(asked)}, more than all experts need: {decimal(self.all_bytes)} are taken"
            )
        cycle = self.shape.cycle
        if num_slots < cycle:
            missing = (cycle - num_slots) * self.slot_bytes
            notes.append(
                f"expert_memory holds {num_slots} experts, fewer than the {cycle} that one token uses (a cycle): "
                f"each token of a request alone reads at least {decimal(missing)} from the file; "
                f"{decimal(cycle * self.slot_bytes)} hold a cycle"
            )
        return notes


def decimal(count: int) -> str:
    """Bytes as disks are measured: ``2.43 MB``."""
    size, unit = (count / 1e9, "GB") if count >= 1e9 else (count / 1e6, "MB")
    return f"{size:.3g} {unit}" if size < 1 else f"{size:.2f} {unit}"
