"""KV memory: the shapes asked for, pages that cost nothing until used, and cleaning."""

from __future__ import annotations

import subprocess
import sys

import torch

from braid.runner.kv_store import KVStore

CPU = torch.device("cpu")


# In a process of its own: what other tests left behind comes and goes.
GROWTH = """
import re
from pathlib import Path

import torch

from braid.runner.kv_store import KVStore

def resident_bytes():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = resident_bytes()
shapes = [((4, 64), (4, 64))] * 4
kv = KVStore(shapes, num_blocks=16384, block_size=16, dtype=torch.bfloat16, device=torch.device("cpu"))
print(kv.num_bytes, resident_bytes() - before)
"""


def test_shapes_and_zeros() -> None:
    kv = KVStore([((2, 8), (2, 8)), ((24,),)], num_blocks=3, block_size=4, dtype=torch.bfloat16, device=CPU)
    assert [tuple(t.shape) for layer in kv.layers for t in layer] == [(3, 4, 2, 8), (3, 4, 2, 8), (3, 4, 24)]
    assert all(t.dtype == torch.bfloat16 and not t.any() for layer in kv.layers for t in layer)
    assert kv.num_bytes == 3 * 4 * (16 + 16 + 24) * 2


def test_blocks_cost_memory_only_when_they_are_written() -> None:
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    size, growth = map(int, done.stdout.split())
    assert size == 1 << 30
    assert growth < 64 << 20


def test_clear_zeroes_the_slots_in_every_layer() -> None:
    kv = KVStore([((1, 4), (1, 4))] * 2, num_blocks=3, block_size=2, dtype=torch.float32, device=CPU)
    for layer in kv.layers:
        for tensor in layer:
            tensor.fill_(torch.nan)
    kv.clear(torch.tensor([1, 4]))
    for layer in kv.layers:
        for tensor in layer:
            finite = torch.isfinite(tensor.flatten(0, 1)).all(-1).all(-1).tolist()
            assert finite == [False, True, False, False, True, False]


def test_blocks_that_are_given_back_are_zeros_and_others_stay() -> None:
    """A block of these is a page and a half: neighbours go together, and pages that others share stay."""
    kv = KVStore([((6, 64), (6, 64))] * 2, num_blocks=8, block_size=4, dtype=torch.float32, device=CPU)
    assert kv.can_give_back
    for layer in kv.layers:
        for tensor in layer:
            tensor.fill_(1)
    kv.give_back([5, 2, 3])
    for layer in kv.layers:
        for tensor in layer:
            assert all(bool((tensor[block] == 1).all()) for block in (0, 1, 4, 6, 7))
            assert not tensor[2:4].any(), "12,288 bytes from the 12,288th on"
            assert 0 < tensor[5].count_nonzero() < tensor[5].numel(), "half of a page is the neighbour's"
