// SPDX-License-Identifier: BSD-3-Clause
// The torch op over rpn_proposals.h, where the method is told.
#include "rpn_proposals.h"

#include "../checks.h"
#include "detection_tensors.h"
#include "../host/parallel.h"
#include "pyramid_head.h"

namespace fastdet::cpu {

DetectionTensors rpn_proposals(const std::vector<Tensor>& objectness,
                               const std::vector<Tensor>& deltas, const Tensor& anchors,
                               const Tensor& sizes, int64_t pre_nms_top_n, int64_t post_nms_top_n,
                               double nms_thresh, double score_thresh, double min_size) {
  const char* op = "rpn_proposals";
  check_pyramid_head(op, "objectness", objectness, 2, deltas, anchors, sizes);
  expect_not_negative(op, "pre_nms_top_n", pre_nms_top_n);
  expect_not_negative(op, "post_nms_top_n", post_nms_top_n);
  const PyramidTensors in(objectness, deltas, anchors, sizes);
  const DetectionTensors out = empty_detections(objectness[0], post_nms_top_n);
  dispatch_floating(in.dtype, [&]<typename T>() {
    write_rpn_proposals(pyramid_head<T>(in), pre_nms_top_n, post_nms_top_n, nms_thresh,
                        score_thresh, min_size, detection_rows<Sum<T>>(out), kTorchPool);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("rpn_proposals", TORCH_BOX(&rpn_proposals)); }

}  // namespace fastdet::cpu
