"""One MoE layer whose experts are records in memory: ms by format and number of tokens, beside a loop in torch.

The layer has 64 experts in the shape of Qwen3-30B-A3B's (hidden 2048, size 768, top-8); tokens are routed at random.
The loop multiplies every active expert's bfloat16 matrices through torch. Contenders take turns; medians.

    python benchmarks/expert_kernels.py [--tokens 1 4 16 64] [--rounds N] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import describe, machine, save, show
from torch import Tensor

import braid.kernels as ops
from braid.core.experts import ExpertLayout
from braid.kernels import reference

EXPERTS, HIDDEN, SIZE, TOP_K = 64, 2048, 768, 8
FORMATS = ("bfloat16", "int8", "int4")
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def random_arena(layout: ExpertLayout) -> Tensor:
    """Records of random numbers, each the one before it shifted by some bytes."""
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    for part, (offset, size) in enumerate(layout.parts):
        room = record[offset : offset + size]
        if not layout.is_quantised:
            room.copy_(torch.randn(size // 2).mul_(0.02).bfloat16().view(torch.uint8))
        elif part % 2:
            room.copy_(torch.full((size // 2,), 2.0**-9).bfloat16().view(torch.uint8))
        else:
            room.copy_(torch.randint(0, 256, (size,), dtype=torch.uint8))
    arena = torch.empty(EXPERTS, layout.record_bytes, dtype=torch.uint8)
    for slot in range(EXPERTS):
        arena[slot] = record
        for offset, size in layout.parts[::2]:
            arena[slot, offset : offset + size] = record[offset : offset + size].roll(64 * slot)
    return arena


def braid_layer(layout: ExpertLayout, arena: Tensor) -> Layer:
    slots = torch.arange(EXPERTS)

    def layer(x_TD: Tensor, ids_Tk: Tensor, weights_Tk: Tensor) -> Tensor:
        pairs_PD = torch.empty(ids_Tk.numel(), HIDDEN)
        ops.expert_pairs(x_TD, ids_Tk, arena, slots, layout, pairs_PD)
        return ops.combine_pairs(pairs_PD, weights_Tk, x_TD.dtype)

    return layer


def torch_loop(layout: ExpertLayout, arena: Tensor) -> Layer:
    matrices = [reference.expert_weights(record, layout) for record in arena]

    def layer(x_TD: Tensor, ids_Tk: Tensor, weights_Tk: Tensor) -> Tensor:
        out_TD = torch.zeros(x_TD.shape)
        for expert in ids_Tk.unique().tolist():
            tokens, choices = (ids_Tk == expert).nonzero(as_tuple=True)
            gate_up, down = matrices[expert]
            hidden = reference.silu_mul(torch.nn.functional.linear(x_TD[tokens], gate_up))
            rows = torch.nn.functional.linear(hidden, down) * weights_Tk[tokens, choices, None]
            out_TD.index_add_(0, tokens, rows)
        return out_TD.to(x_TD.dtype)

    return layer


def seconds(layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    begin = time.perf_counter()
    layer(*inputs)
    return time.perf_counter() - begin


def measure(layers: dict[str, Layer], tokens: int, rounds: int) -> dict[str, object]:
    """Every contender once a round, all with the same inputs, other ones each round."""
    times: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(rounds + 1):
        x, weights = torch.randn(tokens, HIDDEN).bfloat16(), torch.rand(tokens, TOP_K)
        inputs = x, torch.rand(tokens, EXPERTS).topk(TOP_K).indices, weights
        active = len(inputs[1].unique())
        for name, layer in layers.items():
            taken = seconds(layer, inputs)
            if turn > 0:  # the first round warms up
                times[name].append(taken * 1e3)
    medians = {f"{name} ms": statistics.median(values) for name, values in times.items()}
    return {"tokens": tokens, "active": active, **medians, "rounds": times}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layers: dict[str, Layer] = {}
    for format in FORMATS:
        layout = ExpertLayout(format, HIDDEN, SIZE)
        arena = random_arena(layout)
        layers[format] = braid_layer(layout, arena)
        if format == "bfloat16":
            layers["torch bfloat16"] = torch_loop(layout, arena)
    here = machine()
    rows = [measure(layers, tokens, options.rounds) for tokens in options.tokens]
    show(f"{describe(here)}\n{ops.describe()}, {options.threads} threads", rows)
    result = {"machine": here, "kernels": ops.describe(), "threads": options.threads, "rows": rows}
    save(options.json, result)


if __name__ == "__main__":
    main()
