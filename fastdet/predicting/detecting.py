# SPDX-License-Identifier: BSD-3-Clause
"""A detector applied to images in memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdet.data import eval_transforms
from fastdet.models.batch import restore
from fastdet.training.detector_module import DetectorModule


def detect(
    module: DetectorModule, images: Sequence[Tensor], score_threshold: float
) -> list[dict[str, Tensor]]:
    """Detections of uint8 RGB images (3, H, W), in pixels of each image, on the CPU, best first."""
    return detections_of(module.model, images, score_threshold, module.device)


@torch.inference_mode()
def detections_of(
    model: Any, images: Sequence[Tensor], score_threshold: float, device: torch.device
) -> list[dict[str, Tensor]]:
    """`detect` with a model on a device."""
    transform = eval_transforms()
    ready = [transform(image).to(device) for image in images]
    detections = []
    for found in model(ready):
        chosen = found["scores"] >= score_threshold
        detections.append({name: value[chosen].cpu() for name, value in found.items()})
    return detections


@torch.inference_mode()
def propose(module: DetectorModule, image: Tensor, number: int) -> dict[str, Tensor]:
    """The best proposals of the first stage for a uint8 RGB image (3, H, W), on the CPU.

    Returns:
        At most `number` boxes in pixels of the image, best first; the scores are the probabilities
        of an object, the labels the levels of the pyramid.
    """
    batch = module.model.pad([eval_transforms()(image).to(module.device)])
    (found,) = restore(module.model.propose(batch), batch).to_list()
    return {name: value[:number].cpu() for name, value in found.items()}
