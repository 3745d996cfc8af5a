// Where a kernel runs. The headers of the kernels serve every back end and know this type by name only;
// the definitions include context_cpu.h or context_cuda.h.
#pragma once

#include <stdexcept>

namespace reapx {

struct Context;

// The back end cannot do what it was asked to; Python raises it as reapx.errors.BackendError.
class BackendFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace reapx
