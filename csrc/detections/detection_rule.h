// SPDX-License-Identifier: BSD-3-Clause
// What a dense head's detections are chosen by, the same on host and device: plain C++, no torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "../geometry/box.h"
#include "../geometry/threshold.h"

namespace fastdet {

template <typename S>
struct DetectionRule {
  S logit_bound;      // logits are above it; see threshold.h
  int64_t topk;       // candidates of a level
  S min_size;         // of a box's sides, in pixels
  S nms_thresh;       // rounded down
  int64_t max_boxes;  // kept of an image: D
  bool by_level;      // a box's label is its level, else its class

  // Boxes of different labels never meet.
  FASTDET_HOST_DEVICE int64_t label(int64_t level, int64_t of_class) const {
    return by_level ? level : of_class;
  }
};

// A score is at least score_thresh.
template <typename S>
DetectionRule<S> rpn_rule(int64_t pre_nms_top_n, int64_t post_nms_top_n, double nms_thresh,
                          double score_thresh, double min_size) {
  const S below = std::nextafter(static_cast<S>(score_thresh), -std::numeric_limits<S>::infinity());
  return {logit_bound(below),        pre_nms_top_n,  static_cast<S>(min_size),
          round_down<S>(nms_thresh), post_nms_top_n, true};
}

// A score is above score_thresh.
template <typename S>
DetectionRule<S> retinanet_rule(double score_thresh, int64_t topk_candidates, double nms_thresh,
                                int64_t detections_per_img) {
  return {logit_bound(static_cast<S>(score_thresh)),
          topk_candidates,
          -std::numeric_limits<S>::infinity(),
          round_down<S>(nms_thresh),
          detections_per_img,
          false};
}

}  // namespace fastdet
