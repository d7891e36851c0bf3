// Feed-forward of a mixture of experts: tokens grouped by expert, gate/up + activation, down, weighted sum per token.
//
// Work is cut into (expert, column block) items, so that one token already uses all cores. Each (token, choice) pair gets its
// own down-projected row, and a token adds its rows in the order of its choices: the sum does not depend on the batch, nor on
// which experts were computed when.
#pragma once
#include "quantised.h"

namespace {

constexpr int64_t MOE_COLUMNS = 32;

// The experts' weights: part i of the expert in place s begins at base[i] + s * stride[i]. Parts are gate_up [2F, D], its scales,
// down [D, F], its scales; there are scales only for weights in groups.
struct Places {
    const char *base[4];
    int64_t stride[4];
    const int64_t *slots;  // where expert e is, negative if it is not there; null: all are, e in place e
    INLINE bool has(int64_t e) const { return !slots || slots[e] >= 0; }
    INLINE const char *at(int64_t e, int part) const { return base[part] + (slots ? slots[e] : e) * stride[part]; }
};

struct Job {
    const void *x;
    const int64_t *ids;  // [T, k]
    Places places;
    int64_t T, k, X, F, D, ldx, group_d, group_f;  // numbers of a row of D (F) that share a scale
    bool gelu, x_is_bf16;
    bool valid() const {
        for (int64_t i = 0; i < T * k; ++i)
            if (ids[i] < 0 || ids[i] >= X) return false;
        return true;
    }
};

struct Groups {  // pairs whose expert is there, sorted by expert: token[i], pair[i] for i in [start[e], start[e + 1])
    int32_t *start, *token, *pair, *active;
    int64_t num_active;
    void build(const Job &job) {
        memset(start, 0, (size_t)(job.X + 1) * sizeof *start);
        for (int64_t i = 0; i < job.T * job.k; ++i) start[job.ids[i] + 1] += job.places.has(job.ids[i]);
        num_active = 0;
        for (int64_t e = 0; e < job.X; ++e) {
            if (start[e + 1]) active[num_active++] = (int32_t)e;
            start[e + 1] += start[e];
        }
        const int32_t total = start[job.X];
        for (int64_t i = job.T * job.k; i-- > 0;) {  // backwards, so that start[e + 1] walks down to where e begins
            if (!job.places.has(job.ids[i])) continue;
            const int32_t at = --start[job.ids[i] + 1];
            token[at] = (int32_t)(i / job.k);
            pair[at] = (int32_t)i;
        }
        for (int64_t e = 0; e < job.X; ++e) start[e] = start[e + 1];
        start[job.X] = total;
    }
};

struct StoreFloats {  // plain rows of a small buffer whose first column is n0
    float *y;
    int64_t ld, n0;
    INLINE void operator()(int64_t m, int64_t n, int count, v4f v) const {
        for (int i = 0; i < count; ++i) y[m * ld + n - n0 + i] = v[i];
    }
};
struct StorePairs {  // row m goes to the place of its (token, choice) pair
    float *y;
    int64_t ld;
    const int32_t *pair;
    INLINE void operator()(int64_t m, int64_t n, int count, v4f v) const {
        for (int i = 0; i < count; ++i) y[pair[m] * ld + n + i] = v[i];
    }
};

template <class T>
INLINE Matrix<T> weights_at(const char *numbers, const char *, int64_t K, int64_t, const Matrix<T> *) {
    return {(const T *)numbers, K};
}
template <int BITS>
INLINE Quantised<BITS> weights_at(const char *numbers, const char *scales, int64_t K, int64_t group, const Quantised<BITS> *) {
    return {(const uint8_t *)numbers, (const bf16 *)scales, K, group};
}

template <class Weights>
struct Experts {
    typedef typename Weights::Order Order;
    const Job &job;
    const int64_t Dp, Fp;
    float *const pairs;
    Groups groups{};
    float *x = nullptr, *hidden = nullptr;  // prepared x; activated rows (prepared, sorted by expert)

