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
  using S = Sum<T>;
  const auto label = [](int64_t, int64_t of_class) { return of_class; };
  const DetectionRule<S> rule = {logit_bound(static_cast<S>(score_thresh)), topk_candidates,
                                 -std::numeric_limits<S>::infinity(), round_down<S>(nms_thresh),
                                 detections_per_img};
  PyramidDetections(head, rule, label, parallel).write(out);
}

}  // namespace fastdet::cpu
