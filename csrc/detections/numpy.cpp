// SPDX-License-Identifier: BSD-3-Clause
// RetinaNet's detections for NumPy arrays: the driver of the torch op on the calling thread.
#include "retinanet_detections.h"

#include <algorithm>
#include <tuple>

#include "../python/arrays.h"

namespace fastdet::python {

namespace {

template <typename T>
using Levels = std::vector<Array<T>>;

template <typename T>
void check(const Levels<T>& logits, const Levels<T>& deltas, const Array<T>& anchors,
           const Array<int64_t>& sizes) {
  const char* const op = "retinanet_detections";
  if (deltas.size() != logits.size())
    throw py::value_error("retinanet_detections: deltas: expected one array a level, " +
                          std::to_string(logits.size()) + ", got " + std::to_string(deltas.size()));
  const Array<T>& first = logits.at(0);
  int64_t num_anchors = 0;
  for (size_t l = 0; l < logits.size(); ++l) {
    const Array<T>&own = logits[l], &own_deltas = deltas[l];
    expect(own.ndim() == 3 && own.shape(0) == first.shape(0) && own.shape(2) == first.shape(2), op,
           "logits", "(B, A, C) for each level, with the B and C of the first", own);
    expect(is_boxes(own_deltas, 3) && own_deltas.shape(0) == own.shape(0) &&
               own_deltas.shape(1) == own.shape(1),
           op, "deltas", "(B, A, 4) with the B and A of the level's logits", own_deltas);
    num_anchors += own.shape(1);
  }
  expect(is_boxes(anchors, 2) && anchors.shape(0) == num_anchors, op, "anchors",
         "(A, 4), A counting all levels", anchors);
  expect(sizes.ndim() == 2 && sizes.shape(0) == first.shape(0) && sizes.shape(1) == 2, op, "sizes",
         "(B, 2) with the B of logits", sizes);
}

template <typename T>
std::tuple<Array<T>, Array<T>, Array<int64_t>, Array<int64_t>> retinanet_detections(
    const Levels<T>& logits, const Levels<T>& deltas, const Array<T>& anchors,
    const Array<int64_t>& sizes, double score_thresh, int64_t topk_candidates, double nms_thresh,
    int64_t detections_per_img) {
  check(logits, deltas, anchors, sizes);
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
    cpu::write_retinanet_detections(head, score_thresh, std::min(topk_candidates, most_logits),
                                    nms_thresh, rows, out, kSerial);
  }
  return {boxes, scores, labels, counts};
}

template <typename T>
void bind(py::module_& m) {
  m.def("retinanet_detections", retinanet_detections<T>, py::arg("logits").noconvert(),
        py::arg("deltas").noconvert(), py::arg("anchors").noconvert(), py::arg("sizes").noconvert(),
        py::arg("score_thresh"), py::arg("topk_candidates"), py::arg("nms_thresh"),
        py::arg("detections_per_img"));
}

}  // namespace

void bind_retinanet_detections(py::module_& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace fastdet::python
