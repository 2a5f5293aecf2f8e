// SPDX-License-Identifier: BSD-3-Clause
// Anchor matching for NumPy arrays: the driver of the torch op on the calling thread.
#include <utility>

#include "anchor_matcher.h"
#include "../python/arrays.h"

namespace fastdet::python {

namespace {

template <typename T>
std::pair<Array<int64_t>, Array<T>> match_anchors(const Array<T>& anchors, const Array<T>& gt_boxes,
                                                  const Array<int64_t>& gt_counts, double high,
                                                  double low, LowQuality low_quality) {
  const char* const op = "match_anchors";
  expect(is_boxes(gt_boxes, 3), op, "gt_boxes", "(B, G, 4)", gt_boxes);
  const int64_t num_images = gt_boxes.shape(0);
  expect(is_boxes(anchors, 2) || (is_boxes(anchors, 3) && anchors.shape(0) == num_images), op,
         "anchors", "(A, 4), or (B, A, 4) with the B of gt_boxes", anchors);
  expect(is_vector(gt_counts, num_images), op, "gt_counts", "(B,) with the B of gt_boxes",
         gt_counts);
  const int64_t num_anchors = anchors.shape(anchors.ndim() - 2);
  Array<int64_t> index({num_images, num_anchors});
  Array<T> iou({num_images, num_anchors});
  const cpu::MatchInput<T> in = {
      boxes_of(anchors),  anchors.ndim() == 3 ? num_anchors : 0,
      boxes_of(gt_boxes), gt_counts.data(),
      num_images,         num_anchors,
      gt_boxes.shape(1),  {static_cast<T>(high), static_cast<T>(low), low_quality}};
  int64_t* index_out = index.mutable_data();
  T* iou_out = iou.mutable_data();
  {
    const py::gil_scoped_release no_gil;
    cpu::match_batch(in, index_out, iou_out, kSerial);
  }
  return {std::move(index), std::move(iou)};
}

template <typename T>
void bind(py::module_& m) {
  m.def("match_anchors", match_anchors<T>, py::arg("anchors").noconvert(),
        py::arg("gt_boxes").noconvert(), py::arg("gt_counts").noconvert(), py::arg("high"),
        py::arg("low"), py::arg("low_quality"));
}

}  // namespace

void bind_match_anchors(py::module_& m) {
  py::enum_<LowQuality>(m, "LowQuality")
      .value("none", LowQuality::kNone)
      .value("anchor_best", LowQuality::kAnchorBest)
      .value("gt_best", LowQuality::kGtBest);
  bind<float>(m);
  bind<double>(m);
}

}  // namespace fastdet::python
