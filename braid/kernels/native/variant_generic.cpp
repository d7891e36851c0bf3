#define BRAID_ISA generic
#define BRAID_WIDTH 4
#include "variant.h"
