// SPDX-License-Identifier: BSD-3-Clause
// The IoU of every pair of boxes, in four kinds, for NumPy arrays: the loop of the torch op.
// Beside the result O(M) memory, for the second boxes of an image by planes.
#include "../geometry/box_iou.h"

#include <algorithm>

#include "iou_planes.h"
#include "../python/arrays.h"

namespace fastdet::python {

namespace {

template <typename T>
void pairwise(IouKind kind, const Box<T>* boxes1, int64_t n, const Box<T>* boxes2, int64_t m,
              double eps, T* planes, T* out) {
  cpu::load_iou_planes(kind, boxes2, 0, m, planes, m);
  for (int64_t j = 0; j < m; j += cpu::kIouTileColumns)
    for (int64_t i = 0; i < n; ++i)
      cpu::box_loops<T>().box_iou_row(
          kind, cpu::iou_box(kind, boxes1[i]), cpu::iou_planes_from(planes, m, j),
          std::min(cpu::kIouTileColumns, m - j), pairwise_eps<T>(eps), out + i * m + j);
}

template <typename T>
Array<T> box_iou(const char* op, IouKind kind, const Array<T>& boxes1, const Array<T>& boxes2,
                 double eps) {
  const int64_t ndim = boxes1.ndim();
  expect(is_boxes(boxes1, 2) || is_boxes(boxes1, 3), op, "boxes1", "(N, 4) or (B, N, 4)", boxes1);
  expect(is_boxes(boxes2, ndim) && (ndim == 2 || boxes2.shape(0) == boxes1.shape(0)), op, "boxes2",
         ndim == 2 ? "(M, 4)" : "(B, M, 4) with the B of boxes1", boxes2);
  const int64_t batches = ndim == 3 ? boxes1.shape(0) : 1;
  const int64_t n = boxes1.shape(ndim - 2), m = boxes2.shape(ndim - 2);
  Array<T> out(ndim == 2 ? std::vector<py::ssize_t>{n, m}
                         : std::vector<py::ssize_t>{batches, n, m});
  T* result = out.mutable_data();
  const py::gil_scoped_release no_gil;
  std::vector<T> planes(cpu::kIouPlanes * m);
  for (int64_t b = 0; b < batches; ++b)
    pairwise(kind, boxes_of(boxes1) + b * n, n, boxes_of(boxes2) + b * m, m, eps, planes.data(),
             result + b * n * m);
  return out;
}

template <typename T>
void bind(py::module_& m, const char* name, IouKind kind) {
  m.def(
      name,
      [name, kind](const Array<T>& boxes1, const Array<T>& boxes2, double eps) {
        return box_iou(name, kind, boxes1, boxes2, eps);
      },
      py::arg("boxes1").noconvert(), py::arg("boxes2").noconvert(), py::arg("eps"));
}

}  // namespace

void bind_box_iou(py::module_& m) {
  struct Named {
    const char* name;
    IouKind kind;
  };
  for (const auto& [name, kind] :
       {Named{"box_iou", IouKind::kIou}, Named{"generalized_box_iou", IouKind::kGeneralized},
        Named{"distance_box_iou", IouKind::kDistance},
        Named{"complete_box_iou", IouKind::kComplete}}) {
    bind<float>(m, name, kind);
    bind<double>(m, name, kind);
  }
}

}  // namespace fastdet::python
