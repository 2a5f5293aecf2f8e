// SPDX-License-Identifier: BSD-3-Clause
// RetinaNet's detections over raw pointers: any class of any anchor whose score is above the
// threshold, suppression by class, labels are the classes. Plain C++, no torch.
#pragma once

#include "pyramid_detections.h"

namespace fastdet::cpu {

// `parallel(n, grain, body)` calls body(begin, end) over pieces of [0, n).
template <typename T, typename Parallel>
void write_retinanet_detections(const PyramidHead<T>& head, double score_thresh,
                                int64_t topk_candidates, double nms_thresh,
                                int64_t detections_per_img, const DetectionRows<Sum<T>>& out,
                                const Parallel& parallel) {
  const auto rule =
      retinanet_rule<Sum<T>>(score_thresh, topk_candidates, nms_thresh, detections_per_img);
  PyramidDetections(head, rule, parallel).write(out);
}

}  // namespace fastdet::cpu
