// Causal attention of new tokens over the paged KV cache: decode, prefill and chunked prefill in one kernel.
//
// Online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022) over tiles of 64 positions inside splits of 512,
// both cut at absolute positions. Splits start afresh and are merged front to back, whether one thread walks them all or
// several share them (Flash-Decoding), so a query's result depends on its own position and the KV alone. All query heads of
// a KV head, and several neighbouring queries, are attended together: each KV byte is read once for all of them. A decode
// takes all KV heads of a tile in one task, because they lie side by side in memory.
#pragma once
#include "gemm.h"

namespace {

constexpr int64_t TILE = 64;         // positions per softmax step
constexpr int64_t SPLIT = 512;       // positions per independent partial result
constexpr int64_t TASK_ROWS = 48;    // query rows per task: scores and partial sums stay in the second-level cache
constexpr int64_t WIDEN_ROWS = 9;    // from so many rows on a bfloat16 tile is widened once instead of per three rows
constexpr double ATTENTION_GRAIN = 32e3;

struct AttentionArgs {
    void *scratch;
    int64_t scratch_bytes;
    const void *q, *k_cache, *v_cache;
    void *out;
    const int32_t *query_start, *context_lens, *block_tables;
    int64_t S, H, G, E, ldq, ld_table, num_blocks, block_size, window, q_is_bf16, kv_is_bf16;
    double scale, softcap;  // window 0 and softcap 0: none
};

struct Task {  // queries [first, first + queries) of a sequence with KV heads [head, head + heads), over splits [split, split_end)
    int32_t seq, head, heads, first, queries, split, split_end;
    bool lead;  // the first of the tasks that share the splits
};

struct Partial {  // unnormalised result of `rows` rows
    float *max, *total, *acc;
    static INLINE int64_t floats(int64_t rows, int64_t E) { return 2 * round_up(rows, 16) + rows * E; }
    static INLINE Partial at(float *p, int64_t rows) { return {p, p + round_up(rows, 16), p + 2 * round_up(rows, 16)}; }
    INLINE Partial from_row(int64_t r, int64_t E) const { return {max + r, total + r, acc + r * E}; }
    INLINE void clear(int64_t rows, int64_t E) const {
        for (int64_t r = 0; r < rows; ++r) max[r] = NEG_INF, total[r] = 0.0f;
        memset(acc, 0, (size_t)(rows * E) * sizeof(float));
    }
};

// into += from, as one more split behind those already merged.
inline __attribute__((noinline)) void merge(const Partial &into, const Partial &from, int64_t rows, int64_t E) {
    for (int64_t r = 0; r < rows; ++r) {
        if (from.max[r] == NEG_INF) continue;
        const float top = from.max[r] > into.max[r] ? from.max[r] : into.max[r];
        const float old = vexp(splat(into.max[r] - top))[0], fresh = vexp(splat(from.max[r] - top))[0];
        float *a = into.acc + r * E;
        for (int64_t e = 0; e < E; e += W) store(a + e, load(from.acc + r * E + e) * fresh + load(a + e) * old);
        into.total[r] = from.total[r] * fresh + into.total[r] * old;
        into.max[r] = top;
    }
}

// Queries, keys, values and sums are walked in the pair order of vec.h, which makes widening bfloat16 cheap; the order is
// undone when a finished row is stored.

template <int M, int N, class VT>
INLINE void value_tile(const float *p, const VT *const *v, int64_t from, int64_t to, int64_t e, int64_t E, float *out,
                       const float *decay) {
    vf acc[M][2 * N];
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < 2 * N; ++n) acc[m][n] = load(out + m * E + e + n * W) * decay[m];
    for (int64_t j = from; j < to; ++j) {
        vf weight[M];
        for (int m = 0; m < M; ++m) weight[m] = splat(p[m * TILE + j]);
        for (int n = 0; n < N; ++n) {
            const vf first = pair_first(v[j] + e + 2 * n * W);
            for (int m = 0; m < M; ++m) acc[m][2 * n] = weight[m] * first + acc[m][2 * n];
            const vf second = pair_second(v[j] + e + 2 * n * W);
            for (int m = 0; m < M; ++m) acc[m][2 * n + 1] = weight[m] * second + acc[m][2 * n + 1];
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < 2 * N; ++n) store(out + m * E + e + n * W, acc[m][n]);
}
template <int M, class VT>
__attribute__((noinline)) void value_rows(const float *p, const VT *const *v, int64_t from, int64_t to, int64_t E, float *out,
                                          const float *decay) {
    int64_t e = 0;
    for (; sizeof(VT) == 4 && e + 4 * W <= E; e += 4 * W) value_tile<M, 2>(p, v, from, to, e, E, out, decay);
    for (; e < E; e += 2 * W) value_tile<M, 1>(p, v, from, to, e, E, out, decay);
}

template <int M, class KT>
INLINE void score_tile(const float *q, int64_t E, const KT *const *k, float *scores) {
    vf acc[M][4] = {};
    for (int64_t e = 0; e < E; e += 2 * W) {
        for (int n = 0; n < 4; ++n) {
            const vf first = pair_first(k[n] + e);
            for (int m = 0; m < M; ++m) acc[m][n] = load(q + m * E + e) * first + acc[m][n];
        }
        for (int n = 0; n < 4; ++n) {
            const vf second = pair_second(k[n] + e);
            for (int m = 0; m < M; ++m) acc[m][n] = load(q + m * E + e + W) * second + acc[m][n];
        }
    }
    for (int m = 0; m < M; ++m) store4(scores + m * TILE, sum4(acc[m][0], acc[m][1], acc[m][2], acc[m][3]));
}

// Scores of positions [from, to) of a tile for all rows, and later the weighted values added to the rows' sums.
template <class KT>
void score_rows(const float *q, int64_t rows, int64_t E, const KT *const *k, int64_t from, int64_t to, float *scores) {
    for (int64_t j = from / 4 * 4; j < to; j += 4) {
        const KT *four[4];  // a position outside is computed on a neighbour's key and masked afterwards
        for (int i = 0; i < 4; ++i) four[i] = k[min64(max64(j + i, from), to - 1)];
        int64_t r = 0;
        for (; r + 3 <= rows; r += 3) score_tile<3>(q + r * E, E, four, scores + r * TILE + j);
        if (rows - r == 2) score_tile<2>(q + r * E, E, four, scores + r * TILE + j);
        if (rows - r == 1) score_tile<1>(q + r * E, E, four, scores + r * TILE + j);
    }
}
template <class VT>
void add_values(const float *p, int64_t rows, int64_t E, const VT *const *v, int64_t from, int64_t to, float *out,
                const float *decay) {
    int64_t r = 0;
    for (; r + 3 <= rows; r += 3) value_rows<3>(p + r * TILE, v, from, to, E, out + r * E, decay + r);
    if (rows - r == 2) value_rows<2>(p + r * TILE, v, from, to, E, out + r * E, decay + r);
    if (rows - r == 1) value_rows<1>(p + r * TILE, v, from, to, E, out + r * E, decay + r);
}

// Turns one row of scores into weights; updates its maximum and total; returns the factor for what is summed already.
INLINE float softmax_row(float *s, int64_t low, int64_t high, float softcap, float *max, float *total) {
    vf v[TILE / W], top = splat(NEG_INF), sums = splat(0.0f);
    vi lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    for (int i = 0; i < TILE / W; ++i) {
        const vi at = lane + i * W;
        v[i] = load(s + i * W);
        if (softcap != 0.0f) v[i] = softcap * vtanh(v[i] * (1.0f / softcap));
        v[i] = ((at >= (int32_t)low) & (at < (int32_t)high)) ? v[i] : splat(NEG_INF);
        top = vmax(v[i], top);
    }
    const float highest = max_of(top), now = highest > *max ? highest : *max;
    if (now == NEG_INF) {
        memset(s, 0, TILE * sizeof(float));
        return 1.0f;
    }
    for (int i = 0; i < TILE / W; ++i) {
        v[i] = vexp(v[i] - now);
        sums = sums + v[i];
        store(s + i * W, v[i]);
    }
    const float decay = vexp(splat(*max - now))[0];
    *total = *total * decay + sum(sums);
    *max = now;
    return decay;
}

template <class QT, class KT>
struct Attention {
    const AttentionArgs &a;
    const int64_t group;  // query heads per KV head

