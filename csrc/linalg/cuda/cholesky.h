// Many symmetric positive definite systems of different sizes, factored and solved side by side in
// float64: what the CUDA definitions of basis_compute and batch_solve share.
//
// A system is A = L L^T with rows X below it, in one row-major matrix of square tiles. Factoring turns
// X into X L^-T, and solving backward then into X A^-1. For an inverse, X is the identity and has no
// rows of its own: X L^-T is upper triangular and is stored in the upper tiles of A.
#pragma once

#include <cstdint>
#include <vector>

#include "linalg/cuda/tile_product.h"
#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/warp.h"
#include "runtime/cuda/work_items.h"

namespace reapx {

inline constexpr int64_t kIdentity = -1;

struct SystemSize {
  int64_t size, right;  // of A; rows of X, or kIdentity
  int64_t* failed;      // out (1,): -1, or the first pivot below the rounding floor
};

// A system as the device sees it, padded to whole tiles.
struct System {
  double* matrix;     // (rows * kTileSide, stride) row-major: A, then X
  double* diagonals;  // (blocks, kTileSide, kTileSide): L's tiles on the diagonal, 1 / L[i][i] on the
                      // diagonal
  double* least;      // (1,) what a pivot must be above
  int64_t* failed;
  int64_t size, stride;
  int64_t blocks, rows;  // tiles along A; along A and X
  bool inverse;

  __device__ double* tile(int64_t row, int64_t column) const {
    return matrix + (row * stride + column) * kTileSide;
  }
};

inline int64_t tiles_along(int64_t size) { return divide_up(size, kTileSide); }

// A tile of one of the systems.
struct SystemTile {
  int64_t system, tile;
};

// The work items of a launch: the tiles of many systems, of which system i has those from first[i] up
// to first[i + 1]. A block has one of them.
struct Tiles {
  const int* first;
  int64_t systems;

  // The block's tile. To be called by whole warps, which count the systems that begin at or before it.
  __device__ SystemTile of_block() const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, tile = static_cast<int>(blockIdx.x);
    int64_t begun = 0;
    for (int64_t i = 0; i < systems; i += kWarp)
      begun += __popc(__ballot_sync(kAllLanes, i + lane < systems && first[i + lane] <= tile));
    return {begun - 1, tile - first[begun - 1]};
  }
};

// The tiles of several launches, described on the host and sent to the device at once.
class TileLists {
 public:
  // Begins the next launch's list, to which the systems' numbers of tiles are added, in their order.
  void begin();
  void add(int64_t tiles);

  const std::vector<int>& firsts() const { return firsts_; }
  // The list of one launch, whose firsts() are at `firsts` on the device; and its number of tiles.
  Tiles at(const int* firsts, size_t launch) const {
    const List& list = lists_[launch];
    return {firsts + list.begin, static_cast<int64_t>(list.end - list.begin)};
  }
  int64_t count(size_t launch) const { return lists_[launch].tiles; }

 private:
  struct List {
    size_t begin, end;  // of its firsts, up to the last system that has tiles
    int64_t tiles;
  };
  std::vector<List> lists_;
  std::vector<int> firsts_;
};

// Owns the memory of the systems of a call.
class Systems {
 public:
  // Sizes in descending order.
  Systems(const Context& context, const std::vector<SystemSize>& sizes);

  const std::vector<System>& all() const { return systems_; }
  const System* on_device() const { return described_.data(); }

  // Needs the tiles of A on and below its diagonal, and X; for an inverse, zeros in the tiles above the
  // diagonal. The padding of A and X must be 0, except for 1 on the diagonal of A. After a failure a
  // system has no meaning, but the others are not affected.
  void factor() const;
  // To be called after factor, where no system is an inverse.
  void solve_backward() const;

 private:
  const Context& context_;
  DeviceBuffer<double> scratch_;
  std::vector<System> systems_;
  DeviceBuffer<System> described_;
};

}  // namespace reapx
