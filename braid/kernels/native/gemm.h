// y[M,N] = x[M,K] W[N,K]^T + bias with float32 accumulation.
//
// Every output element is one vector accumulator that walks K from the front and is summed across its lanes at the end. That
// order depends on nothing but K and the variant's width: not on M, the row's place, the blocking or the number of threads.
// Blocking along K parks whole accumulators in scratch and so leaves the order as it is.
//
// W is any type of weights that can do what `Matrix` can: compute a tile of the product where they lie, and widen a block.
#pragma once
#include "rows.h"

namespace {

constexpr int NR = 4;                // rows of W per tile
constexpr int MR = W == 16 ? 6 : 3;  // rows of x per tile: MR * NR accumulators fill 16 (32) registers
constexpr int64_t FEW_ROWS = 4 * MR; // up to here W is walked tile by tile as it is, above in blocks, widened once each
constexpr int64_t N_BLOCK = 32;      // rows of W per block: widened they stay in the second-level cache
constexpr int64_t K_WHOLE = 1024;    // a block of many rows is cut along K beyond this ...
constexpr int64_t K_BLOCK = 768;     // ... into equal parts, so that the tiles of x and W stay in the first-level cache,
constexpr int64_t M_BLOCK = 72;      // and accumulators of so many rows (a multiple of MR) are parked meanwhile

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

INLINE vf hold(vf v, const float *) { return keep(v); }
INLINE vf hold(vf v, const bf16 *) { return v; }  // widening needs the registers

template <int M, class WT>
INLINE void step(const float *const *x, const WT *const *w, int64_t k, vf (*acc)[NR]) {
    vf xv[M];
    for (int m = 0; m < M; ++m) xv[m] = hold(load(x[m] + k), w[0]);
    for (int n = 0; n < NR; ++n) {
        vf wv = pair_first(w[n] + k);
        for (int m = 0; m < M; ++m) acc[m][n] = xv[m] * wv + acc[m][n];
    }
    for (int m = 0; m < M; ++m) xv[m] = hold(load(x[m] + k + W), w[0]);
    for (int n = 0; n < NR; ++n) {
        vf wv = pair_second(w[n] + k);
        for (int m = 0; m < M; ++m) acc[m][n] = xv[m] * wv + acc[m][n];
    }
}

// The inner loops stand alone in functions of their own: inlined into their surroundings, compilers spill accumulators.

// out[m] = x[m] . w[0..3] over K, a multiple of 2W.
template <int M, class WT>
__attribute__((noinline)) void dot_whole(const float *const *x, const WT *const *w, int64_t K, v4f *out) {
    vf acc[M][NR] = {};
    for (int64_t k = 0; k < K; k += 2 * W) step<M>(x, w, k, acc);
    for (int m = 0; m < M; ++m) out[m] = sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3]);
}

// parked += x w^T over K, a multiple of 2W.
template <int M, class WT>
__attribute__((noinline)) void dot_part(const float *const *x, const WT *const *w, int64_t K, vf *parked) {
    vf acc[M][NR];
    for (int i = 0; i < M * NR; ++i) acc[i / NR][i % NR] = parked[i];
    for (int64_t k = 0; k < K; k += 2 * W) step<M>(x, w, k, acc);
    for (int i = 0; i < M * NR; ++i) parked[i] = acc[i / NR][i % NR];
}

// Loops over `length` elements of rows of x and w; `parked` carries accumulators over the cuts of K.
template <int M, class WT>
INLINE void tile(const float *const *x, const WT *const *w, int64_t length, bool first, bool last, vf *parked, v4f *sums) {
    const int64_t even = length / (2 * W) * (2 * W);
    if (first && last && even == length) return dot_whole<M>(x, w, length, sums);
    if (first) memset(parked, 0, M * NR * sizeof(vf));
    dot_part<M>(x, w, even, parked);
    if (even < length) {  // the last, incomplete group: x is padded, W is not
        WT rest[NR][2 * W];
        const WT *rest_rows[NR];
        const float *x_rows[M];
        memset(rest, 0, sizeof rest);
        for (int n = 0; n < NR; ++n) rest_rows[n] = (WT *)memcpy(rest[n], w[n] + even, (size_t)(length - even) * sizeof(WT));
        for (int m = 0; m < M; ++m) x_rows[m] = x[m] + even;
        dot_part<M>(x_rows, rest_rows, 2 * W, parked);
    }
    for (int m = 0; last && m < M; ++m, parked += NR) sums[m] = sum4(parked[0], parked[1], parked[2], parked[3]);
}

