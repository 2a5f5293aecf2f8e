# SPDX-License-Identifier: BSD-3-Clause
"""Runs RF-DETR, of the package rfdetr, on fastdet's operators: a part of `override_detr`.

Its deformable attention is one function. Its matcher has two entries, for one layer's outputs and
for those of all layers. Masks, keypoints, padded targets, half types and predictions that are not
finite stay rfdetr's.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdet.ops import match_queries, ms_deform_attn
from fastdet.query_pairs import Pairs, padded_targets, pairs_of
from fastdet.replacement import Replacements, has_parameters, optional_module

TESTED = "1.11.2"
_MOST_LEVELS = 8
_LARGEST_LOGIT = 15  # beyond this the 1e-8 in the class costs of `match_queries` counts

_CORE = "ms_deform_attn_core_pytorch"
_CORE_PARAMETERS = (
    "value",
    "value_spatial_shapes",
    "sampling_locations",
    "attention_weights",
    "value_spatial_shapes_hw",
)


def replace_rfdetr(replacements: Replacements) -> None:
    """Replaces what there is to replace, if rfdetr has been imported and is as it was tested."""
    if sys.modules.get("rfdetr") is None:
        return
    attention = optional_module("rfdetr.models.ops.modules.ms_deform_attn")
    if has_parameters(attention, _CORE, _CORE_PARAMETERS):
        replacements.replace(attention, _CORE, _attention)
    matcher = optional_module("rfdetr.models.matcher")
    rest = ("targets", "group_detr", "target_side_safety")
    for name, first, ours in (("forward", "outputs", _one), ("_match_many", "outputs_list", _many)):
        if has_parameters(matcher, f"HungarianMatcher.{name}", ("self", first, *rest)):
            replacements.replace(matcher.HungarianMatcher, name, ours)


def _attention(theirs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def ms_deform_attn_core_pytorch(
        value: Tensor,  # (B, H, D, S)
        value_spatial_shapes: Tensor,
        sampling_locations: Tensor,  # (B, Q, H, L, P, 2), with fewer dimensions in an export
        attention_weights: Tensor,  # (B, Q, H, L * P)
        value_spatial_shapes_hw: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        if sampling_locations.dim() != 6 or sampling_locations.shape[3] > _MOST_LEVELS:
            return theirs(
                value,
                value_spatial_shapes,
                sampling_locations,
                attention_weights,
                value_spatial_shapes_hw,
            )
        shapes = value_spatial_shapes_hw or value_spatial_shapes.tolist()
        weights = attention_weights.view(sampling_locations.shape[:-1])
        return ms_deform_attn(value.permute(0, 3, 1, 2), shapes, sampling_locations, weights)

    return ms_deform_attn_core_pytorch


def _one(theirs: Callable[..., Pairs]) -> Callable[..., Pairs]:
    def forward(
        self: Any,
        outputs: dict[str, Any],
        targets: list[dict[str, Any]],
        group_detr: int = 1,
        target_side_safety: Any = None,
    ) -> Pairs:
        if not _can_match(outputs, targets, group_detr):
            return theirs(self, outputs, targets, group_detr, target_side_safety)
        return _match(self, [outputs], targets, group_detr)[0]

    return forward


def _many(theirs: Callable[..., list[Pairs] | None]) -> Callable[..., list[Pairs] | None]:
    def match_many(
        self: Any,
        outputs_list: list[dict[str, Any]],
        targets: list[dict[str, Any]],
        group_detr: int = 1,
        target_side_safety: Any = None,
    ) -> list[Pairs] | None:
        if not all(_can_match(outputs, targets, group_detr) for outputs in outputs_list):
            return theirs(self, outputs_list, targets, group_detr, target_side_safety)
        return _match(self, outputs_list, targets, group_detr)

    return match_many


def _can_match(outputs: dict[str, Any], targets: list[dict[str, Any]], group_detr: int) -> bool:
    """Whether there are boxes alone, and at least one target."""
    logits, boxes = outputs["pred_logits"], outputs["pred_boxes"]
    return (
        not {"masks", "valid"} & targets[0].keys()
        and not ("keypoints" in targets[0] and "pred_keypoints" in outputs)
        and {logits.dtype, boxes.dtype} <= {torch.float32, torch.float64}
        and logits.shape[1] % group_detr == 0
        and any(len(target["boxes"]) for target in targets)
        and bool(boxes.isfinite().all() & (logits.abs().amax() <= _LARGEST_LOGIT))
    )


@torch.no_grad()
def _match(
    matcher: Any,
    outputs_list: list[dict[str, Any]],
    targets: list[dict[str, Any]],
    group_detr: int,
) -> list[Pairs]:
    """The pairs of each layer, on the CPU."""
    padded = padded_targets(targets, "labels", outputs_list[0]["pred_boxes"])
    found = [
        match_queries(
            outputs["pred_logits"],
            outputs["pred_boxes"],
            *padded,
            matcher.cost_class,
            matcher.cost_bbox,
            matcher.cost_giou,
            alpha=matcher.focal_alpha,
            groups=group_detr,
        )
        for outputs in outputs_list
    ]
    return [pairs_of(index.cpu()) for index in found]
