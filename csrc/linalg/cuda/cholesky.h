// Many symmetric positive definite systems of different sizes, factored and solved side by side in
// float64: what the CUDA definitions of basis_compute and batch_solve share.
//
// A system is A = L L^T with rows X below it, in one row-major matrix of square tiles. Factoring
// takes X to X L^-T, solving backward then to X A^-1. For an inverse X is the identity, whose rows
// have no place of their own: X L^-T is upper triangular and takes the upper tiles of A's.
#pragma once

#include <cstdint>
#include <vector>

#include "linalg/cuda/tile_product.h"
#include "runtime/cuda/device_buffer.h"
#include "runtime/cuda/pieces.h"

namespace reapx {

inline constexpr int64_t kIdentity = -1;

struct SystemSize {
  int64_t size, right;  // of A; rows of X, or kIdentity
  int64_t* failed;      // out (1,): -1, or the first pivot below the rounding floor
};

// A system as the device sees it, padded to whole tiles.
struct System {
  double* matrix;     // (rows * kSide, stride) row-major: A, then X
  double* diagonals;  // (blocks, kSide, kSide): L's tiles on the diagonal, 1 / L[i][i] on the diagonal
  double* least;      // (1,) what a pivot must be above
  int64_t* failed;
  int64_t size, stride;
  int64_t blocks, rows;  // tiles along A; along A and X
  bool inverse;

  __device__ double* tile(int64_t row, int64_t column) const {
    return matrix + (row * stride + column) * kSide;
  }
};

inline int64_t tiles_along(int64_t size) { return divide_up(size, kSide); }

// The block's tile, of the tiles of many systems that a launch works on: system i has those from
// first[i] up to first[i + 1].
struct Place {
  int64_t system, tile;
};

struct Tiles {
  const int* first;
  int64_t systems;

  // To be called by whole warps, each of which counts the systems that begin at or before its tile.
  __device__ Place of_block() const {
    const int lane = static_cast<int>(threadIdx.x) % 32, tile = static_cast<int>(blockIdx.x);
    int64_t begun = 0;
    for (int64_t i = 0; i < systems; i += 32)
      begun += __popc(__ballot_sync(0xffffffff, i + lane < systems && first[i + lane] <= tile));
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
  // One launch's list, given where firsts() are on the device, and how many tiles it has in all.
  Tiles at(const int* firsts, size_t launch) const {
    const List& list = lists_[launch];
    return {firsts + list.begin, static_cast<int64_t>(list.end - list.begin)};
  }
  int64_t count(size_t launch) const { return lists_[launch].tiles; }

 private:
  struct List {
    size_t begin, end;  // of its firsts, which end with the last system that has any tiles
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
  // diagonal. What pads A and X is 0, but 1 on A's diagonal. A system that fails has no meaning
  // afterwards, and harms no other.
  void factor() const;
  // After factor, for systems that are no inverses.
  void solve_backward() const;

 private:
  const Context& context_;
  DeviceBuffer<double> scratch_;
  std::vector<System> systems_;
  DeviceBuffer<System> described_;
};

}  // namespace reapx
