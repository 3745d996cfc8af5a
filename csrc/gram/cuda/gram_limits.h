// How much gram_accumulate holds and launches at a time on the device.
//
// The emulated device of the tests has a header of this name that comes first on its include path: its
// limits are so small that tests of a size it can afford need several chunks and split their products.
#pragma once

#include <cstdint>

namespace reapx {

// Floats of packed rows that are held at a time. Form "shift": 32 MB, which stay in the L2 cache of a
// large GPU while product after product reads them all. Form "rows": 256 MB, since its tiles read the
// same rows at about the same time and the cache holds what they need anyway, while each chunk has
// partial sums to add up. Both are estimates, not measured.
inline constexpr int64_t kShiftChunk = int64_t{1} << 23, kRowsChunk = int64_t{1} << 26;

// Into about how many blocks a launch splits its products, with tiles of `side` columns. Splitting
// occupies all processors a few times over, but each block then writes its tile down, to be read again.
// The numbers are two or three times what 132 processors run at once (8, 3 and 1 block of a processor).
// They are fixed because results must not depend on the device, and estimates, not measured.
constexpr int64_t split_blocks(int side) { return side == 128 ? 396 : side == 64 ? 792 : 2112; }

}  // namespace reapx
