# SPDX-License-Identifier: BSD-3-Clause
"""Fine-tuning for other classes: the layers that speak of classes start anew, all others stay."""

import math
from typing import TypeVar

from torch import nn

from fastdet.models.detector import Detector, channels_last
from fastdet.models.retinanet import PRIOR

AnyDetector = TypeVar("AnyDetector", bound=Detector)

# The layers whose outputs are counted by class, and each one's bias at the start.
CLASS_LAYERS = {
    "roi_heads.box_predictor.cls_score": 0.0,
    "roi_heads.box_predictor.bbox_pred": 0.0,
    "roi_heads.mask_predictor.mask_fcn_logits": 0.0,
    "head.classification_head.cls_logits": -math.log((1 - PRIOR) / PRIOR),
}


def replace_classes(model: AnyDetector, num_classes: int) -> AnyDetector:
    """Makes a trained detector one for other classes, in place.

    Args:
        model: built here or converted, on any device. An optimiser is to be made afterwards.
        num_classes: with background, which is 0.

    Returns:
        The model.

    Raises:
        ValueError: less than 2 classes, or a model whose last layers have other names than
            torchvision's.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: expected background and at least one, got {num_classes}")
    modules = dict(model.named_modules())
    found = [name for name in CLASS_LAYERS if isinstance(modules.get(name), nn.Linear | nn.Conv2d)]
    if not found:
        raise ValueError(f"model: expected one of the layers {', '.join(CLASS_LAYERS)}, got none")
    for name in found:
        _start_anew(modules[name], model.num_classes, num_classes, CLASS_LAYERS[name])
    for module in (model, modules.get("head.classification_head")):
        if module is not None:
            module.num_classes = num_classes  # type: ignore[assignment]
    return channels_last(model)


def _start_anew(layer: nn.Module, before: int, after: int, bias: float) -> None:
    """Gives a layer small random weights, for another number of classes."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    outputs = len(layer.weight) // before * after
    weight = layer.weight.new_empty((outputs, *layer.weight.shape[1:]))
    layer.weight = nn.Parameter(nn.init.normal_(weight, std=0.01))
    layer.bias = nn.Parameter(weight.new_full((outputs,), bias))
    if isinstance(layer, nn.Linear):
        layer.out_features = outputs
    else:
        layer.out_channels = outputs
