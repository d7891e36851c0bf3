// Weights of 8 or 4 bits in groups that share a bfloat16 scale, as braid.core.experts.ExpertLayout words them.
//
// scale * q is exact in float32 (8 bits times at most 8). So a tile that dequantises in registers and a block that is dequantised
// into scratch multiply the very same numbers in the same order, and a result does not depend on which of them computed it.
#pragma once
#include "gemm.h"

namespace {

constexpr int64_t CHUNK = 32;  // numbers that are dequantised together

INLINE vf widen_all(bf16 h) { return (vf)(vu{} + ((uint32_t)h.bits << 16)); }

// CHUNK numbers of a group as float32: f(j, numbers j * W .. (j + 1) * W).
template <int BITS>
struct Group;
template <>
struct Group<8> {
    vf scale;
    static INLINE Group of(bf16 scale) { return {widen_all(scale)}; }
    template <class F>
    INLINE void chunk(const uint8_t *q, F f) const {
#pragma GCC unroll 8
        for (int j = 0; j < CHUNK / W; ++j)
            f(j, __builtin_convertvector(load((const int8_t *)q + j * W), vf) * scale);
    }
};
template <>
struct Group<4> {
    vf scale, lowest;  // q lies there as q + 8
    static INLINE Group of(bf16 scale) { return {widen_all(scale), widen_all(scale) * -8.0f}; }
    INLINE vf number(vi q) const { return __builtin_convertvector(q, vf) * scale + lowest; }
    template <class F>
    INLINE void chunk(const uint8_t *q, F f) const {
        constexpr int HALF = CHUNK / 2 / W;
        vi bytes[HALF];
#pragma GCC unroll 8
        for (int j = 0; j < HALF; ++j) bytes[j] = load(q + j * W);
#pragma GCC unroll 8
        for (int j = 0; j < HALF; ++j) f(j, number(bytes[j] & 15));
#pragma GCC unroll 8
        for (int j = 0; j < HALF; ++j) f(HALF + j, number(bytes[j] >> 4));
    }
};

struct GroupedRow {
    const uint8_t *q;
    const bf16 *scales;
};

constexpr int64_t FETCH_AHEAD = 4096;  // bytes at least: W is done with faster than the processor looks ahead by itself

// sums[m * NR + n] = lanes of x[m] . w[n] over K, for N rows of W.
template <int M, int N, int BITS>
INLINE void dot_rows(const float *const *x, const GroupedRow *w, int64_t K, int64_t group, vf *sums) {
    const int64_t ahead = max64(FETCH_AHEAD, NR * K * BITS / 8);
    vf acc[M][N] = {};
    for (int64_t g = 0, k = 0; k < K; ++g) {
        const int64_t end = k + group;
        Group<BITS> groups[N];
        for (int n = 0; n < N; ++n) {
            for (int64_t b = k * BITS / 8; b < end * BITS / 8; b += 64) __builtin_prefetch(w[n].q + b + ahead);
            groups[n] = Group<BITS>::of(w[n].scales[g]);
        }
        for (; k < end; k += CHUNK)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n)
                groups[n].chunk(w[n].q + k * BITS / 8, [&](int j, vf numbers) {
#pragma GCC unroll 8
                    for (int m = 0; m < M; ++m) acc[m][n] = load(x[m] + k + j * W) * numbers + acc[m][n];
                });
    }
    for (int i = 0; i < M * N; ++i) sums[i / N * NR + i % N] = acc[i / N][i % N];
}

// out[m] = x[m] . w[0..3] over K.
template <int M, int BITS>
__attribute__((noinline)) void dot_quantised(const float *const *x, const GroupedRow *w, int64_t K, int64_t group, v4f *out) {
    constexpr int N = M == 1 ? NR : NR / 2;  // so that sums and scales go into the registers, and enough sums are under way
    vf sums[M * NR];
    for (int n = 0; n < NR; n += N) dot_rows<M, N, BITS>(x, w + n, K, group, sums + n);
    for (int m = 0; m < M; ++m) out[m] = sum4(sums[m * NR], sums[m * NR + 1], sums[m * NR + 2], sums[m * NR + 3]);
}

template <int M, int BITS>
struct QuantisedTiles {  // picks the instance for the number of rows
    static INLINE void go(int rows, const float *const *x, const GroupedRow *w, int64_t K, int64_t group, v4f *sums) {
        if (rows < M) return QuantisedTiles<M - 1, BITS>::go(rows, x, w, K, group, sums);
        dot_quantised<M, BITS>(x, w, K, group, sums);
    }
};
template <int BITS>
struct QuantisedTiles<0, BITS> {
    static INLINE void go(int, const float *const *, const GroupedRow *, int64_t, int64_t, v4f *) {}
};

// Rows of K numbers, one after another, and their scales; see Matrix.
template <int BITS>
struct Quantised {
    typedef float Order;
    static constexpr int64_t FEW = MR;      // with more rows it pays to dequantise only once
    static constexpr int64_t UNIT = 128;  // every group divides it
    static constexpr bool WIDENS = true;
    const uint8_t *q;
    const bf16 *scales;
    int64_t K, group;

    INLINE Quantised from(int64_t n, int64_t k) const {
        return {q + (n * K + k) * BITS / 8, scales + (n * K + k) / group, K, group};
    }
    INLINE const char *row(int64_t n) const { return (const char *)from(n, 0).q; }
    INLINE int64_t row_bytes() const { return K * BITS / 8; }
    INLINE void tile(int64_t n, int count, int rows, const float *const *x, int64_t length, bool, bool, vf *, v4f *sums) const {
        GroupedRow at[NR];
        for (int i = 0; i < NR; ++i) {
            const Quantised row = from(n + (i < count ? i : count - 1), 0);
            at[i] = {row.q, row.scales};
        }
        QuantisedTiles<MR, BITS>::go(rows, x, at, length, group, sums);
    }
};

template <int BITS>
inline Block widen_block(const Quantised<BITS> &w, int64_t rows, int64_t length, float *wide) {
    for (int64_t n = 0; n < rows; ++n) {
        const Quantised<BITS> row = w.from(n, 0);
        for (int64_t k = 0; k < length; k += CHUNK)
            Group<BITS>::of(row.scales[k / w.group]).chunk(row.q + k * BITS / 8, [&](int j, vf numbers) {
                store(wide + n * length + k + j * W, numbers);
            });
    }
    return {{wide, length}, length};
}

}  // namespace