    struct Own {  // one thread's scratch
        Space over_d, over_f;
        float *gate, *up;
        Own(Arena &arena, const Job &job)
            : over_d(arena, Cut::of<Weights>(job.T * job.k, job.D)), over_f(arena, Cut::of<Weights>(job.T * job.k, job.F)),
              gate(arena.take<float>(M_BLOCK * MOE_COLUMNS)), up(arena.take<float>(M_BLOCK * MOE_COLUMNS)) {}
    };

    // Columns [f0, f1) of gate and up for the rows of one expert, activated and laid out for the down projection.
    void gate_up(int64_t e, int64_t f0, int64_t f1, const Own &own) {
        const auto w = weights_at(job.places.at(e, 0), job.places.at(e, 1), job.D, job.group_d, (const Weights *)nullptr);
        for (int64_t m0 = groups.start[e]; m0 < groups.start[e + 1]; m0 += M_BLOCK) {
            const int64_t rows = min64(M_BLOCK, groups.start[e + 1] - m0);
            const Rows in{x, Dp, groups.token + m0};
            gemm_columns(in, rows, w, job.D, f0, f1, own.over_d, StoreFloats{own.gate, MOE_COLUMNS, f0});
            gemm_columns(in, rows, w.from(job.F, 0), job.D, f0, f1, own.over_d, StoreFloats{own.up, MOE_COLUMNS, f0});
            for (int64_t m = 0; m < rows; ++m) {
                float *g = own.gate + m * MOE_COLUMNS, *u = own.up + m * MOE_COLUMNS;
                for (int64_t c = 0; c < MOE_COLUMNS; c += W) store(g + c, activate(load(g + c), job.gelu) * load(u + c));
                Prepare<Order, float>::row(g, hidden + (m0 + m) * Fp + f0, f1 - f0, padded(f1 - f0));
            }
        }
    }

    void down(int64_t e, int64_t d0, int64_t d1, const Own &own) {
        const int64_t m0 = groups.start[e];
        const auto w = weights_at(job.places.at(e, 2), job.places.at(e, 3), job.F, job.group_f, (const Weights *)nullptr);
        gemm_columns(Rows{hidden + m0 * Fp, Fp, nullptr}, groups.start[e + 1] - m0, w, job.F, d0, d1, own.over_f,
                     StorePairs{pairs, job.D, groups.pair + m0});
    }

    void prepare(int64_t t) {
        bool wanted = false;
        for (int64_t j = 0; j < job.k; ++j) wanted |= job.places.has(job.ids[t * job.k + j]);
        if (!wanted) return;
        if (job.x_is_bf16) Prepare<Order, bf16>::row((const bf16 *)job.x + t * job.ldx, x + t * Dp, job.D, Dp);
        else Prepare<Order, float>::row((const float *)job.x + t * job.ldx, x + t * Dp, job.D, Dp);
    }

    template <class F>
    void items(Counter &next, int64_t columns, F f) {
        const int64_t blocks = (columns + MOE_COLUMNS - 1) / MOE_COLUMNS;
        for (int64_t i; (i = next.take()) < groups.num_active * blocks;) {
            const int64_t c0 = i % blocks * MOE_COLUMNS;
            f(groups.active[i / blocks], c0, min64(columns, c0 + MOE_COLUMNS));
        }
    }

    static int team_for(const Job &job, int64_t rows) { return team_size(3.0 * rows * job.F * job.D, LINEAR_GRAIN); }

