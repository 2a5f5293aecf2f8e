# SPDX-License-Identifier: BSD-3-Clause
"""Detectors to export, pictures for them, and what they find."""

import copy
import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdet.engine.fused import unfused
from fastdet.models import MODELS, Batch, Detections, Detector, from_torchvision
from tests.deploy.runtimes import Arrays
from tests.models.scenes import named, small_model, tiny_model
from tests.models.test_torchvision_weights import MODELS as TORCHVISION_MODELS
from tests.models.test_torchvision_weights import picture, with_detections

SIZE = (96, 128)
CLASSES = ["background", "cat", "dog", "bird"]
# Else rounding decides which of the equal locations of a black picture become queries.
EVERY_LOCATION = {name: {"num_queries": 12 * 16 + 6 * 8} for name in ("d_fine", "rt_detr")}
CONVERTED = ("faster_rcnn_of_parts", "retinanet_of_parts", "fcos_of_parts")


def detector(name: str) -> Detector:
    """In eval mode, with scores that are far enough apart not to change places by rounding.

    Args:
        name: a key of MODELS, that with `tiny_` before it, or a model that torchvision's is
            converted to.
    """
    return copy.deepcopy(_made(name))


@functools.cache
def _made(name: str) -> Detector:
    torch.manual_seed(0)
    if name.startswith("tiny_"):
        family = name.removeprefix("tiny_")
        return with_detections(tiny_model(family, **EVERY_LOCATION.get(family, {})))
    if name in MODELS:
        model = with_detections(small_model(name))
        if name in ("faster_rcnn", "cascade_rcnn"):
            last_heads(model).score_thresh = 0.3
        return model
    model = from_torchvision(with_detections(TORCHVISION_MODELS[name]()))
    model.border = dataclasses.replace(model.border, size_divisor=32)
    return model


def pixels(*sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pictures in the upper left of SIZE; what lies beyond them must not matter."""
    images = torch.rand(len(sizes), 3, *SIZE, generator=torch.Generator().manual_seed(5))
    for i, (height, width) in enumerate(sizes):
        images[i, :, :height, :width] = picture(height, width, seed=10 + i)
    return images, torch.tensor(sizes)


SEVERAL = pixels((96, 128), (70, 101), (96, 50))


def detect(model: Detector, images: Tensor, sizes: Tensor) -> Detections:
    """By the model itself, on images that it has padded."""
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (model.border.image_mean, model.border.image_std)
    )
    padded = torch.zeros(images.shape).contiguous(memory_format=torch.channels_last)
    for own, image, (height, width) in zip(padded, images, sizes.tolist(), strict=True):
        own[:, :height, :width] = (image[:, :height, :width] - mean) / std
    none = torch.zeros(len(images), 8, dtype=torch.int64)
    with torch.no_grad(), unfused():
        return model.detect(Batch(padded, sizes, torch.zeros(len(images), 8, 4), none, none[:, 0]))


def last_heads(model: Detector) -> Any:
    """The module with the thresholds of the detections."""
    return [module for module in model.modules() if hasattr(module, "score_thresh")][-1]


def find_few(model: Detector, images: Tensor, sizes: Tensor) -> None:
    """Raises the threshold until one image has no detection and no image fills the rows."""
    part = last_heads(model)
    scores = detect(model, images, sizes).scores
    weakest = float(scores[:, 0].min())
    part.score_thresh = (weakest + float(scores[scores > weakest].min())) / 2
    found = detect(model, images, sizes)
    counts = found.counts.tolist()
    assert min(counts) == 0
    assert 0 < max(counts) < found.scores.shape[1]


def assert_same(found: Arrays, expected: Detections, least: int = 4) -> None:
    """The same detections; those whose scores are nearer than rounding may change places."""
    wanted = {name: rows.numpy() for name, rows in named(expected).items()}
    counts = wanted["counts"].tolist()
    assert found["counts"].tolist() == counts
    assert min(counts) >= least
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=3e-5, rtol=0)
    for i, count in enumerate(counts):
        assert not found["boxes"][i, count:].any()
        if not count:
            continue
        ours, theirs = (
            {name: detections[name][i, :count] for name in ("boxes", "scores", "labels")}
            for detections in (found, wanted)
        )
        off = abs(ours["boxes"][:, None] - theirs["boxes"]).max(axis=2) / 1e-3  # (K, K)
        off = np.maximum(off, abs(ours["scores"][:, None] - theirs["scores"]) / 3e-5)
        off[ours["labels"][:, None] != theirs["labels"]] = np.inf
        assert off.min(axis=0).max() < 1
        assert off.min(axis=1).max() < 1
        if "masks" in wanted:
            masks = wanted["masks"][i, off.argmin(axis=1)]
            np.testing.assert_allclose(found["masks"][i, :count], masks, atol=1e-3, rtol=0)
