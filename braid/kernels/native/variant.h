// The exported functions of one variant: braid_<isa>_<kernel>(const Args *).
//
// Return 0 when done, n > 0 when the caller's scratch must hold n bytes (nothing was computed), -1 for an argument out of
// range. Argument blocks are 8-byte fields only (pointers, int64, double); native.py packs them in the same order.
#include "attention.h"
#include "experts.h"

#define BRAID_JOIN_(a, b, c) a##b##_##c
#define BRAID_JOIN(a, b, c) BRAID_JOIN_(a, b, c)
#define BRAID_EXPORT(kernel, args)                                                                                  \
    extern "C" __attribute__((visibility("default"))) int64_t BRAID_JOIN(braid_, BRAID_ISA, kernel)(const args *a) { \
        return kernel(*a);                                                                                          \
    }

BRAID_EXPORT(linear, LinearArgs)
BRAID_EXPORT(rms_norm, NormArgs)
BRAID_EXPORT(rope, RopeArgs)
BRAID_EXPORT(gate_mul, GateArgs)
BRAID_EXPORT(scatter, ScatterArgs)
BRAID_EXPORT(argmax, ArgmaxArgs)
BRAID_EXPORT(paged_attention, AttentionArgs)
BRAID_EXPORT(moe_ffn, MoeArgs)
BRAID_EXPORT(expert_pairs, PairsArgs)
BRAID_EXPORT(combine_pairs, CombineArgs)
