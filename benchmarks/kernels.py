"""Native CPU kernels against the torch reference, at the shapes of SmolLM2-135M: interleaved medians on this machine.

Weights and caches are cycled through enough copies to leave the processor's caches, as in a real step.

    python benchmarks/kernels.py [--threads N] [--only TEXT] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from braid.kernels import reference
from braid.kernels.loader import open_library
from braid.kernels.native import Native
from braid.layers.batch import ForwardBatch

BF16 = torch.bfloat16
COLD_BYTES = 96 << 20
"""Data to cycle through, larger than a share of the last-level cache."""
SAMPLE_SECONDS = 4e-3
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCAB = 576, 9, 3, 64, 1536, 49152
LINEARS = {
    "qkv": (HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
    "o": (HIDDEN, HIDDEN),
    "gate_up": (HIDDEN, 2 * WIDTH),
    "down": (WIDTH, HIDDEN),
    "lm_head": (HIDDEN, VOCAB),
}


class Case(NamedTuple):
    """One kernel at one shape; ``work`` is bytes moved at least, or operations, per call."""

    kernel: str
    shape: str
    native: Callable[[], object]
    torch: Callable[[], object]
    work: float
    unit: str


class Timing(NamedTuple):
    case: Case
    native: float
    torch: float


def _copies(size: int) -> int:
    return max(1, min(200, COLD_BYTES // size))


def linear_case(native: Native, name: str, M: int, dtype: torch.dtype) -> Case:
    K, N = LINEARS[name]
    size = N * K * dtype.itemsize
    x = torch.randn(M, K).to(dtype)
    weights = [torch.randn(N, K).to(dtype) for _ in range(_copies(size))]
    ours, theirs = cycle(weights), cycle(weights)
    work, unit = (size, "GB/s") if M < 8 else (2.0 * M * N * K, "GFLOP/s")
    shape = f"{name} M={M} {_short(dtype)}"
    return Case(
        "linear",
        shape,
        lambda: native.linear(x, next(ours), None),
        lambda: reference.linear(x, next(theirs)),
        work,
        unit,
    )


def _short(dtype: torch.dtype) -> str:
    return "bf16" if dtype is BF16 else "fp32"


def _batch(contexts: list[int], queries: list[int], block_size: int = 16) -> ForwardBatch:
    starts = torch.tensor([0, *queries]).cumsum(0)
    spans = [range(c - q, c) for c, q in zip(contexts, queries, strict=True)]
    width = -(-max(contexts) // block_size)
    return ForwardBatch(
        token_ids_T=torch.zeros(int(starts[-1]), dtype=torch.int64),
        positions_T=torch.tensor([p for span in spans for p in span]),
        slot_mapping_T=torch.zeros(int(starts[-1]), dtype=torch.int64),
        query_start=starts.tolist(),
        query_start_S1=starts.int(),
        context_lens=contexts,
        context_lens_S=torch.tensor(contexts, dtype=torch.int32),
        block_tables_SB=torch.randperm(len(spans) * width).int().view(-1, width),
        block_size=block_size,
        num_decodes=sum(q == 1 for q in queries),
        logit_rows=torch.zeros(0, dtype=torch.int64),
    )


def attention_case(native: Native, contexts: list[int], query: int, dtype: torch.dtype) -> Case:
    batch = _batch(contexts, [query] * len(contexts))
    blocks = batch.block_tables_SB.numel()
    shape = (blocks, 16, KV_HEADS, HEAD_DIM)
    size = 2 * sum(contexts) * KV_HEADS * HEAD_DIM * dtype.itemsize
    caches = [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(_copies(size))]
    q = torch.randn(query * len(contexts), HEADS, HEAD_DIM).to(dtype)
    ours, theirs = cycle(caches), cycle(caches)
    scale = HEAD_DIM**-0.5
    seen = sum(query * c - query * (query - 1) / 2 for c in contexts)
    work, unit = (size, "GB/s") if query == 1 else (4.0 * seen * HEADS * HEAD_DIM, "GFLOP/s")
    kind = "decode" if query == 1 else f"prefill {query}"
    return Case(
        "paged_attention",
        f"{kind} B={len(contexts)} L={contexts[0]} {_short(dtype)}",
        lambda: native.paged_attention(q, *next(ours), batch, scale, None, None),
        lambda: reference.paged_attention(q, *next(theirs), batch, scale=scale),
        work,
        unit,
    )


def row_cases(native: Native, T: int) -> Iterator[Case]:
    x, residual, weight = (
        torch.randn(T, HIDDEN).to(BF16),
        torch.randn(T, HIDDEN).to(BF16),
        torch.randn(HIDDEN),
    )
    qkv = torch.randn(T, (HEADS + 2 * KV_HEADS) * HEAD_DIM).to(BF16)
    q, k, v = (
        part.view(T, -1, HEAD_DIM)
        for part in qkv.split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], -1)
    )
    angles, gate_up = torch.randn(T, HEAD_DIM // 2), torch.randn(T, 2 * WIDTH).to(BF16)
    cos, sin, slots = angles.cos(), angles.sin(), torch.randperm(max(64, T))[:T]
    cache = torch.zeros(max(4, -(-T // 16)), 16, KV_HEADS, HEAD_DIM, dtype=BF16)
    norm_bytes, qk_bytes = 8.0 * T * HIDDEN, 4.0 * T * (HEADS + KV_HEADS) * HEAD_DIM

    def case(name: str, ours: Callable[[], object], theirs: Callable[[], object], work: float) -> Case:
        return Case(name, f"T={T} bf16", ours, theirs, work, "GB/s")

    yield case(
        "add_rms_norm",
        lambda: native.add_rms_norm(x, residual, weight, 1e-5),
        lambda: reference.add_rms_norm(x, residual, weight, 1e-5),
        norm_bytes,
    )
    yield case(
        "rope",
        lambda: native.rope(q, k, cos, sin, False),
        lambda: reference.rope(q, k, cos, sin),
        qk_bytes,
    )
    yield case(
        "silu_mul",
        lambda: native.gate_mul(gate_up, gelu=False),
        lambda: reference.silu_mul(gate_up),
        6.0 * T * WIDTH,
    )
    yield case(
        "write_kv",
        lambda: (native.store(k, cache, slots), native.store(v, cache, slots)),
        lambda: reference.write_kv(k, v, cache, cache, slots),
        8.0 * T * KV_HEADS * HEAD_DIM,
    )


def argmax_case(native: Native, rows: int) -> Case:
    x = torch.randn(rows, VOCAB)
    return Case(
        "argmax",
        f"N={rows} V={VOCAB} fp32",
        lambda: native.argmax(x),
        lambda: reference.argmax(x),
        4.0 * x.numel(),
        "GB/s",
    )


def moe_case(native: Native, T: int) -> Case:
    """32 experts of width 256 at hidden size 512, four per token."""
    X, D, F, k = 32, 512, 256, 4
    x = torch.randn(T, D).to(BF16)
    layers = [(torch.randn(X, 2 * F, D).to(BF16), torch.randn(X, D, F).to(BF16)) for _ in range(4)]
    ids, weights = torch.rand(T, X).topk(k).indices, torch.rand(T, k)
    ours, theirs = cycle(layers), cycle(layers)
    active = len(ids.unique())
    work, unit = (6.0 * active * D * F, "GB/s") if T < 64 else (6.0 * T * k * D * F, "GFLOP/s")
    return Case(
        "moe_ffn",
        f"T={T} top-4 of 32, 512x256 bf16",
        lambda: native.moe_ffn(x, ids, weights, *next(ours), "silu"),
        lambda: reference.moe_ffn(x, ids, weights, *next(theirs)),
        work,
        unit,
    )


def all_cases(native: Native) -> Iterator[Callable[[], Case]]:
    """Factories, so that only one case's data lives at a time."""
    for dtype in (BF16, torch.float32):
        for name in LINEARS:
            for M in (1, 4, 8, 64, 380) if dtype is BF16 else (1, 8, 380):
                if name != "lm_head" or M <= 8:
                    yield lambda name=name, M=M, dtype=dtype: linear_case(native, name, M, dtype)
    for contexts, query in (
        ([400], 1), ([400] * 4, 1), ([400] * 8, 1), ([2048], 1), ([2048] * 8, 1), ([380], 380), ([2048], 512),
    ):  # fmt: skip
        for dtype in (BF16, torch.float32):
            yield lambda c=contexts, q=query, dtype=dtype: attention_case(native, c, q, dtype)
    for T in (1, 8, 380):
        for index in range(4):
            yield lambda T=T, index=index: list(row_cases(native, T))[index]
    for rows in (1, 8):
        yield lambda rows=rows: argmax_case(native, rows)
    for T in (1, 8, 64, 380):
        yield lambda T=T: moe_case(native, T)


