// The context of CUDA: a device, which is the current one while the context lives, and a stream.
//
// Rules for every definition in a .cu file: it works on this stream only, never on the default one; it
// returns without waiting for the device; it has no globals; its scratch is a DeviceBuffer.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "runtime/context.h"

struct CUstream_st;  // cudaStream_t is a pointer to it: the bindings need no more of CUDA than that

namespace reapx {

using Where = std::pair<int, std::uintptr_t>;  // (device, stream), as Python gives it

struct Context {
  explicit Context(const Where& where);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  int device;
  CUstream_st* stream;

 private:
  int previous_ = 0;
};

inline std::vector<std::string> core_names() { return {}; }

// Reading arrays would mean waiting for the device: the caller makes sure that indices are in range.
inline constexpr bool kReadsArrays = false;

inline constexpr bool kReadsHalf = true;

}  // namespace reapx
