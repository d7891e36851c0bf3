// Feed-forward of a mixture of experts: tokens grouped by expert, gate/up + activation, down, weighted sum per token.
//
// Work is cut into (expert, column block) items, so that one token already uses all cores. Each (token, choice) pair gets its
// own down-projected row, and a token adds its rows in the order of its choices: the sum does not depend on the batch.
#pragma once
#include "gemm.h"
#include "rows.h"

namespace {

constexpr int64_t MOE_COLUMNS = 32;

struct MoeArgs {
    void *scratch;
    int64_t scratch_bytes;
    const void *x;
    const int64_t *ids;          // [T, k]
    const float *weights;        // [T, k]
    const void *gate_up, *down;  // [X, 2F, D], [X, D, F]
    void *y;
    int64_t T, k, X, F, D, ldx, gelu, x_is_bf16, w_is_bf16;
};

struct Groups {  // pairs sorted by expert: token[i], pair[i] for i in [start[e], start[e + 1])
    int32_t *start, *token, *pair, *active;
    int64_t num_active;
    void build(const MoeArgs &a) {
        memset(start, 0, (size_t)(a.X + 1) * sizeof *start);
        for (int64_t i = 0; i < a.T * a.k; ++i) ++start[a.ids[i] + 1];
        num_active = 0;
        for (int64_t e = 0; e < a.X; ++e) {
            if (start[e + 1]) active[num_active++] = (int32_t)e;
            start[e + 1] += start[e];
        }
        for (int64_t i = a.T * a.k; i-- > 0;) {  // backwards, so that start[e + 1] walks down to where e begins
            const int32_t at = --start[a.ids[i] + 1];
            token[at] = (int32_t)(i / a.k);
            pair[at] = (int32_t)i;
        }
        for (int64_t e = 0; e < a.X; ++e) start[e] = start[e + 1];
        start[a.X] = (int32_t)(a.T * a.k);
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

template <class XT, class WT>
struct Moe {
    const MoeArgs &a;
    const int64_t Dp, Fp;
    Groups groups{};
    // prepared x; activated rows (prepared, sorted by expert); down-projected rows per pair
    float *x = nullptr, *hidden = nullptr, *pairs = nullptr;

    struct Own {  // one thread's scratch
        Space over_d, over_f;
        float *gate, *up;
        Own(Arena &arena, const MoeArgs &a)
            : over_d(arena, a.T * a.k, a.D, a.w_is_bf16 != 0), over_f(arena, a.T * a.k, a.F, a.w_is_bf16 != 0),
              gate(arena.take<float>(M_BLOCK * MOE_COLUMNS)), up(arena.take<float>(M_BLOCK * MOE_COLUMNS)) {}
    };

    // Columns [f0, f1) of gate and up for the rows of one expert, activated and laid out for the down projection.
    void gate_up(int64_t e, int64_t f0, int64_t f1, const Own &own) {
        const WT *w = (const WT *)a.gate_up + e * 2 * a.F * a.D;
        for (int64_t m0 = groups.start[e]; m0 < groups.start[e + 1]; m0 += M_BLOCK) {
            const int64_t rows = min64(M_BLOCK, groups.start[e + 1] - m0);
            const Rows in{x, Dp, groups.token + m0};
            gemm_columns(in, rows, w, a.D, f0, f1, own.over_d, StoreFloats{own.gate, MOE_COLUMNS, f0});
            gemm_columns(in, rows, w + a.F * a.D, a.D, f0, f1, own.over_d, StoreFloats{own.up, MOE_COLUMNS, f0});
            for (int64_t m = 0; m < rows; ++m) {
                float *g = own.gate + m * MOE_COLUMNS, *u = own.up + m * MOE_COLUMNS;
                for (int64_t c = 0; c < MOE_COLUMNS; c += W) store(g + c, activate(load(g + c), a.gelu != 0) * load(u + c));
                Prepare<WT, float>::row(g, hidden + (m0 + m) * Fp + f0, f1 - f0, padded(f1 - f0));
            }
        }
    }

    void down(int64_t e, int64_t d0, int64_t d1, const Own &own) {
        const int64_t m0 = groups.start[e];
        gemm_columns(Rows{hidden + m0 * Fp, Fp, nullptr}, groups.start[e + 1] - m0, (const WT *)a.down + e * a.D * a.F, a.F,
                     d0, d1, own.over_f, StorePairs{pairs, a.D, groups.pair + m0});
    }

    void combine(int64_t t) {
        XT *y = (XT *)a.y + t * a.D;
        const float *rows = pairs + t * a.k * a.D, *weights = a.weights + t * a.k;
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

    template <class F>
    void items(Counter &next, int64_t columns, F f) {
        const int64_t blocks = (columns + MOE_COLUMNS - 1) / MOE_COLUMNS;
        for (int64_t i; (i = next.take()) < groups.num_active * blocks;) {
            const int64_t c0 = i % blocks * MOE_COLUMNS;
            f(groups.active[i / blocks], c0, min64(columns, c0 + MOE_COLUMNS));
        }
    }

    int64_t run() {
        const int64_t n = a.T * a.k;
        const int team = team_size(3.0 * n * a.F * a.D, LINEAR_GRAIN);
        Arena arena(a.scratch, a.scratch_bytes);
        groups.start = arena.take<int32_t>(a.X + 1);
        groups.active = arena.take<int32_t>(a.X);
        groups.token = arena.take<int32_t>(n);
        groups.pair = arena.take<int32_t>(n);
        x = arena.take<float>(a.T * Dp);
        hidden = arena.take<float>(n * Fp);
        pairs = arena.take<float>(n * a.D);
        Arena first_own = arena;
        for (int i = 0; i < team; ++i) Own(arena, a);
        if (!arena.fits()) return arena.used;
        const int64_t per_member = (arena.used - first_own.used) / team;

        groups.build(a);
        const auto own_of = [&](int member) {
            Arena mine = first_own;
            mine.used += member * per_member;
            return Own(mine, a);
        };
        Counter first, second;
        each_row(a.T, a.D, [&](int64_t t) { Prepare<WT, XT>::row((const XT *)a.x + t * a.ldx, x + t * Dp, a.D, Dp); });
        run_team(team, [&](int member, int) {
            const Own own = own_of(member);
            memset(own.gate, 0, M_BLOCK * MOE_COLUMNS * sizeof(float));  // what a narrow block leaves unset is read
            memset(own.up, 0, M_BLOCK * MOE_COLUMNS * sizeof(float));
            items(first, a.F, [&](int64_t e, int64_t c0, int64_t c1) { gate_up(e, c0, c1, own); });
        });
        run_team(team, [&](int member, int) {
            const Own own = own_of(member);
            items(second, a.D, [&](int64_t e, int64_t c0, int64_t c1) { down(e, c0, c1, own); });
        });
        each_row(a.T, a.k * a.D, [&](int64_t t) { combine(t); });
        return 0;
    }
};

INLINE bool ids_valid(const MoeArgs &a) {
    for (int64_t i = 0; i < a.T * a.k; ++i)
        if (a.ids[i] < 0 || a.ids[i] >= a.X) return false;
    return true;
}

INLINE int64_t moe_ffn(const MoeArgs &a) {
    if (!ids_valid(a)) return -1;
    const int64_t Dp = padded(a.D), Fp = padded(a.F);
    if (a.x_is_bf16) {
        if (a.w_is_bf16) return Moe<bf16, bf16>{a, Dp, Fp}.run();
        return Moe<bf16, float>{a, Dp, Fp}.run();
    }
    if (a.w_is_bf16) return Moe<float, bf16>{a, Dp, Fp}.run();
    return Moe<float, float>{a, Dp, Fp}.run();
}

}  // namespace
