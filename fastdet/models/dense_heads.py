# SPDX-License-Identifier: BSD-3-Clause
"""What dense detectors share: they predict at every location of a pyramid, then suppress.

A location is the centre of a square, or of several anchors. Distances from the centre of a square
to the four sides of a box have the side of the square as their unit. The weights of a head are
shared between the levels of the pyramid.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdet.models.anchors import in_anchor_order
from fastdet.models.losses import PRIOR_LOGIT
from fastdet.ops import nms_padded
from fastdet.ops.detections import Detections
from fastdet.ops.padded_rows import take_rows


class ClassificationHead(nn.Module):
    """A logit for each anchor and class.

    Args:
        conv: the layers before the last layer.
        cls_logits: the last layer; its output channels are (anchor of the location, class).
        num_classes: number of classes with background, which is class 0.
    """

    def __init__(self, conv: nn.Module, cls_logits: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv = conv
        self.cls_logits = cls_logits

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid -> (B, A_l, num_classes) for each level."""
        return in_anchor_order([self.cls_logits(self.conv(x)) for x in features], self.num_classes)


def head_conv(in_channels: int, out_channels: int, *, bias: float = 0.0) -> nn.Conv2d:
    """A 3x3 convolution with normal weights of standard deviation 0.01."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
    return conv


def class_conv(in_channels: int, num_classes: int) -> nn.Conv2d:
    """The last layer of a classifier. At the start every probability is near 0.01."""
    return head_conv(in_channels, num_classes, bias=PRIOR_LOGIT)


def norm_tower(channels: int, depth: int = 4) -> nn.Sequential:
    """`depth` convolutions, each with GroupNorm and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [head_conv(channels, channels), group_norm(channels), nn.ReLU()]
    return nn.Sequential(*layers)


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, of at least 8 channels each: at 256 channels 32 groups."""
    return nn.GroupNorm(math.gcd(32, max(channels // 8, 1), channels), channels)


def decode_distances(distances: Tensor, squares: Tensor) -> Tensor:
    """Distances (..., 4) from the centres of squares to left, top, right, bottom -> xyxy boxes.

    The unit of the distances is the side of the square.
    """
    squares = squares.to(distances.dtype)
    centres = 0.5 * (squares[..., :2] + squares[..., 2:])
    sides = squares[..., 2:] - squares[..., :2]
    pixels = distances * torch.cat((sides, sides), dim=-1)
    return torch.cat((centres - pixels[..., :2], centres + pixels[..., 2:]), dim=-1)


def centredness_of(boxes: Tensor, squares: Tensor, positive: Tensor) -> Tensor:
    """The centerness (B, A): 1 at the centre of the box, 0 at its sides; 0 outside `positive`.

    Distances are first divided by the sides of the squares, as in torchvision.

    Args:
        boxes: (B, A, 4) xyxy, the box that is assigned to each location.
        squares: (A, 4) xyxy.
        positive: (B, A) bool.
    """
    centres = 0.5 * (squares[:, :2] + squares[:, 2:])
    sides = squares[:, 2:] - squares[:, :2]
    near = ((centres - boxes[..., :2]) / sides).where(positive[..., None], 1.0)
    far = ((boxes[..., 2:] - centres) / sides).where(positive[..., None], 1.0)
    share = near.minimum(far) / near.maximum(far)  # (B, A, 2)
    return (share[..., 0] * share[..., 1]).sqrt().where(positive, 0.0)


def clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, K, 4) within their images of `sizes` (B, 2)."""
    limits = sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)  # (B, 1, 4)
    return boxes.clamp(min=0).minimum(limits)


def best_pairs(scores: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of location and class with the highest scores, highest first.

    Args:
        scores: (B, A, C).
        number: K, if there are as many pairs.

    Returns:
        Their scores, their locations and their classes, (B, K) each.
    """
    classes = scores.shape[2]
    scores = scores.flatten(1)
    scores, pairs = scores.topk(min(number, scores.shape[1]), dim=1)
    return scores, pairs // classes, pairs % classes


def suppressed(
    candidates: Sequence[tuple[Tensor, Tensor, Tensor]],
    sizes: Tensor,
    score_thresh: float,
    nms_thresh: float,
    detections_per_img: int,
) -> Detections:
    """The detections among the candidates of all levels.

    Args:
        candidates: scores (B, K), boxes (B, K, 4) xyxy and labels (B, K) of each level.
        sizes: (B, 2), of the images, to which the boxes are clipped.
        score_thresh: a detection's score is above this.
        nms_thresh: a detection suppresses detections of its class if their IoU is above this.
        detections_per_img: D, maximum number of detections of an image.
    """
    scores, boxes, labels = (
        torch.cat(of_levels, dim=1) for of_levels in zip(*candidates, strict=True)
    )
    boxes = clipped(boxes, sizes)
    # After the sort, scores that are not above the threshold come last. nms_padded reads only
    # the rows before them.
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    boxes, labels = take_rows(boxes, order), labels.gather(1, order)
    above = (scores > score_thresh).sum(dim=1)
    keep, counts = nms_padded(boxes, scores, nms_thresh, detections_per_img, labels, above)
    kept = keep >= 0
    keep = keep.clamp(min=0)
    return Detections(
        take_rows(boxes, keep).where(kept[..., None], 0.0),
        scores.gather(1, keep).where(kept, 0.0),
        labels.gather(1, keep).where(kept, 0),
        counts,
    )


def suppression_numbers(
    score_thresh: float, nms_thresh: float, detections_per_img: int
) -> dict[str, Any]:
    """The same as `suppressed`, as arguments of `fastdet.numpy.multiclass_nms`."""
    return {
        "score_threshold": score_thresh,
        "iou_threshold": nms_thresh,
        "max_detections": detections_per_img,
        "multi_label": True,  # every class of a box is a candidate
    }
