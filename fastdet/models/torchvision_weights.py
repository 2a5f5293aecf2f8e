# SPDX-License-Identifier: BSD-3-Clause
"""Converts torchvision's detectors to ours: same weights, same options, same detections.

The networks of torchvision's models (backbone, pyramid, heads) are copied without changes. They
keep their parameter names, so a state dict of either model loads into the other. All other parts
(resizing, anchors, matching, sampling, losses, NMS) are replaced by ours, with the same options. A
part that differs from torchvision's own raises an error that names it.
"""

import copy
import hashlib
import math
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import fcos as torchvision_fcos
from torchvision.models.detection._utils import (
    BalancedPositiveNegativeSampler,
    BoxCoder,
    BoxLinearCoder,
    Matcher,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import (
    RetinaNetClassificationHead as TorchvisionClassificationHead,
)
from torchvision.models.detection.retinanet import RetinaNetHead as TorchvisionRetinaNetHead
from torchvision.models.detection.retinanet import (
    RetinaNetRegressionHead as TorchvisionRegressionHead,
)
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork as TorchvisionRPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, box_iou

from fastdet.models.anchors import Cells
from fastdet.models.border import Border
from fastdet.models.detector import Detector, channels_last
from fastdet.models.faster_rcnn import FasterRCNN
from fastdet.models.fcos import FCOS, FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from fastdet.models.mask_rcnn import MaskRCNN
from fastdet.models.retinanet import (
    RetinaNet,
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)
from fastdet.models.roi_heads import MaskBranch, RoIHeads, RoIPooling
from fastdet.models.rpn import RegionProposalNetwork

PROBE_SIZE = 256  # pixels: a multiple of every stride


def from_torchvision(model: nn.Module) -> Detector:
    """Converts a detector of torchvision to ours, with the same weights and options.

    Args:
        model: torchvision's FasterRCNN, MaskRCNN, RetinaNet or FCOS, from a builder or from parts:
            any backbone, anchors, RPN head, RoI poolers, box head and mask head. The model is not
            changed. The weights are copied, so training one model does not change the other.

    Returns:
        A FasterRCNN, a MaskRCNN, a RetinaNet or an FCOS, in the mode and dtype and on the device of
        `model`. Names and shapes in its state dict are those of `model`.

    Raises:
        ValueError: a part has no counterpart here; the message names it.

    A RoI pooler of torchvision computes the scales of its levels from its first batch and keeps
    them. If it has seen no batch yet, the scales are computed from the strides of the backbone.
    """
    if isinstance(model, GeneralizedRCNN):
        detector = _two_stages(model)
    elif isinstance(model, TorchvisionRetinaNet):
        detector = _retinanet(model)
    elif isinstance(model, torchvision_fcos.FCOS):
        detector = _fcos(model)
    else:
        raise ValueError(
            "model: expected torchvision's FasterRCNN, MaskRCNN, RetinaNet or FCOS, "
            f"got {type(model).__module__}.{type(model).__name__}"
        )
    return channels_last(detector.train(model.training))


def load_torchvision_weights(
    name: str, path: str | Path | None = None, *, weights: Any = "DEFAULT", **options: Any
) -> Detector:
    """Our detector with the weights of a torchvision checkpoint, in eval mode.

    Args:
        name: torchvision's builder, e.g. "fasterrcnn_resnet50_fpn".
        path: a checkpoint with torchvision's keys, at the top level or under "model" as in the
            files of torchvision's training scripts. It can be torchvision's own or a fine-tuned
            one, with any number of classes. None: torchvision downloads `weights`.
        weights: a member of the builder's weights enum, or its name; only used without a path.
        options: other arguments of the builder, for example min_size or box_score_thresh.

    Returns:
        The detector. With a path, all parameters are trainable, except that BatchNorms are frozen
        if the file has no num_batches_tracked, as in torchvision's own v1 files. Without a path,
        the first layers are frozen as in torchvision.

    Raises:
        ValueError: a name that torchvision does not know; a part without counterpart, see
            `from_torchvision`; a file without the keys of a detector.
        RuntimeError: the keys or shapes in the file differ from those of the builder's model.
    """
    if path is None:
        return from_torchvision(get_model(name, weights=weights, **options).eval())
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("model", state)
    model = get_model(
        name, weights=None, weights_backbone=None, num_classes=_classes_of(state, path), **options
    )
    if not any(key.endswith("num_batches_tracked") for key in state):
        # The first checkpoints of torchvision were trained when FrozenBatchNorm2d ignored its eps.
        names = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
        early = name in names
        _freeze_batch_norms(model, 0.0 if early and _is_torchvisions_own(name, path) else 1e-5)
    model.load_state_dict(state)
    return from_torchvision(model.eval())


def _classes_of(state: dict[str, Tensor], path: str | Path) -> int:
    if "roi_heads.box_predictor.cls_score.bias" in state:
        return len(state["roi_heads.box_predictor.cls_score.bias"])
    try:
        logits = state["head.classification_head.cls_logits.bias"]
        return 4 * len(logits) // len(state["head.regression_head.bbox_reg.bias"])
    except KeyError as error:
        raise ValueError(
            f"{path}: expected a torchvision detector's keys, missing {error}"
        ) from None


def _freeze_batch_norms(module: nn.Module, eps: float) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            _freeze_batch_norms(child, eps)


def _is_torchvisions_own(name: str, path: str | Path) -> bool:
    """Whether torchvision publishes this file: the names of its files end with their hashes."""
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return any(f"-{digest[:8]}." in member.url for member in get_model_weights(name))


# ---- the families --------------------------------------------------------------------------------


def _two_stages(model: Any) -> FasterRCNN:
    _expect("model", model, TorchvisionFasterRCNN, GeneralizedRCNN)
    rpn = _expect("rpn", model.rpn, TorchvisionRPN)
    heads = _expect("roi_heads", model.roi_heads, TorchvisionRoIHeads)
    for extra in ("keypoint_roi_pool", "keypoint_head", "keypoint_predictor"):
        if getattr(heads, extra) is not None:
            _refuse(f"roi_heads.{extra}", "None: keypoints are not supported", "one")
    border = _border(model.transform)
    for name, part in (("rpn", rpn), ("roi_heads", heads)):
        if part.box_similarity is not box_iou:
            _refuse(f"{name}.box_similarity", "box_iou", part.box_similarity)
        _expect(f"{name}.fg_bg_sampler", part.fg_bg_sampler, BalancedPositiveNegativeSampler)
    maps = _probe(model)
    cells = _cells("rpn.anchor_generator", rpn.anchor_generator, maps)
    _check_rpn_head(rpn.head, cells, maps)
    _check_coder("rpn.box_coder", rpn.box_coder, (1.0, 1.0, 1.0, 1.0))
    _check_coder("roi_heads.box_coder", heads.box_coder)
    _check_matcher("rpn.proposal_matcher", rpn.proposal_matcher, low_quality=True)
    _check_matcher("roi_heads.proposal_matcher", heads.proposal_matcher, low_quality=False)
    num_classes = _num_classes(heads, maps)
    masks = _mask_branch(heads, num_classes, maps)
    return (FasterRCNN if masks is None else MaskRCNN)(
        border,
        copy.deepcopy(model.backbone),
        _first_stage(rpn, cells),
        _second_stage(heads, num_classes, _pooling("box", heads.box_roi_pool, maps), masks),
        mask_threshold=None,  # torchvision's masks are probabilities
    )


def _first_stage(rpn: Any, cells: Cells) -> RegionProposalNetwork:
    return RegionProposalNetwork(
        copy.deepcopy(rpn.head),
        cells,
        fg_iou_thresh=rpn.proposal_matcher.high_threshold,
        bg_iou_thresh=rpn.proposal_matcher.low_threshold,
        batch_size_per_image=rpn.fg_bg_sampler.batch_size_per_image,
        positive_fraction=rpn.fg_bg_sampler.positive_fraction,
        pre_nms_top_n=(rpn._pre_nms_top_n["training"], rpn._pre_nms_top_n["testing"]),
        post_nms_top_n=(rpn._post_nms_top_n["training"], rpn._post_nms_top_n["testing"]),
        nms_thresh=rpn.nms_thresh,
        score_thresh=rpn.score_thresh,
        min_size=rpn.min_size,
    )


def _second_stage(
    heads: Any, num_classes: int, pooling: RoIPooling, masks: MaskBranch | None
) -> RoIHeads:
    return RoIHeads(
        copy.deepcopy(heads.box_head),
        copy.deepcopy(heads.box_predictor),
        pooling,
        num_classes,
        fg_iou_thresh=heads.proposal_matcher.high_threshold,
        bg_iou_thresh=heads.proposal_matcher.low_threshold,
        batch_size_per_image=heads.fg_bg_sampler.batch_size_per_image,
        positive_fraction=heads.fg_bg_sampler.positive_fraction,
        bbox_reg_weights=tuple(heads.box_coder.weights),
        score_thresh=heads.score_thresh,
        nms_thresh=heads.nms_thresh,
        detections_per_img=heads.detections_per_img,
        masks=masks,
    )


def _mask_branch(heads: Any, num_classes: int, maps: dict[str, Tensor]) -> MaskBranch | None:
    """The mask heads; None if `heads` have none."""
    names = ("mask_roi_pool", "mask_head", "mask_predictor")
    missing = [name for name in names if getattr(heads, name) is None]
    if len(missing) == len(names):
        return None
    if missing:
        _refuse(f"roi_heads.{missing[0]}", f"all of {', '.join(names)} or none", None)
    pooling = _pooling("mask", heads.mask_roi_pool, maps)
    head, predictor = copy.deepcopy(heads.mask_head), copy.deepcopy(heads.mask_predictor)
    channels = _on_pooled(nn.Sequential(head, predictor), heads.mask_roi_pool, maps).shape[1]
    if channels != num_classes:
        _refuse("roi_heads.mask_predictor", f"a mask for each of {num_classes} classes", channels)
    return MaskBranch(head, predictor, pooling)


def _retinanet(model: Any) -> RetinaNet:
    _expect("model", model, TorchvisionRetinaNet)
    head = _expect("head", model.head, TorchvisionRetinaNetHead)
    classes = _expect(
        "head.classification_head", head.classification_head, TorchvisionClassificationHead
    )
    boxes = _expect("head.regression_head", head.regression_head, TorchvisionRegressionHead)
    _check_coder("box_coder", model.box_coder, (1.0, 1.0, 1.0, 1.0))
    _check_coder("head.regression_head.box_coder", boxes.box_coder, (1.0, 1.0, 1.0, 1.0))
    _check_matcher("proposal_matcher", model.proposal_matcher)
    border = _border(model.transform)
    return RetinaNet(
        border,
        copy.deepcopy(model.backbone),
        RetinaNetHead(
            RetinaNetClassificationHead(
                copy.deepcopy(classes.conv), copy.deepcopy(classes.cls_logits), classes.num_classes
            ),
            RetinaNetRegressionHead(copy.deepcopy(boxes.conv), copy.deepcopy(boxes.bbox_reg)),
        ),
        _cells("anchor_generator", model.anchor_generator, _probe(model)),
        score_thresh=model.score_thresh,
        nms_thresh=model.nms_thresh,
        detections_per_img=model.detections_per_img,
        fg_iou_thresh=model.proposal_matcher.high_threshold,
        bg_iou_thresh=model.proposal_matcher.low_threshold,
        low_quality_matches=model.proposal_matcher.allow_low_quality_matches,
        topk_candidates=model.topk_candidates,
        box_loss=boxes._loss_type,
    )


def _fcos(model: Any) -> FCOS:
    _expect("model", model, torchvision_fcos.FCOS)
    head = _expect("head", model.head, torchvision_fcos.FCOSHead)
    classes = _expect(
        "head.classification_head",
        head.classification_head,
        torchvision_fcos.FCOSClassificationHead,
    )
    boxes = _expect(
        "head.regression_head", head.regression_head, torchvision_fcos.FCOSRegressionHead
    )
    for name, coder in (("box_coder", model.box_coder), ("head.box_coder", head.box_coder)):
        if not _expect(name, coder, BoxLinearCoder).normalize_by_size:
            _refuse(f"{name}.normalize_by_size", True, False)
    border = _border(model.transform)
    return FCOS(
        border,
        copy.deepcopy(model.backbone),
        FCOSHead(
            FCOSClassificationHead(
                copy.deepcopy(classes.conv), copy.deepcopy(classes.cls_logits), classes.num_classes
            ),
            FCOSRegressionHead(
                copy.deepcopy(boxes.conv),
                copy.deepcopy(boxes.bbox_reg),
                copy.deepcopy(boxes.bbox_ctrness),
            ),
        ),
        _cells("anchor_generator", model.anchor_generator, _probe(model)),
        center_sampling_radius=model.center_sampling_radius,
        score_thresh=model.score_thresh,
        nms_thresh=model.nms_thresh,
        detections_per_img=model.detections_per_img,
        topk_candidates=model.topk_candidates,
    )


# ---- options and checks of the parts -------------------------------------------------------------


def _border(transform: Any) -> Border:
    _expect("transform", transform, GeneralizedRCNNTransform)
    if transform._skip_resize:
        _refuse("transform._skip_resize", "False: training would not resize, detection would", True)
    min_sizes = list(transform.min_size)
    width_and_height = transform.fixed_size
    height_and_width: Any = width_and_height and tuple(reversed(width_and_height))
    return Border(
        min_size=min_sizes if len(min_sizes) > 1 else min_sizes[0],
        max_size=transform.max_size,
        size_divisor=transform.size_divisible,
        fixed_size=height_and_width,
        image_mean=tuple(map(float, transform.image_mean)),
        image_std=tuple(map(float, transform.image_std)),
    )


@torch.no_grad()
def _probe(model: Any) -> dict[str, Tensor]:
    """The maps of the backbone for a square of zeros of PROBE_SIZE, by name, finest first."""
    backbone = copy.deepcopy(model.backbone).eval()
    like = next(model.parameters())
    channels = len(model.transform.image_mean)
    maps = backbone(like.new_zeros((1, channels, PROBE_SIZE, PROBE_SIZE)))
    return {"0": maps} if isinstance(maps, Tensor) else dict(maps)


def _cells(name: str, generator: Any, maps: dict[str, Tensor]) -> Cells:
    _expect(name, generator, AnchorGenerator)
    cells: Cells = tuple(tuple(map(tuple, level.tolist())) for level in generator.cell_anchors)
    if len(cells) != len(maps):
        _refuse(name, f"anchors for the backbone's {len(maps)} levels", f"{len(cells)}")
    return cells


@torch.no_grad()
def _check_rpn_head(head: nn.Module, cells: Cells, maps: dict[str, Tensor]) -> None:
    objectness, deltas = copy.deepcopy(head).eval()(list(maps.values()))
    found = [(x.shape[1], y.shape[1]) for x, y in zip(objectness, deltas, strict=True)]
    expected = [(len(level), 4 * len(level)) for level in cells]
    if found != expected:
        _refuse("rpn.head", f"channels of logits and deltas for the anchors, {expected}", found)


def _num_classes(heads: Any, maps: dict[str, Tensor]) -> int:
    logits, deltas = _on_pooled(
        nn.Sequential(heads.box_head, heads.box_predictor), heads.box_roi_pool, maps
    )
    if deltas.shape[1] != 4 * logits.shape[1]:
        shapes = f"{deltas.shape[1]} deltas for {logits.shape[1]} classes"
        _refuse("roi_heads.box_predictor", "four deltas for each class", shapes)
    return logits.shape[1]


@torch.no_grad()
def _on_pooled(head: nn.Module, pool: Any, maps: dict[str, Tensor]) -> Any:
    """The outputs of a copy of `head` for two RoIs of zeros."""
    level = next(iter(maps.values()))
    return copy.deepcopy(head).eval()(level.new_zeros((2, level.shape[1], *pool.output_size)))


def _pooling(kind: str, pool: Any, maps: dict[str, Tensor]) -> RoIPooling:
    """The pooling of one `kind` of RoIs, "box" or "mask"."""
    name = f"roi_heads.{kind}_roi_pool"
    _expect(name, pool, MultiScaleRoIAlign)
    return RoIPooling(
        _pooled_scales(name, pool, maps),
        tuple(pool.output_size),
        pool.sampling_ratio,
        pool.canonical_scale,
        pool.canonical_level,
    )


def _pooled_scales(name: str, pool: Any, maps: dict[str, Tensor]) -> dict[int, float]:
    """The scale of each level that RoIs are pooled from, by the level's index among the maps.

    torchvision numbers the levels by powers of two, from the finest scale to the coarsest. If two
    maps have the same scale (in MobileNetV3), there are more maps than numbers, and the last maps
    are never pooled.
    """
    levels = [i for i, level in enumerate(maps) if level in pool.featmap_names]
    if not levels:
        _refuse(f"{name}.featmap_names", f"some of {list(maps)}", pool.featmap_names)
    scales = pool.scales
    if scales is None:
        sizes = [level.shape[2] for level in maps.values()]
        scales = [2.0 ** round(math.log2(sizes[i] / PROBE_SIZE)) for i in levels]
    span = round(math.log2(scales[0] / scales[-1])) + 1
    expected = [scales[0] / 2**i for i in range(span)]
    if span < 1 or list(scales[:span]) != expected:
        _refuse(
            f"{name}.featmap_names", "levels each half the scale of the one before", list(scales)
        )
    return dict(zip(levels[:span], expected, strict=True))


def _check_coder(name: str, coder: Any, weights: tuple[float, ...] | None = None) -> None:
    _expect(name, coder, BoxCoder)
    if coder.bbox_xform_clip != math.log(1000 / 16):
        _refuse(f"{name}.bbox_xform_clip", "log(1000 / 16)", coder.bbox_xform_clip)
    if weights is not None and tuple(coder.weights) != weights:
        _refuse(f"{name}.weights", weights, coder.weights)


def _check_matcher(name: str, matcher: Any, low_quality: bool | None = None) -> None:
    _expect(name, matcher, Matcher)
    if low_quality is not None and matcher.allow_low_quality_matches != low_quality:
        _refuse(f"{name}.allow_low_quality_matches", low_quality, not low_quality)


def _expect(name: str, part: Any, *classes: type) -> Any:
    """Returns `part` if it is an instance of one of the classes and overrides no method of it."""
    for cls in classes:
        if type(part) is cls:
            return part
    for cls in classes:
        if isinstance(part, cls):
            methods = [key for key, value in vars(cls).items() if callable(value)]
            replaced = [
                key
                for key in methods
                if key not in ("__init__", "__repr__")
                and (key in vars(part) or getattr(type(part), key) is not getattr(cls, key))
            ]
            if not replaced:
                return part
            _refuse(name, f"{cls.__name__}'s own {replaced[0]}", f"{type(part).__name__}'s")
    expected = " or ".join(f"torchvision's {cls.__name__}" for cls in classes)
    return _refuse(name, expected, type(part).__name__)


def _refuse(name: str, expected: Any, got: Any) -> NoReturn:
    raise ValueError(f"from_torchvision: {name}: expected {expected}, got {got}")
