// What the library holds and what this processor can run of it.
#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

// Raised whenever an argument block changes.
EXPORT int64_t braid_abi_version() { return 1; }

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
