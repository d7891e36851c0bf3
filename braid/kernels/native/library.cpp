// What the library holds and what this processor can run of it.
#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Raised whenever an argument block changes.
EXPORT int64_t braid_abi_version() { return 3; }

// Variants that were compiled in and run on this processor, best first, separated by spaces.
EXPORT const char *braid_supported_isas() {
#if defined(BRAID_X86) && (defined(__x86_64__) || defined(_M_X64))
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? "avx512 avx2 generic" : avx2 ? "avx2 generic" : "generic";
#else
    return "generic";
#endif
}

// One recorded kernel call; its arguments begin with (scratch, scratch_bytes) if it takes scratch.
struct Call {
    int64_t (*kernel)(const void *);
    int64_t *arguments;
    int64_t takes_scratch;
};

struct ReplayArgs {
    const Call *calls;
    int64_t first, end, scratch, scratch_bytes;
    int64_t *stopped_at;
};

// Make calls [first, end) in order; at the first status other than 0 stop, say where, and return it.
EXPORT int64_t braid_replay(const ReplayArgs *a) {
    for (int64_t i = a->first; i < a->end; ++i) {
        const Call &call = a->calls[i];
        if (call.takes_scratch) call.arguments[0] = a->scratch, call.arguments[1] = a->scratch_bytes;
        const int64_t status = call.kernel(call.arguments);
        if (status != 0) {
            *a->stopped_at = i;
            return status;
        }
    }
    return 0;
}
