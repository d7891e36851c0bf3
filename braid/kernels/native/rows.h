// Row-wise steps between the matrix products: norms, rotary embedding, gated activations, KV scatter, argmax.
//
// Every row is computed by one thread in an order that depends on the row's length alone.
#pragma once
#include "vec.h"

namespace {

constexpr double ROW_GRAIN = 32e3;  // elements worth a thread of their own

template <class F>
INLINE void each_row(int64_t rows, int64_t width, F f) {
    const int team = (int)min64(team_size((double)rows * width, ROW_GRAIN), max64(rows, 1));
    run_team(team, [&](int member, int members) {
        for (int64_t r = rows * member / members; r < rows * (member + 1) / members; ++r) f(r);
    });
}

// --- RMS norm, with or without the residual added first ---
struct NormArgs {
    const void *x, *residual;  // residual null: plain norm
    const float *weight;
    void *y, *new_residual;
    int64_t T, H, D, ldx, ldr, is_bf16;  // rows (t, h) at x + t * ldx + h * D; y is contiguous; H is 1 with a residual
    double eps;
};

template <class XT>
INLINE void norm_row(const XT *x, const float *weight, XT *y, int64_t D, float eps) {
    vf squares[4] = {};
    int64_t d = 0;
    for (; d + 4 * W <= D; d += 4 * W)
        for (int i = 0; i < 4; ++i) {
            vf v = load(x + d + i * W);
            squares[i] = v * v + squares[i];
        }
    float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    for (; d < D; ++d) total += widen(x[d]) * widen(x[d]);
    const float r = 1.0f / __builtin_sqrtf(total / (float)D + eps);
    for (d = 0; d + W <= D; d += W) store(y + d, load(x + d) * r * load(weight + d));
    for (; d < D; ++d) put(y + d, widen(x[d]) * r * weight[d]);
}

template <class XT>
INLINE void add_row(const XT *x, const XT *residual, XT *out, int64_t D) {
    int64_t d = 0;
    for (; d + W <= D; d += W) store(out + d, load(x + d) + load(residual + d));
    for (; d < D; ++d) put(out + d, widen(x[d]) + widen(residual[d]));
}

template <class XT>
int64_t norm_typed(const NormArgs &a) {
    each_row(a.T * a.H, a.D, [&](int64_t row) {
        const int64_t t = row / a.H, h = row % a.H;
        const XT *x = (const XT *)a.x + t * a.ldx + h * a.D;
        if (a.residual) {
            XT *total = (XT *)a.new_residual + t * a.D;
            add_row(x, (const XT *)a.residual + t * a.ldr, total, a.D);
            x = total;
        }
        norm_row(x, a.weight, (XT *)a.y + row * a.D, a.D, (float)a.eps);
    });
    return 0;
}
INLINE int64_t rms_norm(const NormArgs &a) { return a.is_bf16 ? norm_typed<bf16>(a) : norm_typed<float>(a); }

// --- rotary embedding, in place on Q and K ---
struct RopeArgs {
    void *q, *k;
    const float *cos, *sin;                                        // [T, R/2]
    int64_t T, H, G, E, R, ldq, ldk, interleaved, is_bf16;
};

template <class XT>
INLINE void rotate_at(XT *x, int64_t i, int64_t j, float c, float s) {
    const float a = widen(x[i]), b = widen(x[j]);
    put(x + i, a * c - b * s);
    put(x + j, b * c + a * s);
}
INLINE int64_t rotate_pairs(float *, const float *, const float *, int64_t) { return 0; }
INLINE int64_t rotate_pairs(bf16 *x, const float *cos, const float *sin, int64_t half) {
    int64_t i = 0;
    for (; i + W <= half; i += W) {
        const vf c = load(cos + i), s = load(sin + i), a = pair_first(x + 2 * i), b = pair_second(x + 2 * i);
        const vu even = rounded_bits<vf, vu>(a * c - b * s), odd = rounded_bits<vf, vu>(b * c + a * s);
        store_as(x + 2 * i, (odd & 0xffff0000u) | (even >> 16));
    }
    return i;
}
template <class XT>
INLINE void rotate_row(XT *x, const float *cos, const float *sin, int64_t half, bool interleaved) {
    int64_t i = 0;
    if (interleaved) {
        for (i = rotate_pairs(x, cos, sin, half); i < half; ++i) rotate_at(x, 2 * i, 2 * i + 1, cos[i], sin[i]);
        return;
    }
    for (; i + W <= half; i += W) {
        const vf c = load(cos + i), s = load(sin + i), a = load(x + i), b = load(x + half + i);
        store(x + i, a * c - b * s);
        store(x + half + i, b * c + a * s);
    }
    for (; i < half; ++i) rotate_at(x, i, half + i, cos[i], sin[i]);
}

template <class XT>
int64_t rope_typed(const RopeArgs &a) {
    const int64_t half = a.R / 2;
    each_row(a.T, (a.H + a.G) * a.E, [&](int64_t t) {
        const float *cos = a.cos + t * half, *sin = a.sin + t * half;
        for (int64_t h = 0; h < a.H; ++h)
            rotate_row((XT *)a.q + t * a.ldq + h * a.E, cos, sin, half, a.interleaved != 0);
        for (int64_t g = 0; g < a.G; ++g)
            rotate_row((XT *)a.k + t * a.ldk + g * a.E, cos, sin, half, a.interleaved != 0);
    });
    return 0;
}
INLINE int64_t rope(const RopeArgs &a) { return a.is_bf16 ? rope_typed<bf16>(a) : rope_typed<float>(a); }

// --- gated activations: y = act(gate) * up, gate and up side by side in a row ---
INLINE vf silu(vf x) { return x / (1.0f + vexp(-x)); }
INLINE vf gelu_tanh(vf x) { return 0.5f * x * (1.0f + vtanh(0.7978845608028654f * (x + 0.044715f * x * x * x))); }
INLINE vf activate(vf x, bool gelu) { return gelu ? gelu_tanh(x) : silu(x); }

struct GateArgs {
    const void *gate_up;
    void *y;
    int64_t T, F, ldx, gelu, is_bf16;
};

template <class XT>
INLINE void gate_part(const XT *gate, const XT *up, XT *y, bool gelu) {
    store(y, activate(load(gate), gelu) * load(up));
}
template <class XT>
int64_t gate_typed(const GateArgs &a) {
    each_row(a.T, 4 * a.F, [&](int64_t t) {
        const XT *gate = (const XT *)a.gate_up + t * a.ldx, *up = gate + a.F;
        XT *y = (XT *)a.y + t * a.F;
        int64_t f = 0;
        for (; f + W <= a.F; f += W) gate_part(gate + f, up + f, y + f, a.gelu != 0);
        if (f < a.F) {
            XT rest[3][W] = {};
            const size_t bytes = (size_t)(a.F - f) * sizeof(XT);
            memcpy(rest[0], gate + f, bytes);
            memcpy(rest[1], up + f, bytes);
            gate_part(rest[0], rest[1], rest[2], a.gelu != 0);
            memcpy(y + f, rest[2], bytes);
        }
    });
    return 0;
}
INLINE int64_t gate_mul(const GateArgs &a) { return a.is_bf16 ? gate_typed<bf16>(a) : gate_typed<float>(a); }

// --- scatter of new rows into their cache slots, converting to the cache's type ---
struct ScatterArgs {
    const void *x;
    void *cache;
    const int64_t *slots;
    int64_t T, width, ldx, num_slots, x_is_bf16, cache_is_bf16;
};

template <class XT, class CT>
int64_t scatter_typed(const ScatterArgs &a) {
    each_row(a.T, a.width, [&](int64_t t) {
        const XT *x = (const XT *)a.x + t * a.ldx;
        CT *to = (CT *)a.cache + a.slots[t] * a.width;
        int64_t i = 0;
        for (; i + W <= a.width; i += W) store(to + i, load(x + i));
        for (; i < a.width; ++i) put(to + i, widen(x[i]));
    });
    return 0;
}
INLINE int64_t scatter(const ScatterArgs &a) {
    for (int64_t t = 0; t < a.T; ++t)
        if (a.slots[t] < 0 || a.slots[t] >= a.num_slots) return -1;
    if (a.x_is_bf16) return a.cache_is_bf16 ? scatter_typed<bf16, bf16>(a) : scatter_typed<bf16, float>(a);
    return a.cache_is_bf16 ? scatter_typed<float, bf16>(a) : scatter_typed<float, float>(a);
}

// --- first index of the largest element; a NaN counts as the largest, as in torch ---
struct ArgmaxArgs {
    const void *x;
    int64_t *ids;
    int64_t rows, V, ldx, is_bf16;
};

template <class XT>
INLINE int64_t argmax_row(const XT *x, int64_t V) {
    constexpr int64_t CHUNK = 16 * W;
    float best = NEG_INF;
    int64_t at = 0;
    for (int64_t v = 0; v < V; v += CHUNK) {
        const int64_t end = min64(V, v + CHUNK);
        if (v + CHUNK <= V) {  // skip chunks in which nothing is larger and nothing is NaN
            vi hit = {};
            for (int i = 0; i < 16; ++i) hit |= ~(vi)(load(x + v + i * W) <= splat(best));
            int any = 0;
            for (int i = 0; i < W; ++i) any |= hit[i];
            if (!any && v) continue;
        }
        for (int64_t i = v; i < end; ++i) {
            const float f = widen(x[i]);
            if (f != f) return i;
            if (f > best) best = f, at = i;
        }
    }
    return at;
}
INLINE int64_t argmax(const ArgmaxArgs &a) {
    each_row(a.rows, a.V, [&](int64_t r) {
        a.ids[r] = a.is_bf16 ? argmax_row((const bf16 *)a.x + r * a.ldx, a.V) : argmax_row((const float *)a.x + r * a.ldx, a.V);
    });
    return 0;
}

}  // namespace
