// The context of the CPU: the number of threads, and the tile core of one instruction set.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "runtime/context.h"
#include "tile/tile.h"

namespace reapx {

using Where = std::pair<int64_t, std::string>;  // (threads, core), as Python gives it

struct Context {
  explicit Context(const Where& where) : threads(where.first), tile(tile_pick(where.second)) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  }

  int64_t threads;
  const Tile& tile;
};

inline std::vector<std::string> core_names() { return tile_names(); }

// Whether the bindings can read what arrays hold, and so check indices before a kernel relies on them.
inline constexpr bool kReadsArrays = true;

// Whether gram_accumulate reads half precision.
inline constexpr bool kReadsHalf = false;

}  // namespace reapx