def _seconds(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def measure(case: Case, rounds: int) -> Timing:
    """Medians of interleaved samples, each long enough to time."""
    functions = (case.native, case.torch)
    calls = []
    for function in functions:
        _seconds(function, 1)
        calls.append(max(1, int(SAMPLE_SECONDS / max(1e-7, _seconds(function, 2)))))
    samples = [[_seconds(f, n) for f, n in zip(functions, calls, strict=True)] for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*samples, strict=True))
    return Timing(case, ours, theirs)


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def machine(native: Native) -> str:
    """One line on where the figures come from."""
    cpu = _processor() if Path("/proc/cpuinfo").exists() else platform.processor()
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    return (
        f"{cpu}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, native {native.isa}, "
        f"torch {torch.__version__}, load {load}"
    )


def _row(timing: Timing) -> tuple[str, ...]:
    rate = timing.case.work / timing.native / 1e9
    return (
        timing.case.kernel,
        timing.case.shape,
        f"{timing.native * 1e6:.1f}",
        f"{timing.torch * 1e6:.1f}",
        f"{timing.torch / timing.native:.2f}x",
        f"{rate:.1f} {timing.case.unit}",
    )


def call_overhead(native: Native) -> float:
    """Seconds of one call that computes next to nothing."""
    x, weight = torch.randn(1, 16), torch.randn(4, 16)
    return statistics.median(_seconds(lambda: native.linear(x, weight, None), 2000) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="cases whose kernel and shape contain this text")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    native = Native(open_library())
    console = Console()
    table = Table(
        "kernel",
        "shape",
        title=machine(native),
        caption=f"call overhead {call_overhead(native) * 1e6:.1f} us",
    )
    for column in ("native us", "torch us", "torch / native", "native rate"):
        table.add_column(column, justify="right")
    timings = []
    for factory in all_cases(native):
        case = factory()
        if options.only not in f"{case.kernel} {case.shape}":
            continue
        timings.append(measure(case, options.rounds))
        table.add_row(*_row(timings[-1]))
    console.print(table)
    if options.json:
        keys = ("kernel", "shape", "native_us", "torch_us", "ratio", "rate")
        rows = [dict(zip(keys, _row(t), strict=True)) for t in timings]
        options.json.write_text(json.dumps({"machine": machine(native), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
