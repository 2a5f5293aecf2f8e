# SPDX-License-Identifier: BSD-3-Clause
"""Object detection on its own C++/CUDA kernels: operators, detectors, training, evaluation.

The package has the names of `fastdet.ops`, the overrides and its submodules as attributes.
Each is imported at its first use, so that `import fastdet` and the parts without torch, such as
`fastdet.numpy`, do not import torch. Type checkers read the same names in `__init__.pyi`.
"""

import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"

# `fastdet.ops.__all__`: to read it there would import torch.
_OPERATORS = frozenset(
    (
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
    )
)
_SUBMODULES = frozenset(
    module.name
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith(("_", "libfastdet"))  # libfastdet*.so are no Python modules
)


_OVERRIDES = {
    "override_detr": "fastdet.override_transformers",
    "override_torchvision": "fastdet.override",
}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        found = importlib.import_module(f"fastdet.{name}")
    elif name in _OPERATORS:
        found = getattr(importlib.import_module("fastdet.ops"), name)
    elif name in _OVERRIDES:
        found = getattr(importlib.import_module(_OVERRIDES[name]), name)
    else:
        raise AttributeError(f"module 'fastdet' has no attribute {name!r}")
    globals()[name] = found  # the next use does not come here
    return found


def __dir__() -> list[str]:
    return sorted({"__version__", *_OPERATORS, *_OVERRIDES, *_SUBMODULES})
