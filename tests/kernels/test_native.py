"""The native kernels against the reference, in every variant this processor runs, and batch independence."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from braid.core.errors import InvalidParameterError
from braid.kernels import reference
from braid.kernels.loader import LibraryUnavailableError, open_library, supported_isas
from braid.kernels.native import WIDTHS, Native
from braid.kernels.selfcheck import failures
from braid.layers.batch import ForwardBatch

ISAS = supported_isas()
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2}

pytestmark = pytest.mark.skipif(not ISAS, reason="native library not built")


@pytest.fixture(params=ISAS or ["none"])
def native(request: pytest.FixtureRequest) -> Native:
    return Native(open_library(request.param))


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def close(got: Tensor | None, wanted: Tensor, tolerance: float) -> None:
    assert got is not None
    assert got.shape == wanted.shape
    error = (got.double() - wanted.double()).norm() / wanted.double().norm()
    assert error <= tolerance


def make_batch(
    context_lens: list[int], query_lens: list[int], block_size: int = 16, tables: Tensor | None = None
) -> ForwardBatch:
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    spans = [range(c - q, c) for c, q in zip(context_lens, query_lens, strict=True)]
    width = -(-max(context_lens) // block_size)
    if tables is None:
        tables = torch.randperm(len(spans) * width).int().view(-1, width)
    return ForwardBatch(
        token_ids_T=torch.zeros(int(starts[-1]), dtype=torch.int64),
        positions_T=torch.tensor([p for span in spans for p in span]),
        slot_mapping_T=torch.zeros(int(starts[-1]), dtype=torch.int64),
        query_start=starts.tolist(),
        query_start_S1=starts.int(),
        context_lens=context_lens,
        context_lens_S=torch.tensor(context_lens, dtype=torch.int32),
        block_tables_SB=tables,
        block_size=block_size,
        num_decodes=next((i for i, q in enumerate(query_lens) if q > 1), len(query_lens)),
        logit_rows=torch.zeros(0, dtype=torch.int64),
    )


# --- linear ---


@pytest.mark.parametrize("w_dtype", DTYPES)
@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize(
    ("M", "N", "K"), [(1, 96, 64), (3, 7, 50), (50, 100, 1601), (130, 45, 2112), (300, 70, 96), (2, 1, 1)]
)
def test_linear(native: Native, x_dtype: torch.dtype, w_dtype: torch.dtype, M: int, N: int, K: int) -> None:
    x, w, b = torch.randn(M, K).to(x_dtype), torch.randn(N, K).to(w_dtype), torch.randn(N).to(w_dtype)
    wanted = x.double() @ w.double().T
    close(native.linear(x, w, None), wanted, TOLERANCE[x_dtype])
    close(native.linear(x, w, b), wanted + b.double(), TOLERANCE[x_dtype])


def test_linear_takes_strided_rows_and_an_empty_batch(native: Native) -> None:
    x, w = torch.randn(5, 200), torch.randn(30, 100)
    close(native.linear(x[:, 50:150], w, None), x[:, 50:150].double() @ w.double().T, 3e-6)
    empty = native.linear(x[:0, :100], w, None)
    assert empty is not None
    assert empty.shape == (0, 30)


def test_linear_carries_nan_and_infinity(native: Native) -> None:
    x, w = torch.randn(3, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    y = native.linear(x, w, None)
    assert y is not None
    assert y[0].isfinite().all()
    assert y[1].isnan().all()
    assert y[2].isinf().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "K"), [(100, 576), (65, 2112), (34, 50)])
def test_linear_rows_do_not_depend_on_the_batch(native: Native, dtype: torch.dtype, N: int, K: int) -> None:
    x, w = torch.randn(300, K).to(dtype), torch.randn(N, K).to(dtype)
    whole = native.linear(x, w, None)
    assert whole is not None
    alone = torch.cat([native.linear(x[m : m + 1], w, None) for m in range(20)])  # type: ignore[misc]
    assert torch.equal(alone, whole[:20])
    for rows in [*range(2, 9), 13, 31, 64, 97]:
        part = native.linear(x[3 : 3 + rows], w, None)
        assert part is not None
        assert torch.equal(part, whole[3 : 3 + rows])


def test_results_do_not_depend_on_the_number_of_threads(native: Native) -> None:
    x, w = torch.randn(70, 1100).bfloat16(), torch.randn(999, 1100).bfloat16()
    k, v = (torch.randn(90, 16, 2, 64).bfloat16() for _ in range(2))
    q, batch = torch.randn(1, 6, 64).bfloat16(), make_batch([1400], [1])
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((native.linear(x, w, None), native.paged_attention(q, k, v, batch, 0.125, None, None)))
    for y, out in results[1:]:
        assert torch.equal(y, results[0][0])  # type: ignore[arg-type]
        assert torch.equal(out, results[0][1])  # type: ignore[arg-type]


# --- attention ---


@pytest.mark.parametrize("kv_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "G", "E"), [(9, 3, 64), (4, 4, 80), (8, 1, 128), (4, 2, 256)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (40, None), (None, 20.0), (600, 30.0)])
def test_paged_attention(
    native: Native,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    H: int,
    G: int,
    E: int,
    window: int | None,
    softcap: float | None,
) -> None:
    if E % (2 * WIDTHS[native.isa]):
        pytest.skip("left to the reference")
    batch = make_batch([1, 17, 700, 64, 60, 650], [1, 1, 1, 1, 60, 77])
    k, v = (torch.randn(6 * 44, 16, G, E).to(kv_dtype) for _ in range(2))
    q = torch.randn(141, H, E).to(dtype)
    got = native.paged_attention(q, k, v, batch, E**-0.5, window, softcap)
    wanted = reference.paged_attention(
        q.float(), k.float(), v.float(), batch, scale=E**-0.5, window=window, softcap=softcap
    )
    close(got, wanted, TOLERANCE[dtype])


def test_attention_reads_nothing_beyond_the_context(native: Native) -> None:
    batch = make_batch([21, 40], [1, 30], tables=torch.tensor([[0, 1, 0], [2, 3, 4]], dtype=torch.int32))
    k, v = (torch.full((6, 16, 1, 64), torch.nan) for _ in range(2))
    for cache in (k, v):
        slots = cache.view(-1, 64)
        slots[:21], slots[32:72] = torch.randn(21, 64), torch.randn(40, 64)
    out = native.paged_attention(torch.randn(31, 2, 64), k, v, batch, 0.125, None, None)
    assert out is not None
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 100])
def test_attention_rows_do_not_depend_on_chunks(
    native: Native, dtype: torch.dtype, window: int | None
) -> None:
    context, block_size = 1200, 16
    k, v = (torch.randn(80, block_size, 2, 64).to(dtype) for _ in range(2))
    q, tables = torch.randn(context, 6, 64).to(dtype), torch.randperm(80).int()[:75].view(1, 75)

    def run(start: int, end: int) -> Tensor:
        batch = make_batch([end], [end - start], tables=tables)
        out = native.paged_attention(q[start:end], k, v, batch, 0.125, window, None)
        assert out is not None
        return out

    whole = run(0, context)
    edges = [0, 1, 8, 64, 75, 300, 513, 1000, 1199, 1200]
    chunks = torch.cat([run(a, b) for a, b in itertools.pairwise(edges)])
    assert torch.equal(chunks, whole)
    for position in (0, 5, 63, 64, 511, 512, 777, 1030, 1199):
        assert torch.equal(run(position, position + 1)[0], whole[position])


def test_attention_rows_do_not_depend_on_the_batch(native: Native) -> None:
    lens = [1, 90, 513, 1100, 64, 700, 33, 512]
    batch = make_batch(lens, [1] * 8)
    k, v = (torch.randn(8 * 69, 16, 3, 64).bfloat16() for _ in range(2))
    q = torch.randn(8, 9, 64).bfloat16()
    whole = native.paged_attention(q, k, v, batch, 0.125, None, None)
    assert whole is not None
    for s, length in enumerate(lens):
        alone = make_batch([length], [1], tables=batch.block_tables_SB[s : s + 1].contiguous())
        out = native.paged_attention(q[s : s + 1], k, v, alone, 0.125, None, None)
        assert out is not None
        assert torch.equal(out[0], whole[s])


def test_shared_splits_of_windowed_sequences_stay_apart(native: Native) -> None:
    torch.set_num_threads(3)
    batch = make_batch([40, 2000], [1, 1])
    k, v = (torch.randn(2 * 125, 16, 1, 64) for _ in range(2))
    q = torch.randn(2, 2, 64)
    got = native.paged_attention(q, k, v, batch, 0.125, 700, None)
    close(got, reference.paged_attention(q, k, v, batch, scale=0.125, window=700), TOLERANCE[torch.float32])


def test_attention_refuses_blocks_that_do_not_exist(native: Native) -> None:
    cache = torch.randn(2, 16, 1, 64)
    for table in ([[0, 2]], [[-1, 0]], [[0]]):
        batch = make_batch([20], [1], tables=torch.tensor(table, dtype=torch.int32))
        with pytest.raises(IndexError):
            native.paged_attention(torch.randn(1, 1, 64), cache, cache, batch, 1.0, None, None)


# --- row-wise kernels ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [576, 50])
def test_norms(native: Native, dtype: torch.dtype, D: int) -> None:
    wide, residual, weight = torch.randn(37, 2 * D).to(dtype), torch.randn(37, D).to(dtype), torch.randn(D)
    x = wide[:, D:]
    close(native.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), TOLERANCE[dtype])
    heads = wide.view(37, 2, D)
    close(native.rms_norm(heads, weight, 1e-5), reference.rms_norm(heads, weight, 1e-5), TOLERANCE[dtype])
    both = native.add_rms_norm(x, residual, weight, 1e-5)
    assert both is not None
    normed, total = reference.add_rms_norm(x, residual, weight, 1e-5)
    close(both[0], normed, TOLERANCE[dtype])
    assert torch.equal(both[1], total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("R", [64, 32, 12])
def test_rope(native: Native, dtype: torch.dtype, interleaved: bool, R: int) -> None:
    qkv = torch.randn(19, 7 * 64).to(dtype)
    q, k = qkv[:, : 4 * 64].view(19, 4, 64), qkv[:, 4 * 64 : 6 * 64].view(19, 2, 64)
    angles = torch.randn(19, R // 2) * 9
    wanted = reference.rope(q, k, angles.cos(), angles.sin(), interleaved=interleaved)
    untouched = qkv[:, 6 * 64 :].clone()
    assert native.rope(q, k, angles.cos(), angles.sin(), interleaved)
    close(q, wanted[0], TOLERANCE[dtype])
    close(k, wanted[1], TOLERANCE[dtype])
    assert torch.equal(qkv[:, 6 * 64 :], untouched)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("F", [1536, 51])
def test_gated_activations(native: Native, dtype: torch.dtype, F: int) -> None:
    x = (torch.randn(23, 2 * F) * 4).to(dtype)
    x[0, 0], x[0, 1], x[0, 2] = -200.0, 200.0, 0.0
    close(native.gate_mul(x, gelu=False), reference.silu_mul(x), TOLERANCE[dtype])
    close(native.gate_mul(x, gelu=True), reference.gelu_tanh_mul(x), TOLERANCE[dtype])


@pytest.mark.parametrize("cache_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_store(native: Native, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    qkv, slots = torch.randn(9, 5 * 20).to(dtype), torch.randperm(48)[:9]
    k = qkv[:, 20:60].view(9, 2, 20)
    got, wanted = (torch.zeros(3, 16, 2, 20, dtype=cache_dtype) for _ in range(2))
    assert native.store(k, got, slots)
    reference.write_latent(k, wanted, slots)
    assert torch.equal(got, wanted)
    for slot in (-1, 48):
        slots[4] = slot
        with pytest.raises(IndexError, match="slot"):
            native.store(k, got, slots)


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax(native: Native, dtype: torch.dtype) -> None:
    x = torch.randn(40, 5003).to(dtype)
    x[1], x[2, 4000], x[3, 5002], x[4, 0], x[5] = 1.0, torch.nan, 99.0, 99.0, -torch.inf
    x[6, [700, 4999]] = 50.0
    x[7, :3000] = -torch.inf
    ids = native.argmax(x)
    assert ids is not None
    first = (x == x.nan_to_num(torch.inf).max(-1, keepdim=True).values).int().argmax(-1)
    first[2] = 4000
    assert torch.equal(ids, first)


# --- experts ---


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "D", "F"), [(1, 64, 48), (30, 96, 100), (140, 64, 2080), (600, 32, 32)])
def test_moe_ffn(native: Native, act: str, dtype: torch.dtype, T: int, D: int, F: int) -> None:
    x, gate_up, down = (torch.randn(*s).to(dtype) / 4 for s in ((T, D), (6, 2 * F, D), (6, D, F)))
    ids, weights = torch.rand(T, 6).topk(2).indices, torch.rand(T, 2)
    got = native.moe_ffn(x, ids, weights, gate_up, down, act)
    wanted = reference.moe_ffn(x.float(), ids, weights, gate_up.float(), down.float(), act=act)
    close(got, wanted, TOLERANCE[dtype])
    assert got is not None
    for t in (0, T // 2, T - 1):
        row = slice(t, t + 1)
        alone = native.moe_ffn(x[row], ids[row], weights[row], gate_up, down, act)
        assert alone is not None
        assert torch.equal(alone[0], got[t])


def test_moe_refuses_experts_that_do_not_exist(native: Native) -> None:
    x, gate_up, down = torch.randn(1, 32), torch.randn(2, 64, 32), torch.randn(2, 32, 32)
    for expert in (-1, 2):
        with pytest.raises(IndexError):
            native.moe_ffn(x, torch.tensor([[expert]]), torch.ones(1, 1), gate_up, down, "silu")


# --- what is not taken, and loading ---


def test_other_cases_are_left_to_the_reference(native: Native) -> None:
    x, half = torch.randn(2, 8), torch.randn(2, 8).half()
    assert native.linear(half, half, None) is None
    assert native.linear(x, x.T.contiguous().T, None) is None
    assert native.rms_norm(x, half[0], 1e-5) is None
    assert native.gate_mul(half, gelu=False) is None
    assert native.argmax(half) is None
    assert (
        native.paged_attention(x.view(2, 2, 4)[:, :, :3], x, x, make_batch([1, 1], [1, 1]), 1.0, None, None)
        is None
    )


def test_the_self_check_passes_and_finds_a_broken_kernel(native: Native) -> None:
    assert failures(native) == []
    broken = Native(open_library(native.isa))
    broken.gate_mul = lambda gate_up_T2F, *, gelu: gate_up_T2F[:, :48] * 0  # type: ignore[method-assign]
    assert failures(broken) == ["gate_mul (torch.float32)", "gate_mul (torch.bfloat16)"]


def test_unknown_variants_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAID_CPU_ISA", "mmx")
    with pytest.raises(InvalidParameterError, match=r"BRAID_CPU_ISA=mmx.*generic, torch"):
        open_library()
    monkeypatch.setenv("BRAID_CPU_ISA", "torch")
    with pytest.raises(LibraryUnavailableError):
        open_library()


def test_a_missing_library_is_no_error_unless_forced(tmp_path: Path) -> None:
    with pytest.raises(LibraryUnavailableError, match="not built"):
        open_library(path=tmp_path / "none.so")
    with pytest.raises(InvalidParameterError, match="not built"):
        open_library("generic", path=tmp_path / "none.so")


@pytest.mark.parametrize("isa", ["torch", *ISAS])
def test_the_variable_picks_what_serves(isa: str) -> None:
    code = "import braid.kernels as ops, torch; print(ops.describe(), ops.linear(torch.ones(1, 8), torch.ones(2, 8)))"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"BRAID_CPU_ISA": isa}, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("torch (BRAID_CPU_ISA=torch)" if isa == "torch" else f"native {isa}")
    assert "[[8., 8.]]" in run.stdout
