// SPDX-License-Identifier: BSD-3-Clause
// Boxes and class scores to detections for NumPy arrays, on the calling thread.
#include "multiclass_nms.h"

#include <algorithm>
#include <tuple>

#include "../geometry/threshold.h"
#include "../python/arrays.h"

namespace fastdet::python {

namespace {

template <typename T>
Array<T> array_of_boxes(const std::vector<Box<T>>& boxes) {
  const auto n = static_cast<py::ssize_t>(boxes.size());
  return Array<T>({n, py::ssize_t(4)}, reinterpret_cast<const T*>(boxes.data()));
}

template <typename T>
std::tuple<Array<T>, Array<T>, Array<int64_t>> multiclass_nms(
    const Array<T>& boxes, const Array<T>& scores, bool by_class, double score_threshold,
    double iou_threshold, int64_t max_detections, bool multi_label, int64_t max_candidates) {
  const char* const op = "multiclass_nms";
  expect(is_boxes(boxes, 2), op, "boxes", "(N, 4)", boxes);
  const int64_t n = boxes.shape(0);
  expect(scores.ndim() == 2 && scores.shape(by_class ? 1 : 0) == n, op, "scores",
         by_class ? "(N, C) with the N of boxes, here transposed" : "(N, C) with the N of boxes",
         scores);
  const cpu::ScoredBoxes<T> in = {boxes_of(boxes), scores.data(), n, scores.shape(by_class ? 0 : 1),
                                  by_class};
  const cpu::MulticlassRule<T> rule = {
      round_down<T>(score_threshold), round_down<T>(iou_threshold), multi_label,
      std::min<int64_t>(max_candidates, scores.size()), max_detections};
  cpu::LabelledBoxes<T> out;
  {
    const py::gil_scoped_release no_gil;
    out = cpu::multiclass_nms(in, rule, kSerial);
  }
  return {array_of_boxes(out.boxes), array_of(out.scores), array_of(out.labels)};
}

template <typename T>
void bind(py::module_& m) {
  m.def("multiclass_nms", multiclass_nms<T>, py::arg("boxes").noconvert(),
        py::arg("scores").noconvert(), py::arg("by_class"), py::arg("score_threshold"),
        py::arg("iou_threshold"), py::arg("max_detections"), py::arg("multi_label"),
        py::arg("max_candidates"));
}

}  // namespace

void bind_multiclass_nms(py::module_& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace fastdet::python
