// The tile core for AVX2 with FMA: 16 registers of 32 bytes hold a 4 x 2 tile.
#define TILE_NAME "avx2"
#define TILE_TABLE tile_avx2
#define TILE_BYTES 32
#define TILE_ROWS 4
#include "tile/tile_core.h"
