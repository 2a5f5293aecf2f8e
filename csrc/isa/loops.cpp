// SPDX-License-Identifier: BSD-3-Clause
// Compiled once per ISA, with FASTDET_ISA = baseline, avx2 or avx512 and that ISA's flags.
// Everything with code lives in the namespace of the ISA or is always inlined: a weak symbol that
// left this object could replace another ISA's copy at link time (`make abi` looks for such).
#include "loops.h"

#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef FASTDET_ISA
#error "loops.cpp is compiled by CMake, once per ISA, with FASTDET_ISA set"
#endif

namespace fastdet::cpu::FASTDET_ISA {

#include "../box_coding/box_coding.loops.h"
#include "../box_iou/box_iou.loops.h"
#include "../box_iou/box_iou_loss.loops.h"
#include "lanes.loops.h"
#include "../masks/mask_rcnn_loss.loops.h"
#include "../matching/match_anchors.loops.h"
#include "../nms/nms.loops.h"
#include "../masks/paste_masks.loops.h"
#include "../roi_align/roi_align.loops.h"
#include "../focal_loss/sigmoid_focal_loss.loops.h"
#include "../nms/soft_nms.loops.h"
#include "../detections/softmax.loops.h"
#include "../selection/top_logits.loops.h"
#include "../network/winograd.loops.h"

// After roi_align.loops.h, whose merges it calls.
#include "../masks/crop_masks.loops.h"

template <typename T>
const BoxLoops<T>& box_loops() {
  static constexpr BoxLoops<T> table = {
      .lanes = kLanesOf<T>,
      .find_overlap = find_overlap<T>,
      .box_iou_row = box_iou_row<T>,
      .box_iou_backward_row = box_iou_backward_row<T>,
      .box_iou_backward_columns = box_iou_backward_columns<T>,
      .box_iou_loss = box_iou_loss<T>,
      .box_iou_loss_backward = box_iou_loss_backward<T>,
      .encode_boxes = encode_boxes<T>,
      .decode_boxes = decode_boxes<T>,
      .decode_boxes_backward = decode_boxes_backward<T>,
      .load_anchors = load_anchors<T>,
      .best_matches = best_matches<T>,
      .find_rescuers = find_rescuers<T>,
      .label_anchors = label_anchors<T>,
      .decay_scores = decay_scores<T>,
  };
  return table;
}

template <typename T>
const FeatureLoops<T>& feature_loops() {
  static constexpr FeatureLoops<T> table = {
      .pool_pixels = pool_pixels<T>,
      .pool_planes = pool_planes<T>,
      .spread_pixels = spread_pixels<T>,
      .spread_planes = spread_planes<T>,
      .sigmoid_focal_loss = sigmoid_focal_loss<T>,
      .sigmoid_focal_loss_backward = sigmoid_focal_loss_backward<T>,
      .find_above = find_above<T>,
      .softmax = softmax<T>,
  };
  return table;
}

template <typename S>
const MaskLoops<S>& mask_loops() {
  static constexpr MaskLoops<S> table = {
      .crop_mask = crop_mask<S>,
      .mask_loss = mask_loss<S>,
      .stretch_row = stretch_row<S>,
      .paste_row = paste_row<S>,
      .paste_row_above = paste_row_above<S>,
      .paste_column_above = paste_column_above<S>,
  };
  return table;
}

const WinogradLoops& winograd_loops() {
  static constexpr WinogradLoops table = {
      .input = winograd_input,
      .output_grad = winograd_output_grad,
      .multiply = winograd_multiply,
      .output = winograd_output,
      .filter = winograd_filter,
      .filter_grad = winograd_filter_grad,
  };
  return table;
}

template const BoxLoops<float>& box_loops();
template const BoxLoops<double>& box_loops();
template const FeatureLoops<float>& feature_loops();
template const FeatureLoops<double>& feature_loops();
template const FeatureLoops<Half>& feature_loops();
template const FeatureLoops<BFloat16>& feature_loops();
template const MaskLoops<float>& mask_loops();
template const MaskLoops<double>& mask_loops();

}  // namespace fastdet::cpu::FASTDET_ISA
