"""The reference kernels against formulas written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import braid.kernels as ops
from braid.kernels import reference
from braid.layers.batch import ForwardBatch

BLOCK = 4
DTYPES = (torch.float32, torch.bfloat16)
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def close(ours: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    return bool((ours.double() - want.double()).abs().max() <= LIMITS[dtype] * (1 + want.abs().max()))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_batch(contexts: list[int], queries: list[int], num_decodes: int) -> ForwardBatch:
    """Sequences in scattered blocks; block 0 belongs to nobody."""
    widths = [-(-context // BLOCK) for context in contexts]
    ids = (torch.randperm(sum(widths), generator=torch.Generator().manual_seed(1)) + 1).tolist()
    tables = torch.zeros(len(contexts), max(widths), dtype=torch.int32)
    for s, width in enumerate(widths):
        tables[s, :width] = torch.tensor([ids.pop() for _ in range(width)])
    starts = [sum(queries[:s]) for s in range(len(queries) + 1)]
    positions = torch.cat([torch.arange(c - q, c) for c, q in zip(contexts, queries, strict=True)])
    return ForwardBatch(
        token_ids_T=torch.zeros_like(positions),
        positions_T=positions,
        slot_mapping_T=positions,
        query_start=starts,
        query_start_S1=torch.tensor(starts, dtype=torch.int32),
        context_lens=contexts,
        context_lens_S=torch.tensor(contexts, dtype=torch.int32),
        block_tables_SB=tables,
        block_size=BLOCK,
        num_decodes=num_decodes,
        logit_rows=positions,
    )


def fill(batch: ForwardBatch, contents: list[Tensor], dtype: torch.dtype) -> Tensor:
    """A cache that holds these sequences and NaN everywhere else."""
    blocks = int(batch.block_tables_SB.max()) + 1
    cache = torch.full((blocks, BLOCK, *contents[0].shape[1:]), float("nan"), dtype=dtype)
    for s, rows in enumerate(contents):
        for position, row in enumerate(rows):
            cache[batch.block_tables_SB[s, position // BLOCK], position % BLOCK] = row
    return cache


def naive(
    q_HE: Tensor,
    k_LHE: Tensor,
    v_LHE: Tensor,
    position: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of one token, head by head."""
    first = 0 if window is None else max(0, position - window + 1)
    span, out = slice(first, position + 1), []
    for h in range(len(q_HE)):
        scores = k_LHE[span, h].double() @ q_HE[h].double() * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        out.append(scores.softmax(0) @ v_LHE[span, h].double())
    return torch.stack(out)


