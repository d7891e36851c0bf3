// y[M,N] = x[M,K] W[N,K]^T + bias with float32 accumulation.
//
// Every output element is one vector accumulator that walks K from the front and is summed across its lanes at the end. That
// order depends on nothing but K and the variant's width: not on M, the row's place, the blocking or the number of threads.
// Blocking along K parks whole accumulators in scratch and so leaves the order as it is.
#pragma once
#include "vec.h"

namespace {

constexpr int NR = 4;                 // rows of W per tile
constexpr int MR = W == 16 ? 6 : 3;   // rows of x per tile: MR * NR accumulators fill 16 (32) registers
constexpr int64_t M_BLOCK = 96;       // rows of x kept in the second-level cache
constexpr int64_t N_BLOCK = 32;       // rows of W per parked block
constexpr int64_t K_BLOCK = 512;      // K per parked block: x and W tiles stay in the first-level cache
constexpr int64_t K_WHOLE = 1024;     // up to here K is not cut

// Rows of prepared x: float32, groups of 2W elements in the weights' pair layout, padded with zeros.
struct Rows {
    const float *base;
    int64_t ld;
    const int32_t *index;  // row m is base + index[m] * ld; null: m
    INLINE const float *at(int64_t m) const { return base + (index ? index[m] : m) * ld; }
};

INLINE int64_t padded(int64_t K) { return round_up(K, 2 * W); }

template <class WT, class XT>
INLINE void prepare_tail(const XT *x, float *out, int64_t k, int64_t K, int64_t Kp) {
    for (; k < Kp; k += 2 * W)
        for (int i = 0; i < 2 * W; ++i) out[k + pair_slot((const WT *)0, i)] = k + i < K ? widen(x[k + i]) : 0.0f;
}
template <class WT, class XT>
struct Prepare {
    static void row(const XT *x, float *out, int64_t K, int64_t Kp) { prepare_tail<WT>(x, out, 0, K, Kp); }
};
template <>
struct Prepare<bf16, bf16> {
    static void row(const bf16 *x, float *out, int64_t K, int64_t Kp) {
        int64_t k = 0;
        for (; k + 2 * W <= K; k += 2 * W) {
            store(out + k, pair_first(x + k));
            store(out + k + W, pair_second(x + k));
        }
        prepare_tail<bf16>(x, out, k, K, Kp);
    }
};
template <class XT>
struct Prepare<float, XT> {
    static void row(const XT *x, float *out, int64_t K, int64_t Kp) {
        int64_t k = 0;
        for (; k + W <= K; k += W) store(out + k, load(x + k));
        for (; k < Kp; ++k) out[k] = k < K ? widen(x[k]) : 0.0f;
    }
};

template <int M, class WT>
INLINE void step(const float *const *x, const WT *const *w, int64_t kx, int64_t kw, vf (*acc)[NR]) {
    vf xv[M];
    for (int m = 0; m < M; ++m) xv[m] = load(x[m] + kx);
    for (int n = 0; n < NR; ++n) {
        vf wv = pair_first(w[n] + kw);
        for (int m = 0; m < M; ++m) acc[m][n] = xv[m] * wv + acc[m][n];
    }
    for (int m = 0; m < M; ++m) xv[m] = load(x[m] + kx + W);
    for (int n = 0; n < NR; ++n) {
        vf wv = pair_second(w[n] + kw);
        for (int m = 0; m < M; ++m) acc[m][n] = xv[m] * wv + acc[m][n];
    }
}

// acc += x[., k0:k1] w[., k0:k1]^T; k0 is a multiple of 2W and k1 too unless it is K.
template <int M, class WT>
INLINE void accumulate(const float *const *x, const WT *const *w, int64_t k0, int64_t k1, vf (*acc)[NR]) {
    int64_t k = k0;
    for (; k + 2 * W <= k1; k += 2 * W) step<M>(x, w, k, k, acc);
    if (k < k1) {
        WT tail[NR][2 * W];
        const WT *rows[NR];
        memset(tail, 0, sizeof tail);
        for (int n = 0; n < NR; ++n) {
            memcpy(tail[n], w[n] + k, (size_t)(k1 - k) * sizeof(WT));
            rows[n] = tail[n];
        }
        step<M>(x, rows, k, 0, acc);
    }
}

// One tile over [k0, k1): starts from parked accumulators unless k0 is 0, ends in the sink if `last`, else parks them.
template <int M, class WT, class Sink>
void tile(const Rows &x, int64_t m0, const WT *const *w, int64_t k0, int64_t k1, bool last, vf *parked, int64_t n,
          int count, Sink &sink) {
    const float *xr[M];
    vf acc[M][NR];
    for (int m = 0; m < M; ++m) xr[m] = x.at(m0 + m);
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < NR; ++i) acc[m][i] = k0 ? parked[m * NR + i] : splat(0.0f);
    accumulate<M>(xr, w, k0, k1, acc);
    if (!last) {
        for (int m = 0; m < M; ++m)
            for (int i = 0; i < NR; ++i) parked[m * NR + i] = acc[m][i];
        return;
    }
    for (int m = 0; m < M; ++m) sink(m0 + m, n, count, sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3]));
}

