// SPDX-License-Identifier: BSD-3-Clause
// The NMS operators for torch tensors on the GPU; greedy_nms.cuh does the work. The only host sync
// is at the end of nms and batched_nms, whose output length depends on the data.
#include "contract.h"
#include "greedy_nms.cuh"

namespace fastdet::cuda {

namespace {

struct WriteRow {
  int64_t *keep, max_keep;  // (B, max_keep)

  __device__ void operator()(int64_t image, int64_t k, int64_t row) const {
    keep[image * max_keep + k] = row;
  }
};

std::tuple<Tensor, Tensor> padded(const Tensor& boxes, const Tensor& scores, double iou_threshold,
                                  int64_t max_keep, const std::optional<Tensor>& groups,
                                  const std::optional<Tensor>& counts) {
  const auto dtype = box_dtype(boxes);
  const Tensor keep = empty(boxes, {boxes.size(0), max_keep}, kInt64);
  const Tensor keep_counts = empty(boxes, {boxes.size(0)}, kInt64);
  dispatch_box(dtype, [&]<typename T>() {
    greedy_nms<T>(box_input(boxes, dtype), box_input(scores, dtype), iou_threshold, max_keep,
                  contiguous(groups), contiguous(counts), keep_counts,
                  WriteRow{mutable_data<int64_t>(keep), max_keep});
  });
  return {keep, keep_counts};
}

Tensor dynamic(const Tensor& boxes, const Tensor& scores, double iou_threshold,
               const std::optional<Tensor>& idxs) {
  const auto one_image = [](const Tensor& t) { return torch::stable::unsqueeze(t, 0); };
  const auto [keep, counts] =
      padded(one_image(boxes), one_image(scores), iou_threshold, boxes.size(0),
             idxs ? std::optional(one_image(*idxs)) : std::nullopt, std::nullopt);
  int64_t num_kept = 0;
  const cudaStream_t stream = current_stream(boxes);
  STD_CUDA_CHECK(cudaMemcpyAsync(&num_kept, data<int64_t>(counts), sizeof num_kept,
                                 cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  // A view of the first rows, not a copy: that would be one more launch after the wait.
  Tensor row = torch::stable::select(keep, 0, 0);
  return torch::stable::narrow(row, 0, 0, num_kept);
}

}  // namespace

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms("nms", boxes, scores);
  const DeviceGuard guard(boxes.get_device_index());
  return dynamic(boxes, scores, iou_threshold, std::nullopt);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                   double iou_threshold) {
  check_batched_nms("batched_nms", boxes, scores, idxs);
  const DeviceGuard guard(boxes.get_device_index());
  return dynamic(boxes, scores, iou_threshold, idxs);
}

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores,
                                      double iou_threshold, int64_t max_keep,
                                      const std::optional<Tensor>& groups,
                                      const std::optional<Tensor>& counts) {
  check_nms_padded("nms_padded", boxes, scores, max_keep, groups, counts);
  const DeviceGuard guard(boxes.get_device_index());
  return padded(boxes, scores, iou_threshold, max_keep, groups, counts);
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
  m.impl("nms_padded", TORCH_BOX(&nms_padded));
}

}  // namespace fastdet::cuda
