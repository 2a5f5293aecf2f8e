// SPDX-License-Identifier: BSD-3-Clause
// RetinaNet's detections: labels are the classes. The method is told in pyramid_detections.cu.
#include "../checks.h"
#include "../device/launch.cuh"
#include "pyramid_detections.cuh"

namespace fastdet::cuda {

DetectionTensors retinanet_detections(const std::vector<Tensor>& logits,
                                      const std::vector<Tensor>& deltas, const Tensor& anchors,
                                      const Tensor& sizes, double score_thresh,
                                      int64_t topk_candidates, double nms_thresh,
                                      int64_t detections_per_img) {
  const char* op = "retinanet_detections";
  check_pyramid_head(op, "logits", logits, 3, deltas, anchors, sizes);
  expect_not_negative(op, "topk_candidates", topk_candidates);
  expect_not_negative(op, "detections_per_img", detections_per_img);
  const DeviceGuard guard(logits[0].get_device_index());
  const PyramidTensors in(logits, deltas, anchors, sizes);
  return dispatch_floating(in.dtype, [&]<typename T>() {
    return pyramid_detections<T>(in, retinanet_rule<RowMaths<T>>(score_thresh, topk_candidates,
                                                                 nms_thresh, detections_per_img));
  });
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("retinanet_detections", TORCH_BOX(&retinanet_detections));
}

}  // namespace fastdet::cuda
