"""Plans become tensors: positions, slots and tables of mixed steps."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.sampling import SamplingParams
from braid.core.step import SampleSpec, Work
from braid.runner.batch import build_batch

CPU = torch.device("cpu")
SAMPLE = SampleSpec(SamplingParams(), 0, [1], 1)


def test_a_mixed_step_is_laid_out_in_order() -> None:
    works = [
        Work("d", [7], 5, [3, 1], SAMPLE),
        Work("p", [1, 2, 3, 4, 5], 2, [4, 0], None),
    ]
    batch = build_batch(works, 4, CPU)
    assert batch.token_ids_T.tolist() == [7, 1, 2, 3, 4, 5]
    assert batch.positions_T.tolist() == [5, 2, 3, 4, 5, 6]
    assert batch.slot_mapping_T.tolist() == [1 * 4 + 1, 4 * 4 + 2, 4 * 4 + 3, 0, 1, 2]
    assert batch.query_start == [0, 1, 6]
    assert batch.context_lens == [6, 7]
    assert batch.block_tables_SB.tolist() == [[3, 1], [4, 0]]
    assert batch.num_decodes == 1
    assert batch.logit_rows.tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.booleans()), min_size=1, max_size=6),
    st.sampled_from([1, 4, 16]),
)
def test_every_token_gets_its_own_slot(shapes: list[tuple[int, int, bool]], block_size: int) -> None:
    works, next_block = [], 0
    for index, (start, length, samples) in enumerate(shapes):
        count = -(-(start + length) // block_size)
        blocks = list(range(next_block, next_block + count))
        next_block += count
        works.append(Work(str(index), [9] * length, start, blocks, SAMPLE if samples else None))
    batch = build_batch(works, block_size, CPU)
    slots = batch.slot_mapping_T.tolist()
    assert len(set(slots)) == len(slots)
    for row, work in enumerate(works):
        begin, end = batch.query_start[row], batch.query_start[row + 1]
        expected = [
            work.block_ids[p // block_size] * block_size + p % block_size
            for p in range(work.start, work.start + len(work.token_ids))
        ]
        assert slots[begin:end] == expected
    assert batch.logit_rows.numel() == sum(samples for _, _, samples in shapes)
