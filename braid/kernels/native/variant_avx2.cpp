#define BRAID_ISA avx2
#define BRAID_WIDTH 8
#include "variant.h"
