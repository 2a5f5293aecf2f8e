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
  const auto rule =
      rpn_rule<Sum<T>>(pre_nms_top_n, post_nms_top_n, nms_thresh, score_thresh, min_size);
  PyramidDetections(head, rule, parallel).write(out);
}

}  // namespace fastdet::cpu
