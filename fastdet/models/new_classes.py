# SPDX-License-Identifier: BSD-3-Clause
"""Fine-tuning for other classes: class layers get new weights, all other layers keep theirs."""

from typing import TypeVar

from torch import nn

from fastdet.models.checks import check_num_classes
from fastdet.models.detector import Detector, channels_last

AnyDetector = TypeVar("AnyDetector", bound=Detector)

CLASS_LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)


def replace_classes(model: AnyDetector, num_classes: int) -> AnyDetector:
    """Changes a trained detector, in place, to one for other classes.

    The layers that `model.class_layers` names get random weights; all others are unchanged.

    Args:
        model: any detector, also a converted one, on any device. Create the optimiser afterwards,
            because parameters are replaced.
        num_classes: number of classes with background, which is class 0.

    Returns:
        The model.

    Raises:
        ValueError: num_classes is below 2; or the model has none of the layers that
            `class_layers` names (in a converted model they may have other names).
    """
    check_num_classes(num_classes)
    modules = dict(model.named_modules())
    names = model.class_layers()
    found = [name for name in names if isinstance(modules.get(name), CLASS_LAYERS)]
    if not found:
        raise ValueError(f"model: expected one of the layers {', '.join(names)}, got none")
    before = model.num_classes
    for name in found:
        _start_anew(modules[name], before, num_classes, names[name])
        for owner in _owners(name):
            if "num_classes" in vars(modules[owner]):
                modules[owner].num_classes = num_classes  # type: ignore[assignment]
    return channels_last(model)


def _owners(name: str) -> list[str]:
    """The names of all modules that contain a module: for "a.b.c" they are "", "a" and "a.b"."""
    path = name.split(".")
    return [".".join(path[:i]) for i in range(len(path))]


def _start_anew(layer: nn.Module, before: int, after: int, bias: float) -> None:
    """Gives a layer random weights for another number of classes; small ones, but to embeddings."""
    assert isinstance(layer, CLASS_LAYERS)
    if isinstance(layer, nn.Embedding):
        layer.num_embeddings = after
        layer.weight = nn.Parameter(layer.weight.new_empty((after, layer.embedding_dim)))
        layer.reset_parameters()
        return
    # A layer without a column for background has one class less, and then no multiple of `before`.
    less = 1 if len(layer.weight) % before else 0
    outputs = len(layer.weight) // (before - less) * (after - less)
    weight = layer.weight.new_empty((outputs, *layer.weight.shape[1:]))
    layer.weight = nn.Parameter(nn.init.normal_(weight, std=0.01))
    layer.bias = nn.Parameter(weight.new_full((outputs,), bias))
    if isinstance(layer, nn.Linear):
        layer.out_features = outputs
    else:
        layer.out_channels = outputs
