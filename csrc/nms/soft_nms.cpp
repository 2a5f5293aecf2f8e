// SPDX-License-Identifier: BSD-3-Clause
// Soft-NMS for torch tensors on the CPU; soft_nms.h does the work, on the calling thread.
#include "soft_nms.h"

#include <algorithm>

#include "../torch.h"
#include "contract.h"

namespace fastdet::cpu {

std::tuple<Tensor, Tensor, Tensor> soft_nms(const Tensor& boxes, const Tensor& scores,
                                            const std::optional<Tensor>& labels,
                                            double iou_threshold, double sigma,
                                            double score_threshold, const std::string& method) {
  check_labelled("soft_nms", boxes, scores, labels);
  const SoftNmsMethod own_method = parse_soft_nms_method(method);
  const auto dtype = box_dtype(boxes);
  const Tensor boxes_in = box_input(boxes, dtype), scores_in = box_input(scores, dtype);
  const std::optional<Tensor> labels_in = contiguous(labels);
  const int64_t n = boxes.size(0);
  const Tensor keep = empty(boxes, {n}, kInt64), kept_scores = empty(boxes, {n}, dtype);
  const Tensor count = empty(boxes, {}, kInt64);
  dispatch_box(dtype, [&]<typename T>() {
    const auto rule = soft_nms_rule<T>(own_method, iou_threshold, sigma, score_threshold);
    int64_t* const rows = mutable_data<int64_t>(keep);
    T* const left = mutable_data<T>(kept_scores);
    int64_t k = 0;
    SoftNms<T>(data<Box<T>>(boxes_in), data<T>(scores_in),
               labels_in ? data<int64_t>(*labels_in) : nullptr, n, rule)
        .run([&](int64_t row, T score) {
          rows[k] = row;
          left[k++] = score;
        });
    std::fill(rows + k, rows + n, int64_t(-1));
    std::fill(left + k, left + n, T(0));
    *mutable_data<int64_t>(count) = k;
  });
  return {keep, kept_scores, count};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("soft_nms", TORCH_BOX(&soft_nms)); }

}  // namespace fastdet::cpu
