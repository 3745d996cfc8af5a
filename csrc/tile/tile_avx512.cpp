// The tile core for AVX-512 (F, DQ, VL): 32 registers of 64 bytes hold an 8 x 2 tile.
#define TILE_NAME "avx512"
#define TILE_TABLE tile_avx512
#define TILE_BYTES 64
#define TILE_ROWS 8
#include "tile/tile_core.h"
