// SPDX-License-Identifier: BSD-3-Clause
// Suppression and merging for NumPy arrays, with the code of the torch operators, on the calling
// thread. O(N) memory.
#include <algorithm>
#include <utility>

#include "../geometry/threshold.h"
#include "../python/arrays.h"
#include "contract.h"
#include "greedy_nms.h"
#include "nmm.h"
#include "soft_nms.h"

namespace fastdet::python {

namespace {

template <typename T>
Array<int64_t> nms(const Array<T>& boxes, const Array<T>& scores,
                   const std::optional<Array<int64_t>>& idxs, double iou_threshold) {
  if (idxs)
    check_batched_nms("batched_nms", boxes, scores, *idxs);
  else
    check_nms("nms", boxes, scores);
  const int64_t n = boxes.shape(0);
  const cpu::NmsInput<T> in = {boxes_of(boxes), scores.data(), idxs ? idxs->data() : nullptr, n};
  std::vector<int64_t> keep(n);
  {
    const py::gil_scoped_release no_gil;
    keep.resize(cpu::greedy_nms(in, round_down<T>(iou_threshold), n, keep.data(), kSerial));
  }
  return array_of(keep);
}

std::optional<Argument> optional_argument(const std::optional<Array<int64_t>>& array) {
  return array ? std::optional<Argument>(*array) : std::nullopt;
}

template <typename T>
std::pair<Array<int64_t>, Array<T>> nmm(const Array<T>& boxes, const Array<T>& scores,
                                        const std::optional<Array<int64_t>>& labels,
                                        double threshold, OverlapMetric metric, bool transitive) {
  check_labelled("nmm", boxes, scores, optional_argument(labels));
  const int64_t n = boxes.shape(0);
  const cpu::NmsInput<T> in = {boxes_of(boxes), scores.data(), labels ? labels->data() : nullptr,
                               n};
  const NmmRule<T> rule = {metric, just_below<T>(threshold), transitive};
  Array<int64_t> index(n);
  Array<T> merged({n, int64_t(4)});
  int64_t* const index_out = index.mutable_data();
  auto* const merged_out = reinterpret_cast<Box<T>*>(merged.mutable_data());
  {
    const py::gil_scoped_release no_gil;
    cpu::merge_boxes(in, rule, index_out, merged_out, kSerial);
  }
  return {index, merged};
}

template <typename T>
std::pair<Array<int64_t>, Array<T>> soft_nms(const Array<T>& boxes, const Array<T>& scores,
                                             const std::optional<Array<int64_t>>& labels,
                                             double iou_threshold, double sigma,
                                             double score_threshold, SoftNmsMethod method) {
  check_labelled("soft_nms", boxes, scores, optional_argument(labels));
  const auto rule = soft_nms_rule<T>(method, iou_threshold, sigma, score_threshold);
  std::vector<int64_t> keep;
  std::vector<T> kept_scores;
  {
    const py::gil_scoped_release no_gil;
    cpu::SoftNms<T> soft_nms(boxes_of(boxes), scores.data(), labels ? labels->data() : nullptr,
                             boxes.shape(0), rule);
    soft_nms.run([&](int64_t row, T score) {
      keep.push_back(row);
      kept_scores.push_back(score);
    });
  }
  return {array_of(keep), array_of(kept_scores)};
}

template <typename T>
void bind_type(py::module_& m) {
  m.def("nms", nms<T>, py::arg("boxes").noconvert(), py::arg("scores").noconvert(),
        py::arg("idxs").noconvert(), py::arg("iou_threshold"));
  m.def("nmm", nmm<T>, py::arg("boxes").noconvert(), py::arg("scores").noconvert(),
        py::arg("labels").noconvert(), py::arg("threshold"), py::arg("metric"),
        py::arg("transitive"));
  m.def("soft_nms", soft_nms<T>, py::arg("boxes").noconvert(), py::arg("scores").noconvert(),
        py::arg("labels").noconvert(), py::arg("iou_threshold"), py::arg("sigma"),
        py::arg("score_threshold"), py::arg("method"));
}

void bind(py::module_& m) {
  py::enum_<OverlapMetric>(m, "OverlapMetric")
      .value("iou", OverlapMetric::kIou)
      .value("ios", OverlapMetric::kIos);
  py::enum_<SoftNmsMethod>(m, "SoftNmsMethod")
      .value("linear", SoftNmsMethod::kLinear)
      .value("gaussian", SoftNmsMethod::kGaussian);
  bind_type<float>(m);
  bind_type<double>(m);
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
