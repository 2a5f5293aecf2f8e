// SPDX-License-Identifier: BSD-3-Clause
// NMS for NumPy arrays, with the same code as the torch operators, and Soft-NMS. Both run on the
// calling thread. O(N) memory.
#include <algorithm>
#include <limits>
#include <utility>

#include "../geometry/threshold.h"
#include "../python/arrays.h"
#include "contract.h"
#include "greedy_nms.h"
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

template <typename T>
std::pair<Array<int64_t>, Array<T>> soft_nms(const Array<T>& boxes, const Array<T>& scores,
                                             double iou_threshold, double sigma,
                                             double score_threshold, cpu::SoftNmsMethod method) {
  check_nms("soft_nms", boxes, scores);
  const T width = std::max(static_cast<T>(sigma), std::numeric_limits<T>::min());
  const cpu::SoftNmsRule<T> rule = {method, static_cast<T>(iou_threshold), width,
                                    static_cast<T>(score_threshold)};
  std::vector<int64_t> keep;
  std::vector<T> kept_scores;
  {
    const py::gil_scoped_release no_gil;
    cpu::SoftNms<T>(boxes_of(boxes), scores.data(), boxes.shape(0), rule).run(keep, kept_scores);
  }
  return {array_of(keep), array_of(kept_scores)};
}

template <typename T>
void bind_type(py::module_& m) {
  m.def("nms", nms<T>, py::arg("boxes").noconvert(), py::arg("scores").noconvert(),
        py::arg("idxs").noconvert(), py::arg("iou_threshold"));
  m.def("soft_nms", soft_nms<T>, py::arg("boxes").noconvert(), py::arg("scores").noconvert(),
        py::arg("iou_threshold"), py::arg("sigma"), py::arg("score_threshold"), py::arg("method"));
}

void bind(py::module_& m) {
  py::enum_<cpu::SoftNmsMethod>(m, "SoftNmsMethod")
      .value("linear", cpu::SoftNmsMethod::kLinear)
      .value("gaussian", cpu::SoftNmsMethod::kGaussian);
  bind_type<float>(m);
  bind_type<double>(m);
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
