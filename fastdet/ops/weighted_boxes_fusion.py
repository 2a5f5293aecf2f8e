# SPDX-License-Identifier: BSD-3-Clause
"""Weighted boxes fusion: one set of boxes from those of several models."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import library

CONF_TYPES = ("avg", "max", "box_and_model_avg", "absent_model_aware_avg")


def weighted_boxes_fusion(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    models: Tensor,
    weights: Sequence[float],
    iou_threshold: float = 0.55,
    score_threshold: float = 0.0,
    conf_type: str = "avg",
    allows_overflow: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fuses the boxes of several models into means that are weighted by their scores.

    The boxes of each label are visited by falling score times weight; ties: the first in the input.
    A box joins the fused box that it overlaps most, if their IoU is above the threshold. The fused
    box becomes the mean of its members, weighted by score times weight. Otherwise the box begins a
    fused box of its own. Definition: "Weighted boxes fusion" by Solovyev et al.
    (https://arxiv.org/abs/1910.13302), as in ensemble-boxes 1.0.9.

    The result equals that of ensemble-boxes to the bit, for inputs without equal scores and with
    NumPy >= 2: as there, the mean of several boxes is stored in float32. Boxes may be in any unit.
    They are not clipped; ensemble-boxes clips them to [0, 1].

    A box without area, with a coordinate or a score that is not finite takes no part.
    CPU tensors only. There is no gradient.

    Args:
        boxes: (N, 4) xyxy, the boxes of all models.
        scores: (N,).
        labels: (N,) int64; only boxes of the same label are fused.
        models: (N,) int64, the model that each box comes from: an index into weights.
        weights: of the models, one each; > 0.
        iou_threshold: in [0, 1].
        score_threshold: a box takes part if its score is at least this.
        conf_type: the score of a fused box; s is the mean of its weighted scores, n their number:
            "avg": s * min(n, number of models) / sum of weights;
            "max": the highest weighted score / highest weight;
            "box_and_model_avg": n * s / sum of the members' weights * share that the models with a
            member have of all weights;
            "absent_model_aware_avg": n * s / (sum of the members' weights + sum of the weights of
            the models without a member).
        allows_overflow: "avg" multiplies by n also if n is above the number of models, so that a
            score may be above 1.

    Returns:
        boxes (K, 4) and scores (K,) in the dtypes of the inputs, and labels (K,) int64, highest
        score first; ties: the fused box whose first member comes first in the input.

    Raises:
        ValueError: iou_threshold outside [0, 1]; wrong weights; unknown conf_type.
        RuntimeError: wrong shape, dtype or device; a model without a weight.
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: expected a number in [0, 1], got {iou_threshold}")
    if not len(weights) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights: expected finite numbers > 0, got {list(weights)}")
    if conf_type not in CONF_TYPES:
        raise ValueError(f"conf_type: expected one of {CONF_TYPES}, got {conf_type!r}")
    if boxes.is_cuda:
        raise RuntimeError(
            f"weighted_boxes_fusion: boxes: expected a tensor on cpu, got one on {boxes.device}"
        )
    return torch.ops.fastdet.weighted_boxes_fusion(
        boxes,
        scores,
        labels,
        models,
        list(weights),
        iou_threshold,
        score_threshold,
        conf_type,
        allows_overflow,
    )


@library.register_fake("fastdet::weighted_boxes_fusion")
def _(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    models: Tensor,
    weights: list[float],
    iou_threshold: float,
    score_threshold: float,
    conf_type: str,
    allows_overflow: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    num_fused = torch.library.get_ctx().new_dynamic_size()
    return (
        boxes.new_empty((num_fused, 4)),
        scores.new_empty((num_fused,)),
        labels.new_empty((num_fused,)),
    )