template <int M, class WT, class Sink>
struct Tiles {  // picks the instance for the number of rows left
    static INLINE void go(int rows, const Rows &x, int64_t m0, const WT *const *w, int64_t k0, int64_t k1, bool last,
                          vf *parked, int64_t n, int count, Sink &sink) {
        if (rows >= M) tile<M>(x, m0, w, k0, k1, last, parked, n, count, sink);
        else Tiles<M - 1, WT, Sink>::go(rows, x, m0, w, k0, k1, last, parked, n, count, sink);
    }
};
template <class WT, class Sink>
struct Tiles<0, WT, Sink> {
    static INLINE void go(int, const Rows &, int64_t, const WT *const *, int64_t, int64_t, bool, vf *, int64_t, int, Sink &) {}
};

INLINE bool cuts_k(int64_t M, int64_t K) { return M > 4 * MR && K > K_WHOLE; }
INLINE int64_t parked_count(int64_t M, int64_t K) { return cuts_k(M, K) ? round_up(min64(M, M_BLOCK), MR) * N_BLOCK : 0; }

// Columns [n0, n1) for all M rows. `parked` holds parked_count(M, K) vectors of this thread.
template <class WT, class Sink>
void gemm_columns(const Rows &x, int64_t M, const WT *w, int64_t ldw, int64_t K, int64_t n0, int64_t n1, vf *parked,
                  Sink sink) {
    const int64_t k_block = cuts_k(M, K) ? K_BLOCK : max64(K, 1), n_block = cuts_k(M, K) ? N_BLOCK : n1 - n0;
    for (int64_t nb = n0; nb < n1; nb += n_block)
        for (int64_t mb = 0; mb < M; mb += M_BLOCK)
            for (int64_t k0 = 0; k0 < max64(K, 1); k0 += k_block) {
                const int64_t k1 = min64(K, k0 + k_block), m_end = min64(M, mb + M_BLOCK);
                vf *park = parked;
                for (int64_t n = nb; n < min64(n1, nb + n_block); n += NR) {
                    const int count = (int)min64(NR, n1 - n);
                    const WT *wr[NR];  // past the end: the last row again, its results are dropped
                    for (int i = 0; i < NR; ++i) wr[i] = w + (n + (i < count ? i : count - 1)) * ldw;
                    for (int64_t m = mb; m < m_end; m += MR, park += k_block < K ? MR * NR : 0)
                        Tiles<MR, WT, Sink>::go((int)min64(MR, m_end - m), x, m, wr, k0, k1, k1 == K, park, n, count, sink);
                }
            }
}

template <class YT>
struct StoreRows {
    YT *y;
    int64_t ld;
    const float *bias;
    INLINE void operator()(int64_t m, int64_t n, int count, v4f v) const {
        YT *p = y + m * ld + n;
        if (count == NR && !bias) return store4(p, v);
        for (int i = 0; i < count; ++i) put(p + i, bias ? v[i] + bias[n + i] : v[i]);
    }
};

struct LinearArgs {
    void *scratch;
    int64_t scratch_bytes;
    const void *x, *weight, *bias;  // bias may be null
    void *y;
    int64_t M, N, K, ldx, ldy, x_is_bf16, w_is_bf16, bias_is_bf16;
};

constexpr double LINEAR_GRAIN = 60e3;  // multiply-adds worth a thread of their own: some microseconds of work

template <class XT, class WT>
int64_t linear_typed(const LinearArgs &a) {
    const int64_t Kp = padded(a.K), parked = parked_count(a.M, a.K);
    const int team = (int)min64(team_size((double)a.M * a.N * a.K, LINEAR_GRAIN), (a.N + NR - 1) / NR);
    Arena arena(a.scratch, a.scratch_bytes);
    float *prepared = arena.take<float>(a.M * Kp);
    vf *park = arena.take<vf>(parked * team);
    float *bias = a.bias ? arena.take<float>(a.N) : nullptr;
    if (!arena.fits()) return arena.used;
    for (int64_t n = 0; bias && n < a.N; ++n)
        bias[n] = a.bias_is_bf16 ? widen(((const bf16 *)a.bias)[n]) : ((const float *)a.bias)[n];
    const Rows rows{prepared, Kp, nullptr};
    const StoreRows<XT> sink{(XT *)a.y, a.ldy, bias};
    run_team(team, [&](int member, int members) {
        const int64_t units = (a.N + NR - 1) / NR;
        for (int64_t m = a.M * member / members; m < a.M * (member + 1) / members; ++m)
            Prepare<WT, XT>::row((const XT *)a.x + m * a.ldx, prepared + m * Kp, a.K, Kp);
        team_barrier(members);
        gemm_columns(rows, a.M, (const WT *)a.weight, a.K, a.K, units * member / members * NR,
                     min64(a.N, units * (member + 1) / members * NR), park + parked * member, sink);
    });
    return 0;
}

INLINE int64_t linear(const LinearArgs &a) {
    if (a.x_is_bf16) return a.w_is_bf16 ? linear_typed<bf16, bf16>(a) : linear_typed<bf16, float>(a);
    return a.w_is_bf16 ? linear_typed<float, bf16>(a) : linear_typed<float, float>(a);
}

}  // namespace
