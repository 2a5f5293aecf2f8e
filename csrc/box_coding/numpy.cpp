// SPDX-License-Identifier: BSD-3-Clause
// Converts boxes to deltas and back, for NumPy arrays, with the loops of the torch operators. If
// there are fewer anchors than rows, the anchors repeat.
#include <array>

#include "../python/arrays.h"
#include "box_coding.loops.h"
#include "contract.h"

namespace fastdet::python {

namespace {

using Weights = std::array<double, 4>;
using Sizes = Array<int64_t>;

template <typename T>
Deltas<T> rounded(const Weights& w) {
  return {T(w[0]), T(w[1]), T(w[2]), T(w[3])};
}

template <typename T>
const Deltas<T>* deltas_of(const Array<T>& array) {
  return reinterpret_cast<const Deltas<T>*>(array.data());
}

template <typename T>
Array<T> like(const Array<T>& array) {
  return Array<T>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
}

template <typename T>
Array<T> encode_boxes(const Array<T>& boxes, const Array<T>& anchors, const Weights& weights) {
  check_repeated_anchors("encode_boxes", "boxes", boxes, anchors);
  Array<T> deltas = like(boxes);
  auto* out = reinterpret_cast<Deltas<T>*>(deltas.mutable_data());
  const py::gil_scoped_release no_gil;
  const int64_t n = boxes.size() / 4, num_anchors = anchors.size() / 4;
  const Deltas<T> w = rounded<T>(weights);
  for (int64_t begin = 0; begin < n; begin += num_anchors)
    cpu::current_loops<cpu::BoxCodingLoops<T>>().encode_boxes(
        boxes_of(boxes) + begin, boxes_of(anchors), num_anchors, w, out + begin);
  return deltas;
}

template <typename T>
Array<T> decode_boxes(const Array<T>& deltas, const Array<T>& anchors, const Weights& weights,
                      const std::optional<Sizes>& sizes) {
  const char* const op = "decode_boxes";
  check_repeated_anchors(op, "deltas", deltas, anchors);
  if (sizes) check_sizes(op, *sizes, deltas);
  Array<T> boxes = like(deltas);
  auto* out = reinterpret_cast<Box<T>*>(boxes.mutable_data());
  const int64_t* size = sizes ? sizes->data() : nullptr;
  const py::gil_scoped_release no_gil;
  const int64_t n = deltas.size() / 4, num_anchors = anchors.size() / 4;
  const Deltas<T> w = rounded<T>(weights);
  for (int64_t begin = 0; begin < n; begin += num_anchors)
    cpu::current_loops<cpu::BoxCodingLoops<T>>().decode_boxes(
        deltas_of(deltas) + begin, boxes_of(anchors), num_anchors, w, nullptr, out + begin);
  if (!size || n == 0) return boxes;
  const int64_t num_images = deltas.shape(0), rows = n / num_images;
  for (int64_t b = 0; b < num_images; ++b)
    for (int64_t i = b * rows; i < (b + 1) * rows; ++i)
      out[i] = clip(out[i], T(size[2 * b + 1]), T(size[2 * b]));
  return boxes;
}

template <typename T>
void bind_type(py::module_& m) {
  m.def("encode_boxes", encode_boxes<T>, py::arg("boxes").noconvert(),
        py::arg("anchors").noconvert(), py::arg("weights"));
  m.def("decode_boxes", decode_boxes<T>, py::arg("deltas").noconvert(),
        py::arg("anchors").noconvert(), py::arg("weights"), py::arg("sizes").noconvert());
}

void bind(py::module_& m) {
  bind_type<float>(m);
  bind_type<double>(m);
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
