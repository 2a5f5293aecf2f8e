// SPDX-License-Identifier: BSD-3-Clause
// Boxes to deltas and back, for NumPy arrays: one pass over the rows, with the arithmetic of the
// torch ops. Anchors repeat where there are fewer of them than rows.
#include "../geometry/box_coding.h"

#include <array>

#include "../isa/loops.h"
#include "../python/arrays.h"

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

// The shape of `anchors` is the end of that of `rows`.
void expect_rows(const char* op, const char* argument, const py::array& rows,
                 const py::array& anchors) {
  expect(rows.ndim() >= 1 && is_boxes(rows, rows.ndim()), op, argument, "(..., 4)", rows);
  bool fits = anchors.ndim() >= 1 && anchors.ndim() <= rows.ndim();
  for (py::ssize_t d = 1; fits && d <= anchors.ndim(); ++d)
    fits = anchors.shape(anchors.ndim() - d) == rows.shape(rows.ndim() - d);
  expect(fits, op, "anchors", "the last dimensions of the first argument", anchors);
}

template <typename T>
Array<T> like(const Array<T>& array) {
  return Array<T>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
}

template <typename T>
Array<T> encode_boxes(const Array<T>& boxes, const Array<T>& anchors, const Weights& weights) {
  expect_rows("encode_boxes", "boxes", boxes, anchors);
  Array<T> deltas = like(boxes);
  auto* out = reinterpret_cast<Deltas<T>*>(deltas.mutable_data());
  const py::gil_scoped_release no_gil;
  const int64_t n = boxes.size() / 4, num_anchors = anchors.size() / 4;
  const Deltas<T> w = rounded<T>(weights);
  for (int64_t begin = 0; begin < n; begin += num_anchors)
    cpu::box_loops<T>().encode_boxes(boxes_of(boxes) + begin, boxes_of(anchors), num_anchors, w,
                                     out + begin);
  return deltas;
}

template <typename T>
Array<T> decode_boxes(const Array<T>& deltas, const Array<T>& anchors, const Weights& weights,
                      const std::optional<Sizes>& sizes) {
  const char* const op = "decode_boxes";
  expect_rows(op, "deltas", deltas, anchors);
  if (sizes)
    expect(sizes->ndim() == 2 && deltas.ndim() >= 2 && sizes->shape(0) == deltas.shape(0) &&
               sizes->shape(1) == 2,
           op, "sizes", "(B, 2) with the B of deltas (B, ..., 4)", *sizes);
  Array<T> boxes = like(deltas);
  auto* out = reinterpret_cast<Box<T>*>(boxes.mutable_data());
  const int64_t* size = sizes ? sizes->data() : nullptr;
  const py::gil_scoped_release no_gil;
  const int64_t n = deltas.size() / 4, num_anchors = anchors.size() / 4;
  const Deltas<T> w = rounded<T>(weights);
  for (int64_t begin = 0; begin < n; begin += num_anchors)
    cpu::box_loops<T>().decode_boxes(deltas_of(deltas) + begin, boxes_of(anchors), num_anchors, w,
                                     nullptr, out + begin);
  if (!size || n == 0) return boxes;
  const int64_t num_images = deltas.shape(0), rows = n / num_images;
  for (int64_t b = 0; b < num_images; ++b)
    for (int64_t i = b * rows; i < (b + 1) * rows; ++i)
      out[i] = clip(out[i], T(size[2 * b + 1]), T(size[2 * b]));
  return boxes;
}

template <typename T>
void bind(py::module_& m) {
  m.def("encode_boxes", encode_boxes<T>, py::arg("boxes").noconvert(),
        py::arg("anchors").noconvert(), py::arg("weights"));
  m.def("decode_boxes", decode_boxes<T>, py::arg("deltas").noconvert(),
        py::arg("anchors").noconvert(), py::arg("weights"), py::arg("sizes").noconvert());
}

}  // namespace

void bind_box_coding(py::module_& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace fastdet::python
