// Takes the place of csrc/gram/cuda/gram_limits.h on the emulated device, which says what these mean.
#pragma once

#include <cstdint>

namespace reapx {

inline constexpr int64_t kShiftChunk = 100000, kRowsChunk = 100000;  // tests need several chunks

constexpr int64_t split_blocks(int) { return 4; }  // parts of a product have several float32 sums

}  // namespace reapx