BATCHES = {
    "decodes": ([5, 1, 13, 8], [1, 1, 1, 1], 4),
    "uneven decodes": ([3, 600, 20, 7], [1, 1, 1, 1], 4),
    "prefills": ([7, 9, 1], [7, 4, 1], 0),
    "mixed": ([6, 17, 12, 21], [1, 1, 12, 5], 2),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("shape", BATCHES)
def test_paged_attention(shape: str, softcap: float | None, window: int | None, dtype: torch.dtype) -> None:
    contexts, queries, num_decodes = BATCHES[shape]
    H, G, E = 6, 2, 16
    batch = make_batch(contexts, queries, num_decodes)
    keys = [random(c, G, E, seed=s, dtype=dtype) for s, c in enumerate(contexts)]
    values = [random(c, G, E, seed=50 + s, dtype=dtype) for s, c in enumerate(contexts)]
    q = random(sum(queries), H, E, seed=99, dtype=dtype)
    caches = fill(batch, keys, dtype), fill(batch, values, dtype)
    out = reference.paged_attention(q, *caches, batch, scale=0.3, window=window, softcap=softcap)
    assert out.dtype == dtype
    for s, start in enumerate(batch.query_start[:-1]):
        k, v = (x.repeat_interleave(H // G, dim=1) for x in (keys[s], values[s]))
        for i in range(queries[s]):
            want = naive(q[start + i], k, v, contexts[s] - queries[s] + i, 0.3, window, softcap)
            assert close(out[start + i], want, dtype)


def test_tiles_of_a_long_prefill_agree_with_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_batch([40], [33], 0)
    k, v = (fill(batch, [random(40, 2, 8, seed=seed)], torch.float32) for seed in (1, 2))
    q = random(33, 4, 8, seed=3)
    for window in (None, 7):
        whole = reference.paged_attention(q, k, v, batch, scale=0.5, window=window)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "SCORE_NUMBERS", 4 * 40 * 5)
            tiled = reference.paged_attention(q, k, v, batch, scale=0.5, window=window)
        assert close(tiled, whole, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", BATCHES)
def test_paged_attention_mla(shape: str, dtype: torch.dtype) -> None:
    contexts, queries, num_decodes = BATCHES[shape]
    H, rank, r = 3, 16, 4
    batch = make_batch(contexts, queries, num_decodes)
    latents = [random(c, rank + r, seed=s, dtype=dtype) for s, c in enumerate(contexts)]
    q_latent, q_rope = (
        random(sum(queries), H, rank, seed=9, dtype=dtype),
        random(sum(queries), H, r, seed=8, dtype=dtype),
    )
    cache = fill(batch, latents, dtype)
    out = reference.paged_attention_mla(q_latent, q_rope, cache, batch, scale=0.2, rank=rank)
    q = torch.cat((q_latent, q_rope), -1)
    for s, start in enumerate(batch.query_start[:-1]):
        k = latents[s].unsqueeze(1).expand(-1, H, -1)
        for i in range(queries[s]):
            want = naive(q[start + i], k, k[..., :rank], contexts[s] - queries[s] + i, 0.2, None, None)
            assert close(out[start + i], want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(rows: int, biased: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "WIDEN_NUMBERS", 32 * 5)
    x, weight = random(rows, 32, dtype=dtype), random(13, 32, seed=1, dtype=dtype)
    bias = random(13, seed=2, dtype=dtype) if biased else None
    want = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert close(reference.linear(x, weight, bias), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 9])
def test_head_linear(rows: int, dtype: torch.dtype) -> None:
    x, weight = random(rows, 3, 16, dtype=dtype), random(3, 16, 5, seed=1, dtype=dtype).transpose(1, 2)
    out = reference.head_linear(x, weight)
    assert out.dtype == dtype
    assert close(out, torch.einsum("thk,hnk->thn", x.double(), weight.double()), dtype)


def test_widened_linear_is_bfloat16_linear_with_float32_accumulation() -> None:
    x, weight, bias = (random(*shape, dtype=torch.bfloat16) for shape in ((9, 64), (20, 64), (20,)))
    want = (x.float() @ weight.float().T + bias.float()).bfloat16()
    assert torch.equal(reference._widened_linear(x, weight, bias), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype: torch.dtype) -> None:
    x, residual, weight = random(5, 24, dtype=dtype), random(5, 24, seed=1, dtype=dtype), random(24, seed=2)

    def norm(value: Tensor) -> Tensor:
        return value.double() / (value.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()

    assert close(reference.rms_norm(x, weight, 1e-5), norm(x), dtype)
    heads = x.view(5, 3, 8)
    assert close(
        reference.rms_norm(heads, weight[:8], 0.0),
        reference.rms_norm(x.view(15, 8), weight[:8], 0.0).view(5, 3, 8),
        dtype,
    )
    normed, added = reference.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(added, x + residual)
    assert close(normed, norm(added), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_pairs_and_leaves_the_rest(interleaved: bool, dtype: torch.dtype) -> None:
    q, k, angles = random(4, 3, 10, dtype=dtype), random(4, 1, 10, seed=1, dtype=dtype), random(4, 3, seed=2)
    for ours, x in zip(
        reference.rope(q, k, angles.cos(), angles.sin(), interleaved=interleaved), (q, k), strict=True
    ):
        for i in range(3):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + 3)
            turn = torch.polar(torch.ones(4, 1).double(), angles[:, i : i + 1].double())
            want = torch.complex(x[..., a].double(), x[..., b].double()) * turn
            assert close(ours[..., a], want.real, dtype)
            assert close(ours[..., b], want.imag, dtype)
        assert torch.equal(ours[..., 6:], x[..., 6:])


def test_gated_activations() -> None:
    x = random(4, 12)
    gate, up = x.double().chunk(2, -1)
    assert close(reference.silu_mul(x), gate * gate.sigmoid() * up, torch.float32)
    inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    assert close(reference.gelu_tanh_mul(x), 0.5 * gate * (1 + inner.tanh()) * up, torch.float32)


def test_writes_go_to_their_slots_in_the_caches_dtype() -> None:
    slots = torch.tensor([5, 0, 11])
    k, v, latent = random(3, 2, 4), random(3, 2, 4, seed=1), random(3, 6)
    k_cache, v_cache = torch.zeros(3, 4, 2, 4, dtype=torch.bfloat16), torch.zeros(3, 4, 2, 4)
    cache = torch.zeros(3, 4, 6)
    reference.write_kv(k, v, k_cache, v_cache, slots)
    reference.write_latent(latent, cache, slots)
    assert torch.equal(k_cache.view(12, 2, 4)[slots], k.bfloat16())
    assert torch.equal(v_cache.view(12, 2, 4)[slots], v)
    assert torch.equal(cache.view(12, 6)[slots], latent)
    assert int((cache.view(12, 6).abs().sum(-1) > 0).sum()) == 3


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_moe_ffn(act: str, dtype: torch.dtype) -> None:
    x, gate_up, down = (random(*s, dtype=dtype) * 0.4 for s in ((7, 8), (5, 12, 8), (5, 8, 6)))
    ids = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(t))[:2] for t in range(7)])
    weights = random(7, 2, seed=4).abs()
    gated = {"silu": reference.silu_mul, "gelu_tanh": reference.gelu_tanh_mul}[act]
    want = torch.zeros(7, 8, dtype=torch.float64)
    for t in range(7):
        for expert, weight in zip(ids[t].tolist(), weights[t].tolist(), strict=True):
            hidden = gated(x[t : t + 1].double() @ gate_up[expert].double().T)
            want[t] += weight * (hidden @ down[expert].double().T)[0]
    out = reference.moe_ffn(x, ids, weights, gate_up, down, act=act)
    assert out.dtype == dtype
    assert close(out, want, dtype)


def test_argmax_prefers_the_lowest_id() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [2.0, 1.0, 2.0]])
    assert reference.argmax(logits).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_keep_apart_what_bfloat16_would_tie(dtype: torch.dtype) -> None:
    x = torch.ones(2, 64, dtype=dtype)
    weight = torch.zeros(1000, 64, dtype=dtype)
    weight[7, 0], weight[8, 0] = 16.0, 16.0
    weight[8, 1] = 0.01
    for logits in (reference.logits(x, weight), ops.logits(x, weight)):
        assert logits.dtype == torch.float32
        assert logits.argmax(-1).tolist() == [8, 8]
        assert close(logits, x.double() @ weight.double().t(), torch.float32)