    struct Desk {  // one thread's scratch
        float *q, *scores, *decay, *wide;  // wide: one tile of keys or values
        const float **rows;                // and its rows
        Partial whole, part;
    };

    INLINE int64_t most_queries() const { return max64(1, TASK_ROWS / group); }
    INLINE int64_t context(int64_t s) const { return a.context_lens[s]; }
    INLINE int64_t query_len(int64_t s) const { return a.query_start[s + 1] - a.query_start[s]; }
    INLINE int64_t position(const Task &t, int64_t row) const {
        return context(t.seq) - query_len(t.seq) + t.first + row / group;
    }
    INLINE int64_t first_visible(int64_t position) const { return a.window ? max64(0, position - a.window + 1) : 0; }

    Desk desk(Arena &arena, int64_t rows) const {
        Desk s;
        s.q = arena.take<float>(rows * a.E);
        s.scores = arena.take<float>(rows * TILE);
        s.decay = arena.take<float>(rows);
        s.wide = arena.take<float>(TILE * a.E);
        s.rows = arena.take<const float *>(TILE);
        s.whole = Partial::at(arena.take<float>(Partial::floats(rows, a.E)), rows);
        s.part = Partial::at(arena.take<float>(Partial::floats(rows, a.E)), rows);
        return s;
    }

