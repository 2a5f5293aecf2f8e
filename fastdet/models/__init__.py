# SPDX-License-Identifier: BSD-3-Clause
"""Detectors with torchvision's interface that compute on padded batches of fixed shape.

The builders of `MODELS`, such as `faster_rcnn` and `atss`, build a detector on a timm backbone.
Their options are those of `faster_rcnn_parts`, `atss_parts` and so on. `from_torchvision` and
`load_torchvision_weights` convert torchvision's detectors. `replace_classes` prepares a detector
for other classes. `describe` counts parameters, FLOPs and anchors. In training mode
`model(images, targets)` returns losses; in eval mode `model(images)` returns detections; see
`Detector`. A new family is a subclass of `Detector` with three methods.
"""

from collections.abc import Callable

from fastdet.models.atss import ATSS, atss, atss_parts
from fastdet.models.batch import Batch
from fastdet.models.border import Border
from fastdet.models.cascade_rcnn import (
    CascadeMaskRCNN,
    CascadeRCNN,
    cascade_mask_rcnn,
    cascade_mask_rcnn_parts,
    cascade_rcnn,
    cascade_rcnn_parts,
)
from fastdet.models.d_fine import DFINE, d_fine, d_fine_parts
from fastdet.models.deformable_detr import (
    DeformableDETR,
    deformable_detr,
    deformable_detr_parts,
)
from fastdet.models.description import Description, describe
from fastdet.models.detector import Detector
from fastdet.models.detr import DETR, detr, detr_parts
from fastdet.models.faster_rcnn import FasterRCNN, faster_rcnn, faster_rcnn_parts
from fastdet.models.fcos import FCOS, fcos, fcos_parts
from fastdet.models.mask_rcnn import MaskRCNN, mask_rcnn, mask_rcnn_parts
from fastdet.models.new_classes import replace_classes
from fastdet.models.retinanet import RetinaNet, retinanet, retinanet_parts
from fastdet.models.rt_detr import RTDETR, rt_detr, rt_detr_parts
from fastdet.models.tood import TOOD, tood, tood_parts
from fastdet.models.torchvision_weights import from_torchvision, load_torchvision_weights
from fastdet.models.transformers_weights import from_transformers
from fastdet.models.vfnet import VFNet, vfnet, vfnet_parts
from fastdet.ops.detections import Detections

MODELS: dict[str, Callable[..., Detector]] = {
    "atss": atss,
    "cascade_mask_rcnn": cascade_mask_rcnn,
    "cascade_rcnn": cascade_rcnn,
    "d_fine": d_fine,
    "deformable_detr": deformable_detr,
    "detr": detr,
    "faster_rcnn": faster_rcnn,
    "fcos": fcos,
    "mask_rcnn": mask_rcnn,
    "retinanet": retinanet,
    "rt_detr": rt_detr,
    "tood": tood,
    "vfnet": vfnet,
}

__all__ = [
    "ATSS",
    "DETR",
    "DFINE",
    "FCOS",
    "MODELS",
    "RTDETR",
    "TOOD",
    "Batch",
    "Border",
    "CascadeMaskRCNN",
    "CascadeRCNN",
    "DeformableDETR",
    "Description",
    "Detections",
    "Detector",
    "FasterRCNN",
    "MaskRCNN",
    "RetinaNet",
    "VFNet",
    "atss",
    "atss_parts",
    "cascade_mask_rcnn",
    "cascade_mask_rcnn_parts",
    "cascade_rcnn",
    "cascade_rcnn_parts",
    "d_fine",
    "d_fine_parts",
    "deformable_detr",
    "deformable_detr_parts",
    "describe",
    "detr",
    "detr_parts",
    "faster_rcnn",
    "faster_rcnn_parts",
    "fcos",
    "fcos_parts",
    "from_torchvision",
    "from_transformers",
    "load_torchvision_weights",
    "mask_rcnn",
    "mask_rcnn_parts",
    "replace_classes",
    "retinanet",
    "retinanet_parts",
    "rt_detr",
    "rt_detr_parts",
    "tood",
    "tood_parts",
    "vfnet",
    "vfnet_parts",
]
