// SPDX-License-Identifier: BSD-3-Clause
// The label of an anchor, given its best ground-truth box (gt), and the low-quality rules, by which
// a gt rescues the anchors that have its best IoU, even below `high`. Host and device, no torch.
#pragma once

#include "../geometry/box.h"

namespace fastdet {

enum class LowQuality { kNone, kAnchorBest, kGtBest };

// The label of a usable anchor: best_iou is its IoU with best_gt, its best gt. rescuer is a gt
// whose own best IoU is the one with this anchor, or negative.
template <typename T>
struct MatchRule {
  T high, low;
  LowQuality low_quality;

  FASTDET_HOST_DEVICE int64_t label(T best_iou, int64_t best_gt, int64_t rescuer) const {
    if (rescuer >= 0) return low_quality == LowQuality::kGtBest ? rescuer : best_gt;
    return best_iou >= high ? best_gt : best_iou >= low ? -2 : -1;
  }

  // The IoU with a gt at which an anchor is rescued, given the gt's best IoU. -1 means never.
  FASTDET_HOST_DEVICE T rescue_iou(T gt_best_iou) const {
    return low_quality == LowQuality::kGtBest && !(gt_best_iou > T(0)) ? T(-1) : gt_best_iou;
  }
};

}  // namespace fastdet