    // f(row of the task, query in the batch, query head): rows are ordered by KV head, query, head of the group.
    template <class F>
    INLINE void each_query(const Task &t, F f) const {
        int64_t r = 0;
        for (int64_t g = t.head; g < t.head + t.heads; ++g)
            for (int64_t i = 0; i < t.queries; ++i)
                for (int64_t h = 0; h < group; ++h, ++r) f(r, a.query_start[t.seq] + t.first + i, g * group + h);
    }

    void load_queries(const Task &t, float *out) const {
        each_query(t, [&](int64_t r, int64_t query, int64_t head) {
            float *row = out + r * a.E;
            Prepare<KT, QT>::row((const QT *)a.q + query * a.ldq + head * a.E, row, a.E, a.E);
            for (int64_t e = 0; e < a.E; e += W) store(row + e, load(row + e) * (float)a.scale);
        });
    }

    void store_rows(const Task &t, const Partial &p) const {
        each_query(t, [&](int64_t r, int64_t query, int64_t head) {
            QT *out = (QT *)a.out + (query * a.H + head) * a.E;
            const float inverse = p.total[r] > 0.0f ? 1.0f / p.total[r] : 0.0f, *acc = p.acc + r * a.E;
            for (int64_t e = 0; e < a.E; e += 2 * W)
                store_pair(out + e, load(acc + e) * inverse, load(acc + e + W) * inverse, (const KT *)0);
        });
    }

    struct Tile {  // positions [start + from, start + to) of a sequence and where their first KV head lies in the caches
        int64_t start, from, to, offset[TILE];
    };

    INLINE void locate(const Task &t, int64_t start, int64_t begin, int64_t end, Tile &tile) const {
        const int32_t *table = a.block_tables + t.seq * a.ld_table;
        tile.start = start, tile.from = max64(0, begin - start), tile.to = min64(TILE, end - start);
        for (int64_t j = tile.from; j < tile.to; ++j) {
            const int64_t p = start + j, slot = table[p / a.block_size] * a.block_size + p % a.block_size;
            tile.offset[j] = slot * a.G * a.E;
        }
    }
    INLINE void rows_of(const Tile &tile, const void *cache, int64_t head, const KT **rows) const {
        for (int64_t j = tile.from; j < tile.to; ++j) rows[j] = (const KT *)cache + tile.offset[j] + head * a.E;
    }
    // Reads a byte of each cache line of the task's keys and values in the order of their addresses, which the processor's own
    // prefetching follows; head by head it would see short strided pieces (decode 3.4 -> 2.0 ms at 8 x 2048 positions; prefetch
    // instructions in the same places gained nothing).
    void fetch(const Task &t, const Tile &tile) const {
        for (int c = 0; c < 2; ++c)
            for (int64_t j = tile.from; j < tile.to; ++j) {
                const char *row = (const char *)((const KT *)(c ? a.v_cache : a.k_cache) + tile.offset[j] + t.head * a.E);
                for (int64_t at = 0; at < t.heads * a.E * (int64_t)sizeof(KT); at += 64) (void)*(const volatile char *)(row + at);
            }
    }

