// A part of a mixture's experts at a time, whose weights lie in slots of an arena as records (braid.core.experts.ExpertLayout).
#pragma once
#include "moe.h"

namespace {

struct PairsArgs {
    void *scratch;
    int64_t scratch_bytes;
    const void *x;
    const int64_t *ids;    // [T, k]
    const char *arena;     // [S, slot_bytes]
    const int64_t *slots;  // [X]; negative: this expert is not computed now
    float *pairs;          // [T, k, D]
    int64_t T, k, X, S, ldx, slot_bytes, gelu, x_is_bf16;
    // the layout: format (0 float32, 1 bfloat16, 2 int8, 3 int4), sizes, numbers per scale in rows of D and F, the parts' offsets
    int64_t format, D, F, group_d, group_f, parts[4];
};

INLINE int64_t expert_pairs(const PairsArgs &a) {
    Places places{{}, {}, a.slots};
    for (int i = 0; i < 4; ++i) places.base[i] = a.arena + a.parts[i], places.stride[i] = a.slot_bytes;
    const Job job{a.x, a.ids, places, a.T, a.k, a.X, a.F, a.D, a.ldx, a.group_d, a.group_f, a.gelu != 0, a.x_is_bf16 != 0};
    if (!job.valid()) return -1;
    for (int64_t e = 0; e < a.X; ++e)
        if (a.slots[e] >= a.S) return -1;
    Arena arena(a.scratch, a.scratch_bytes);
    switch (a.format) {
        case 0: return fill_pairs<Matrix<float>>(job, arena, a.pairs);
        case 1: return fill_pairs<Matrix<bf16>>(job, arena, a.pairs);
        case 2: return fill_pairs<Quantised<8>>(job, arena, a.pairs);
        case 3: return fill_pairs<Quantised<4>>(job, arena, a.pairs);
    }
    return -1;
}

}  // namespace
