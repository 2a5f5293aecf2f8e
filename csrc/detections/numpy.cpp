// SPDX-License-Identifier: BSD-3-Clause
// For NumPy arrays: RetinaNet's detections, with the code of the CPU operator, and multiclass NMS.
// Both run on the calling thread.
#include <algorithm>
#include <tuple>

#include "../geometry/threshold.h"
#include "../python/arrays.h"
#include "contract.h"
#include "multiclass_nms.h"
#include "pyramid_detections.h"

namespace fastdet::python {

namespace {

template <typename T>
using Levels = std::vector<Array<T>>;

template <typename T>
Array<T> array_of_boxes(const std::vector<Box<T>>& boxes) {
  const auto n = static_cast<py::ssize_t>(boxes.size());
  return Array<T>({n, py::ssize_t(4)}, reinterpret_cast<const T*>(boxes.data()));
}

template <typename T>
std::tuple<Array<T>, Array<T>, Array<int64_t>> multiclass_nms(
    const Array<T>& boxes, const Array<T>& scores, bool by_class, double score_threshold,
    double iou_threshold, int64_t max_detections, bool multi_label, int64_t max_candidates) {
  check_multiclass_nms("multiclass_nms", boxes, scores, by_class);
  const int64_t n = boxes.shape(0);
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
std::tuple<Array<T>, Array<T>, Array<int64_t>, Array<int64_t>> retinanet_detections(
    const Levels<T>& logits, const Levels<T>& deltas, const Array<T>& anchors,
    const Array<int64_t>& sizes, double score_threshold, int64_t topk_candidates,
    double iou_threshold, int64_t detections_per_img) {
  check_pyramid_head("retinanet_detections", "logits", arguments(logits), 3, arguments(deltas),
                     anchors, sizes);
  const int64_t num_images = sizes.shape(0), rows = detections_per_img;
  cpu::PyramidHead<T> head = {{}, boxes_of(anchors), sizes.data(), num_images, logits[0].shape(2)};
  int64_t most_logits = 0;
  for (size_t l = 0; l < logits.size(); ++l) {
    const int64_t num_anchors = logits[l].shape(1), num_logits = num_anchors * head.num_classes;
    head.levels.push_back(
        {logits[l].data(), deltas[l].data(), num_anchors, num_logits, 4 * num_anchors});
    most_logits = std::max(most_logits, num_logits);
  }
  Array<T> boxes({num_images, rows, int64_t(4)}), scores({num_images, rows});
  Array<int64_t> labels({num_images, rows}), counts(num_images);
  const DetectionRows<T> out = {reinterpret_cast<Box<T>*>(boxes.mutable_data()),
                                scores.mutable_data(), labels.mutable_data(),
                                counts.mutable_data()};
  {
    const py::gil_scoped_release no_gil;
    const auto rule = retinanet_rule<T>(score_threshold, std::min(topk_candidates, most_logits),
                                        iou_threshold, rows);
    cpu::PyramidDetections(head, rule, kSerial).write(out);
  }
  return {boxes, scores, labels, counts};
}

template <typename T>
void bind_type(py::module_& m) {
  m.def("multiclass_nms", multiclass_nms<T>, py::arg("boxes").noconvert(),
        py::arg("scores").noconvert(), py::arg("by_class"), py::arg("score_threshold"),
        py::arg("iou_threshold"), py::arg("max_detections"), py::arg("multi_label"),
        py::arg("max_candidates"));
  m.def("retinanet_detections", retinanet_detections<T>, py::arg("logits").noconvert(),
        py::arg("deltas").noconvert(), py::arg("anchors").noconvert(), py::arg("sizes").noconvert(),
        py::arg("score_threshold"), py::arg("topk_candidates"), py::arg("iou_threshold"),
        py::arg("detections_per_img"));
}

void bind(py::module_& m) {
  bind_type<float>(m);
  bind_type<double>(m);
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
