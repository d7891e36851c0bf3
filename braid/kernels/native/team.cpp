// Threads that help the calling thread with one piece of work at a time.
//
// The caller never waits for a helper to come: members are claimed one by one by whoever is free, so a helper that the operating
// system holds up (another process has its core) claims nothing and delays nothing. Only a member in the middle of its work is
// waited for. A fork-join runtime that needs all its threads at every join loses whole time slices there.
//
// Each calling thread has helpers of its own, which inherit its cores; they spin briefly for the next piece of work and then
// sleep. They end with the thread that they belong to.
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

namespace {

constexpr int MAX_HELPERS = 255;
constexpr int SPINS = 2000;  // some ten microseconds: the gap between two kernels of a step

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Generation of the work (high), number of members, next member (low): a claim can only succeed in its own generation.
inline uint64_t packed(uint64_t generation, uint64_t members, uint64_t next) {
    return generation << 32 | members << 16 | next;
}
inline uint64_t generation_of(uint64_t s) { return s >> 32; }
inline uint64_t members_of(uint64_t s) { return s >> 16 & 0xffff; }
inline uint64_t next_of(uint64_t s) { return s & 0xffff; }

struct Team {
    uint64_t state = 0;
    TeamFunction function = nullptr;
    void *context = nullptr;
    int done = 0;
    int sleepers = 0;
    int references = 1;  // the owner, and each helper
    int helpers = 0;
    bool ending = false;
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

    uint64_t look() const { return __atomic_load_n(&state, __ATOMIC_ACQUIRE); }

    // Claim and do members of the work that `seen` belongs to until there is none left.
    void work(uint64_t seen) {
        const uint64_t mine = generation_of(seen);
        while (generation_of(seen) == mine && next_of(seen) < members_of(seen)) {
            if (!__atomic_compare_exchange_n(&state, &seen, seen + 1, true, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) continue;
            function(context, (int)next_of(seen), (int)members_of(seen));
            __atomic_fetch_add(&done, 1, __ATOMIC_RELEASE);
            seen = look();
        }
    }

    void sleep(uint64_t seen) {
        pthread_mutex_lock(&mutex);
        __atomic_fetch_add(&sleepers, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&state, __ATOMIC_SEQ_CST) == seen && !ending) pthread_cond_wait(&changed, &mutex);
        __atomic_fetch_sub(&sleepers, 1, __ATOMIC_SEQ_CST);
        pthread_mutex_unlock(&mutex);
    }

    void help() {
        while (!__atomic_load_n(&ending, __ATOMIC_ACQUIRE)) {
            const uint64_t seen = look();
            if (next_of(seen) < members_of(seen)) {
                work(seen);
                continue;
            }
            for (int i = 0; i < SPINS && look() == seen; ++i) pause_briefly();
            if (look() == seen) sleep(seen);
        }
        release();
    }

    void release() {
        if (__atomic_sub_fetch(&references, 1, __ATOMIC_ACQ_REL) == 0) delete_self();
    }
    void delete_self() {
        pthread_mutex_destroy(&mutex);
        pthread_cond_destroy(&changed);
        free(this);
    }

    void hire(int wanted);

    void run(int members, TeamFunction f, void *c) {
        function = f;
        context = c;
        __atomic_store_n(&done, 0, __ATOMIC_RELAXED);
        const uint64_t fresh = packed(generation_of(state) + 1, (uint64_t)members, 0);
        __atomic_store_n(&state, fresh, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&sleepers, __ATOMIC_SEQ_CST) > 0) {
            pthread_mutex_lock(&mutex);
            pthread_cond_broadcast(&changed);
            pthread_mutex_unlock(&mutex);
        }
        work(fresh);
        for (int i = 0; __atomic_load_n(&done, __ATOMIC_ACQUIRE) < members; ++i) i < SPINS ? pause_briefly() : (void)sched_yield();
    }

    void end() {
        pthread_mutex_lock(&mutex);
        __atomic_store_n(&ending, true, __ATOMIC_RELEASE);
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&mutex);
        release();
    }
};

void *helper_main(void *team) {
    ((Team *)team)->help();
    return nullptr;
}

void Team::hire(int wanted) {
    for (; helpers < wanted && helpers < MAX_HELPERS; ++helpers) {
        pthread_t thread;
        __atomic_fetch_add(&references, 1, __ATOMIC_ACQ_REL);
        if (pthread_create(&thread, nullptr, helper_main, this) != 0) {  // fewer hands, the same results
            __atomic_fetch_sub(&references, 1, __ATOMIC_ACQ_REL);
            return;
        }
        pthread_detach(thread);
    }
}

pthread_key_t key;
bool has_key = false;
pthread_once_t key_made = PTHREAD_ONCE_INIT;
void end_team(void *team) { ((Team *)team)->end(); }
void make_key() { has_key = pthread_key_create(&key, end_team) == 0; }

// The calling thread's team; null where the system gives none, and then the caller works alone.
Team *own_team() {
    pthread_once(&key_made, make_key);
    if (!has_key) return nullptr;
    Team *team = (Team *)pthread_getspecific(key);
    if (team != nullptr) return team;
    void *memory = calloc(1, sizeof(Team));
    if (memory == nullptr) return nullptr;
    team = new (memory) Team();
    if (pthread_setspecific(key, team) == 0) return team;
    team->release();
    return nullptr;
}

}  // namespace

void braid_team_run(int helpers, int members, TeamFunction function, void *context) {
    Team *team = helpers > 0 ? own_team() : nullptr;
    if (team == nullptr || members > 0xffff) {
        for (int i = 0; i < members; ++i) function(context, i, members);
        return;
    }
    team->hire(helpers);
    team->run(members, function, context);
}
