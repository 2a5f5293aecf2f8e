// SPDX-License-Identifier: BSD-3-Clause
// The torch op over retinanet_detections.h, where the method is told.
#include "retinanet_detections.h"

#include "../checks.h"
#include "detection_tensors.h"
#include "../host/parallel.h"
#include "pyramid_head.h"

namespace fastdet::cpu {

DetectionTensors retinanet_detections(const std::vector<Tensor>& logits,
                                      const std::vector<Tensor>& deltas, const Tensor& anchors,
                                      const Tensor& sizes, double score_thresh,
                                      int64_t topk_candidates, double nms_thresh,
                                      int64_t detections_per_img) {
  const char* op = "retinanet_detections";
  check_pyramid_head(op, "logits", logits, 3, deltas, anchors, sizes);
  expect_not_negative(op, "topk_candidates", topk_candidates);
  expect_not_negative(op, "detections_per_img", detections_per_img);
  const PyramidTensors in(logits, deltas, anchors, sizes);
  const DetectionTensors out = empty_detections(logits[0], detections_per_img);
  dispatch_floating(in.dtype, [&]<typename T>() {
    write_retinanet_detections(pyramid_head<T>(in), score_thresh, topk_candidates, nms_thresh,
                               detections_per_img, detection_rows<Sum<T>>(out), kTorchPool);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("retinanet_detections", TORCH_BOX(&retinanet_detections));
}

}  // namespace fastdet::cpu
