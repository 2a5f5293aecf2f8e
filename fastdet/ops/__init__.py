# SPDX-License-Identifier: BSD-3-Clause
"""The operators, one file each. Those that torchvision has too keep its names and signatures."""

from fastdet.ops.assign_atss import assign_atss
from fastdet.ops.assign_simota import assign_simota
from fastdet.ops.assign_task_aligned import assign_task_aligned
from fastdet.ops.box_coding import decode_boxes, encode_boxes
from fastdet.ops.box_iou import (
    box_iou,
    complete_box_iou,
    distance_box_iou,
    generalized_box_iou,
)
from fastdet.ops.box_iou_loss import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)
from fastdet.ops.crop_masks import crop_masks
from fastdet.ops.deform_conv2d import deform_conv2d
from fastdet.ops.linear_assignment import linear_assignment
from fastdet.ops.mask_rcnn_loss import mask_rcnn_loss
from fastdet.ops.mask_rle import encode_masks, paste_masks_rle
from fastdet.ops.match_anchors import match_anchors
from fastdet.ops.match_queries import match_queries
from fastdet.ops.ms_deform_attn import ms_deform_attn
from fastdet.ops.nmm import nmm
from fastdet.ops.nms import batched_nms, nms, nms_padded
from fastdet.ops.paste_masks import paste_masks
from fastdet.ops.retinanet_detections import retinanet_detections
from fastdet.ops.roi_align import MultiScaleRoIAlign, RoIAlign, multiscale_roi_align, roi_align
from fastdet.ops.roi_detections import roi_detections
from fastdet.ops.rpn_proposals import rpn_proposals
from fastdet.ops.sample_matches import sample_matches
from fastdet.ops.sigmoid_focal_loss import sigmoid_focal_loss
from fastdet.ops.soft_nms import soft_nms
from fastdet.ops.weighted_boxes_fusion import weighted_boxes_fusion

__all__ = [
    "MultiScaleRoIAlign",
    "RoIAlign",
    "assign_atss",
    "assign_simota",
    "assign_task_aligned",
    "batched_nms",
    "box_iou",
    "complete_box_iou",
    "complete_box_iou_loss",
    "crop_masks",
    "decode_boxes",
    "deform_conv2d",
    "distance_box_iou",
    "distance_box_iou_loss",
    "encode_boxes",
    "encode_masks",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "linear_assignment",
    "mask_rcnn_loss",
    "match_anchors",
    "match_queries",
    "ms_deform_attn",
    "multiscale_roi_align",
    "nmm",
    "nms",
    "nms_padded",
    "paste_masks",
    "paste_masks_rle",
    "retinanet_detections",
    "roi_align",
    "roi_detections",
    "rpn_proposals",
    "sample_matches",
    "sigmoid_focal_loss",
    "soft_nms",
    "weighted_boxes_fusion",
]
