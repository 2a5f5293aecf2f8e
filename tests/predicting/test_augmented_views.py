# SPDX-License-Identifier: BSD-3-Clause
"""Test-time augmentation: each view is where it belongs, and one view changes nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastdet.cli import main
from fastdet.models import Border, cascade_rcnn, faster_rcnn
from fastdet.predicting import detect
from fastdet.predicting.augmented_views import flipped, own_iou_threshold, scaled_border
from fastdet.predicting.looking import Look
from fastdet.predicting.options import ViewOptions


def noise(height: int = 48, width: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), generator=generator).byte()


@pytest.mark.parametrize("tta", [(), ("1",), ("1.0", "1")])
def test_one_view_is_plain_prediction(detector, tta: tuple[str, ...]) -> None:
    _, module = detector
    (found,) = Look(module, ViewOptions(tta=tta), 0.1)([noise()])
    (expected,) = detect(module, [noise()], 0.1)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_view_without_change_adds_nothing(detector) -> None:
    """Of a symmetric picture the mirror image finds the mirrored boxes of the picture itself."""
    _, module = detector
    half = noise(64, 32)
    image = torch.cat([half, half.flip(-1)], 2)
    (plain,) = detect(module, [image], 0.0)
    (found,) = Look(module, ViewOptions(tta=("flip",)), 0.0)([image])
    mirrored = flipped(plain, 64)["boxes"]
    every = torch.cat([plain["boxes"], mirrored])
    distance = torch.cdist(found["boxes"], every)
    assert distance.min(1)[0].max() < 1e-2
    assert torch.equal(found["scores"], found["scores"].sort(descending=True)[0])
    torch.testing.assert_close(found["scores"][0], plain["scores"][0])


def test_each_view_is_in_the_pixels_of_the_picture(detector) -> None:
    """The joined detections are NMS over those of enlarged and mirrored pictures, made by hand."""
    from fastdet.models.border import Border as AnyBorder
    from fastdet.ops import batched_nms

    _, module = detector
    image, every = noise(), []
    own = module.model.border
    try:
        for side in (64, 51, 77):
            module.model.border = AnyBorder(min_size=side, max_size=side)
            for flip in (False, True):
                (found,) = detect(module, [image.flip(-1) if flip else image], 0.0)
                every.append(flipped(found, 60) if flip else found)
    finally:
        module.model.border = own
    joined = {name: torch.cat([found[name] for found in every]) for name in every[0]}
    threshold = module.model.suppression()["iou_threshold"]
    kept = batched_nms(joined["boxes"], joined["scores"], joined["labels"], threshold)
    (found,) = Look(module, ViewOptions(tta=("flip", "0.8", "1.2")), 0.0)([image])
    for name in found:
        assert torch.equal(found[name], joined[name][kept])
    assert module.model.border is own


def test_masks_of_a_mirror_image() -> None:
    masks = torch.zeros(1, 1, 4, 10, dtype=torch.bool)
    masks[..., 1:3, 0:4] = True
    found = flipped({"boxes": torch.tensor([[0.0, 1, 4, 3]]), "masks": masks}, 10)
    assert found["boxes"].tolist() == [[6, 1, 10, 3]]
    assert found["masks"][0, 0, 1].tolist() == [False] * 6 + [True] * 4


def test_the_border_of_a_scale() -> None:
    assert scaled_border(Border((320, 400), 667), 1.5) == Border([480, 600], 1000)
    assert scaled_border(Border(fixed_size=(64, 96)), 0.5).fixed_size == (32, 48)


@pytest.mark.parametrize("build", [faster_rcnn, cascade_rcnn])
def test_views_are_joined_at_the_threshold_of_the_detector(build: Any) -> None:
    """Of two stages: not that of the proposals."""
    model = build("resnet10t", 2, fpn_channels=8, box_nms_thresh=0.3)
    assert own_iou_threshold(model) == 0.3


def test_views_in_the_command_line(detector, tmp_path: Path, refused) -> None:
    checkpoint, module = detector
    Image.fromarray(noise().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    command = f"predict --checkpoint {checkpoint} --images {tmp_path}/a.png --score-threshold 0"
    main(f"{command} --out {tmp_path}/out --tta flip 1.2".split())
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    (expected,) = Look(module, ViewOptions(tta=("flip", "1.2")), 0.0)([noise()])
    scores = expected["scores"][expected["labels"] > 0]  # COCO's results have no background
    np.testing.assert_allclose([r["score"] for r in results], scores, atol=1e-5)
    assert "tta: expected flip and scales such as 0.8, got rotate" in refused(
        f"{command} --out {tmp_path}/no --tta rotate".split()
    )
    assert "tta: expected flip and scales such as 0.8, got 0" in refused(
        f"{command} --out {tmp_path}/no --tta 0".split()
    )
