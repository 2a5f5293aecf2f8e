# SPDX-License-Identifier: BSD-3-Clause
"""The compiled module: build information, choice of the instruction set, kernels for NumPy arrays.

Nothing here converts an argument: arrays are C-contiguous, all floats of a call have one type,
float32 or float64, and integers are int64. `fastdet.numpy` converts and calls.
"""

import enum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Float = TypeVar("_Float", bound=np.floating[Any])
_Ints = NDArray[np.int64]
_Weights = tuple[float, float, float, float]

compiler: str
cuda_archs: str  # such as "80 90"; empty without CUDA kernels
cuda_version: str  # such as "13.0", of the compiler; empty without CUDA kernels

def cpu_isa() -> str: ...
def usable_cpu_isas() -> list[str]: ...
def cpu_has_byte_products(isa: str) -> bool: ...
def set_cpu_isa(name: str) -> None: ...

class LowQuality(enum.Enum):
    none = ...
    anchor_best = ...
    gt_best = ...

class ClassCost(enum.Enum):
    focal = ...
    softmax = ...

class ConfType(enum.Enum):
    avg = ...
    max = ...
    box_and_model_avg = ...
    absent_model_aware_avg = ...

class OverlapMetric(enum.Enum):
    iou = ...
    ios = ...

class SoftNmsMethod(enum.Enum):
    linear = ...
    gaussian = ...

def nms(
    boxes: NDArray[_Float], scores: NDArray[_Float], idxs: _Ints | None, iou_threshold: float
) -> _Ints: ...
def nmm(
    boxes: NDArray[_Float],
    scores: NDArray[_Float],
    labels: _Ints | None,
    threshold: float,
    metric: OverlapMetric,
    transitive: bool,
) -> tuple[_Ints, NDArray[_Float]]: ...
def soft_nms(
    boxes: NDArray[_Float],
    scores: NDArray[_Float],
    labels: _Ints | None,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: SoftNmsMethod,
) -> tuple[_Ints, NDArray[_Float]]: ...
def weighted_boxes_fusion(
    boxes: NDArray[_Float],
    scores: NDArray[_Float],
    labels: _Ints,
    models: _Ints,
    weights: list[float],
    iou_threshold: float,
    score_threshold: float,
    conf_type: ConfType,
    allows_overflow: bool,
) -> tuple[NDArray[_Float], NDArray[_Float], _Ints]: ...
def multiclass_nms(
    boxes: NDArray[_Float],
    scores: NDArray[_Float],
    by_class: bool,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    multi_label: bool,
    max_candidates: int,
) -> tuple[NDArray[_Float], NDArray[_Float], _Ints]: ...
def box_iou(boxes1: NDArray[_Float], boxes2: NDArray[_Float], eps: float) -> NDArray[_Float]: ...
def generalized_box_iou(
    boxes1: NDArray[_Float], boxes2: NDArray[_Float], eps: float
) -> NDArray[_Float]: ...
def distance_box_iou(
    boxes1: NDArray[_Float], boxes2: NDArray[_Float], eps: float
) -> NDArray[_Float]: ...
def complete_box_iou(
    boxes1: NDArray[_Float], boxes2: NDArray[_Float], eps: float
) -> NDArray[_Float]: ...
def encode_boxes(
    boxes: NDArray[_Float], anchors: NDArray[_Float], weights: _Weights
) -> NDArray[_Float]: ...
def decode_boxes(
    deltas: NDArray[_Float], anchors: NDArray[_Float], weights: _Weights, sizes: _Ints | None
) -> NDArray[_Float]: ...
def match_anchors(
    anchors: NDArray[_Float],
    gt_boxes: NDArray[_Float],
    gt_counts: _Ints,
    high: float,
    low: float,
    low_quality: LowQuality,
) -> tuple[_Ints, NDArray[_Float]]: ...
def assign_atss(
    anchors: NDArray[_Float],
    level_sizes: list[int],
    gt_boxes: NDArray[_Float],
    gt_counts: _Ints,
    topk: int,
) -> tuple[_Ints, NDArray[_Float]]: ...
def assign_simota(
    scores: NDArray[_Float],
    boxes: NDArray[_Float],
    points: NDArray[_Float],
    strides: NDArray[_Float],
    gt_labels: _Ints,
    gt_boxes: NDArray[_Float],
    gt_counts: _Ints,
    center_radius: float,
    candidate_topk: int,
    cls_weight: float,
    iou_weight: float,
) -> tuple[_Ints, NDArray[_Float]]: ...
def assign_task_aligned(
    scores: NDArray[_Float],
    boxes: NDArray[_Float],
    points: NDArray[_Float],
    gt_labels: _Ints,
    gt_boxes: NDArray[_Float],
    gt_counts: _Ints,
    topk: int,
    alpha: float,
    beta: float,
    min_side: float,
) -> tuple[_Ints, NDArray[_Float]]: ...
def linear_assignment(
    cost: NDArray[_Float], row_counts: _Ints | None, col_counts: _Ints | None
) -> _Ints: ...
def match_queries(
    logits: NDArray[_Float],
    boxes: NDArray[_Float],
    gt_labels: _Ints,
    gt_boxes: NDArray[_Float],
    gt_counts: _Ints,
    cost_class: float,
    cost_bbox: float,
    cost_giou: float,
    alpha: float,
    gamma: float,
    kind: ClassCost,
    groups: int,
) -> _Ints: ...
def retinanet_detections(
    logits: list[NDArray[_Float]],
    deltas: list[NDArray[_Float]],
    anchors: NDArray[_Float],
    sizes: _Ints,
    score_threshold: float,
    topk_candidates: int,
    iou_threshold: float,
    detections_per_img: int,
) -> tuple[NDArray[_Float], NDArray[_Float], _Ints, _Ints]: ...
def rle_counts(edges: _Ints, offsets: _Ints, pixels: int) -> list[bytes]: ...
