# SPDX-License-Identifier: BSD-3-Clause
"""What a resumed training takes from its checkpoint, and which options may not differ from it."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdet.data import Classes
from fastdet.models import MODELS
from fastdet.models.timm_bodies import LAYERS_WITH_WEIGHTS, NORM_WITH_WEIGHTS
from fastdet.training.checkpoint import plain_backbone, read_checkpoint
from fastdet.training.detector_module import CALIBRATION
from fastdet.training.options import TrainOptions

# What a builder does by default where there are weights; a resumed training has none to show it.
WITH_WEIGHTS = {
    "batch_norm": NORM_WITH_WEIGHTS,
    "trainable_backbone_layers": LAYERS_WITH_WEIGHTS,
}

# Options of the optimiser that its state in the checkpoint belongs to or contains.
OF_THE_STATE = (
    "optimizer",
    "weight_decay",
    "decay_norms",
    "momentum",
    "backbone_lr",
    "layer_decay",
)


@dataclass(frozen=True)
class Before:
    """A training that goes on.

    Attributes:
        steps: optimiser steps that were done.
        classes: of the model.
        model_options: all that its builder was given, then and now.
    """

    steps: int
    classes: Classes
    model_options: dict[str, Any]


def resumed(last: Path, options: TrainOptions, model_options: dict[str, Any]) -> Before:
    """The training whose checkpoint is `last`.

    Args:
        last: the checkpoint.
        options: of the training that goes on, complete.
        model_options: keyword arguments of the model's builder, as `options` say.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint, or a quantised one; an option that builds another model or
            optimiser.
    """
    before = read_checkpoint(last)
    if CALIBRATION in before:
        raise ValueError(f"{last}: a quantised checkpoint, which has no state of a training")
    made_with = before["hyper_parameters"]
    built_before = made_with["model_options"] or {}
    if made_with["pretrained_backbone"]:
        built_before = WITH_WEIGHTS | built_before
    _check(last, "model", made_with["model"], options.model)
    _check(last, "backbone", made_with["backbone"], plain_backbone(str(options.backbone)))
    builder = inspect.signature(MODELS[options.model]).parameters
    defaults = {name: builder[name].default for name in ("neck", "fpn_channels")}
    of_default = defaults | {"batch_norm": "train", "anchor_sizes": None} | built_before
    for name, given in model_options.items():
        _check(last, name, of_default.get(name, given), given)
    optimized_with = made_with.get("optimization") or {}  # an older checkpoint has none
    for name in OF_THE_STATE:
        given = getattr(options.optimization, name)
        _check(last, name, optimized_with.get(name, given), given)
    if options.optimization.ema is None:
        _check(last, "ema", optimized_with.get("ema"), None)
    classes = Classes(made_with["classes"], last)
    return Before(before["global_step"], classes, built_before | model_options)


def _check(last: Path, name: str, trained_with: Any, given: Any) -> None:
    if trained_with != given:
        before = "the default" if trained_with is None else trained_with
        raise ValueError(f"{name}: {last} was trained with {before}, got {given}")
