# SPDX-License-Identifier: BSD-3-Clause
"""Whole detectors and torchvision's, with the same weights: same losses and same detections.

torchvision's state dict loads unchanged, so only the implementations differ. Faster R-CNN samples
all anchors and proposals, so sampling is not random.
"""

import contextlib

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from fastdet.engine.fused import unfused
from fastdet.models import Detector, faster_rcnn, retinanet

from .scenes import NUM_CLASSES, scene

SIZES = {"min_size": 96, "max_size": 140}
ALL_SAMPLES = {
    "rpn_batch_size_per_image": 20_000,
    "box_batch_size_per_image": 8_000,
}


def torchvision_backbone(returned_layers: tuple[int, ...], extra: torch.nn.Module):
    return BackboneWithFPN(
        resnet18(weights=None),
        {f"layer{layer}": str(i) for i, layer in enumerate(returned_layers)},
        [64 * 2 ** (layer - 1) for layer in returned_layers],
        16,
        extra_blocks=extra,  # type: ignore[arg-type]
    )


def faster_rcnn_pair() -> tuple[torch.nn.Module, Detector]:
    backbone = torchvision_backbone((1, 2, 3, 4), LastLevelMaxPool())
    theirs = FasterRCNN(backbone, NUM_CLASSES, **SIZES, **ALL_SAMPLES)
    # Initial weights give nearly equal scores and boxes; these weights give different ones.
    with torch.no_grad():
        theirs.rpn.head.cls_logits.weight.mul_(100)
        theirs.rpn.head.bbox_pred.weight.mul_(20)
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(20)
        theirs.roi_heads.box_predictor.bbox_pred.weight.mul_(20)
    ours = faster_rcnn("resnet18", NUM_CLASSES, fpn_channels=16, **SIZES, **ALL_SAMPLES)
    return theirs, ours


def retinanet_pair() -> tuple[torch.nn.Module, Detector]:
    backbone = torchvision_backbone((2, 3, 4), LastLevelP6P7(16, 16))
    theirs = RetinaNet(backbone, NUM_CLASSES, **SIZES)
    with torch.no_grad():
        for conv in theirs.head.modules():
            if isinstance(conv, torch.nn.Conv2d):
                conv.weight.mul_(8)
        theirs.head.classification_head.cls_logits.weight.mul_(5)
        theirs.head.classification_head.cls_logits.bias.fill_(-2)
    ours = retinanet("resnet18", NUM_CLASSES, fpn_channels=16, **SIZES)
    return theirs, ours


def keep_statistics(model: torch.nn.Module) -> None:
    """Only the weights of BatchNorms are trained.

    Their biases are not 0: with 0, what a ReLU reads in padding is 0, and in tiles at its edge
    Winograd's algorithm may round to another number.
    """
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
            torch.nn.init.constant_(part.bias, 0.1)


@pytest.fixture(params=[faster_rcnn_pair, retinanet_pair], ids=["faster_rcnn", "retinanet"])
def pair(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, Detector]:
    torch.manual_seed(0)
    theirs, ours = request.param()
    ours.load_state_dict(theirs.state_dict())
    # Convolutions round differently in another layout, and BatchNorm's statistics amplify this.
    return theirs.to(memory_format=torch.channels_last), ours


@pytest.mark.parametrize("fused", [False, True])
def test_losses_and_gradients_equal_torchvisions(
    pair: tuple[torch.nn.Module, Detector], fused: bool
) -> None:
    theirs, ours = pair
    images, targets = scene()
    if fused:  # statistics of few pixels would amplify the rounding of Winograd's algorithm
        keep_statistics(theirs)
        keep_statistics(ours)
    expected = theirs(images, targets)
    with contextlib.nullcontext() if fused else unfused():
        losses = ours(images, targets)
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=1e-7, msg=name)
        assert loss > 0, name
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = their_gradients[name].abs().max()
        difference = (parameter.grad - their_gradients[name]).abs().max()
        # Rounding may switch a ReLU. Even torchvision's own two layouts differ by 0.9 % here.
        assert difference <= (2e-2 if fused else 1e-3) * scale, name


def test_detections_equal_torchvisions(pair: tuple[torch.nn.Module, Detector]) -> None:
    theirs, ours = (model.eval() for model in pair)
    images, _ = scene()
    with torch.no_grad():
        expected, detections = theirs(images), ours(images)
    for ours_of_image, theirs_of_image in zip(detections, expected, strict=True):
        assert len(theirs_of_image["scores"]) >= 20
        # Rows whose scores differ only in the last bits may have another order.
        scores = theirs_of_image["scores"]
        ties = (scores.diff(prepend=scores[:1]) < -1e-6).cumsum(0)
        ours_of_image, theirs_of_image = (
            in_order(ties, found) for found in (ours_of_image, theirs_of_image)
        )
        assert torch.equal(ours_of_image["labels"], theirs_of_image["labels"])
        for key, atol in (("boxes", 1e-3), ("scores", 1e-5)):
            torch.testing.assert_close(ours_of_image[key], theirs_of_image[key], rtol=0, atol=atol)


def in_order(ties: Tensor, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detections sorted by score, with nearly equal scores sorted by label and box."""
    keys = list(zip(ties.tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return {key: rows[order] for key, rows in found.items()}


def test_pad_equals_torchvisions_transform(pair: tuple[torch.nn.Module, Detector]) -> None:
    theirs, ours = pair
    images, targets = scene()
    expected, their_targets = theirs.transform(images, targets)
    batch = ours.pad(images, targets)
    assert torch.equal(batch.images, expected.tensors)
    assert [tuple(size) for size in batch.sizes.tolist()] == expected.image_sizes
    for i, target in enumerate(their_targets):
        count = int(batch.gt_counts[i])
        assert torch.equal(batch.gt_boxes[i, :count], target["boxes"])
        assert torch.equal(batch.gt_labels[i, :count], target["labels"])
