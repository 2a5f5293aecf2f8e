// SPDX-License-Identifier: BSD-3-Clause
// Anchor matching for NumPy arrays: the code of the torch operator, on the calling thread.
#include <utility>

#include "../python/arrays.h"
#include "anchor_matcher.h"
#include "contract.h"

namespace fastdet::python {

namespace {

template <typename T>
std::pair<Array<int64_t>, Array<T>> match_anchors(const Array<T>& anchors, const Array<T>& gt_boxes,
                                                  const Array<int64_t>& gt_counts, double high,
                                                  double low, LowQuality low_quality) {
  check_match_anchors(anchors, gt_boxes, gt_counts);
  const int64_t num_images = gt_boxes.shape(0);
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
void bind_type(py::module_& m) {
  m.def("match_anchors", match_anchors<T>, py::arg("anchors").noconvert(),
        py::arg("gt_boxes").noconvert(), py::arg("gt_counts").noconvert(), py::arg("high"),
        py::arg("low"), py::arg("low_quality"));
}

void bind(py::module_& m) {
  py::enum_<LowQuality>(m, "LowQuality")
      .value("none", LowQuality::kNone)
      .value("anchor_best", LowQuality::kAnchorBest)
      .value("gt_best", LowQuality::kGtBest);
  bind_type<float>(m);
  bind_type<double>(m);
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