    static const float *const *widen_rows(const KT *const *from, int64_t low, int64_t high, int64_t E, float *to,
                                          const float **rows) {
        for (int64_t j = low; j < high; ++j) {
            rows[j] = to + j * E;
            Prepare<KT, KT>::row(from[j], to + j * E, E, E);
        }
        return rows;
    }

    // One KV head over one tile.
    void attend(const Task &t, const Tile &tile, int64_t head, const float *q, Desk &s, const Partial &p) const {
        const int64_t rows = t.queries * group;
        const bool direct = sizeof(KT) == 4 || rows < WIDEN_ROWS;
        const KT *k[TILE], *v[TILE];
        rows_of(tile, a.k_cache, head, k);
        rows_of(tile, a.v_cache, head, v);
        if (direct) score_rows(q, rows, a.E, k, tile.from, tile.to, s.scores);
        else score_rows(q, rows, a.E, widen_rows(k, tile.from, tile.to, a.E, s.wide, s.rows), tile.from, tile.to, s.scores);
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = position(t, r), low = max64(0, first_visible(at) - tile.start), high = min64(TILE, at + 1 - tile.start);
            s.decay[r] = softmax_row(s.scores + r * TILE, low, high, (float)a.softcap, p.max + r, p.total + r);
        }
        if (direct) add_values(s.scores, rows, a.E, v, tile.from, tile.to, p.acc, s.decay);
        else add_values(s.scores, rows, a.E, widen_rows(v, tile.from, tile.to, a.E, s.wide, s.rows), tile.from, tile.to, p.acc, s.decay);
    }

    void run_split(const Task &t, int64_t split, Desk &s, const Partial &p) const {
        const int64_t rows = t.queries * group, begin = first_visible(position(t, 0)), end = position(t, rows - 1) + 1;
        const int64_t stop = min64(end, (split + 1) * SPLIT);
        int64_t start = max64(split * SPLIT, begin / TILE * TILE);
        Tile tiles[2];
        p.clear(t.heads * rows, a.E);
        if (start < stop) locate(t, start, begin, end, tiles[0]), fetch(t, tiles[0]);
        for (int turn = 0; start < stop; start += TILE, turn ^= 1) {
            const bool more = start + TILE < stop;
            if (more) locate(t, start + TILE, begin, end, tiles[turn ^ 1]), fetch(t, tiles[turn ^ 1]);
            for (int64_t h = 0; h < t.heads; ++h)
                attend(t, tiles[turn], t.head + h, s.q + h * rows * a.E, s, p.from_row(h * rows, a.E));
        }
    }

    INLINE int64_t task_rows(const Task &t) const { return t.heads * t.queries * group; }

    void run_task(const Task &t, Desk &s, float *partial) const {
        const int64_t rows = task_rows(t);
        load_queries(t, s.q);
        if (partial) return run_split(t, t.split, s, Partial::at(partial, rows));
        s.whole.clear(rows, a.E);
        for (int64_t split = t.split; split < t.split_end; ++split) {
            run_split(t, split, s, s.part);
            merge(s.whole, s.part, rows, a.E);
        }
        store_rows(t, s.whole);
    }

