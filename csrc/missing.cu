// Kernels without a CUDA definition yet. Whoever writes one takes it away here.
#include <string>

#include "gram.h"

namespace reapx {

namespace {

[[noreturn]] void fail(const char* kernel) {
  throw BackendFailure(std::string("kernel ") + kernel +
                       " has no CUDA definition yet: move the model and the images to the CPU");
}

}  // namespace

void gram_accumulate(const GramTask&, const std::string&, const Context&) { fail("gram_accumulate"); }

}  // namespace reapx
