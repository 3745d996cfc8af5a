// The Python module. Every dtype and size relation is checked here; the kernels trust their arguments.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "gram/gram.h"
#include "linalg/basis.h"
#include "linalg/solve.h"
#include "pairs/pairs.h"
#include "path/path.h"
#include "runtime/array.h"
#include "zeros/zeros.h"

// The header of a back end's context. Everything else is the same for all back ends.
#include REAPX_CONTEXT

namespace py = pybind11;

namespace reapx {
namespace {

using Pair = std::pair<int64_t, int64_t>;

// Of every number of a window: products of two of them, and sums of those, do not overflow.
constexpr int64_t kLargest = int64_t{1} << 30;

// Throws where a product of sizes, none of which is negative, does not fit.
void check_product(const char* what, std::initializer_list<int64_t> sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes)
    if (__builtin_mul_overflow(result, size, &result))
      throw std::invalid_argument(std::string(what) + " are more than can be counted");
}

// Calls run(context) without the GIL.
template <class Run>
void run_kernel(const Where& where, Run run) {
  const Context context(where);
  const py::gil_scoped_release release;
  run(context);
}

// "[i]", for the name of a task.
std::string index_of(size_t i) { return std::string("[").append(std::to_string(i)).append("]"); }

// Makes one task of each tuple that Python gives.
template <class Task>
std::vector<Task> tasks_of(const std::vector<py::tuple>& given,
                           Task (*read)(const py::tuple&, const std::string&)) {
  std::vector<Task> tasks;
  for (size_t i = 0; i < given.size(); ++i) tasks.push_back(read(given[i], "tasks" + index_of(i)));
  return tasks;
}

// (count,): one element for each task.
int64_t* each_failure(py::handle given, size_t count) {
  return Array(given, "failed").shaped({static_cast<int64_t>(count)}).data<int64_t>();
}

// Throws unless all indices are distinct and in range, where this process can read them.
void check_indices(const Array& array, const int64_t* indices, int64_t count, int64_t size) {
  if constexpr (kReadsArrays) check_distinct(array, indices, count, size);
}

Element element_of(const Array& x) {
  const std::string& dtype = x.dtype();
  if (dtype == "float32") return Element::kFloat32;
  if (dtype != "float16" && dtype != "bfloat16")
    x.fail("must be float32, float16 or bfloat16, not " + dtype);
  if (!kReadsHalf) x.fail("must be copied to float32 for these kernels, not " + dtype);
  return dtype == "float16" ? Element::kFloat16 : Element::kBfloat16;
}

Images images_of(const Array& x) {
  const Element element = element_of(x.axes(4));
  return {x.address(element == Element::kFloat32 ? alignof(float) : alignof(uint16_t)),
          element,
          x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          x.stride(0),
          x.stride(1),
          x.stride(2),
          x.stride(3)};
}

Axis axis_of(const std::vector<Pair>& window, int axis, int64_t input, int64_t output) {
  const auto pick = [&](size_t i) { return axis == 0 ? window[i].first : window[i].second; };
  const Axis result{pick(0), pick(1), pick(2), pick(3), input, output};
  if (result.kernel < 1 || result.stride < 1 || result.padding < 0 || result.dilation < 1)
    throw std::invalid_argument(
        "window needs kernel, stride and dilation of at least 1 and padding of at least 0");
  if (output < 0) throw std::invalid_argument("output_size must not be negative");
  for (const int64_t number : {result.kernel, result.stride, result.padding, result.dilation, output})
    if (number > kLargest)
      throw std::invalid_argument("window and output_size must not exceed 2^30, not " +
                                  std::to_string(number));
  return result;
}

// window: [kernel, stride, padding, dilation], each (rows, columns).
void bind_gram(py::handle x, const std::vector<Pair>& window, int64_t groups, Pair output,
               py::handle gram, py::handle total, const std::optional<py::tuple>& target,
               const std::optional<py::tuple>& cross, const std::optional<py::tuple>& target_total,
               const std::optional<py::tuple>& target_square, const std::optional<py::tuple>& positions,
               const Where& where, const std::string& form) {
  if (window.size() != 4) throw std::invalid_argument("window must have four pairs");
  GramTask task{};
  task.input = images_of(Array(x, "x"));
  task.rows = axis_of(window, 0, task.input.rows, output.first);
  task.columns = axis_of(window, 1, task.input.columns, output.second);
  task.groups = groups;
  if (groups < 1 || task.input.channels % groups != 0)
    throw std::invalid_argument("groups must divide the " + std::to_string(task.input.channels) +
                                " channels of x");
  check_product("the features of a window",
                {task.group_channels(), task.rows.kernel, task.columns.kernel});
  check_product("the positions of all images", {task.input.images, output.first, output.second});
  const int64_t d = task.features();
  task.gram = Array(gram, "gram").shaped({groups, d, d}).data<double>();
  task.total = Array(total, "total").shaped({groups, d}).data<double>();
  if (target) {
    if (!cross || !target_total || !target_square)
      throw std::invalid_argument("target needs cross, target_total and target_square");
    const Array y(*target, "target");
    task.target = images_of(y);
    const int64_t outputs = y.size(1);
    y.shaped({task.input.images, outputs, output.first, output.second});
    if (outputs % groups != 0)
      throw std::invalid_argument("groups must divide the " + std::to_string(outputs) +
                                  " channels of target");
    task.cross = Array(*cross, "cross").shaped({groups, outputs / groups, d}).data<double>();
    task.target_total = Array(*target_total, "target_total").shaped({outputs}).data<double>();
    task.target_square = Array(*target_square, "target_square").shaped({outputs}).data<double>();
  }
  if (positions) {
    const Array given(*positions, "positions");
    const int64_t count = task.input.images, all = output.first * output.second;
    task.per_image = given.axes(2).size(1);
    task.positions = given.shaped({count, task.per_image}).data<int64_t>();
    for (int64_t s = 0; kReadsArrays && s < count * task.per_image; ++s)
      if (task.positions[s] < 0 || task.positions[s] >= all)
        given.fail("holds " + std::to_string(task.positions[s]) + ", which is not in 0.." +
                   std::to_string(all - 1));
    if (count * task.per_image == 0) return;
  }
  if (form != "" && form != "rows" && form != "shift")
    throw std::invalid_argument("form: '" + form + "' is not one of rows, shift");
  run_kernel(where, [&](const Context& context) { gram_accumulate(task, form, context); });
}

void bind_mirror(py::handle gram, const Where& where) {
  const Array matrices(gram, "gram");
  const int64_t count = matrices.axes(3).size(0), size = matrices.size(1);
  double* data = matrices.shaped({count, size, size}).data<double>();
  run_kernel(where, [&](const Context& context) { gram_mirror(data, count, size, context); });
}

void bind_basis(const std::vector<py::tuple>& grams, const std::vector<double>& ridges,
                const std::vector<py::tuple>& bases, py::handle failed, const Where& where) {
  if (ridges.size() != grams.size() || bases.size() != grams.size())
    throw std::invalid_argument("grams, ridges and bases must be of one length");
  int64_t* failures = each_failure(failed, grams.size());
  std::vector<BasisTask> tasks;
  for (size_t i = 0; i < grams.size(); ++i) {
    const std::string label = index_of(i);
    const Array gram(grams[i], "grams" + label), basis(bases[i], "bases" + label);
    const int64_t n = gram.axes(2).size(0);
    tasks.push_back({gram.shaped({n, n}).data<double>(), ridges[i], basis.shaped({n, n}).data<double>(),
                     n, failures + i});
  }
  run_kernel(where, [&](const Context& context) { basis_compute(tasks, context); });
}

// What consumers of paths and of scans of pairs have in common: (square, weight, columns,
// scale), where `square` is the (features, features) matrix that is called `name`.
template <class Consumer>
Consumer consumer_of(const py::tuple& given, const std::string& label, int64_t units, const char* name,
                     const double* Consumer::* square) {
  const Array matrix(given[0], label + "." + name), weight(given[1], label + ".weight");
  const Array columns(given[2], label + ".columns");
  Consumer c{};
  c.features = matrix.axes(2).size(0);
  c.outputs = weight.axes(2).size(0);
  c.taps = columns.axes(2).size(1);
  c.*square = matrix.shaped({c.features, c.features}).template data<double>();
  c.weight = weight.shaped({c.outputs, c.features}).template data<double>();
  c.columns = columns.shaped({units, c.taps}).template data<int64_t>();
  check_indices(columns, c.columns, units * c.taps, c.features);
  c.scale = given[3].cast<double>();
  if (!(c.scale >= 0) || std::isinf(c.scale))
    throw std::invalid_argument(label + ".scale must not be negative, infinite or NaN");
  return c;
}

// (basis, weight, columns, scale, factor, residual)
PathConsumer path_consumer_of(const py::tuple& given, const std::string& label, int64_t units,
                              int64_t steps) {
  if (given.size() != 6) throw std::invalid_argument(label + " must have six fields");
  auto c = consumer_of(given, label, units, "basis", &PathConsumer::basis);
  c.factor = Array(given[4], label + ".factor").shaped({steps * c.taps, c.features}).data<double>();
  c.residual = Array(given[5], label + ".residual").shaped({steps * c.taps, c.outputs}).data<double>();
  return c;
}

// The consumers of a task, of which there must be one at least.
std::vector<py::tuple> consumers_in(const py::handle& given, const std::string& label) {
  auto consumers = given.cast<std::vector<py::tuple>>();
  if (consumers.empty()) throw std::invalid_argument(label + " must have a consumer");
  return consumers;
}

// The number of units of the first consumer; the others must have as many.
int64_t units_of(const std::vector<py::tuple>& consumers, const std::string& label) {
  return Array(consumers[0][2], label + ".consumers[0].columns").axes(2).size(0);
}

template <class Task, class Consumer>
void add_consumers(Task& task, const std::vector<py::tuple>& consumers, const std::string& label,
                   Consumer (*read)(const py::tuple&, const std::string&, int64_t, int64_t)) {
  for (size_t j = 0; j < consumers.size(); ++j)
    task.consumers.push_back(
        read(consumers[j], label + ".consumers" + index_of(j), task.units, task.steps));
}

// (consumers, forced, order, errors, status)
PathTask path_of(const py::tuple& given, const std::string& label) {
  if (given.size() != 5) throw std::invalid_argument(label + " must have five fields");
  const auto consumers = consumers_in(given[0], label);
  const Array forced(given[1], label + ".forced"), order(given[2], label + ".order");
  PathTask task{};
  task.steps = order.axes(1).size(0);
  task.units = units_of(consumers, label);
  if (task.steps > task.units)
    order.fail("has " + std::to_string(task.steps) + " steps for " + std::to_string(task.units) +
               " units");
  add_consumers(task, consumers, label, path_consumer_of);
  task.forced = forced.axes(1).data<int64_t>();
  task.forced_count = forced.size(0);
  check_indices(forced, task.forced, task.forced_count, task.units);
  task.order = order.data<int64_t>();
  task.errors = Array(given[3], label + ".errors").shaped({task.steps}).data<double>();
  task.status = Array(given[4], label + ".status").shaped({1}).data<int64_t>();
  return task;
}

void bind_path(const std::vector<py::tuple>& given, const Where& where) {
  std::vector<PathTask> tasks = tasks_of(given, path_of);
  run_kernel(where, [&](const Context& context) { path_eliminate(tasks, context); });
}

// (weight, columns, order, factor, residual, cuts, weights)
CutsTask cuts_of(const py::tuple& given, const std::string& label) {
  if (given.size() != 7) throw std::invalid_argument(label + " must have seven fields");
  const Array weight(given[0], label + ".weight"), columns(given[1], label + ".columns");
  const Array order(given[2], label + ".order"), cuts(given[5], label + ".cuts");
  CutsTask task{};
  task.outputs = weight.axes(2).size(0);
  task.features = weight.size(1);
  task.units = columns.axes(2).size(0);
  task.taps = columns.size(1);
  task.steps = order.axes(1).size(0);
  task.count = cuts.axes(1).size(0);
  task.weight = weight.data<double>();
  task.columns = columns.data<int64_t>();
  check_indices(columns, task.columns, task.units * task.taps, task.features);
  task.order = order.data<int64_t>();
  check_indices(order, task.order, task.steps, task.units);
  const int64_t rows = task.steps * task.taps;
  task.factor = Array(given[3], label + ".factor").shaped({rows, task.features}).data<double>();
  task.residual = Array(given[4], label + ".residual").shaped({rows, task.outputs}).data<double>();
  task.cuts = cuts.data<int64_t>();
  for (int64_t i = 0, least = 0; kReadsArrays && i < task.count; least = task.cuts[i++])
    if (task.cuts[i] < least || task.cuts[i] > task.steps)
      cuts.fail("must ascend within 0.." + std::to_string(task.steps));
  task.weights = Array(given[6], label + ".weights")
                     .shaped({task.count, task.outputs, task.features})
                     .data<double>();
  return task;
}

void bind_weights(const std::vector<py::tuple>& given, const Where& where) {
  std::vector<CutsTask> tasks = tasks_of(given, cuts_of);
  run_kernel(where, [&](const Context& context) { path_weights(tasks, context); });
}

// (gram, cross, kept, ridge, reference or None, weight)
SolveTask solve_of(const py::tuple& given, const std::string& label) {
  if (given.size() != 6) throw std::invalid_argument(label + " must have six fields");
  const Array gram(given[0], label + ".gram"), cross(given[1], label + ".cross");
  const Array kept(given[2], label + ".kept");
  SolveTask task{};
  task.features = gram.axes(2).size(0);
  task.outputs = cross.axes(2).size(0);
  task.kept_count = kept.axes(1).size(0);
  task.gram = gram.shaped({task.features, task.features}).data<double>();
  task.cross = cross.shaped({task.outputs, task.features}).data<double>();
  task.kept = kept.data<int64_t>();
  check_indices(kept, task.kept, task.kept_count, task.features);
  task.ridge = given[3].cast<double>();
  if (!given[4].is_none())
    task.reference =
        Array(given[4], label + ".reference").shaped({task.outputs, task.features}).data<double>();
  task.weight =
      Array(given[5], label + ".weight").shaped({task.outputs, task.kept_count}).data<double>();
  return task;
}

void bind_solve(const std::vector<py::tuple>& given, py::handle failed, const Where& where) {
  std::vector<SolveTask> tasks = tasks_of(given, solve_of);
  int64_t* failures = each_failure(failed, tasks.size());
  for (size_t i = 0; i < tasks.size(); ++i) tasks[i].failed = failures + i;
  run_kernel(where, [&](const Context& context) { batch_solve(tasks, context); });
}

// (gram, weight, columns, scale, gains)
PairConsumer pair_consumer_of(const py::tuple& given, const std::string& label, int64_t units,
                              int64_t steps) {
  if (given.size() != 5) throw std::invalid_argument(label + " must have five fields");
  auto c = consumer_of(given, label, units, "gram", &PairConsumer::gram);
  c.gains = Array(given[4], label + ".gains").shaped({steps}).data<double>();
  return c;
}

// (consumers, table or None, removed, partner, errors)
PairTask pairs_of(const py::tuple& given, const std::string& label) {
  if (given.size() != 5) throw std::invalid_argument(label + " must have five fields");
  const auto consumers = consumers_in(given[0], label);
  const Array removed(given[2], label + ".removed");
  PairTask task{};
  task.steps = removed.axes(1).size(0);
  task.units = units_of(consumers, label);
  if (task.steps > std::max<int64_t>(task.units - 1, 0))
    removed.fail("has " + std::to_string(task.steps) + " steps for " + std::to_string(task.units) +
                 " units, one of which must stay");
  add_consumers(task, consumers, label, pair_consumer_of);
  if (!given[1].is_none())
    task.table = Array(given[1], label + ".table").shaped({task.units, task.units}).data<double>();
  task.removed = removed.data<int64_t>();
  task.partner = Array(given[3], label + ".partner").shaped({task.steps}).data<int64_t>();
  task.errors = Array(given[4], label + ".errors").shaped({task.steps}).data<double>();
  return task;
}

void bind_pairs(const std::vector<py::tuple>& given, const Where& where) {
  std::vector<PairTask> tasks = tasks_of(given, pairs_of);
  run_kernel(where, [&](const Context& context) { pair_scan(tasks, context); });
}

// Each list holds one array for each weight (outputs, inputs, taps).
void bind_zeros(const std::vector<py::tuple>& weights, const std::vector<py::tuple>& rows,
                const std::vector<py::tuple>& columns, const Where& where) {
  if (rows.size() != weights.size() || columns.size() != weights.size())
    throw std::invalid_argument("weights, rows and columns must be of one length");
  std::vector<ZeroTask> tasks;
  for (size_t i = 0; i < weights.size(); ++i) {
    const std::string label = index_of(i);
    const Array weight(weights[i], "weights" + label);
    const int64_t outputs = weight.axes(3).size(0), inputs = weight.size(1);
    tasks.push_back({weight.data<float>(),
                     Array(rows[i], "rows" + label).shaped({outputs}).data<float>(),
                     Array(columns[i], "columns" + label).shaped({inputs}).data<float>(), outputs,
                     inputs, weight.size(2)});
  }
  run_kernel(where, [&](const Context& context) { zero_scan(tasks, context); });
}

}  // namespace
}  // namespace reapx