template <int M, class WT>
struct Tiles {  // picks the instance for the number of rows left
    static INLINE void go(int rows, const float *const *x, const WT *const *w, int64_t length, bool first, bool last,
                          vf *parked, v4f *sums) {
        if (rows >= M) tile<M>(x, w, length, first, last, parked, sums);
        else Tiles<M - 1, WT>::go(rows, x, w, length, first, last, parked, sums);
    }
};
template <class WT>
struct Tiles<0, WT> {
    static INLINE void go(int, const float *const *, const WT *const *, int64_t, bool, bool, vf *, v4f *) {}
};

// How the product is cut; depends on its shape and the type of its weights alone.
struct Cut {
    bool many, k_cut, widens;
    int64_t n_block, k_block, m_block;
    template <class Weights>
    static Cut of(int64_t M, int64_t K) { return Cut(M, K, Weights::FEW, Weights::UNIT, Weights::WIDENS); }

  private:
    Cut(int64_t M, int64_t K, int64_t few, int64_t unit, bool widens_blocks)
        : many(M > few), k_cut(many && K > K_WHOLE), widens(many && widens_blocks), n_block(many ? N_BLOCK : NR),
          k_block(k_cut ? round_up(K / ((K + K_BLOCK - 1) / K_BLOCK), unit) : max64(K, 1)), m_block(k_cut ? M_BLOCK : M) {}
};

// One thread's scratch.
struct Space {
    vf *parked;
    float *wide;
    Space(Arena &arena, const Cut &cut) {
        parked = arena.take<vf>(cut.k_cut ? M_BLOCK * N_BLOCK : MR * NR);
        wide = arena.take<float>(cut.widens ? N_BLOCK * padded(cut.k_block) : 0);
    }
};

// Rows of plain numbers, one after another.
template <class T>
struct Matrix {
    typedef T Order;                           // rows of x are prepared as for weights of this type
    static constexpr int64_t FEW = FEW_ROWS;   // up to so many rows of x, W is multiplied where it lies
    static constexpr int64_t UNIT = 2 * W;     // blocks along K are multiples of this
    static constexpr bool WIDENS = sizeof(T) == 2;
    const T *w;
    int64_t ld;

    INLINE Matrix from(int64_t n, int64_t k) const { return {w + n * ld + k, ld}; }
    INLINE const char *row(int64_t n) const { return (const char *)(w + n * ld); }
    INLINE int64_t row_bytes() const { return ld * (int64_t)sizeof(T); }
    // Rows n, n + 1, ... times rows of x. Past the end: the last row again, its results are dropped.
    INLINE void tile(int64_t n, int count, int rows, const float *const *x, int64_t length, bool first, bool last, vf *parked,
                     v4f *sums) const {
        const T *at[NR];
        for (int i = 0; i < NR; ++i) at[i] = w + (n + (i < count ? i : count - 1)) * ld;
        Tiles<MR, T>::go(rows, x, at, length, first, last, parked, sums);
    }
};

// Rows of W as float32 in the order in which a tile would widen them; float32 weights are used where they are.
struct Block {
    Matrix<float> rows;
    int64_t length;
};
INLINE Block widen_block(const Matrix<float> &w, int64_t, int64_t length, float *) { return {w, length}; }
inline Block widen_block(const Matrix<bf16> &w, int64_t rows, int64_t length, float *wide) {
    const int64_t to = padded(length);
    for (int64_t n = 0; n < rows; ++n) Prepare<bf16, bf16>::row(w.from(n, 0).w, wide + n * to, length, to);
    return {{wide, to}, to};
}

struct Range {  // columns [n0, n1) of the result, rows [m0, m1), and K from k0 on
    int64_t n0, n1, m0, m1, k0;
    bool last, park;  // K ends here; accumulators wait for the next part of K
    const char *next;  // weights wanted soon, fetched bit by bit meanwhile
    int64_t next_bytes;
};

// Brings bytes [from, to) nearer. One pass over W lives on the processor's own prefetching, which follows loads in the order
// of their addresses; with several passes there is time for prefetch instructions (each measured better in its place).
INLINE void fetch(const char *p, int64_t from, int64_t to, bool one_pass) {
    if (one_pass)
        for (; from < to; from += 64) (void)*(const volatile char *)(p + from);
    else
        for (; from < to; from += 64) __builtin_prefetch(p + from, 0, 2);
}

