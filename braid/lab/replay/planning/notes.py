"""What differs between a plan and its trace, in sentences for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from braid.lab.replay.planning.lengths import FAILED_SKIPPED, TOO_LONG, ZERO_INPUT

if TYPE_CHECKING:
    from braid.lab.replay.planning.blocks import Sized
    from braid.lab.replay.planning.graph import Flags, Graph
    from braid.lab.replay.planning.plan import PlanOptions
    from braid.lab.table import Trace

_WHY = {
    ZERO_INPUT: "have no prompt, or one of unknown length",
    TOO_LONG: "do not fit into {max_tokens:,} tokens with their answer",
    FAILED_SKIPPED: "failed in the trace",
}


def start_notes(options: PlanOptions, quantum_s: float) -> list[str]:
    if options.arrivals == "rate":
        law = f"gamma gaps of CV {options.cv:g}, seed {options.seed}"
        return [
            f"Programs start at {options.rate:g} per second ({law}), in the trace's order, not by its clock."
        ]
    if options.arrivals == "concurrency":
        return [f"{options.concurrency:,} programs run at any time, in the trace's order, not by its clock."]
    if quantum_s > 0:
        how = f"by a random amount inside its step, order kept, seed {options.seed}"
        return [f"Arrival times sit on a grid of {quantum_s:g} s: each program was moved {how}."]
    return []


def length_notes(options: PlanOptions, size: Sized, cut: Flags) -> list[str]:
    notes = []
    if options.length_factor != 1:
        notes.append(f"All lengths are multiplied by {options.length_factor:g}.")
        if size.blocks is not None and size.blocks.scale != options.length_factor:
            scale = f"{size.blocks.scale:.4g}, since a block has a whole number of tokens"
            notes.append(f"Prompts made of blocks are multiplied by {scale}.")
    if cut.any():
        fit = f"fit into {options.max_tokens:,} tokens with their answer"
        notes.append(f"{int(cut.sum()):,} prompts are cut at the end to {fit}.")
    return notes


def left_out_notes(gone: Mapping[str, tuple[int, ...]], options: PlanOptions) -> list[str]:
    return [
        f"{len(rows):,} requests are left out: they {_WHY[reason].format(max_tokens=options.max_tokens or 0)}."
        for reason, rows in gone.items()
    ]


def content_notes(trace: Trace, graph: Graph, size: Sized) -> list[str]:
    if size.blocks is not None:
        return []
    notes = []
    if trace.frame["block_ids"].null_count() < trace.frame.height:
        notes.append("How long the trace's blocks are is unknown: they are not used, and share nothing.")
    if graph.waiter.size and trace.info.input_scope != "full" and trace.frame["cached_tok"].null_count():
        notes.append(
            "The trace does not say whether prompts hold earlier turns: those of a program share nothing."
        )
    return notes


def wait_notes(before: Graph, sent: Graph, kept: Flags, options: PlanOptions) -> list[str]:
    """``before`` anything was left out; ``sent`` before gaps were capped."""
    if options.turns == "timestamp":
        return ["Every request is sent at its recorded time, whether what came before has ended or not."]
    waits = np.zeros(kept.size, bool)
    waits[sent.waiter] = True
    long = 0 if options.max_gap_s is None else int((sent.delay_s[waits] > options.max_gap_s).sum())
    said = (
        (long, f"gaps were longer than {options.max_gap_s or 0:g} s and are cut to that."),
        (
            int((before.whole_steps & waits).sum()),
            "gaps hold the answer's time too, since the trace does not say when the one before ended.",
        ),
        (
            int((before.loose & waits).sum()),
            "turns follow at once: the trace has neither a time nor a gap for them.",
        ),
        (
            int(before.adrift.sum()),
            "sub-agents do not say when they began: each begins at the end of its parent's last turn that stands "
            "before it in the file, or with its parent.",
        ),
    )
    return [f"{count:,} {text}" for count, text in said if count]
