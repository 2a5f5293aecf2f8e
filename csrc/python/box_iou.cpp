// SPDX-License-Identifier: BSD-3-Clause
// The IoU of every pair of boxes, in four kinds, for NumPy arrays: the loop of the torch op.
// Beside the result O(M) memory, for the second boxes of an image by planes.
#include "../box_iou.h"

#include <algorithm>

#include "../cpu/loops.h"
#include "arrays.h"

namespace fastdet::python {

namespace {

constexpr int64_t kTileColumns = 1024;  // they stay in the L1 cache while the rows go by

template <typename T>
IouBox<T> iou_box(IouKind kind, const Box<T>& box) {
  return dispatch_kind(kind, [&]<IouKind k>() { return fastdet::iou_box<k>(box); });
}

// The m boxes of one image by planes.
template <typename T>
class Columns {
 public:
  explicit Columns(int64_t m) : m_(m), storage_(6 * m) {}

  void load(IouKind kind, const Box<T>* boxes) {
    T* p = storage_.data();
    for (int64_t j = 0; j < m_; ++j) {
      const IouBox<T> b = iou_box(kind, boxes[j]);
      p[j] = b.box.x1;
      p[m_ + j] = b.box.y1;
      p[2 * m_ + j] = b.box.x2;
      p[3 * m_ + j] = b.box.y2;
      p[4 * m_ + j] = b.area;
      p[5 * m_ + j] = b.angle;
    }
  }

  cpu::IouPlanes<T> from(int64_t j) const {
    const T* p = storage_.data() + j;
    return {p, p + m_, p + 2 * m_, p + 3 * m_, p + 4 * m_, p + 5 * m_};
  }

 private:
  int64_t m_;
  std::vector<T> storage_;
};

template <typename T>
void pairwise(IouKind kind, const Box<T>* boxes1, int64_t n, const Box<T>* boxes2, int64_t m,
              double eps, Columns<T>& columns, T* out) {
  columns.load(kind, boxes2);
  for (int64_t j = 0; j < m; j += kTileColumns)
    for (int64_t i = 0; i < n; ++i)
      cpu::box_loops<T>().box_iou_row(kind, iou_box(kind, boxes1[i]), columns.from(j),
                                      std::min(kTileColumns, m - j), pairwise_eps<T>(eps),
                                      out + i * m + j);
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
  Columns<T> columns(m);
  for (int64_t b = 0; b < batches; ++b)
    pairwise(kind, boxes_of(boxes1) + b * n, n, boxes_of(boxes2) + b * m, m, eps, columns,
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
