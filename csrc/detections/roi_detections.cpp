// SPDX-License-Identifier: BSD-3-Clause
// roi_detections for torch tensors; roi_detections.h explains the method.
#include "roi_detections.h"

#include "../host/parallel.h"
#include "contract.h"
#include "tensors.h"

namespace fastdet::cpu {

DetectionTensors roi_detections(const Tensor& logits, const Tensor& deltas, const Tensor& proposals,
                                const std::optional<Tensor>& counts, const Tensor& sizes, double wx,
                                double wy, double ww, double wh, double score_threshold,
                                double iou_threshold, int64_t detections_per_img, double min_size) {
  check_roi_detections(logits, deltas, proposals, counts, sizes, detections_per_img);
  const Tensor logits_in = torch::stable::contiguous(logits);
  const Tensor deltas_in = torch::stable::contiguous(deltas);
  const Tensor proposals_in = box_input(proposals, box_dtype(logits));
  const Tensor sizes_in = torch::stable::contiguous(sizes);
  const std::optional<Tensor> counts_in = contiguous(counts);
  const DetectionTensors out = empty_detections(logits, detections_per_img);
  dispatch_floating(logits.scalar_type(), [&]<typename T>() {
    using S = Sum<T>;
    const RoiHead<T> head = {data<T>(logits_in),
                             data<T>(deltas_in),
                             data<Box<S>>(proposals_in),
                             counts_in ? data<int64_t>(*counts_in) : nullptr,
                             data<int64_t>(sizes_in),
                             logits.size(0),
                             logits.size(1),
                             logits.size(2),
                             {S(wx), S(wy), S(ww), S(wh)}};
    write_roi_detections(head, score_threshold, iou_threshold, detections_per_img, min_size,
                         detection_rows<S>(out), kTorchPool);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("roi_detections", TORCH_BOX(&roi_detections)); }

}  // namespace fastdet::cpu
