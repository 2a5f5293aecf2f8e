// SPDX-License-Identifier: BSD-3-Clause
// NumPy arrays as the entry points (each family's numpy.cpp) take them: C-contiguous and of one
// exact type, so that nothing is copied; fastdet/numpy.py converts them before. The family's
// contract.h checks their shapes before memory is read. The kernels then run without the GIL, on
// the calling thread.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "../expect.h"
#include "../geometry/box.h"

namespace fastdet {

template <typename T, int kFlags>
struct ArgumentOf<pybind11::array_t<T, kFlags>> {
  static ArgumentView view(const pybind11::array_t<T, kFlags>& array) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> ||
                  std::is_same_v<T, int64_t>);
    static_assert(sizeof(pybind11::ssize_t) == sizeof(int64_t));
    constexpr ScalarType kDtype = std::is_same_v<T, float>    ? kFloat32
                                  : std::is_same_v<T, double> ? kFloat64
                                                              : kInt64;
    return {kDtype, reinterpret_cast<const int64_t*>(array.shape()), array.ndim(), Place::kNumpy,
            0};
  }
};

}  // namespace fastdet

namespace fastdet::python {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// The `parallel` of the CPU functions, such as greedy_nms in nms/greedy_nms.h: all of [0, n) as one
// piece.
constexpr auto kSerial = [](int64_t n, int64_t, const auto& body) {
  if (n > 0) body(int64_t(0), n);
};

template <typename T>
const Box<T>* boxes_of(const Array<T>& array) {
  return reinterpret_cast<const Box<T>*>(array.data());
}

template <typename T>
Array<T> array_of(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Binds a family's entry points when the module is imported. The family's numpy.cpp has one such
// object: const Entries entries(bind);
struct Entries {
  explicit Entries(void (*bind)(py::module_& m));
};

}  // namespace fastdet::python
