// Vectors of BRAID_WIDTH floats through GCC/Clang vector extensions: one source for every instruction set, next to no intrinsics.
//
// Everything sits in an unnamed namespace: each variant is one translation unit compiled with its own flags, and no inline
// function may leak from one variant into another. a * b + c is contracted to one FMA where the target has it
// (-ffp-contract=fast), so every path that must agree bit by bit is written with the same expression.
#pragma once
#include <stdint.h>
#include <string.h>
#if BRAID_WIDTH > 4
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#include "team.h"

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int W = BRAID_WIDTH;
typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef float v4f __attribute__((vector_size(16)));
typedef uint32_t v4u __attribute__((vector_size(16)));
typedef uint16_t v4h __attribute__((vector_size(8)));

struct bf16 {
    uint16_t bits;
};

constexpr float NEG_INF = -__builtin_inff();

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class V>
INLINE V load_as(const void *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class V>
INLINE void store_as(void *p, V v) {
    memcpy(p, &v, sizeof v);
}

// Holds a vector in a register where a compiler would rather load it again for every use.
INLINE vf keep(vf v) {
#if defined(__x86_64__) && (BRAID_WIDTH == 4 || defined(__AVX2__))
    asm("" : "+v"(v));
#endif
    return v;
}
INLINE vf splat(float s) { return vf{} + s; }
INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }

// --- bfloat16: widen by a shift, narrow by round to nearest even (NaN stays NaN) ---
INLINE float widen(bf16 h) {
    uint32_t u = (uint32_t)h.bits << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
INLINE float widen(float f) { return f; }

template <class F, class U>
INLINE U rounded_bits(F f) {  // bfloat16 value in the upper half of each lane; the lower half is rubbish
    U u;
    memcpy(&u, &f, sizeof u);
    U r = u + 0x7fffu + ((u >> 16) & 1u);
    return f != f ? (u | 0x00400000u) : r;
}
INLINE vh upper_halves(vu u) {
    typedef uint16_t both __attribute__((vector_size(W * 4)));
    both h = (both)u;
#if BRAID_WIDTH == 4
    return __builtin_shufflevector(h, h, 1, 3, 5, 7);
#elif BRAID_WIDTH == 8
    return __builtin_shufflevector(h, h, 1, 3, 5, 7, 9, 11, 13, 15);
#else
    return __builtin_shufflevector(h, h, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#endif
}
INLINE v4h upper_halves(v4u u, int) {
    typedef uint16_t both __attribute__((vector_size(16)));
    both h = (both)u;
    return __builtin_shufflevector(h, h, 1, 3, 5, 7);
}
INLINE void put(bf16 *p, float f) { p->bits = (uint16_t)(rounded_bits<float, uint32_t>(f) >> 16); }
INLINE void put(float *p, float f) { *p = f; }

INLINE vf load(const float *p) { return load_as<vf>(p); }
INLINE vf load(const bf16 *p) {
    vu u = __builtin_convertvector(load_as<vh>(p), vu) << 16;
    return (vf)u;
}
INLINE void store(float *p, vf v) { store_as(p, v); }
INLINE void store(bf16 *p, vf v) { store_as(p, upper_halves(rounded_bits<vf, vu>(v))); }
INLINE void store4(float *p, v4f v) { store_as(p, v); }
INLINE void store4(bf16 *p, v4f v) { store_as(p, upper_halves(rounded_bits<v4f, v4u>(v), 4)); }

// --- W bytes as integers; from vectors of bytes to those of integers compilers go number by number ---
#if BRAID_WIDTH == 16
INLINE vi load(const uint8_t *p) { return (vi)_mm512_maskz_cvtepu8_epi32(0xffff, load_as<__m128i>(p)); }
INLINE vi load(const int8_t *p) { return (vi)_mm512_maskz_cvtepi8_epi32(0xffff, load_as<__m128i>(p)); }
#elif BRAID_WIDTH == 8
INLINE vi load(const uint8_t *p) { return (vi)_mm256_cvtepu8_epi32(_mm_loadu_si64(p)); }
INLINE vi load(const int8_t *p) { return (vi)_mm256_cvtepi8_epi32(_mm_loadu_si64(p)); }
#else
INLINE vi spread(const void *p) {  // byte i in the highest byte of number i
    typedef uint8_t bytes __attribute__((vector_size(16)));
    typedef uint16_t halves __attribute__((vector_size(16)));
    uint32_t four;
    memcpy(&four, p, 4);
    const bytes b = (bytes)(vu{four}), none = {};
    const halves h = (halves)__builtin_shufflevector(none, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), zero = {};
    return (vi)__builtin_shufflevector(zero, h, 0, 8, 1, 9, 2, 10, 3, 11);
}
INLINE vi load(const uint8_t *p) { return (vi)((vu)spread(p) >> 24); }
INLINE vi load(const int8_t *p) { return spread(p) >> 24; }
#endif

// Pairs: 2W consecutive weights as two vectors. bfloat16 splits into even and odd elements (two cheap operations, no
// shuffle), float32 into first and second half; pair_slot() says where element i of such a group lands.
INLINE vf pair_first(const bf16 *p) { return (vf)(load_as<vu>(p) << 16); }
INLINE vf pair_second(const bf16 *p) { return (vf)(load_as<vu>(p) & 0xffff0000u); }
INLINE vf pair_first(const float *p) { return load(p); }
INLINE vf pair_second(const float *p) { return load(p + W); }
// The way back: 2W consecutive results from the two vectors of a pair, by the type of the weights they came from.
INLINE void store_pair(bf16 *p, vf first, vf second, const bf16 *) {
    const vu low = rounded_bits<vf, vu>(first), high = rounded_bits<vf, vu>(second);
    store_as(p, (high & 0xffff0000u) | (low >> 16));
}
INLINE void store_pair(float *p, vf first, vf second, const bf16 *) {
    for (int i = 0; i < W; ++i) p[2 * i] = first[i], p[2 * i + 1] = second[i];
}
template <class T>
INLINE void store_pair(T *p, vf first, vf second, const float *) {
    store(p, first);
    store(p + W, second);
}
INLINE int pair_slot(const bf16 *, int i) { return (i & 1) * W + (i >> 1); }
INLINE int pair_slot(const float *, int i) { return i; }

// --- horizontal sums; the order of the additions is a property of W alone ---
#if BRAID_WIDTH == 4
INLINE v4f fold(vf v) { return v; }
#define BRAID_UNPACK_LO 0, 4, 1, 5
#define BRAID_UNPACK_HI 2, 6, 3, 7
#define BRAID_PAIR_LO 0, 1, 4, 5
#define BRAID_PAIR_HI 2, 3, 6, 7
#elif BRAID_WIDTH == 8
INLINE v4f fold(vf v) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
}
#define BRAID_UNPACK_LO 0, 8, 1, 9, 4, 12, 5, 13
#define BRAID_UNPACK_HI 2, 10, 3, 11, 6, 14, 7, 15
#define BRAID_PAIR_LO 0, 1, 8, 9, 4, 5, 12, 13
#define BRAID_PAIR_HI 2, 3, 10, 11, 6, 7, 14, 15
#elif BRAID_WIDTH == 16
INLINE v4f fold(vf v) {
    return (__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7)) +
           (__builtin_shufflevector(v, v, 8, 9, 10, 11) + __builtin_shufflevector(v, v, 12, 13, 14, 15));
}
#define BRAID_UNPACK_LO 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define BRAID_UNPACK_HI 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define BRAID_PAIR_LO 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define BRAID_PAIR_HI 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#endif

