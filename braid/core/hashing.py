"""Clients' ids and prompts as numbers that tell equal from different, and nothing else."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from hashlib import blake2b

LOG_BLOCK_SIZE = 16
"""Tokens per block of ``prefix_ids``."""
_ID_BITS = 53
"""JSON readers that hold numbers as doubles keep integers of so many bits."""


class Hasher:
    """Hashes under a salt of this process: equal values are equal within one ``scope``, and cannot be guessed."""

    def __init__(self, salt: bytes | None = None) -> None:
        self._salt = secrets.token_bytes(16) if salt is None else salt
        self.scope = self.name("scope")

    def name(self, *parts: str) -> str:
        """16 hexadecimal digits for an id."""
        digest = blake2b(digest_size=8, key=self._salt)
        for part in parts:
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def prefix_ids(self, token_ids: Sequence[int], cache_salt: str) -> list[int]:
        """One number per block of 16 tokens, the last block may be partial. It stands for all tokens up to the
        block's end: two prompts share a prefix exactly as far as their lists do. Prompts of different
        ``cache_salt`` share none.
        """
        data = array("I", token_ids).tobytes()
        size = LOG_BLOCK_SIZE * 4
        state = self.name("blocks", cache_salt).encode()
        ids = []
        for start in range(0, len(data), size):
            state = blake2b(state + data[start : start + size], digest_size=16, key=self._salt).digest()
            ids.append(int.from_bytes(state[:8], "little") >> (64 - _ID_BITS))
        return ids
