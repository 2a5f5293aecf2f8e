# SPDX-License-Identifier: BSD-3-Clause
"""Runs the DETRs of transformers on fastdet's operators, so that existing code gets faster.

transformers' models compute deformable attention in a few classes and functions, and match queries
in three classes. Those are replaced while an override is active, for models that exist already and
for new ones. Arguments that our operators do not support go to transformers' own code.
"""

import functools
import importlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdet.ops import match_queries, ms_deform_attn
from fastdet.override import Override

# The modules of transformers.models that have the class MultiScaleDeformableAttention.
_WITH_CLASS = ("deformable_detr", "grounding_dino", "mm_grounding_dino", "omdet_turbo", "rt_detr")
_FUNCTION = "multi_scale_deformable_attention_v2"
_CORE = "ms_deformable_attn_core"  # where a module of D-FINE keeps that function
_MOST_LEVELS = 8
_ABSENT = object()

_lock = threading.Lock()
_in_force = 0  # number of overrides that are not undone
_replaced: list[tuple[Any, str, Any]] = []  # owner, name, transformers' own

Pairs = list[tuple[Tensor, Tensor]]


def override_detr() -> Override:
    """Puts fastdet's operators under the DETRs of transformers, for the whole process.

    - `ms_deform_attn` computes the attention of Deformable DETR, RT-DETR, RT-DETRv2, D-FINE,
      Grounding DINO and OmDet-Turbo. The method "discrete" of RT-DETRv2 stays transformers'.
    - `match_queries` is the matcher of their losses, of DETR and of Conditional DETR. All images
      of a batch are matched in one call. The costs are summed in float64, so that of two
      assignments whose totals differ by less than float32's rounding another one may be chosen.

    Outputs and losses are the same to rounding. Models need no change, and none is wrapped. Call
    and undo it while no other thread runs such a model. Overrides can be nested and undone in any
    order; transformers' own code returns after the last undo.

    Returns:
        A handle with `undo()`. It is also a context manager: `with override_detr(): ...`.

    Raises:
        ImportError: transformers is not installed.
    """
    global _in_force
    importlib.import_module("transformers")
    with _lock:
        if _in_force == 0:
            _replace_all()
        _in_force += 1
    return Override(_release)


def _release() -> None:
    global _in_force
    with _lock:
        _in_force -= 1
        while _in_force == 0 and _replaced:
            owner, name, theirs = _replaced.pop()
            if theirs is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, theirs)


def _replace_all() -> None:
    for model in _WITH_CLASS:
        _replace(f"models.{model}.modeling_{model}", "MultiScaleDeformableAttention", _attention)
    _replace_in(_module("models.rt_detr_v2.modeling_rt_detr_v2"), _FUNCTION, _attention_of_points)
    _replace_core(_module("models.d_fine.modeling_d_fine"))
    _replace("loss.loss_for_object_detection", "HungarianMatcher", _softmax_matcher)
    _replace("loss.loss_deformable_detr", "DeformableDetrHungarianMatcher", _focal_matcher)
    _replace("loss.loss_rt_detr", "RTDetrHungarianMatcher", _matcher_of_either_kind)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"transformers.{name}")
    except ModuleNotFoundError:  # this release of transformers does not have it
        return None


def _replace(module: str, name: str, ours: Callable[..., Any]) -> None:
    """Replaces `forward` of a class."""
    _replace_in(getattr(_module(module), name, None), "forward", ours)


def _replace_in(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    theirs = getattr(owner, name, None)
    if theirs is not None:
        _replaced.append((owner, name, theirs))
        setattr(owner, name, functools.wraps(theirs)(ours(theirs)))


def _replace_core(d_fine: Any) -> None:
    """Gives D-FINE's attention a property that hides what its modules keep, old and new ones."""
    owner = getattr(d_fine, "DFineMultiscaleDeformableAttention", None)
    if owner is None or not hasattr(d_fine, _FUNCTION):
        return
    ours = _attention_of_points(getattr(d_fine, _FUNCTION))

    def keep(module: Any, theirs: Callable[..., Tensor]) -> None:
        module.__dict__[_CORE] = theirs

    setattr(owner, _CORE, property(lambda module: ours, keep))
    _replaced.append((owner, _CORE, _ABSENT))


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
        locations = _by_level(sampling_locations, num_points_list, dim=3)
        weights = _by_level(attention_weights, num_points_list, dim=3)
        return ms_deform_attn(value, shapes, locations, weights)

    return attention


def _by_level(points: Tensor, counts: list[int], dim: int) -> Tensor:
    """(..., sum of counts, ...) to (..., levels, largest count, ...), padded with 0."""
    most = max(counts)
    if min(counts) == most:
        return points.unflatten(dim, (len(counts), most))
    rows = [
        torch.nn.functional.pad(
            level.movedim(dim, -1), (0, most - level.shape[dim])
        ).movedim(-1, dim)
        for level in points.split(counts, dim)
    ]  # fmt: skip
    return torch.stack(rows, dim)


def _softmax_matcher(theirs: Callable[..., Pairs]) -> Callable[..., Pairs]:
    def forward(self: Any, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Pairs:
        return _match(self, outputs, targets, kind="softmax")

    return forward


def _focal_matcher(theirs: Callable[..., Pairs]) -> Callable[..., Pairs]:
    def forward(self: Any, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Pairs:
        return _match(self, outputs, targets, kind="focal")

    return forward


def _matcher_of_either_kind(theirs: Callable[..., Pairs]) -> Callable[..., Pairs]:
    def forward(self: Any, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Pairs:
        kind = "focal" if self.use_focal_loss else "softmax"
        return _match(self, outputs, targets, kind=kind, alpha=self.alpha, gamma=self.gamma)

    return forward


@torch.no_grad()
def _match(
    matcher: Any, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]], **options: Any
) -> Pairs:
    """For each image the matched queries, ascending, and their gts, on the CPU."""
    logits, boxes = outputs["logits"], outputs["pred_boxes"]
    counts = [len(target["boxes"]) for target in targets]
    gt_labels = torch.zeros(len(counts), max(counts), dtype=torch.int64, device=logits.device)
    gt_boxes = boxes.new_zeros(len(counts), max(counts), 4)
    for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
        gt_labels[i, :count] = target["class_labels"]
        gt_boxes[i, :count] = target["boxes"]
    index = match_queries(
        logits,
        boxes,
        gt_labels,
        gt_boxes,
        torch.tensor(counts, device=logits.device),
        matcher.class_cost,
        matcher.bbox_cost,
        matcher.giou_cost,
        **options,
    )
    pairs = []
    for of_image in index.cpu():
        queries = (of_image >= 0).nonzero()[:, 0]
        pairs.append((queries, of_image[queries]))
    return pairs
