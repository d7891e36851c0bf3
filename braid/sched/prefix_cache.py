"""Names for blocks' content, so that equal prefixes are computed once.

A block's key covers the salt, every token before the block and the block's own tokens. Tenants share the
store, so a key must not be forgeable: blake2b with 128 bits, not a fast hash (compare CVE-2025-25183 of vLLM,
where ``hash(None)`` was constant).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

from braid.sched.block_pool import BlockPool

KEY_BYTES = 16

Owner = TypeVar("Owner")


def root_key(cache_salt: str) -> bytes:
    """Where the chain of all requests with this salt begins."""
    salt = cache_salt.encode("utf-8", "surrogatepass")
    return blake2b(salt, digest_size=KEY_BYTES, person=b"braid.salt").digest()


def extend_keys(
    keys: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int, count: int
) -> None:
    """Append keys until there are ``count``, one per full block of ``token_ids``."""
    for index in range(len(keys), count):
        tokens = token_ids[index * block_size : (index + 1) * block_size]
        assert len(tokens) == block_size, "only full blocks have keys"
        parent = keys[-1] if keys else root
        keys.append(blake2b(parent + array("I", tokens).tobytes(), digest_size=KEY_BYTES).digest())


def match_prefix(pool: BlockPool, keys: Sequence[bytes], limit: int) -> list[int]:
    """READY blocks of the longest known prefix, at most ``limit``; without taking references."""
    blocks: list[int] = []
    for key in keys[:limit]:
        block = pool.find(key)
        if block is None:
            break
        blocks.append(block)
    return blocks


class Fillings(Generic[Owner]):
    """Which running request is about to make which key READY, and who waits for it.

    Whoever waits holds no blocks and no seat, and the filler waits for nobody, so the two can never block
    each other.
    """

    def __init__(self) -> None:
        self._filler: dict[bytes, Owner] = {}
        self._waiters: dict[bytes, list[Owner]] = {}

    def announce(self, owner: Owner, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._filler.setdefault(key, owner)

    def filler(self, key: bytes) -> Owner | None:
        return self._filler.get(key)

    def park(self, waiter: Owner, key: bytes) -> None:
        assert key in self._filler, "nobody fills that block"
        self._waiters.setdefault(key, []).append(waiter)

    def unpark(self, waiter: Owner, key: bytes) -> None:
        """``waiter`` gives up."""
        waiters = self._waiters[key]
        waiters.remove(waiter)
        if not waiters:
            del self._waiters[key]

    def resolve(self, owner: Owner, key: bytes) -> list[Owner]:
        """``key`` is READY, or ``owner`` will not fill it after all: who waited may be tried again."""
        if self._filler.get(key) is not owner:
            return []
        del self._filler[key]
        return self._waiters.pop(key, [])

    def waiting(self) -> list[tuple[Owner, Owner]]:
        """Pairs (waiter, filler)."""
        return [(waiter, self._filler[key]) for key, waiters in self._waiters.items() for waiter in waiters]
