// SPDX-License-Identifier: BSD-3-Clause
// The input contract of each op, called by both backends before memory is touched: shape, dtype,
// device. What a value means (ranges, enums) is checked in Python, in fastdet/ops.
#pragma once

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>

#include "geometry/bilinear.h"
#include "geometry/box_iou.h"
#include "matching/match_rule.h"
#include "torch.h"
#include "network/winograd_filters.h"

namespace fastdet {

inline std::string describe(const Tensor& tensor) {
  std::ostringstream text;
  text << torch::headeronly::toString(tensor.scalar_type()) << " (";
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << ") on " << (tensor.is_cuda() ? "cuda:" : tensor.is_cpu() ? "cpu" : "device ");
  if (!tensor.is_cpu()) text << tensor.get_device_index();
  return text.str();
}

// "fastdet::nms: boxes: expected floating (N, 4), got Float (3, 5) on cpu"
[[noreturn]] inline void refuse(const char* op, const char* argument, const std::string& expected,
                                const std::string& actual) {
  throw std::runtime_error("fastdet::" + std::string(op) + ": " + argument + ": expected " +
                           expected + ", got " + actual);
}

inline void expect(bool holds, const char* op, const char* argument, const char* expected,
                   const Tensor& actual) {
  if (!holds) refuse(op, argument, expected, describe(actual));
}

inline bool is_floating(const Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  return dtype == kFloat32 || dtype == kFloat64 || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

inline bool is_boxes(const Tensor& tensor, int64_t dim) {
  return is_floating(tensor) && tensor.dim() == dim && tensor.size(dim - 1) == 4;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.is_cpu() == b.is_cpu() &&
         a.get_device_index() == b.get_device_index();
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) same = a.size(d) == b.size(d);
  return same;
}

inline void expect_same_device(const char* op, const char* argument, const Tensor& actual,
                               const Tensor& boxes) {
  expect(same_device(actual, boxes), op, argument, "the device of the first argument", actual);
}

// ---- nms ----------------------------------------------------------------------------------------

inline void check_nms(const char* op, const Tensor& boxes, const Tensor& scores) {
  expect(is_boxes(boxes, 2), op, "boxes", "floating (N, 4)", boxes);
  expect(is_floating(scores) && scores.dim() == 1 && scores.size(0) == boxes.size(0), op, "scores",
         "floating (N,) with the N of boxes", scores);
  expect_same_device(op, "scores", scores, boxes);
}

inline void check_batched_nms(const char* op, const Tensor& boxes, const Tensor& scores,
                              const Tensor& idxs) {
  check_nms(op, boxes, scores);
  expect(idxs.scalar_type() == kInt64 && idxs.dim() == 1 && idxs.size(0) == boxes.size(0), op,
         "idxs", "int64 (N,) with the N of boxes", idxs);
  expect_same_device(op, "idxs", idxs, boxes);
}

inline void check_nms_padded(const char* op, const Tensor& boxes, const Tensor& scores,
                             int64_t max_keep, const std::optional<Tensor>& groups,
                             const std::optional<Tensor>& counts) {
  expect(is_boxes(boxes, 3), op, "boxes", "floating (B, N, 4)", boxes);
  const auto fits = [&](const Tensor& t) {
    return t.dim() == 2 && t.size(0) == boxes.size(0) && t.size(1) == boxes.size(1);
  };
  expect(is_floating(scores) && fits(scores), op, "scores",
         "floating (B, N) with the B and N of boxes", scores);
  expect_same_device(op, "scores", scores, boxes);
  if (max_keep < 0) refuse(op, "max_keep", "a number >= 0", std::to_string(max_keep));
  if (groups) {
    expect(groups->scalar_type() == kInt64 && fits(*groups), op, "groups",
           "int64 (B, N) with the B and N of boxes", *groups);
    expect_same_device(op, "groups", *groups, boxes);
  }
  if (counts) {
    expect(
        counts->scalar_type() == kInt64 && counts->dim() == 1 && counts->size(0) == boxes.size(0),
        op, "counts", "int64 (B,) with the B of boxes", *counts);
    expect_same_device(op, "counts", *counts, boxes);
  }
}

// ---- box_coding ---------------------------------------------------------------------------------

// Shape, dtype and device of `like`, by any strides: an expanded view is fine.
inline void check_rows_like(const char* op, const char* argument, const Tensor& rows,
                            const Tensor& like) {
  bool fits = rows.scalar_type() == like.scalar_type() && rows.dim() == like.dim();
  for (int64_t d = 0; fits && d < rows.dim(); ++d) fits = rows.size(d) == like.size(d);
  expect(fits, op, argument, "the shape and dtype of the first argument", rows);
  expect_same_device(op, argument, rows, like);
}

inline void check_rows(const char* op, const char* argument, const Tensor& rows) {
  expect(rows.dim() >= 1 && rows.dim() <= 9 && is_boxes(rows, rows.dim()), op, argument,
         "floating (..., 4) of at most 9 dimensions", rows);
}

inline void check_encode_boxes(const Tensor& boxes, const Tensor& anchors) {
  check_rows("encode_boxes", "boxes", boxes);
  check_rows_like("encode_boxes", "anchors", anchors, boxes);
}

inline void check_decode_boxes(const char* op, const Tensor& deltas, const Tensor& anchors,
                               const std::optional<Tensor>& sizes) {
  check_rows(op, "deltas", deltas);
  check_rows_like(op, "anchors", anchors, deltas);
  if (!sizes) return;
  expect(sizes->scalar_type() == kInt64 && sizes->dim() == 2 && deltas.dim() >= 2 &&
             sizes->size(0) == deltas.size(0) && sizes->size(1) == 2,
         op, "sizes", "int64 (B, 2) with the B of deltas (B, ..., 4)", *sizes);
  expect_same_device(op, "sizes", *sizes, deltas);
}

// ---- box_iou ------------------------------------------------------------------------------------

inline void check_box_iou(const char* op, const Tensor& boxes1, const Tensor& boxes2) {
  expect(is_boxes(boxes1, 2) || is_boxes(boxes1, 3), op, "boxes1", "floating (N, 4) or (B, N, 4)",
         boxes1);
  expect(is_boxes(boxes2, boxes1.dim()) && (boxes1.dim() == 2 || boxes1.size(0) == boxes2.size(0)),
         op, "boxes2", "floating (M, 4), or (B, M, 4) with the B of boxes1", boxes2);
  expect_same_device(op, "boxes2", boxes2, boxes1);
}

inline void check_box_iou_backward(const char* op, const Tensor& grad, const Tensor& boxes1,
                                   const Tensor& boxes2) {
  check_box_iou(op, boxes1, boxes2);
  const int64_t dim = boxes1.dim();
  expect(grad.scalar_type() == box_dtype(boxes1, boxes2) && grad.dim() == dim &&
             grad.size(dim - 2) == boxes1.size(dim - 2) &&
             grad.size(dim - 1) == boxes2.size(dim - 2) &&
             (dim == 2 || grad.size(0) == boxes1.size(0)),
         op, "grad", "one number for each pair, of the dtype of the IoU", grad);
  expect_same_device(op, "grad", grad, boxes1);
}

inline IouKind iou_kind(const char* op, const std::string& kind) {
  if (kind == "iou") return IouKind::kIou;
  if (kind == "generalized") return IouKind::kGeneralized;
  if (kind == "distance") return IouKind::kDistance;
  if (kind == "complete") return IouKind::kComplete;
  refuse(op, "kind", "iou, generalized, distance or complete", "'" + kind + "'");
}

// ---- roi_align ----------------------------------------------------------------------------------

inline void check_features(const char* op, const char* argument, const Tensor& features) {
  expect(
      is_floating(features) && features.dim() == 4 && features.size(2) > 0 && features.size(3) > 0,
      op, argument, "floating (B, C, H, W) with H and W above 0", features);
}

inline void check_rois(const char* op, const Tensor& rois, const Tensor& first) {
  expect(is_floating(rois) && rois.dim() == 2 && rois.size(1) == 5, op, "rois", "floating (K, 5)",
         rois);
  expect_same_device(op, "rois", rois, first);
}

inline void check_roi_align(const char* op, const Tensor& input, const Tensor& rois) {
  check_features(op, "input", input);
  check_rois(op, rois, input);
}

inline void check_roi_align_backward(const char* op, const Tensor& grad, const Tensor& rois,
                                     int64_t channels) {
  check_rois(op, rois, grad);
  expect(is_floating(grad) && grad.dim() == 4 && grad.size(0) == rois.size(0) &&
             grad.size(1) == channels,
         op, "grad", "floating (K, C, h, w) with the K of rois and the C of the input", grad);
}

inline void check_padded_boxes(const char* op, const Tensor& boxes, int64_t num_images,
                               const std::optional<Tensor>& counts, const Tensor& first) {
  expect(is_boxes(boxes, 3) && boxes.size(0) == num_images, op, "boxes",
         "floating (B, K, 4) with the B of the features", boxes);
  expect_same_device(op, "boxes", boxes, first);
  if (!counts) return;
  expect(counts->scalar_type() == kInt64 && counts->dim() == 1 && counts->size(0) == boxes.size(0),
         op, "counts", "int64 (B,) with the B of boxes", *counts);
  expect_same_device(op, "counts", *counts, first);
}

inline void check_levels(const char* op, size_t num_levels, size_t num_scales) {
  if (num_levels < 1 || num_levels > kMaxLevels)
    refuse(op, "features", "1 to " + std::to_string(kMaxLevels) + " levels",
           std::to_string(num_levels));
  if (num_scales != num_levels)
    refuse(op, "scales", "one a level, " + std::to_string(num_levels), std::to_string(num_scales));
}

inline void check_multiscale_roi_align(const char* op, const std::vector<Tensor>& features,
                                       const Tensor& boxes, const std::optional<Tensor>& counts,
                                       size_t num_scales) {
  check_levels(op, features.size(), num_scales);
  const Tensor& first = features[0];
  for (const Tensor& level : features) {
    check_features(op, "features", level);
    expect(level.scalar_type() == first.scalar_type() && level.size(0) == first.size(0) &&
               level.size(1) == first.size(1),
           op, "features", "the dtype, B and C of the first level", level);
    expect_same_device(op, "features", level, first);
  }
  check_padded_boxes(op, boxes, first.size(0), counts, first);
}

inline void check_multiscale_roi_align_backward(const char* op, const Tensor& grad,
                                                const Tensor& boxes,
                                                const std::optional<Tensor>& counts,
                                                size_t num_heights, size_t num_widths,
                                                size_t num_scales) {
  check_levels(op, num_heights, num_scales);
  check_levels(op, num_widths, num_scales);
  check_padded_boxes(op, boxes, boxes.dim() > 0 ? boxes.size(0) : 0, counts, grad);
  expect(is_floating(grad) && grad.dim() == 5 && grad.size(0) == boxes.size(0) &&
             grad.size(1) == boxes.size(1),
         op, "grad", "floating (B, K, C, h, w) with the B and K of boxes", grad);
}

// ---- match_anchors ------------------------------------------------------------------------------

inline void check_match_anchors(const Tensor& anchors, const Tensor& gt_boxes,
                                const Tensor& gt_counts) {
  const char* op = "match_anchors";
  expect(is_boxes(gt_boxes, 3), op, "gt_boxes", "floating (B, G, 4)", gt_boxes);
  expect(is_boxes(anchors, 2) || (is_boxes(anchors, 3) && anchors.size(0) == gt_boxes.size(0)), op,
         "anchors", "floating (A, 4), or (B, A, 4) with the B of gt_boxes", anchors);
  expect_same_device(op, "gt_boxes", gt_boxes, anchors);
  expect(gt_counts.scalar_type() == kInt64 && gt_counts.dim() == 1 &&
             gt_counts.size(0) == gt_boxes.size(0),
         op, "gt_counts", "int64 (B,) with the B of gt_boxes", gt_counts);
  expect_same_device(op, "gt_counts", gt_counts, anchors);
}

inline LowQuality parse_low_quality(const std::string& name) {
  if (name == "none") return LowQuality::kNone;
  if (name == "anchor_best") return LowQuality::kAnchorBest;
  if (name == "gt_best") return LowQuality::kGtBest;
  refuse("match_anchors", "low_quality", "anchor_best, gt_best or none", "'" + name + "'");
}

// ---- sample_matches -----------------------------------------------------------------------------

inline void check_sample_matches(const Tensor& index, const Tensor& keys, int64_t num) {
  const char* op = "sample_matches";
  expect(index.scalar_type() == kInt64 && index.dim() == 2, op, "index", "int64 (B, A)", index);
  expect(keys.scalar_type() == kFloat32 && keys.dim() == 2 && keys.size(0) == index.size(0) &&
             keys.size(1) == index.size(1),
         op, "keys", "float32 (B, A) with the B and A of index", keys);
  expect_same_device(op, "keys", keys, index);
  if (num < 0) refuse(op, "num", "a number >= 0", std::to_string(num));
}

// The most positives among num samples, rounded down as Python's int() does.
inline int64_t sample_positives(int64_t num, double positive_fraction) {
  return static_cast<int64_t>(static_cast<double>(num) * positive_fraction);
}

// ---- rpn_proposals, retinanet_detections --------------------------------------------------------

// `logits` is the argument's name; each level of it is (B, A_l), or (B, A_l, C) where `dim` is 3.
inline void check_pyramid_head(const char* op, const char* argument,
                               const std::vector<Tensor>& logits, int64_t dim,
                               const std::vector<Tensor>& deltas, const Tensor& anchors,
                               const Tensor& sizes) {
  if (logits.empty() || logits.size() > kMaxLevels)
    refuse(op, argument, "1 to " + std::to_string(kMaxLevels) + " levels",
           std::to_string(logits.size()));
  if (deltas.size() != logits.size())
    refuse(op, "deltas", "one a level, " + std::to_string(logits.size()),
           std::to_string(deltas.size()));
  const Tensor& first = logits[0];
  int64_t num_anchors = 0;
  for (size_t l = 0; l < logits.size(); ++l) {
    const Tensor &level = logits[l], &own = deltas[l];
    expect(is_floating(level) && level.dim() == dim, op, argument,
           dim == 3 ? "floating (B, A, C) for each level" : "floating (B, A) for each level",
           level);
    expect(level.scalar_type() == first.scalar_type() && level.size(0) == first.size(0) &&
               (dim == 2 || level.size(2) == first.size(2)),
           op, argument, "the dtype, B and C of the first level", level);
    expect_same_device(op, argument, level, first);
    expect(own.scalar_type() == first.scalar_type() && own.dim() == 3 &&
               own.size(0) == first.size(0) && own.size(1) == level.size(1) && own.size(2) == 4,
           op, "deltas", "(B, A, 4) with the dtype, B and A of the level's logits", own);
    expect_same_device(op, "deltas", own, first);
    num_anchors += level.size(1);
  }
  expect(is_boxes(anchors, 2) && anchors.size(0) == num_anchors, op, "anchors",
         "floating (A, 4), A counting all levels", anchors);
  expect_same_device(op, "anchors", anchors, first);
  expect(sizes.scalar_type() == kInt64 && sizes.dim() == 2 && sizes.size(0) == first.size(0) &&
             sizes.size(1) == 2,
         op, "sizes", "int64 (B, 2) with the B of the first level", sizes);
  expect_same_device(op, "sizes", sizes, first);
}

inline void expect_not_negative(const char* op, const char* argument, int64_t number) {
  if (number < 0) refuse(op, argument, "a number >= 0", std::to_string(number));
}

// ---- roi_detections -----------------------------------------------------------------------------

inline void check_roi_detections(const Tensor& logits, const Tensor& deltas,
                                 const Tensor& proposals, const std::optional<Tensor>& counts,
                                 const Tensor& sizes, int64_t detections_per_img) {
  const char* op = "roi_detections";
  expect(is_floating(logits) && logits.dim() == 3 && logits.size(2) > 0, op, "logits",
         "floating (B, K, C) with C above 0", logits);
  const auto per_roi = [&](const Tensor& t, int64_t dim) {
    return t.dim() == dim && t.size(0) == logits.size(0) && t.size(1) == logits.size(1) &&
           t.size(dim - 1) == 4;
  };
  expect(deltas.scalar_type() == logits.scalar_type() && per_roi(deltas, 4) &&
             deltas.size(2) == logits.size(2),
         op, "deltas", "(B, K, C, 4) with the dtype, B, K and C of logits", deltas);
  expect(is_floating(proposals) && per_roi(proposals, 3), op, "proposals",
         "floating (B, K, 4) with the B and K of logits", proposals);
  expect(sizes.scalar_type() == kInt64 && sizes.dim() == 2 && sizes.size(0) == logits.size(0) &&
             sizes.size(1) == 2,
         op, "sizes", "int64 (B, 2) with the B of logits", sizes);
  expect_same_device(op, "deltas", deltas, logits);
  expect_same_device(op, "proposals", proposals, logits);
  expect_same_device(op, "sizes", sizes, logits);
  if (counts) {
    expect(
        counts->scalar_type() == kInt64 && counts->dim() == 1 && counts->size(0) == logits.size(0),
        op, "counts", "int64 (B,) with the B of logits", *counts);
    expect_same_device(op, "counts", *counts, logits);
  }
  expect_not_negative(op, "detections_per_img", detections_per_img);
}

// ---- box_iou_loss -------------------------------------------------------------------------------

inline void check_box_iou_loss(const char* op, const Tensor& boxes1, const Tensor& boxes2) {
  expect(boxes1.dim() > 0 && is_boxes(boxes1, boxes1.dim()), op, "boxes1", "floating (..., 4)",
         boxes1);
  expect(is_floating(boxes2) && same_shape(boxes2, boxes1), op, "boxes2",
         "floating, with the shape of boxes1", boxes2);
  expect_same_device(op, "boxes2", boxes2, boxes1);
}

inline void check_box_iou_loss_backward(const char* op, const Tensor& grad, const Tensor& boxes1,
                                        const Tensor& boxes2) {
  check_box_iou_loss(op, boxes1, boxes2);
  bool fits = grad.dim() == boxes1.dim() - 1;
  for (int64_t d = 0; fits && d < grad.dim(); ++d) fits = grad.size(d) == boxes1.size(d);
  expect(fits && grad.scalar_type() == box_dtype(boxes1, boxes2), op, "grad",
         "one number for each row, of the dtype of the loss", grad);
  expect_same_device(op, "grad", grad, boxes1);
}

// ---- sigmoid_focal_loss -------------------------------------------------------------------------

constexpr int64_t kIgnoredLabel = -2;

inline void check_sigmoid_focal_loss(const char* op, const Tensor& inputs, const Tensor& targets) {
  expect(is_floating(inputs), op, "inputs", "floating of any shape", inputs);
  bool labels = targets.scalar_type() == kInt64 && targets.dim() + 1 == inputs.dim();
  for (int64_t d = 0; labels && d < targets.dim(); ++d) labels = targets.size(d) == inputs.size(d);
  expect(labels || (is_floating(targets) && same_shape(targets, inputs)), op, "targets",
         "floating with the shape of inputs, or int64 with that shape less its last dimension",
         targets);
  expect_same_device(op, "targets", targets, inputs);
}

inline void check_sigmoid_focal_loss_backward(const char* op, const Tensor& grad,
                                              const Tensor& inputs, const Tensor& targets) {
  check_sigmoid_focal_loss(op, inputs, targets);
  expect(grad.scalar_type() == box_dtype(inputs) && same_shape(grad, inputs), op, "grad",
         "one number for each logit, of the dtype of the loss", grad);
  expect_same_device(op, "grad", grad, inputs);
}

// ---- crop_masks, mask_rcnn_loss -----------------------------------------------------------------

inline void check_matched_masks(const char* op, const Tensor& masks, const Tensor& boxes,
                                const Tensor& match) {
  expect((masks.scalar_type() == kBool || masks.scalar_type() == ScalarType::Byte) &&
             masks.dim() == 4 && masks.size(2) > 0 && masks.size(3) > 0,
         op, "masks", "bool or uint8 (B, G, H, W) with H and W above 0", masks);
  expect(is_boxes(boxes, 3) && boxes.size(0) == masks.size(0), op, "boxes",
         "floating (B, K, 4) with the B of masks", boxes);
  expect(match.scalar_type() == kInt64 && match.dim() == 2 && match.size(0) == boxes.size(0) &&
             match.size(1) == boxes.size(1),
         op, "match", "int64 (B, K) with the B and K of boxes", match);
  expect_same_device(op, "boxes", boxes, masks);
  expect_same_device(op, "match", match, masks);
}

inline void check_crop_masks(const char* op, const Tensor& masks, const Tensor& boxes,
                             const Tensor& match, int64_t height, int64_t width) {
  check_matched_masks(op, masks, boxes, match);
  if (height < 1 || width < 1)
    refuse(op, "output_size", "numbers above 0", std::to_string(std::min(height, width)));
}

inline void check_mask_rcnn_loss(const char* op, const Tensor& logits, const Tensor& labels,
                                 const Tensor& masks, const Tensor& boxes, const Tensor& match) {
  expect(is_floating(logits) && logits.dim() == 5 && logits.size(3) > 0 && logits.size(4) > 0, op,
         "logits", "floating (B, K, C, h, w) with h and w above 0", logits);
  check_matched_masks(op, masks, boxes, match);
  expect(boxes.size(0) == logits.size(0) && boxes.size(1) == logits.size(1), op, "boxes",
         "floating (B, K, 4) with the B and K of logits", boxes);
  expect(labels.scalar_type() == kInt64 && same_shape(labels, match), op, "labels",
         "int64 (B, K) with the B and K of logits", labels);
  expect_same_device(op, "labels", labels, logits);
  expect_same_device(op, "masks", masks, logits);
}

inline void check_mask_rcnn_loss_backward(const char* op, const Tensor& grad,
                                          const Tensor& residual, const Tensor& labels,
                                          const Tensor& count, int64_t channels) {
  expect(
      is_floating(residual) && residual.dim() == 4 && residual.size(2) > 0 && residual.size(3) > 0,
      op, "residual", "floating (B, K, h, w) with h and w above 0", residual);
  expect(grad.scalar_type() == box_dtype(residual) && grad.numel() == 1, op, "grad",
         "one number of the dtype of the loss", grad);
  expect(labels.scalar_type() == kInt64 && labels.dim() == 2 &&
             labels.size(0) == residual.size(0) && labels.size(1) == residual.size(1),
         op, "labels", "int64 (B, K) with the B and K of residual", labels);
  expect(count.scalar_type() == kInt64 && count.numel() == 1, op, "count", "one int64", count);
  expect_not_negative(op, "channels", channels);
  expect_same_device(op, "residual", residual, grad);
  expect_same_device(op, "labels", labels, grad);
  expect_same_device(op, "count", count, grad);
}

// ---- paste_masks, mask_rle ----------------------------------------------------------------------

constexpr int64_t kLargestMask = int64_t(1) << 20;  // whose taps float32 still tells apart

inline void check_paste_masks(const char* op, const Tensor& masks, const Tensor& boxes,
                              int64_t height, int64_t width) {
  const auto fits = [](int64_t size) { return size > 0 && size <= kLargestMask; };
  expect(is_floating(masks) && masks.dim() == 3 && fits(masks.size(1)) && fits(masks.size(2)), op,
         "masks", "floating (N, h, w) with h and w in [1, 2**20]", masks);
  expect(is_boxes(boxes, 2) && boxes.size(0) == masks.size(0), op, "boxes",
         "floating (N, 4) with the N of masks", boxes);
  expect_same_device(op, "boxes", boxes, masks);
  for (const int64_t size : {height, width})
    if (size < 0 || size >= int64_t(1) << 30)
      refuse(op, "size", "numbers in [0, 2**30)", std::to_string(size));
}

inline void check_mask_edges(const char* op, const Tensor& masks) {
  expect(masks.scalar_type() == kBool && masks.dim() == 3, op, "masks", "bool (N, H, W)", masks);
}

// ---- upsample_nearest ---------------------------------------------------------------------------

constexpr int64_t kLargestSide = int64_t(1) << 24;  // up to which float32 counts every pixel

inline void check_upsample_nearest(const char* op, const Tensor& input, int64_t height,
                                   int64_t width) {
  expect(input.is_cpu() && is_floating(input) && input.dim() == 4 && input.size(2) > 0 &&
             input.size(3) > 0,
         op, "input", "floating (B, C, H, W) with H and W above 0, on cpu", input);
  for (const int64_t size : {height, width})
    if (size < 1 || size > kLargestSide)
      refuse(op, "size", "numbers in [1, 2**24]", std::to_string(size));
}

// ---- winograd -----------------------------------------------------------------------------------

inline void check_winograd_filters(const char* op, const Tensor& weight) {
  expect(weight.scalar_type() == kFloat32 && weight.dim() == 4 && weight.size(2) == 3 &&
             weight.size(3) == 3,
         op, "weight", "Float (O, C, 3, 3)", weight);
}

inline void check_winograd_map(const char* op, const char* argument, const Tensor& map) {
  expect(map.is_cpu() && map.scalar_type() == kFloat32 && map.dim() == 4, op, argument,
         "Float (B, C, H, W) on cpu", map);
}

// A map beside the input.
inline void check_winograd_pair(const char* op, const char* argument, const Tensor& map,
                                const Tensor& input) {
  check_winograd_map(op, argument, map);
  expect(
      map.size(0) == input.size(0) && map.size(2) == input.size(2) && map.size(3) == input.size(3),
      op, argument, "the B, H and W of the input", map);
}

inline void check_winograd_conv(const char* op, const Tensor& input, const Tensor& filters,
                                const std::optional<Tensor>& bias,
                                const std::optional<Tensor>& summand, int64_t channels) {
  check_winograd_map(op, "input", input);
  expect(filters.is_cpu() && filters.scalar_type() == kFloat32 && filters.dim() == 4 &&
             filters.size(0) == kWinogradPositions &&
             filters.size(1) == winograd_panels(channels) && filters.size(2) == input.size(1) &&
             filters.size(3) == kWinogradPanel,
         op, "filters", "what winograd_filters makes of Float (channels, C, 3, 3)", filters);
  if (bias)
    expect(bias->is_cpu() && bias->scalar_type() == kFloat32 && bias->dim() == 1 &&
               bias->size(0) == channels,
           op, "bias", "Float (channels,) on cpu", *bias);
  if (!summand) return;
  check_winograd_pair(op, "summand", *summand, input);
  expect(summand->size(1) == channels, op, "summand", "the channels of the output", *summand);
}

inline void check_winograd_filters_grad(const char* op, const Tensor& grad, const Tensor& input) {
  check_winograd_map(op, "input", input);
  check_winograd_pair(op, "grad", grad, input);
}

}  // namespace fastdet
