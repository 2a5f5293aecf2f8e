// SPDX-License-Identifier: BSD-3-Clause
// rpn_proposals and retinanet_detections, which differ only in their rule (detection_rule.h).
// pyramid_detections.h explains the method.
#include "pyramid_detections.h"

#include "../host/parallel.h"
#include "contract.h"
#include "tensors.h"

namespace fastdet::cpu {

namespace {

template <typename T>
PyramidHead<T> pyramid_head(const PyramidTensors& in) {
  PyramidHead<T> head = {{},
                         data<Box<Sum<T>>>(in.anchors),
                         data<int64_t>(in.sizes),
                         in.num_images(),
                         in.num_classes()};
  for (size_t l = 0; l < in.logits.size(); ++l)
    head.levels.push_back({data<T>(in.logits[l]), data<T>(in.deltas[l]), in.logits[l].size(1),
                           in.logits[l].stride(0), in.deltas[l].stride(0)});
  return head;
}

}  // namespace

DetectionTensors rpn_proposals(const std::vector<Tensor>& objectness,
                               const std::vector<Tensor>& deltas, const Tensor& anchors,
                               const Tensor& sizes, int64_t pre_nms_top_n, int64_t post_nms_top_n,
                               double iou_threshold, double score_threshold, double min_size) {
  const char* op = "rpn_proposals";
  check_pyramid_head(op, "objectness", arguments(objectness), 2, arguments(deltas), anchors, sizes);
  expect_not_negative(op, "pre_nms_top_n", pre_nms_top_n);
  expect_not_negative(op, "post_nms_top_n", post_nms_top_n);
  const PyramidTensors in(objectness, deltas, anchors, sizes);
  const DetectionTensors out = empty_detections(objectness[0], post_nms_top_n);
  dispatch_floating(in.dtype, [&]<typename T>() {
    const auto rule =
        rpn_rule<Sum<T>>(pre_nms_top_n, post_nms_top_n, iou_threshold, score_threshold, min_size);
    PyramidDetections(pyramid_head<T>(in), rule, kTorchPool).write(detection_rows<Sum<T>>(out));
  });
  return out;
}

DetectionTensors retinanet_detections(const std::vector<Tensor>& logits,
                                      const std::vector<Tensor>& deltas, const Tensor& anchors,
                                      const Tensor& sizes, double score_threshold,
                                      int64_t topk_candidates, double iou_threshold,
                                      int64_t detections_per_img) {
  const char* op = "retinanet_detections";
  check_pyramid_head(op, "logits", arguments(logits), 3, arguments(deltas), anchors, sizes);
  expect_not_negative(op, "topk_candidates", topk_candidates);
  expect_not_negative(op, "detections_per_img", detections_per_img);
  const PyramidTensors in(logits, deltas, anchors, sizes);
  const DetectionTensors out = empty_detections(logits[0], detections_per_img);
  dispatch_floating(in.dtype, [&]<typename T>() {
    const auto rule =
        retinanet_rule<Sum<T>>(score_threshold, topk_candidates, iou_threshold, detections_per_img);
    PyramidDetections(pyramid_head<T>(in), rule, kTorchPool).write(detection_rows<Sum<T>>(out));
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("rpn_proposals", TORCH_BOX(&rpn_proposals));
  m.impl("retinanet_detections", TORCH_BOX(&retinanet_detections));
}

}  // namespace fastdet::cpu
