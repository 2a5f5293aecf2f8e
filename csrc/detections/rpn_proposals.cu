// SPDX-License-Identifier: BSD-3-Clause
// The proposals of an RPN: labels are the levels. The method is told in pyramid_detections.cu.
#include "../checks.h"
#include "../device/launch.cuh"
#include "pyramid_detections.cuh"

namespace fastdet::cuda {

DetectionTensors rpn_proposals(const std::vector<Tensor>& objectness,
                               const std::vector<Tensor>& deltas, const Tensor& anchors,
                               const Tensor& sizes, int64_t pre_nms_top_n, int64_t post_nms_top_n,
                               double nms_thresh, double score_thresh, double min_size) {
  const char* op = "rpn_proposals";
  check_pyramid_head(op, "objectness", objectness, 2, deltas, anchors, sizes);
  expect_not_negative(op, "pre_nms_top_n", pre_nms_top_n);
  expect_not_negative(op, "post_nms_top_n", post_nms_top_n);
  const DeviceGuard guard(objectness[0].get_device_index());
  const PyramidTensors in(objectness, deltas, anchors, sizes);
  return dispatch_floating(in.dtype, [&]<typename T>() {
    return pyramid_detections<T>(in, rpn_rule<RowMaths<T>>(pre_nms_top_n, post_nms_top_n,
                                                           nms_thresh, score_thresh, min_size));
  });
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) { m.impl("rpn_proposals", TORCH_BOX(&rpn_proposals)); }

}  // namespace fastdet::cuda
