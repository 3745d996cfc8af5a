// Kernels without a CUDA definition yet. Whoever writes one takes it away here.
#include <string>

#include "basis.h"
#include "pairs.h"
#include "path.h"
#include "solve.h"

namespace reapx {

namespace {

[[noreturn]] void fail(const char* kernel) {
  throw BackendFailure(std::string("kernel ") + kernel +
                       " has no CUDA definition yet: move the model and the images to the CPU");
}

}  // namespace

void basis_compute(const std::vector<BasisTask>&, const Context&) { fail("basis_compute"); }
void path_eliminate(const std::vector<PathTask>&, const Context&) { fail("path_eliminate"); }
void path_weights(const std::vector<CutsTask>&, const Context&) { fail("path_weights"); }
void batch_solve(const std::vector<SolveTask>&, const Context&) { fail("batch_solve"); }
void pair_scan(const std::vector<PairTask>&, const Context&) { fail("pair_scan"); }

}  // namespace reapx
