# SPDX-License-Identifier: BSD-3-Clause
"""Runs the DETRs of transformers on fastdet's operators, so that existing code gets faster.

transformers' models compute deformable attention in a few classes and functions, and match queries
in three classes. Those are replaced while an override is active, for models that exist already and
for new ones. Arguments that our operators do not support go to transformers' own code.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdet.ops import match_queries, ms_deform_attn
from fastdet.override_rfdetr import replace_rfdetr
from fastdet.query_pairs import Pairs, padded_targets, pairs_of
from fastdet.replacement import Override, Replacements, optional_module

# The modules of transformers.models that have the class MultiScaleDeformableAttention.
_WITH_CLASS = ("deformable_detr", "grounding_dino", "mm_grounding_dino", "omdet_turbo", "rt_detr")
_FUNCTION = "multi_scale_deformable_attention_v2"
_CORE = "ms_deformable_attn_core"  # where a module of D-FINE keeps that function
_MOST_LEVELS = 8


def override_detr() -> Override:
    """Puts fastdet's operators under the DETRs of transformers, for the whole process.

    - `ms_deform_attn` computes the attention of Deformable DETR, RT-DETR, RT-DETRv2, D-FINE,
      Grounding DINO and OmDet-Turbo. The method "discrete" of RT-DETRv2 stays transformers'.
    - `match_queries` is the matcher of their losses, of DETR and of Conditional DETR. All images
      of a batch are matched in one call. The costs are summed in float64, so that of two
      assignments whose totals differ by less than float32's rounding another one may be chosen.
    - Both serve RF-DETR too, of the package rfdetr, if it has been imported before.

    Outputs and losses are the same to rounding. Models need no change, and none is wrapped. Call
    and undo it while no other thread runs such a model. Overrides can be nested and undone in any
    order; transformers' own code returns after the last undo.

    Returns:
        A handle with `undo()`. It is also a context manager: `with override_detr(): ...`.

    Raises:
        ImportError: transformers is not installed.
    """
    importlib.import_module("transformers")
    return _REPLACEMENTS.override()


def _replace_all(replacements: Replacements) -> None:
    softmax, focal = _matcher(lambda _: {"kind": "softmax"}), _matcher(lambda _: {"kind": "focal"})
    forwards = [
        *((f"models.{m}.modeling_{m}", "MultiScaleDeformableAttention", _attention)
          for m in _WITH_CLASS),
        ("loss.loss_for_object_detection", "HungarianMatcher", softmax),
        ("loss.loss_deformable_detr", "DeformableDetrHungarianMatcher", focal),
        ("loss.loss_rt_detr", "RTDetrHungarianMatcher", _matcher(_options_of_rt_detr)),
    ]  # fmt: skip
    for module, name, ours in forwards:
        replacements.replace(getattr(_module(module), name, None), "forward", ours)
    rt_detr_v2 = _module("models.rt_detr_v2.modeling_rt_detr_v2")
    replacements.replace(rt_detr_v2, _FUNCTION, _attention_of_points)
    _replace_core(replacements, _module("models.d_fine.modeling_d_fine"))
    replace_rfdetr(replacements)


_REPLACEMENTS = Replacements(_replace_all)


def _module(name: str) -> Any:
    return optional_module(f"transformers.{name}")


def _replace_core(replacements: Replacements, d_fine: Any) -> None:
    """Gives D-FINE's attention a property that hides what its modules keep, old and new ones."""
    owner = getattr(d_fine, "DFineMultiscaleDeformableAttention", None)
    if owner is None or not hasattr(d_fine, _FUNCTION):
        return
    ours = _attention_of_points(getattr(d_fine, _FUNCTION))

    def keep(module: Any, theirs: Callable[..., Tensor]) -> None:
        module.__dict__[_CORE] = theirs

    replacements.put(owner, _CORE, property(lambda module: ours, keep))


def _attention(theirs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(
        self: Any,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[Sequence[int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        if sampling_locations.shape[3] > _MOST_LEVELS:
            return theirs(
                self,
                value,
                value_spatial_shapes,
                value_spatial_shapes_list,
                level_start_index,
                sampling_locations,
                attention_weights,
                im2col_step,
            )
        shapes = [(int(height), int(width)) for height, width in value_spatial_shapes_list]
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)

    return forward


def _attention_of_points(theirs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of levels with different numbers of points, one after another in one dimension."""

    def attention(
        value: Tensor,
        value_spatial_shapes: Sequence[Sequence[int]],
        sampling_locations: Tensor,
        attention_weights: Tensor,
        num_points_list: list[int],
        method: str = "default",
    ) -> Tensor:
        if method != "default" or len(num_points_list) > _MOST_LEVELS:
            return theirs(
                value,
                value_spatial_shapes,
                sampling_locations,
                attention_weights,
                num_points_list,
                method,
            )
        shapes = [(int(height), int(width)) for height, width in value_spatial_shapes]
        locations = _by_level(sampling_locations, num_points_list)
        weights = _by_level(attention_weights, num_points_list)
        return ms_deform_attn(value, shapes, locations, weights)

    return attention


def _by_level(points: Tensor, counts: list[int]) -> Tensor:
    """(B, Q, H, sum of counts, ...) to (B, Q, H, levels, largest count, ...), padded with 0."""
    most = max(counts)
    if min(counts) == most:
        return points.unflatten(3, (len(counts), most))
    padded = points.new_zeros(*points.shape[:3], len(counts), most, *points.shape[4:])
    for level, part in enumerate(points.split(counts, 3)):
        padded[:, :, :, level, : part.shape[3]] = part
    return padded


def _matcher(options_of: Callable[[Any], dict[str, Any]]) -> Callable[..., Callable[..., Pairs]]:
    """A matcher whose class cost `options_of(self)` describes, as arguments of `match_queries`."""

    def forward(self: Any, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Pairs:
        return _match(self, outputs, targets, **options_of(self))

    return lambda theirs: forward


def _options_of_rt_detr(matcher: Any) -> dict[str, Any]:
    kind = "focal" if matcher.use_focal_loss else "softmax"
    return {"kind": kind, "alpha": matcher.alpha, "gamma": matcher.gamma}


@torch.no_grad()
def _match(
    matcher: Any, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], **options: Any
) -> Pairs:
    """For each image the matched queries, ascending, and their gts, on the CPU."""
    logits, boxes = outputs["logits"], outputs["pred_boxes"]
    index = match_queries(
        logits,
        boxes,
        *padded_targets(targets, "class_labels", boxes),
        matcher.class_cost,
        matcher.bbox_cost,
        matcher.giou_cost,
        **options,
    )
    return pairs_of(index.cpu())
