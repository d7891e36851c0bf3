#define BRAID_ISA avx512
#define BRAID_WIDTH 16
#include "variant.h"
