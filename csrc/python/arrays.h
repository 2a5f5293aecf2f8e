// SPDX-License-Identifier: BSD-3-Clause
// NumPy arrays as the entry points of this folder take them: C-contiguous and of one exact type, so
// that nothing is copied (fastdet/numpy.py converts before). Shapes are checked here, before memory
// is touched, and a ValueError names what is wrong; the kernels then run without the GIL, on the
// calling thread.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../geometry/box.h"

namespace fastdet::python {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// The `parallel` of the drivers in ../cpu: every piece in turn.
constexpr auto kSerial = [](int64_t n, int64_t, const auto& body) {
  if (n > 0) body(int64_t(0), n);
};

inline std::string describe(const py::array& array) {
  std::string text = py::str(array.dtype()).cast<std::string>() + " (";
  for (py::ssize_t d = 0; d < array.ndim(); ++d)
    text += (d ? ", " : "") + std::to_string(array.shape(d));
  return text + (array.ndim() == 1 ? ",)" : ")");
}

// "nms: boxes: expected (N, 4), got float32 (5, 3)"
inline void expect(bool holds, const char* op, const char* argument, const char* expected,
                   const py::array& actual) {
  if (!holds)
    throw py::value_error(std::string(op) + ": " + argument + ": expected " + expected + ", got " +
                          describe(actual));
}

inline bool is_boxes(const py::array& array, int64_t ndim) {
  return array.ndim() == ndim && array.shape(ndim - 1) == 4;
}

inline bool is_vector(const py::array& array, int64_t n) {
  return array.ndim() == 1 && array.shape(0) == n;
}

template <typename T>
const Box<T>* boxes_of(const Array<T>& array) {
  return reinterpret_cast<const Box<T>*>(array.data());
}

template <typename T>
Array<T> array_of(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Each binds its functions for float and double under one name.
void bind_box_iou(py::module_& m);
void bind_box_coding(py::module_& m);
void bind_match_anchors(py::module_& m);
void bind_mask_rle(py::module_& m);
void bind_nms(py::module_& m);
void bind_multiclass_nms(py::module_& m);
void bind_retinanet_detections(py::module_& m);

}  // namespace fastdet::python
