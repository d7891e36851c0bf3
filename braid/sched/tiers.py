"""What lies in a tier below the device: blocks' keys and the slots that hold their KV. Names and numbers only.

Rules:
    1. A slot is free, being written, or ready; only ready ones are found.
    2. Nothing is written over what is being read or written.
    3. Where no slot is free, the key that was used least recently goes; of a chain its end, and what nobody will ask
       for any more before all others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping


class LowerTier:
    """``num_slots`` slots of one block each.

    Args:
        kept: slots with content from an earlier life, and its keys; those used last come last.
    """

    def __init__(self, name: str, num_slots: int, kept: Iterable[tuple[int, bytes]] = ()) -> None:
        self.name = name
        self.num_slots = num_slots
        self.num_stored = self.num_loaded = self.num_failed = self.num_evicted = 0
        self._ready: OrderedDict[bytes, int] = OrderedDict()
        """In the order in which they go."""
        self._writing: dict[bytes, int] = {}
        self._reading: dict[bytes, int] = {}
        """How many read it."""
        self._withdrawn: dict[bytes, int] = {}
        """Slots that are found no more, but still read."""
        for slot, key in kept:
            assert 0 <= slot < num_slots, f"slot {slot} of {num_slots}"
            self._ready[key] = slot
            self._ready.move_to_end(key)
        taken = set(self._ready.values())
        self._free = [slot for slot in range(num_slots - 1, -1, -1) if slot not in taken]

    def __len__(self) -> int:
        """Keys that can be found."""
        return len(self._ready)

    def __contains__(self, key: bytes) -> bool:
        """Whether it is there, or on its way there."""
        return key in self._ready or key in self._writing

    def find(self, key: bytes) -> int | None:
        return self._ready.get(key)

    def reserve(self, key: bytes) -> int | None:
        """A slot to write ``key`` to, which must not be there; None if every slot is in use now."""
        assert key not in self, "a key has two slots"
        slot = self._free.pop() if self._free else self._evict()
        if slot is not None:
            self._writing[key] = slot
        return slot

    def publish(self, key: bytes) -> None:
        """It has been written."""
        slot = self._writing.pop(key, None)
        if slot is not None:
            self._ready[key] = slot
            self.num_stored += 1

    def cancel(self, key: bytes) -> None:
        """It could not be written."""
        slot = self._writing.pop(key, None)
        if slot is not None:
            self._free.append(slot)
            self.num_failed += 1

    def acquire(self, key: bytes) -> int:
        """It is being read from now on, from this slot; its place in line is that of its chain, see ``touch``."""
        self._reading[key] = self._reading.get(key, 0) + 1
        return self._ready[key]

    def release(self, key: bytes, *, is_good: bool) -> None:
        """It has been read, or it is not what it should be and is found no more."""
        if key not in self._reading:
            return
        self._reading[key] -= 1
        if not self._reading[key]:
            del self._reading[key]
            if key in self._withdrawn:
                self._free.append(self._withdrawn.pop(key))
        if is_good:
            self.num_loaded += 1
            return
        self.num_failed += 1
        slot = self._ready.pop(key, None)
        if slot is not None:
            self._free.append(slot)

    def withdraw(self, keys: Iterable[bytes]) -> None:
        """Their content is not to be trusted: they are found no more. Those being written are their writer's affair."""
        for key in keys:
            slot = self._ready.pop(key, None)
            if slot is None:
                continue
            if key in self._reading and key not in self._withdrawn:
                self._withdrawn[key] = slot
            else:
                self._free.append(slot)

    def touch(self, chain: tuple[bytes, ...]) -> None:
        """A chain was used: its end goes before its beginning."""
        for key in reversed(chain):
            if key in self._ready:
                self._ready.move_to_end(key)

    def demote(self, chain: tuple[bytes, ...]) -> None:
        """Nobody will ask for these any more: they go first, the last of them before the others."""
        for key in chain:
            if key in self._ready:
                self._ready.move_to_end(key, last=False)

    def close(self) -> None:
        """It cannot be used any more: nothing is found, and no slot is given."""
        self.num_slots = 0
        self._free.clear()
        for keys in (self._ready, self._writing, self._reading, self._withdrawn):
            keys.clear()

    def counts(self) -> Mapping[str, int]:
        """Blocks, by what became of them; ``slots`` and ``used`` are gauges."""
        return {
            "slots": self.num_slots,
            "used": len(self._ready) + len(self._writing),
            "stored": self.num_stored,
            "loaded": self.num_loaded,
            "failed": self.num_failed,
            "evicted": self.num_evicted,
        }

    def check_integrity(self) -> None:
        """Prove that every slot is in one place.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        slots = [*self._free, *self._ready.values(), *self._writing.values(), *self._withdrawn.values()]
        assert sorted(slots) == list(range(self.num_slots)), "a slot is lost or counted twice"
        assert not self._ready.keys() & self._writing.keys(), "a key has two slots"
        there = self._ready.keys() | self._withdrawn.keys()
        assert self._reading.keys() <= there, "what is not there is being read"
        assert self._withdrawn.keys() <= self._reading.keys(), "a slot waits for nobody"

    def _evict(self) -> int | None:
        for key in self._ready:
            if key not in self._reading:
                self.num_evicted += 1
                return self._ready.pop(key)
        return None
