// SPDX-License-Identifier: BSD-3-Clause
// The schema of every operator, one line each: the table of contents of csrc. Each block belongs to
// one or two families, which are the folders beside this file. A family's contract.h checks the
// arguments; its .cpp and .cu files register the CPU and CUDA kernels.
#include "torch.h"

// clang-format off
STABLE_TORCH_LIBRARY(fastdet, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor");
  m.def("nms_padded(Tensor boxes, Tensor scores, float iou_threshold, int max_keep, Tensor? groups, Tensor? counts) -> (Tensor, Tensor)");
  m.def("soft_nms(Tensor boxes, Tensor scores, Tensor? labels, float iou_threshold, float sigma, float score_threshold, str method) -> (Tensor, Tensor, Tensor)");
  m.def("nmm(Tensor boxes, Tensor scores, Tensor? labels, float threshold, str metric, bool transitive) -> (Tensor, Tensor)");
  m.def("weighted_boxes_fusion(Tensor boxes, Tensor scores, Tensor labels, Tensor models, float[] weights, float iou_threshold, float score_threshold, str conf_type, bool allows_overflow) -> (Tensor, Tensor, Tensor)");

  m.def("box_iou(Tensor boxes1, Tensor boxes2) -> Tensor");
  m.def("generalized_box_iou(Tensor boxes1, Tensor boxes2) -> Tensor");
  m.def("distance_box_iou(Tensor boxes1, Tensor boxes2, float eps) -> Tensor");
  m.def("complete_box_iou(Tensor boxes1, Tensor boxes2, float eps) -> Tensor");
  m.def("box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, float eps, str kind) -> (Tensor, Tensor)");

  m.def("box_iou_loss(Tensor boxes1, Tensor boxes2, float eps, str kind) -> Tensor");
  m.def("box_iou_loss_backward(Tensor grad, Tensor boxes1, Tensor boxes2, float eps, str kind) -> (Tensor, Tensor)");

  m.def("match_anchors(Tensor anchors, Tensor gt_boxes, Tensor gt_counts, float high, float low, str low_quality) -> (Tensor, Tensor)");
  m.def("sample_matches(Tensor index, Tensor seeds, int num, float positive_fraction) -> (Tensor, Tensor)");

  m.def("assign_atss(Tensor anchors, SymInt[] level_sizes, Tensor gt_boxes, Tensor gt_counts, int topk) -> (Tensor, Tensor)");
  m.def("assign_simota(Tensor scores, Tensor boxes, Tensor points, Tensor strides, Tensor gt_labels, Tensor gt_boxes, Tensor gt_counts, float center_radius, int candidate_topk, float cls_weight, float iou_weight) -> (Tensor, Tensor)");
  m.def("assign_task_aligned(Tensor scores, Tensor boxes, Tensor points, Tensor gt_labels, Tensor gt_boxes, Tensor gt_counts, int topk, float alpha, float beta, float min_side) -> (Tensor, Tensor)");

  m.def("linear_assignment(Tensor cost, Tensor? row_counts, Tensor? col_counts) -> Tensor");
  m.def("match_queries(Tensor logits, Tensor boxes, Tensor gt_labels, Tensor gt_boxes, Tensor gt_counts, float cost_class, float cost_bbox, float cost_giou, float alpha, float gamma, str kind, int groups) -> Tensor");

  m.def("encode_boxes(Tensor boxes, Tensor anchors, float wx, float wy, float ww, float wh) -> Tensor");
  m.def("decode_boxes(Tensor deltas, Tensor anchors, float wx, float wy, float ww, float wh, Tensor? sizes) -> Tensor");
  m.def("decode_boxes_backward(Tensor grad, Tensor deltas, Tensor anchors, float wx, float wy, float ww, float wh, Tensor? sizes) -> Tensor");

  m.def("roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, int sampling_ratio, bool aligned) -> Tensor");
  m.def("roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt batch, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned, bool channels_last, bool deterministic) -> Tensor");
  m.def("multiscale_roi_align(Tensor[] features, Tensor boxes, Tensor? counts, int pooled_height, int pooled_width, float[] scales, int sampling_ratio, int canonical_scale, int canonical_level, bool aligned) -> Tensor");
  m.def("multiscale_roi_align_backward(Tensor grad, Tensor boxes, Tensor? counts, SymInt[] heights, SymInt[] widths, float[] scales, int sampling_ratio, int canonical_scale, int canonical_level, bool aligned, bool channels_last, bool deterministic) -> Tensor[]");
  m.def("multiscale_roi_align_add_grad(Tensor(a!)[] sums, Tensor grad, Tensor boxes, Tensor? counts, float[] scales, int sampling_ratio, int canonical_scale, int canonical_level, bool aligned) -> ()");  // on the CPU only

  m.def("ms_deform_attn(Tensor value, SymInt[] heights, SymInt[] widths, Tensor locations, Tensor weights, bool softmax) -> Tensor");
  m.def("ms_deform_attn_backward(Tensor grad, Tensor value, SymInt[] heights, SymInt[] widths, Tensor locations, Tensor weights, bool softmax, bool deterministic) -> (Tensor, Tensor, Tensor)");

  m.def("deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def("deform_conv2d_backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, int[] padding, int[] dilation, bool deterministic) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  m.def("rpn_proposals(Tensor[] objectness, Tensor[] deltas, Tensor anchors, Tensor sizes, int pre_nms_top_n, int post_nms_top_n, float iou_threshold, float score_threshold, float min_size) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("retinanet_detections(Tensor[] logits, Tensor[] deltas, Tensor anchors, Tensor sizes, float score_threshold, int topk_candidates, float iou_threshold, int detections_per_img) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("roi_detections(Tensor logits, Tensor deltas, Tensor proposals, Tensor? counts, Tensor sizes, float wx, float wy, float ww, float wh, float score_threshold, float iou_threshold, int detections_per_img, float min_size) -> (Tensor, Tensor, Tensor, Tensor)");

  m.def("sigmoid_focal_loss(Tensor inputs, Tensor targets, float alpha, float gamma) -> Tensor");
  m.def("sigmoid_focal_loss_sum(Tensor inputs, Tensor targets, float alpha, float gamma) -> Tensor");
  m.def("sigmoid_focal_loss_sum_and_grad(Tensor inputs, Tensor targets, Tensor? divisor, float alpha, float gamma) -> (Tensor, Tensor)");
  m.def("sigmoid_focal_loss_correct_grad(Tensor(a!) written, Tensor grad, Tensor inputs, Tensor targets, Tensor? divisor, float alpha, float gamma) -> ()");
  m.def("sigmoid_focal_loss_backward(Tensor grad, Tensor inputs, Tensor targets, float alpha, float gamma) -> Tensor");

  m.def("crop_masks(Tensor masks, Tensor boxes, Tensor match, int height, int width) -> Tensor");
  m.def("mask_rcnn_loss(Tensor logits, Tensor labels, Tensor masks, Tensor boxes, Tensor match) -> (Tensor, Tensor, Tensor)");
  m.def("mask_rcnn_loss_backward(Tensor grad, Tensor residual, Tensor labels, Tensor count, SymInt channels, bool channels_last) -> Tensor");
  m.def("paste_masks(Tensor masks, Tensor boxes, SymInt height, SymInt width, float? threshold) -> Tensor");
  m.def("pasted_mask_edges(Tensor masks, Tensor boxes, int height, int width, float threshold) -> (Tensor, Tensor)");
  m.def("mask_edges(Tensor masks) -> (Tensor, Tensor)");

  // Network layers, on the CPU only.
  m.def("upsample_nearest(Tensor input, int height, int width) -> Tensor");
  m.def("max_pool2d(Tensor input, int[] kernel, int[] stride, int[] padding) -> Tensor");
  m.def("max_pool2d_with_argmax(Tensor input, int[] kernel, int[] stride, int[] padding) -> (Tensor, Tensor)");
  m.def("max_pool2d_backward(Tensor grad, Tensor argmax, SymInt height, SymInt width, int[] kernel, int[] stride, int[] padding) -> Tensor");
  m.def("quantize_map(Tensor input, float scale, int zero_point) -> Tensor");
  m.def("winograd_filters(Tensor weight, Tensor? scale) -> Tensor");
  m.def("winograd_filters_turned(Tensor weight) -> Tensor");
  m.def("winograd_conv(Tensor input, Tensor filters, Tensor? bias, Tensor? summand, int channels, int activation) -> Tensor");
  m.def("winograd_conv_int8(Tensor input, int zero_point, Tensor roundings, Tensor filters, Tensor steps, Tensor sums, Tensor scales, Tensor bias, Tensor? summand, float summand_scale, int summand_zero_point, int activation, float result_scale, int result_zero_point, int result) -> Tensor");
  m.def("winograd_filters_grad(Tensor grad, Tensor input) -> Tensor");
}
// clang-format on
