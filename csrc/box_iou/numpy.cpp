// SPDX-License-Identifier: BSD-3-Clause
// The IoU of every pair of boxes, in four kinds, for NumPy arrays, with the loop of the torch
// operator. O(M) memory beside the result.
#include <algorithm>

#include "../python/arrays.h"
#include "contract.h"
#include "iou_planes.h"

namespace fastdet::python {

namespace {

template <typename T>
void pairwise(IouKind kind, const Box<T>* boxes1, int64_t n, const Box<T>* boxes2, int64_t m,
              double eps, T* planes, T* out) {
  const auto& loops = cpu::current_loops<cpu::BoxIouLoops<T>>();
  cpu::load_iou_planes(kind, boxes2, 0, m, planes, m);
  for (int64_t j = 0; j < m; j += cpu::kIouTileColumns)
    for (int64_t i = 0; i < n; ++i)
      loops.box_iou_row(kind, cpu::iou_box(kind, boxes1[i]), cpu::iou_planes_from(planes, m, j),
                        std::min(cpu::kIouTileColumns, m - j), pairwise_eps<T>(eps),
                        out + i * m + j);
}

template <typename T>
Array<T> box_iou(const char* op, IouKind kind, const Array<T>& boxes1, const Array<T>& boxes2,
                 double eps) {
  const int64_t ndim = boxes1.ndim();
  check_box_iou(op, boxes1, boxes2);
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
void bind_kind(py::module_& m, const char* name, IouKind kind) {
  m.def(
      name,
      [name, kind](const Array<T>& boxes1, const Array<T>& boxes2, double eps) {
        return box_iou(name, kind, boxes1, boxes2, eps);
      },
      py::arg("boxes1").noconvert(), py::arg("boxes2").noconvert(), py::arg("eps"));
}

void bind(py::module_& m) {
  struct Named {
    const char* name;
    IouKind kind;
  };
  for (const auto& [name, kind] :
       {Named{"box_iou", IouKind::kIou}, Named{"generalized_box_iou", IouKind::kGeneralized},
        Named{"distance_box_iou", IouKind::kDistance},
        Named{"complete_box_iou", IouKind::kComplete}}) {
    bind_kind<float>(m, name, kind);
    bind_kind<double>(m, name, kind);
  }
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
