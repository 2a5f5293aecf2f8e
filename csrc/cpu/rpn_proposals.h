// SPDX-License-Identifier: BSD-3-Clause
// The proposals of an RPN over raw pointers: the best anchors of each level by objectness, those
// with a side too short dropped, suppression by level, labels are the levels. Plain C++, no torch.
#pragma once

#include "pyramid_detections.h"

namespace fastdet::cpu {

// A score is at least score_thresh, a side at least min_size. head.num_classes is 1.
// `parallel(n, grain, body)` calls body(begin, end) over pieces of [0, n).
template <typename T, typename Parallel>
void write_rpn_proposals(const PyramidHead<T>& head, int64_t pre_nms_top_n, int64_t post_nms_top_n,
                         double nms_thresh, double score_thresh, double min_size,
                         const DetectionRows<Sum<T>>& out, const Parallel& parallel) {
  using S = Sum<T>;
  const auto label = [](int64_t level, int64_t) { return level; };
  const S below = std::nextafter(static_cast<S>(score_thresh), -std::numeric_limits<S>::infinity());
  const DetectionRule<S> rule = {logit_bound(below), pre_nms_top_n, static_cast<S>(min_size),
                                 round_down<S>(nms_thresh), post_nms_top_n};
  PyramidDetections(head, rule, label, parallel).write(out);
}

}  // namespace fastdet::cpu
