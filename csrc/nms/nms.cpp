// SPDX-License-Identifier: BSD-3-Clause
// The NMS operators for torch tensors on the CPU; greedy_nms.h does the work. Images run in
// parallel.
#include <algorithm>

#include "../geometry/threshold.h"
#include "../host/parallel.h"
#include "contract.h"
#include "greedy_nms.h"

namespace fastdet::cpu {

namespace {

Tensor nms_dynamic(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                   double iou_threshold) {
  const auto dtype = box_dtype(boxes);
  const Tensor boxes_in = box_input(boxes, dtype), scores_in = box_input(scores, dtype);
  const std::optional<Tensor> idxs_in = contiguous(idxs);
  const int64_t n = boxes.size(0);
  const Tensor keep = empty(boxes, {n}, kInt64);
  const int64_t num_kept = dispatch_box(dtype, [&]<typename T>() {
    const NmsInput<T> in = {data<Box<T>>(boxes_in), data<T>(scores_in),
                            idxs_in ? data<int64_t>(*idxs_in) : nullptr, n};
    return greedy_nms(in, round_down<T>(iou_threshold), n, mutable_data<int64_t>(keep), kTorchPool);
  });
  Tensor whole = keep;
  return torch::stable::clone(torch::stable::narrow(whole, 0, 0, num_kept));
}

}  // namespace

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms("nms", boxes, scores);
  return nms_dynamic(boxes, scores, std::nullopt, iou_threshold);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                   double iou_threshold) {
  check_batched_nms("batched_nms", boxes, scores, idxs);
  return nms_dynamic(boxes, scores, idxs, iou_threshold);
}

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores,
                                      double iou_threshold, int64_t max_keep,
                                      const std::optional<Tensor>& groups,
                                      const std::optional<Tensor>& counts) {
  check_nms_padded("nms_padded", boxes, scores, max_keep, groups, counts);
  const auto dtype = box_dtype(boxes);
  const Tensor boxes_in = box_input(boxes, dtype), scores_in = box_input(scores, dtype);
  const std::optional<Tensor> groups_in = contiguous(groups);
  const std::optional<Tensor> counts_in = contiguous(counts);
  const int64_t num_images = boxes.size(0), n = boxes.size(1);
  const Tensor keep = empty(boxes, {num_images, max_keep}, kInt64);
  const Tensor keep_counts = empty(boxes, {num_images}, kInt64);
  dispatch_box(dtype, [&]<typename T>() {
    parallel_for(num_images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t count =
            counts_in ? std::clamp<int64_t>(data<int64_t>(*counts_in)[b], 0, n) : n;
        const NmsInput<T> in = {data<Box<T>>(boxes_in) + b * n, data<T>(scores_in) + b * n,
                                groups_in ? data<int64_t>(*groups_in) + b * n : nullptr, count};
        int64_t* row = mutable_data<int64_t>(keep) + b * max_keep;
        const int64_t num_kept =
            greedy_nms(in, round_down<T>(iou_threshold), max_keep, row, kTorchPool);
        std::fill(row + num_kept, row + max_keep, int64_t(-1));
        mutable_data<int64_t>(keep_counts)[b] = num_kept;
      }
    });
  });
  return {keep, keep_counts};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
  m.impl("nms_padded", TORCH_BOX(&nms_padded));
}

}  // namespace fastdet::cpu
