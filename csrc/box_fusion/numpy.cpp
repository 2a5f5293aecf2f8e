// SPDX-License-Identifier: BSD-3-Clause
// Weighted boxes fusion for NumPy arrays, with the code of the torch operator, on the calling
// thread.
#include "../python/arrays.h"
#include "contract.h"
#include "weighted_boxes_fusion.h"

namespace fastdet::python {

namespace {

template <typename T>
std::tuple<Array<T>, Array<T>, Array<int64_t>> weighted_boxes_fusion(
    const Array<T>& boxes, const Array<T>& scores, const Array<int64_t>& labels,
    const Array<int64_t>& models, const std::vector<double>& weights, double iou_threshold,
    double score_threshold, ConfType conf_type, bool allows_overflow) {
  check_weighted_boxes_fusion(boxes, scores, labels, models);
  const int64_t n = boxes.shape(0);
  check_models(models.data(), n, static_cast<int64_t>(weights.size()));
  const FusionRule rule = {weights, iou_threshold, score_threshold, conf_type, allows_overflow};
  const cpu::FusionInput<T> in = {boxes_of(boxes), scores.data(), labels.data(), models.data(), n};
  std::vector<cpu::FusedBox> fused;
  {
    const py::gil_scoped_release no_gil;
    fused = cpu::fuse_boxes(in, rule, kSerial);
  }
  const auto num_fused = static_cast<py::ssize_t>(fused.size());
  Array<T> boxes_out({num_fused, py::ssize_t(4)}), scores_out(num_fused);
  Array<int64_t> labels_out(num_fused);
  T* const rows = boxes_out.mutable_data();
  for (py::ssize_t i = 0; i < num_fused; ++i) {
    const Box<double>& box = fused[i].box;
    const double sides[] = {box.x1, box.y1, box.x2, box.y2};
    for (int c = 0; c < 4; ++c) rows[4 * i + c] = static_cast<T>(sides[c]);
    scores_out.mutable_data()[i] = static_cast<T>(fused[i].score);
    labels_out.mutable_data()[i] = fused[i].label;
  }
  return {boxes_out, scores_out, labels_out};
}

template <typename T>
void bind_type(py::module_& m) {
  m.def("weighted_boxes_fusion", weighted_boxes_fusion<T>, py::arg("boxes").noconvert(),
        py::arg("scores").noconvert(), py::arg("labels").noconvert(), py::arg("models").noconvert(),
        py::arg("weights"), py::arg("iou_threshold"), py::arg("score_threshold"),
        py::arg("conf_type"), py::arg("allows_overflow"));
}

void bind(py::module_& m) {
  py::enum_<ConfType>(m, "ConfType")
      .value("avg", ConfType::kAvg)
      .value("max", ConfType::kMax)
      .value("box_and_model_avg", ConfType::kBoxAndModelAvg)
      .value("absent_model_aware_avg", ConfType::kAbsentModelAwareAvg);
  bind_type<float>(m);
  bind_type<double>(m);
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
