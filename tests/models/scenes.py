# SPDX-License-Identifier: BSD-3-Clause
"""Small detectors, images and targets for the tests."""

import inspect
import itertools
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from fastdet import models
from fastdet.models import MODELS, Batch, Detections, Detector

NUM_CLASSES = 4

Targets = list[dict[str, Tensor]]


# For families of these options: a graph of many equal layers takes long.
FEW = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "heads": 2,
    "num_queries": 30,
    "feedforward_channels": 32,
}


def options_of(family: str) -> set[str]:
    """The names of the options of the family's parts."""
    return set(inspect.signature(getattr(models, f"{family}_parts")).parameters)


def few(family: str) -> dict[str, int]:
    """FEW, as far as the family knows the options."""
    return {name: number for name, number in FEW.items() if name in options_of(family)}


def small_model(family: str, *, num_classes: int = NUM_CLASSES, **numbers: Any) -> Detector:
    """A ResNet-18 detector with few channels, for images of about 96 pixels; always the same."""
    torch.manual_seed(0)
    options = {"min_size": 96, "max_size": 140} | few(family) | numbers
    return MODELS[family]("resnet18", num_classes, fpn_channels=16, **options)


class TinyBody(nn.Module):
    """A backbone of four convolutions with two maps, of strides 8 and 16."""

    out_channels = 16
    strides = (8, 16)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 16, 16, 16)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in itertools.pairwise(widths)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for layer in self.layers:
            maps.append(torch.relu(layer(maps[-1])))
        return maps[-2:]


def tiny_model(family: str, **numbers: Any) -> Detector:
    """A detector with a TinyBody: of its networks all but the backbone, on two levels.

    A graph of it is several times smaller than one of `small_model`. It is built from what every
    family has: a builder that says what it returns, and the function of its parts.
    """
    torch.manual_seed(0)
    parts = getattr(models, f"{family}_parts")
    options: dict[str, Any] = {"min_size": 96, "max_size": 140} | few(family)
    if "num_queries" not in options_of(family):  # queries have no anchors
        anchor_sizes = inspect.signature(parts).parameters.get("anchor_sizes")
        options["anchor_sizes"] = (32, 64) if anchor_sizes is None else anchor_sizes.default[:2]
    options |= numbers
    detector = get_type_hints(MODELS[family])["return"]
    return detector(**parts(TinyBody(), NUM_CLASSES, **options)).to(
        memory_format=torch.channels_last
    )


class Detect(nn.Module):
    """`detect` as the forward of a module, for torch.export."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Detections:
        return self.model.detect(batch)


def scene() -> tuple[list[Tensor], Targets]:
    """Three images of different sizes, with three objects, with one and with none."""
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.rand(3, *size, generator=generator) for size in ((90, 133), (120, 70), (96, 96))
    ]
    boxes = [
        torch.tensor([[3.0, 4, 60, 70], [50, 10, 130, 88], [20, 20, 31, 29]]),
        torch.tensor([[10.0, 10, 69, 119]]),
        torch.zeros(0, 4),
    ]
    labels = [torch.tensor([1, 3, 2]), torch.tensor([2]), torch.zeros(0, dtype=torch.int64)]
    return images, [
        {"boxes": b, "labels": n, "masks": ellipses(b, image)}
        for image, b, n in zip(images, boxes, labels, strict=True)
    ]


def ellipses(boxes: Tensor, image: Tensor) -> Tensor:
    """Masks (G, H, W) bool: for each box (G, 4) the ellipse that touches its sides."""
    y, x = (torch.arange(side) + 0.5 for side in image.shape[-2:])
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    across = (2 * x - left - right) / (right - left)
    down = (2 * y[:, None] - top - bottom) / (bottom - top)
    return across.square() + down.square() <= 1


def spread_scores(model: Detector) -> Detector:
    """Scales up the last layers. Their initial weights give equal scores and no detections."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cls_score.weight", "cls_logits.weight", "bbox_pred.weight")):
                parameter.mul_(20)
            if name.endswith("classification_head.cls_logits.bias"):
                parameter.fill_(-2)
    return model


def without_zeros(model: Detector) -> Detector:
    """Random numbers in place of weights that are all 0: D-FINE's layers then teach each other."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def garbage_beyond_counts(batch: Batch) -> Batch:
    """The batch with bad padding rows: large, inverted, negative, wrong labels, full masks."""
    beyond = torch.arange(batch.gt_labels.shape[1]) >= batch.gt_counts[:, None]
    junk = torch.tensor([1e4, 50.0, -30.0, 7e3])
    return batch._replace(
        gt_boxes=batch.gt_boxes.where(~beyond[..., None], junk),
        gt_labels=batch.gt_labels.where(~beyond, 3),
        gt_masks=None if batch.gt_masks is None else batch.gt_masks | beyond[..., None, None],
    )


def named(detections: Detections) -> dict[str, Tensor]:
    """The tensors of the detections by name, without `masks` if there are none."""
    return {name: value for name, value in detections._asdict().items() if value is not None}