INLINE vf interleave_sum(vf a, vf b) {
    return __builtin_shufflevector(a, b, BRAID_UNPACK_LO) + __builtin_shufflevector(a, b, BRAID_UNPACK_HI);
}
// The sums of four vectors at once: {sum a, sum b, sum c, sum d}.
INLINE v4f sum4(vf a, vf b, vf c, vf d) {
    vf ab = interleave_sum(a, b), cd = interleave_sum(c, d);
    return fold(__builtin_shufflevector(ab, cd, BRAID_PAIR_LO) + __builtin_shufflevector(ab, cd, BRAID_PAIR_HI));
}
INLINE float sum(vf v) {
    v4f s = fold(v);
    return (s[0] + s[2]) + (s[1] + s[3]);
}
INLINE float max_of(vf v) {
    float m = v[0];
    for (int i = 1; i < W; ++i) m = v[i] > m ? v[i] : m;
    return m;
}

// exp within about 2 ulp (Cephes polynomial); exactly 1 at 0 and exactly 0 below -87.3, NaN stays NaN.
INLINE vf vexp(vf x) {
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer kept in the low mantissa bits
    vf c = x < splat(-87.33f) ? splat(-87.33f) : (x > splat(88.37f) ? splat(88.37f) : x);
    vf t = c * 1.44269504088896341f + magic;
    vf n = t - magic;
    vf r = c - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    vi exponent = ((vi)t - (vi)magic + 127) << 23;
    return x < splat(-87.33f) ? splat(0.0f) : p * (vf)exponent;
}
INLINE vf vtanh(vf x) { return 1.0f - 2.0f / (vexp(2.0f * x) + 1.0f); }

// --- threads: as many as the caller's OpenMP (and so torch's) settings allow, in a team of our own (team.cpp) ---
INLINE int most_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

INLINE int team_size(double work, double grain) {
    const int most = most_threads();
    const double wanted = work / grain;
    return wanted < 2.0 || most < 2 ? 1 : (wanted < most ? (int)wanted : most);
}

// f(member, members) once for each member; returns when all are done. Members must not wait for each other: a member may begin
// when the others have ended. What they share they take from a Counter, so that it matters little who comes.
template <class F>
INLINE void run_team(int members, F f) {
    if (members == 1) return f(0, 1);
    braid_team_run(members - 1, members, [](void *g, int member, int all) { (*(F *)g)(member, all); }, &f);
}

// Items handed out one by one. Which member takes which item changes no result: an item's arithmetic is its own.
struct Counter {
    int64_t next = 0;
    INLINE int64_t take() { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); }
};

// Caller's scratch, cut into 64-byte aligned pieces; counts past the end so that the need is known.
struct Arena {
    char *base;
    int64_t size, used;
    Arena(void *p, int64_t n) : base((char *)p), size(n), used(0) {}
    template <class T>
    INLINE T *take(int64_t count) {
        T *p = (T *)(base + used);
        used += round_up(count * (int64_t)sizeof(T), 64);
        return p;
    }
    INLINE bool fits() const { return used <= size; }
};

}  // namespace