PYBIND11_MODULE(REAPX_MODULE, m) {
  m.doc() = "The kernels of one back end. Use them through reapx._native.";
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const reapx::BackendFailure& failure) {
      py::set_error(py::module_::import("reapx.errors").attr("BackendError"), failure.what());
    }
  });
  m.attr("reads_half") = reapx::kReadsHalf;
  m.def("cores", &reapx::core_names);
  m.def("gram_accumulate", &reapx::bind_gram, py::arg("x"), py::arg("window"), py::arg("groups"),
        py::arg("output_size"), py::arg("gram"), py::arg("total"), py::arg("target"), py::arg("cross"),
        py::arg("target_total"), py::arg("target_square"), py::arg("positions"), py::arg("where"),
        py::arg("form"));
  m.def("gram_mirror", &reapx::bind_mirror, py::arg("gram"), py::arg("where"));
  m.def("basis_compute", &reapx::bind_basis, py::arg("grams"), py::arg("ridges"), py::arg("bases"),
        py::arg("failed"), py::arg("where"));
  m.def("path_eliminate", &reapx::bind_path, py::arg("tasks"), py::arg("where"));
  m.def("path_weights", &reapx::bind_weights, py::arg("tasks"), py::arg("where"));
  m.def("batch_solve", &reapx::bind_solve, py::arg("tasks"), py::arg("failed"), py::arg("where"));
  m.def("pair_scan", &reapx::bind_pairs, py::arg("tasks"), py::arg("where"));
  m.def("zero_scan", &reapx::bind_zeros, py::arg("weights"), py::arg("rows"), py::arg("columns"),
        py::arg("where"));
}
