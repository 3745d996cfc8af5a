// The sizes of a warp, for CUDA's functions that work on one.
#pragma once

namespace reapx {

inline constexpr int kWarp = 32;                   // lanes of a warp
inline constexpr unsigned kAllLanes = 0xffffffff;  // the mask of all of them

}  // namespace reapx
