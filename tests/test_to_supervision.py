# SPDX-License-Identifier: BSD-3-Clause
"""A detector's output as supervision's, and supervision's own tools on it."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdet.adapters import to_supervision
from fastdet.data import eval_transforms, open_dataset
from fastdet.models import mask_rcnn, retinanet
from tests.data_sets import SAMPLE
from tests.models.scenes import spread_scores

CLASSES = ["background", "cat", "red dog"]
SMALL: dict[str, Any] = {"fpn_channels": 16, "min_size": 64, "max_size": 64}


def found() -> dict[str, Tensor]:
    """A detector's output worked by hand."""
    masks = torch.zeros(2, 1, 4, 6)
    masks[0, 0, :2, :3] = 0.75
    masks[1, 0, 3, 5] = 0.5
    return {
        "boxes": torch.tensor([[0.0, 0, 3, 2], [4, 2, 6, 4]]),
        "scores": torch.tensor([0.75, 0.5]),
        "labels": torch.tensor([2, 1]),
        "masks": masks,
    }


@pytest.fixture
def supervision() -> Any:
    return pytest.importorskip("supervision", exc_type=ImportError)


def test_hand_worked(supervision: Any) -> None:
    detections = to_supervision(found(), CLASSES)
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == [[0, 0, 3, 2], [4, 2, 6, 4]]
    np.testing.assert_array_equal(detections.confidence, [0.75, 0.5])
    assert detections.class_id.tolist() == [2, 1]
    assert detections.data["class_name"].tolist() == ["red dog", "cat"]
    assert detections.mask.dtype == bool
    assert detections.mask.sum((1, 2)).tolist() == [6, 0]
    assert detections[detections.confidence > 0.6].data["class_name"].tolist() == ["red dog"]
    without_background = to_supervision(found(), CLASSES, first_label=0)
    assert without_background.class_id.tolist() == [1, 0]
    assert without_background.data["class_name"].tolist() == ["red dog", "cat"]
    assert to_supervision(found()).data == {}


def test_class_ids_as_supervision_keeps_those_of_transformers(supervision: Any) -> None:
    boxes_only = {name: value for name, value in found().items() if name != "masks"}
    theirs = supervision.Detections.from_transformers(boxes_only, dict(enumerate(CLASSES)))
    assert to_supervision(boxes_only, CLASSES) == theirs


def test_outputs_of_a_detector_in_bfloat16(supervision: Any) -> None:
    half = {n: v.bfloat16() if v.is_floating_point() else v for n, v in found().items()}
    detections = to_supervision(half)
    assert detections.xyxy.tolist() == [[0, 0, 3, 2], [4, 2, 6, 4]]
    np.testing.assert_array_equal(detections.confidence, [0.75, 0.5])


def test_nothing_found(supervision: Any) -> None:
    nothing = {name: value[:0] for name, value in found().items()}
    detections = to_supervision(nothing, CLASSES)
    assert len(detections) == 0
    assert supervision.Detections.merge([detections, to_supervision(found(), CLASSES)]) is not None


@pytest.mark.parametrize("family", [retinanet, mask_rcnn])
def test_the_output_of_a_detector(supervision: Any, family: Any) -> None:
    torch.manual_seed(0)
    val = open_dataset(SAMPLE, "val", transforms=eval_transforms())
    model = spread_scores(family("resnet18", len(val.classes), **SMALL)).eval()
    image = val[0][0]
    with torch.inference_mode():
        (output,) = model([image])
    detections = to_supervision(output, val.classes)
    assert len(detections) == len(output["scores"]) > 0
    np.testing.assert_array_equal(detections.xyxy, output["boxes"].numpy())
    if family is mask_rcnn:
        np.testing.assert_array_equal(detections.mask, output["masks"][:, 0].numpy() > 0.5)
    scene = image.permute(1, 2, 0).mul(255).byte().numpy().copy()
    drawn = supervision.BoxAnnotator().annotate(scene.copy(), detections)
    drawn = supervision.LabelAnnotator().annotate(drawn, detections)
    assert (drawn != scene).any()


def test_average_precision_of_supervision(supervision: Any) -> None:
    """With first_label=0 the class ids are those of supervision's data sets."""
    truth = supervision.DetectionDataset.from_coco(str(SAMPLE / "images"), str(SAMPLE / "val.json"))
    val = open_dataset(SAMPLE, "val")
    assert truth.classes == val.classes[1:]
    path, _, theirs = truth[0]
    index = next(i for i in range(len(val)) if str(val.image_path(i)) == str(path))
    target = val.target(index)
    perfect = {**target, "scores": torch.ones(len(target["labels"]))}
    ours = to_supervision(
        {name: perfect[name] for name in ("boxes", "labels", "scores")},
        val.classes,
        first_label=0,
    )
    metric = supervision.metrics.MeanAveragePrecision()
    assert metric.update([ours], [theirs]).compute().map50_95 == pytest.approx(1, abs=1e-3)


def test_refused(supervision: Any) -> None:
    with pytest.raises(ValueError, match="classes: expected a name for label 2, got 2 names"):
        to_supervision(found(), CLASSES[:2])
    with pytest.raises(ValueError, match="first_label: expected 0 or 1, got 2"):
        to_supervision(found(), CLASSES, first_label=2)  # type: ignore[arg-type]


def test_without_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="to_supervision needs supervision: pip install"):
        to_supervision(found())
