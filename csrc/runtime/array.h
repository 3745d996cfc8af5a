// What crosses the boundary from Python: (address, dtype, shape, strides) of a tensor, checked here.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace reapx {

class Array {
 public:
  // `given` is a tuple (address, dtype, shape) or (address, dtype, shape, strides in elements). The
  // name is used in error messages.
  Array(pybind11::handle given, std::string name) : name_(std::move(name)) {
    const auto fields = given.cast<pybind11::tuple>();
    if (fields.size() != 3 && fields.size() != 4) fail("must be (address, dtype, shape[, strides])");
    address_ = fields[0].cast<std::uintptr_t>();
    dtype_ = fields[1].cast<std::string>();
    shape_ = fields[2].cast<std::vector<int64_t>>();
    if (fields.size() == 4) strides_ = fields[3].cast<std::vector<int64_t>>();
    for (int64_t size : shape_) {
      if (size < 0) fail("must not have a negative size");
      if (size > kLargestSize) fail("must not have a size above 2^31, not " + std::to_string(size));
    }
    if (!strides_.empty() && strides_.size() != shape_.size()) fail("needs a stride for each size");
  }

  int64_t size(size_t axis) const { return shape_.at(axis); }
  int64_t stride(size_t axis) const { return strides_.at(axis); }

  // Throws unless the array has that many axes.
  const Array& axes(size_t count) const {
    if (shape_.size() != count)
      fail("must have " + std::to_string(count) + " axes, not shape " + describe(shape_));
    return *this;
  }
  // Throws unless the shape is exactly this.
  const Array& shaped(std::initializer_list<int64_t> wanted) const {
    const std::vector<int64_t> shape(wanted);
    if (shape_ != shape) fail("must have shape " + describe(shape) + ", not " + describe(shape_));
    return *this;
  }
  // The elements, once dtype and alignment are checked. Null when there are none.
  template <class T>
  T* data() const {
    if (dtype_ != dtype_of<T>()) fail(std::string("must be ") + dtype_of<T>() + ", not " + dtype_);
    return static_cast<T*>(address(alignof(T)));
  }
  // The same for callers that check the dtype themselves.
  const std::string& dtype() const { return dtype_; }
  void* address(size_t alignment) const {
    for (int64_t size : shape_)
      if (size == 0) return nullptr;
    if (address_ == 0 || address_ % alignment != 0) fail("has no usable address");
    return reinterpret_cast<void*>(address_);
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::invalid_argument(name_ + " " + what);
  }

 private:
  // Two sizes multiply without an overflow, also of arrays that have no elements.
  static constexpr int64_t kLargestSize = int64_t{1} << 31;

  template <class T>
  static const char* dtype_of() {
    if constexpr (std::is_same_v<T, float>) return "float32";
    if constexpr (std::is_same_v<T, double>) return "float64";
    if constexpr (std::is_same_v<T, int64_t>) return "int64";
  }
  static std::string describe(const std::vector<int64_t>& shape) {
    std::string text("(");
    for (size_t i = 0; i < shape.size(); ++i)
      text.append(i ? ", " : "").append(std::to_string(shape[i]));
    return text.append(shape.size() == 1 ? ",)" : ")");
  }

  std::string name_, dtype_;
  std::uintptr_t address_ = 0;
  std::vector<int64_t> shape_, strides_;
};

// Throws unless every entry of indices (count,) is in [0, size), and none occurs twice.
inline void check_distinct(const Array& array, const int64_t* indices, int64_t count, int64_t size) {
  std::vector<bool> seen(static_cast<size_t>(size));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = indices[i];
    if (index < 0 || index >= size)
      array.fail("holds " + std::to_string(index) + ", which is not in 0.." + std::to_string(size - 1));
    if (seen[static_cast<size_t>(index)]) array.fail("holds " + std::to_string(index) + " twice");
    seen[static_cast<size_t>(index)] = true;
  }
}

}  // namespace reapx