    int64_t run(Arena &arena) {
        const int64_t n = job.T * job.k;
        const int most = team_for(job, n);
        groups.start = arena.take<int32_t>(job.X + 1);
        groups.active = arena.take<int32_t>(job.X);
        groups.token = arena.take<int32_t>(n);
        groups.pair = arena.take<int32_t>(n);
        x = arena.take<float>(job.T * Dp);
        hidden = arena.take<float>(n * Fp);
        const Arena first_own = arena;
        for (int i = 0; i < most; ++i) Own(arena, job);
        if (!arena.fits()) return arena.used;
        const int64_t per_member = (arena.used - first_own.used) / most;

        groups.build(job);
        const auto own_of = [&](int member) {
            Arena mine = first_own;
            mine.used += member * per_member;
            return Own(mine, job);
        };
        const int team = team_for(job, groups.start[job.X]);
        Counter first, second;
        each_row(job.T, job.D, [&](int64_t t) { prepare(t); });
        run_team(team, [&](int member, int) {
            const Own own = own_of(member);
            memset(own.gate, 0, M_BLOCK * MOE_COLUMNS * sizeof(float));  // what a narrow block leaves unset is read
            memset(own.up, 0, M_BLOCK * MOE_COLUMNS * sizeof(float));
            items(first, job.F, [&](int64_t e, int64_t c0, int64_t c1) { gate_up(e, c0, c1, own); });
        });
        run_team(team, [&](int member, int) {
            const Own own = own_of(member);
            items(second, job.D, [&](int64_t e, int64_t c0, int64_t c1) { down(e, c0, c1, own); });
        });
        return 0;
    }
};

// Row p of pairs becomes the down-projected row of (token, choice) pair p, for every expert that is there.
template <class Weights>
INLINE int64_t fill_pairs(const Job &job, Arena &arena, float *pairs) {
    return Experts<Weights>{job, padded(job.D), padded(job.F), pairs}.run(arena);
}

struct CombineArgs {
    const float *pairs, *weights;  // [T, k, D], [T, k]
    void *y;
    int64_t T, k, D, y_is_bf16;
};

template <class YT>
INLINE void combine_token(const CombineArgs &a, int64_t t) {
    YT *y = (YT *)a.y + t * a.D;
    const float *rows = a.pairs + t * a.k * a.D, *weights = a.weights + t * a.k;
    int64_t d = 0;
    for (; d + W <= a.D; d += W) {
        vf total = {};
        for (int64_t j = 0; j < a.k; ++j) total = load(rows + j * a.D + d) * weights[j] + total;
        store(y + d, total);
    }
    for (; d < a.D; ++d) {
        float total = 0.0f;
        for (int64_t j = 0; j < a.k; ++j) total = rows[j * a.D + d] * weights[j] + total;
        put(y + d, total);
    }
}
inline int64_t combine_pairs(const CombineArgs &a) {
    each_row(a.T, a.k * a.D, [&](int64_t t) { a.y_is_bf16 ? combine_token<bf16>(a, t) : combine_token<float>(a, t); });
    return 0;
}

struct MoeArgs {
    void *scratch;
    int64_t scratch_bytes;
    const void *x;
    const int64_t *ids;          // [T, k]
    const float *weights;        // [T, k]
    const char *gate_up, *down;  // [X, 2F, D], [X, D, F]
    void *y;
    int64_t T, k, X, F, D, ldx, gelu, x_is_bf16, w_is_bf16;
};

INLINE int64_t moe_ffn(const MoeArgs &a) {
    const int64_t size = (a.w_is_bf16 ? 2 : 4) * a.F * a.D;
    const Places places{{a.gate_up, nullptr, a.down, nullptr}, {2 * size, 0, size, 0}, nullptr};
    const Job job{a.x, a.ids, places, a.T, a.k, a.X, a.F, a.D, a.ldx, 0, 0, a.gelu != 0, a.x_is_bf16 != 0};
    if (!job.valid()) return -1;
    Arena arena(a.scratch, a.scratch_bytes);
    float *pairs = arena.take<float>(a.T * a.k * a.D);
    const int64_t status = a.w_is_bf16 ? fill_pairs<Matrix<bf16>>(job, arena, pairs) : fill_pairs<Matrix<float>>(job, arena, pairs);
    return status ? status : combine_pairs(CombineArgs{pairs, a.weights, a.y, a.T, a.k, a.D, a.x_is_bf16});
}

}  // namespace
