// SPDX-License-Identifier: BSD-3-Clause
// rpn_proposals and retinanet_detections, which differ only in their rule (detection_rule.h): from
// the maps of a dense head to the kept boxes, for all levels of all images at once. The best logits
// of each level are selected (top_logits.cuh), and only those are decoded. Each image is suppressed
// by falling logit, ties by level and index.
//
// The lower bound of the traffic is to read all logits once. Launches for float32: a memset and 3
// for the selection, 1 for decoding, 4 for greedy_nms.cuh, whose last one writes the result: 9 in
// all, or 8 for the half types. (greedy_nms.cuh needs 8 launches for more than 2^15 candidates
// of an image.) None waits for the host. Deltas and anchors are read only for the selected logits.
// Memory: the candidates, O(levels x k) for each image.
#include "../geometry/box_coding.h"
#include "../selection/top_logits.cuh"
#include "candidates.cuh"
#include "contract.h"
#include "detection_rule.h"
#include "tensors.h"

namespace fastdet::cuda {

namespace {

template <typename T>
struct LevelDeltas {
  const T* deltas;  // (B, A_l, 4)
  int64_t image_stride, first_anchor;
};

template <typename T>
struct PyramidHead {
  using S = Sum<T>;

  LogitSegments<T> logits;
  LevelDeltas<T> levels[kMaxLevels];
  const Box<S>* anchors;
  const int64_t* sizes;  // (B, 2)
  int64_t num_classes;
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(PyramidHead<T> in, DetectionRule<Sum<T>> rule, CandidateRows<Sum<T>> out) {
  using S = Sum<T>;
  const Run<T> run = in.logits.run(take_chunk(in.logits));
  if (run.chunk % in.logits.num_chunks == 0 && threadIdx.x == 0)
    out.counts[run.image] = in.logits.num_selected(run.image, in.logits.num_levels);
  const LevelDeltas<T>& level = in.levels[run.level];
  const S height = S(in.sizes[2 * run.image]), width = S(in.sizes[2 * run.image + 1]);
  for_each_selected(in.logits, run, [&](int64_t row, int64_t index, S logit) {
    const int64_t anchor = index / in.num_classes;
    const T* d = level.deltas + run.image * level.image_stride + 4 * anchor;
    const Deltas<S> deltas = {S(d[0]), S(d[1]), S(d[2]), S(d[3])};
    const Box<S> box =
        clip(decode(deltas, in.anchors[level.first_anchor + anchor], {S(1), S(1), S(1), S(1)}),
             width, height);
    const int64_t at = run.image * out.rows + row;
    store_box(out.boxes + at, box);
    out.ranks[at] = has_sides(box, rule.min_size) ? logit : std::numeric_limits<S>::quiet_NaN();
    out.labels[at] = rule.label(run.level, index % in.num_classes);
  });
}

template <typename T>
CandidateTensors best_boxes(const PyramidTensors& in, const DetectionRule<Sum<T>>& rule) {
  const cudaStream_t stream = current_stream(in.anchors);
  TopLogits<T> top(in.logits, rule.topk, rule.logit_bound);
  PyramidHead<T> head = {top.select(stream),
                         {},
                         data<Box<Sum<T>>>(in.anchors),
                         data<int64_t>(in.sizes),
                         in.num_classes()};
  int64_t num_anchors = 0;
  for (size_t l = 0; l < in.deltas.size(); ++l) {
    head.levels[l] = {data<T>(in.deltas[l]), in.deltas[l].stride(0), num_anchors};
    num_anchors += in.deltas[l].size(1);
  }
  const CandidateTensors out(in.logits[0], top.most_selected());
  launch(decode_kernel<T>, top.grid(), dim3(kThreads), 0, stream, head, rule, out.rows<Sum<T>>());
  return out;
}

template <typename T>
DetectionTensors pyramid_detections(const PyramidTensors& in, const DetectionRule<Sum<T>>& rule) {
  return keep_detections(best_boxes<T>(in, rule), Rank::kLogit, rule.iou_threshold, rule.max_boxes);
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
  const DeviceGuard guard(objectness[0].get_device_index());
  const PyramidTensors in(objectness, deltas, anchors, sizes);
  return dispatch_floating(in.dtype, [&]<typename T>() {
    return pyramid_detections<T>(in, rpn_rule<Sum<T>>(pre_nms_top_n, post_nms_top_n, iou_threshold,
                                                      score_threshold, min_size));
  });
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
  const DeviceGuard guard(logits[0].get_device_index());
  const PyramidTensors in(logits, deltas, anchors, sizes);
  return dispatch_floating(in.dtype, [&]<typename T>() {
    return pyramid_detections<T>(in, retinanet_rule<Sum<T>>(score_threshold, topk_candidates,
                                                            iou_threshold, detections_per_img));
  });
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("rpn_proposals", TORCH_BOX(&rpn_proposals));
  m.impl("retinanet_detections", TORCH_BOX(&retinanet_detections));
}

}  // namespace fastdet::cuda