// w begins at row n0 and column k0.
template <class Weights, class Sink>
INLINE void gemm_range(const Rows &x, const Weights &w, int64_t length, const Range &r, vf *parked, Sink &sink) {
    for (int64_t m = r.m0; m < r.m1; m += MR) {
        const int rows = (int)min64(MR, r.m1 - m);
        const int64_t from = r.next_bytes * (m - r.m0) / (r.m1 - r.m0), to = r.next_bytes * (m + rows - r.m0) / (r.m1 - r.m0);
        fetch(r.next, round_up(from, 64), to, r.m1 - r.m0 <= MR);
        const float *xr[MR];
        v4f sums[MR];
        for (int i = 0; i < rows; ++i) xr[i] = x.at(m + i) + r.k0;
        for (int64_t n = r.n0; n < r.n1; n += NR, parked += r.park ? MR * NR : 0) {
            const int count = (int)min64(NR, r.n1 - n);
            w.tile(n - r.n0, count, rows, xr, length, r.k0 == 0, r.last, parked, sums);
            for (int i = 0; r.last && i < rows; ++i) sink(m + i, n, count, sums[i]);
        }
    }
}

// Columns [n0, n1) for all M rows; w has K columns.
template <class Weights, class Sink>
void gemm_columns(const Rows &x, int64_t M, const Weights &w, int64_t K, int64_t n0, int64_t n1, const Space &space, Sink sink) {
    const Cut cut = Cut::of<Weights>(M, K);
    for (int64_t n = n0; n < n1; n += cut.n_block)
        for (int64_t m = 0; m < M; m += cut.m_block)
            for (int64_t k = 0; k < max64(K, 1); k += cut.k_block) {
                const int64_t length = min64(K - k, cut.k_block);
                const int64_t n_end = min64(n1, n + cut.n_block), next_rows = min64(n1, n_end + cut.n_block) - n_end;
                const bool ahead = m == 0 && k == 0 && (cut.many || K <= K_WHOLE);
                const Range range{n, n_end, m, min64(M, m + cut.m_block), k, k + length == K, cut.k_cut,
                                  w.row(n_end), ahead ? next_rows * w.row_bytes() : 0};
                if (cut.many) {
                    const Block block = widen_block(w.from(n, k), n_end - n, length, space.wide);
                    gemm_range(x, block.rows, block.length, range, space.parked, sink);
                } else {
                    gemm_range(x, w.from(n, k), length, range, space.parked, sink);
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
constexpr int LINEAR_PARTS = 4;        // parts of the columns per thread, taken one by one: a slow thread takes fewer

template <class XT, class WT>
int64_t linear_typed(const LinearArgs &a) {
    const int64_t Kp = padded(a.K), units = (a.N + NR - 1) / NR;
    const int team = (int)min64(team_size((double)a.M * a.N * a.K, LINEAR_GRAIN), units);
    Arena arena(a.scratch, a.scratch_bytes);
    float *prepared = arena.take<float>(a.M * Kp);
    float *bias = a.bias ? arena.take<float>(a.N) : nullptr;
    Arena own = arena;
    const Cut cut = Cut::of<Matrix<WT>>(a.M, a.K);
    for (int i = 0; i < team; ++i) Space(arena, cut);
    if (!arena.fits()) return arena.used;
    const int64_t per_member = team ? (arena.used - own.used) / team : 0;

    for (int64_t n = 0; bias && n < a.N; ++n)
        bias[n] = a.bias_is_bf16 ? widen(((const bf16 *)a.bias)[n]) : ((const float *)a.bias)[n];
    const Rows rows{prepared, Kp, nullptr};
    const StoreRows<XT> sink{(XT *)a.y, a.ldy, bias};
    each_row(a.M, a.K, [&](int64_t m) { Prepare<WT, XT>::row((const XT *)a.x + m * a.ldx, prepared + m * Kp, a.K, Kp); });
    const int64_t parts = min64(team == 1 ? 1 : team * LINEAR_PARTS, units);
    Counter next;
    run_team(team, [&](int member, int) {
        Arena mine = own;
        mine.used += member * per_member;
        const Space space(mine, cut);
        for (int64_t i; (i = next.take()) < parts;)
            gemm_columns(rows, a.M, Matrix<WT>{(const WT *)a.weight, a.K}, a.K, units * i / parts * NR,
                         min64(a.N, units * (i + 1) / parts * NR), space, sink);
    });
    return 0;
}

INLINE int64_t linear(const LinearArgs &a) {
    if (a.x_is_bf16) return a.w_is_bf16 ? linear_typed<bf16, bf16>(a) : linear_typed<bf16, float>(a);
    return a.w_is_bf16 ? linear_typed<float, bf16>(a) : linear_typed<float, float>(a);
}

}  // namespace