    // The task list. With `tasks` null only counts. `together`: all KV heads in one task where their rows are few;
    // `shared`: one task per split.
    int64_t plan(bool together, bool shared, Task *tasks) const {
        int64_t count = 0;
        for (int64_t seq = 0; seq < a.S; ++seq)
            for (int64_t first = 0; first < query_len(seq); first += most_queries()) {
                const int64_t queries = min64(most_queries(), query_len(seq) - first);
                const int64_t low = context(seq) - query_len(seq) + first, high = low + queries;
                const int64_t begin = first_visible(low) / SPLIT, end = (high + SPLIT - 1) / SPLIT;
                const int64_t heads = together && queries * a.H <= TASK_ROWS ? a.G : 1;
                for (int64_t head = 0; head < a.G; head += heads)
                    for (int64_t split = begin; split < (shared ? end : begin + 1); ++split, ++count)
                        if (tasks)
                            tasks[count] = {(int32_t)seq, (int32_t)head, (int32_t)heads, (int32_t)first, (int32_t)queries,
                                            (int32_t)split, (int32_t)end, split == begin};
            }
        return count;
    }

    // Merges the partial results of a lead task and those that share its splits.
    void finish(const Task &t, Desk &s, float *partials, int64_t partial_floats) const {
        const int64_t rows = task_rows(t);
        s.whole.clear(rows, a.E);
        for (int64_t n = 0; n < t.split_end - t.split; ++n)
            merge(s.whole, Partial::at(partials + n * partial_floats, rows), rows, a.E);
        store_rows(t, s.whole);
    }

    int64_t run() const {
        const int64_t rows = max64(most_queries() * group, TASK_ROWS);
        double work = 0;
        for (int64_t s = 0; s < a.S; ++s) work += (double)query_len(s) * context(s) * a.H * a.E;
        int team = team_size(work, ATTENTION_GRAIN);
        const bool shared = team > 1 && plan(true, false, nullptr) < 2 * team;
        const bool together = !shared || plan(true, true, nullptr) >= 2 * team;
        const int64_t count = plan(together, shared, nullptr);
        team = (int)min64(team, max64(count, 1));

        Arena arena(a.scratch, a.scratch_bytes);
        Task *tasks = arena.take<Task>(count);
        const int64_t partial_floats = shared ? Partial::floats(rows, a.E) : 0;
        float *partials = arena.take<float>(count * partial_floats);
        const int64_t shared_bytes = arena.used;
        desk(arena, rows);
        const int64_t per_member = arena.used - shared_bytes;
        if (shared_bytes + team * per_member > a.scratch_bytes) return shared_bytes + team * per_member;

        plan(together, shared, tasks);
        Counter next, done;
        run_team(team, [&](int member, int) {
            Arena own((char *)a.scratch + shared_bytes + member * per_member, per_member);
            Desk s = desk(own, rows);
            for (int64_t i; (i = next.take()) < count;) run_task(tasks[i], s, shared ? partials + i * partial_floats : nullptr);
        });
        if (!shared) return 0;
        run_team(team, [&](int member, int) {
            Arena own((char *)a.scratch + shared_bytes + member * per_member, per_member);
            Desk s = desk(own, rows);
            for (int64_t i; (i = done.take()) < count;)
                if (tasks[i].lead) finish(tasks[i], s, partials + i * partial_floats, partial_floats);
        });
        return 0;
    }
};

INLINE bool tables_valid(const AttentionArgs &a) {
    for (int64_t s = 0; s < a.S; ++s) {
        const int64_t context = a.context_lens[s], blocks = (context + a.block_size - 1) / a.block_size;
        if (context < a.query_start[s + 1] - a.query_start[s] || blocks > a.ld_table) return false;
        for (int64_t b = 0; b < blocks; ++b) {
            const int32_t id = a.block_tables[s * a.ld_table + b];
            if (id < 0 || id >= a.num_blocks) return false;
        }
    }
    return true;
}

INLINE int64_t paged_attention(const AttentionArgs &a) {
    if (!tables_valid(a)) return -1;
    const int64_t group = a.H / a.G;
    if (a.q_is_bf16) {
        if (a.kv_is_bf16) return Attention<bf16, bf16>{a, group}.run();
        return Attention<bf16, float>{a, group}.run();
    }
    if (a.kv_is_bf16) return Attention<float, bf16>{a, group}.run();
    return Attention<float, float>{a, group}.run();
}

}  // namespace
