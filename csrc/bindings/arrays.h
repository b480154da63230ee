// NumPy arrays in, pointers out. Every mismatch is an Error that names the argument and both sides.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/types.h"

namespace gptoss::bindings {

namespace py = pybind11;

inline std::string shape_text(const py::array& array) { return py::str(array.attr("shape")); }

template <typename T>
constexpr const char* dtype_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, int32_t>) return "int32";
  if constexpr (std::is_same_v<T, uint32_t>) return "uint32";
  if constexpr (std::is_same_v<T, int8_t>) return "int8";
  if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
  if constexpr (std::is_same_v<T, uint16_t>) return "uint16 (bf16 bits)";
}

// An array argument and its name, for messages.
class Argument {
 public:
  Argument(const char* name, const py::object& value) : name_(name) {
    CHECK(py::isinstance<py::array>(value), name, " is a ", std::string(py::str(py::type::of(value).attr("__name__"))),
          ", expected a NumPy array");
    array_ = py::reinterpret_borrow<py::array>(value);
    CHECK(array_.flags() & py::array::c_style, name, " is not C-contiguous; pass numpy.ascontiguousarray(", name, ")");
    CHECK(array_.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_, name,
          " is not aligned to its elements; pass a copy of it");
  }

  std::string dtype() const { return py::str(array_.dtype()); }

  int dims() const { return static_cast<int>(array_.ndim()); }

  // Length of one axis, which must fit an int.
  int size(int axis) const {
    CHECK(axis < dims(), name_, " has shape ", shape_text(array_), ", expected more than ", axis, " dimensions");
    const auto size = array_.shape(axis);
    CHECK(size <= INT32_MAX, name_, " has shape ", shape_text(array_), ", expected at most 2^31 - 1 along an axis");
    return static_cast<int>(size);
  }

  template <typename T>
  bool is() const {
    return py::isinstance<py::array_t<T>>(array_);
  }

  const Argument& shape(std::initializer_list<int64_t> expected) const {
    bool same = dims() == static_cast<int>(expected.size());
    int axis = 0;
    for (int64_t length : expected) same = same && array_.shape(axis++) == length;
    if (!same) {
      std::string text;
      for (int64_t length : expected) text += (text.empty() ? "" : ", ") + std::to_string(length);
      CHECK(false, name_, " has shape ", shape_text(array_), ", expected (", text, ")");
    }
    return *this;
  }

  template <typename T>
  const T* read() const {
    check_dtype<T>();
    return static_cast<const T*>(array_.data());
  }

  const bf16* read_bf16() const { return reinterpret_cast<const bf16*>(read<uint16_t>()); }

  // A copy of an index array with every value in [low, high). A copy, because the caller's array may change
  // after the check: the op runs without the GIL, and an output may share its memory.
  std::vector<int32_t> indices(int low, int high) const {
    const int32_t* values = read<int32_t>();
    const auto count = static_cast<size_t>(array_.size());
    for (size_t i = 0; i < count; ++i)
      CHECK(values[i] >= low && values[i] < high, name_, "[", i, "] is ", values[i], ", expected ", low, " to ",
            high - 1);
    return {values, values + count};
  }

  template <typename T>
  T* write() {
    check_dtype<T>();
    CHECK(array_.writeable(), name_, " is read-only, expected an array to write to");
    return static_cast<T*>(array_.mutable_data());
  }

 private:
  template <typename T>
  void check_dtype() const {
    CHECK(is<T>(), name_, " has dtype ", dtype(), ", expected ", dtype_name<T>(), "; pass an array of that dtype");
  }

  const char* name_;
  py::array array_;
};

// Kernels read rows by whole vectors and never look for a remainder.
inline void check_width(const char* name, int width) {
  CHECK(width > 0 && width % kMxfp4Block == 0, name, " has rows of ", width, ", expected a positive multiple of ",
        kMxfp4Block);
}

}  // namespace gptoss::bindings
