// SPDX-License-Identifier: BSD-3-Clause
// The rule that chooses the detections of a dense head. Host and device, no torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "../geometry/box.h"
#include "../geometry/threshold.h"

namespace fastdet {

template <typename S>
struct DetectionRule {
  S logit_bound;      // a candidate's logit is above it; see threshold.h
  int64_t topk;       // candidates of a level
  S min_size;         // the least width and height of a box, in pixels
  S iou_threshold;    // rounded down
  int64_t max_boxes;  // the largest number of boxes kept for an image: D
  bool by_level;      // whether a box's label is its level; else it is its class

  // Boxes of different labels do not suppress each other.
  FASTDET_HOST_DEVICE int64_t label(int64_t level, int64_t of_class) const {
    return by_level ? level : of_class;
  }
};

// For the RPN, a score must be at least score_threshold.
template <typename S>
DetectionRule<S> rpn_rule(int64_t pre_nms_top_n, int64_t post_nms_top_n, double iou_threshold,
                          double score_threshold, double min_size) {
  const S below =
      std::nextafter(static_cast<S>(score_threshold), -std::numeric_limits<S>::infinity());
  return {logit_bound(below),           pre_nms_top_n,  static_cast<S>(min_size),
          round_down<S>(iou_threshold), post_nms_top_n, true};
}

// For RetinaNet, a score must be above score_threshold.
template <typename S>
DetectionRule<S> retinanet_rule(double score_threshold, int64_t topk_candidates,
                                double iou_threshold, int64_t detections_per_img) {
  return {logit_bound(static_cast<S>(score_threshold)),
          topk_candidates,
          -std::numeric_limits<S>::infinity(),
          round_down<S>(iou_threshold),
          detections_per_img,
          false};
}

}  // namespace fastdet
