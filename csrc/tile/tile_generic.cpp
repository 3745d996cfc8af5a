// The tile core for any machine: 16-byte vectors, which every 64-bit target has.
#define TILE_NAME "generic"
#define TILE_TABLE tile_generic
#define TILE_BYTES 16
#define TILE_ROWS 4
#include "tile/tile_core.h"
