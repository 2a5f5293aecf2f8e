# SPDX-License-Identifier: BSD-3-Clause
"""A family that implements only the three methods works everywhere: a test of the design.

It has no anchors, no pyramid, no backbone and no box matching. Each image has two queries, and each
query gives one box and one class, like the hundred queries of DETR.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.data import write_shapes
from fastdet.deploy.export import export_detector
from fastdet.engine.fused import has_form, unfused
from fastdet.models import MODELS, Batch, Border, Detections, Detector, describe, replace_classes
from fastdet.models.detector import ParameterGroup
from fastdet.models.running import run
from fastdet.training.detector_module import DetectorModule, load_detector
from fastdet.training.options import TrainOptions
from fastdet.training.train import evaluate, train

from .scenes import named, scene

QUERIES = 2


class Answers(NamedTuple):
    logits: Tensor  # (B, Q, C)
    boxes: Tensor  # (B, Q, 4), centre and size relative to the image size


class Toy(Detector):
    """A detector in which each query learns one row of the ground truth."""

    def __init__(self, border: Border, num_classes: int) -> None:
        super().__init__(border, num_classes)
        conv = nn.Conv2d(3, 8, 3, stride=4)
        self.body = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.classes = nn.Linear(128, QUERIES * num_classes)
        self.boxes = nn.Linear(128, QUERIES * 4)

    def outputs(self, batch: Batch) -> Answers:
        hidden = run(self.body, batch.images)
        logits = self.classes(hidden).unflatten(1, (QUERIES, -1))
        return Answers(logits, self.boxes(hidden).unflatten(1, (QUERIES, 4)).sigmoid())

    def losses_of(self, outputs: Answers, batch: Batch) -> dict[str, Tensor]:
        real = torch.arange(QUERIES, device=batch.gt_counts.device) < batch.gt_counts[:, None]
        labels = batch.gt_labels[:, :QUERIES].where(real, 0)
        own = batch.gt_boxes[:, :QUERIES].where(real[..., None], 0.0)
        off = (self._xyxy(outputs.boxes, batch) - own).abs().where(real[..., None], 0.0)
        return {
            "loss_class": F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten()),
            "loss_box": off.sum() / 100 / real.sum().clamp(min=1),
        }

    def detections_of(self, outputs: Answers, batch: Batch) -> Detections:
        scores, labels = outputs.logits.softmax(2)[..., 1:].max(dim=2)
        scores, order = scores.sort(dim=1, descending=True)
        boxes = self._xyxy(outputs.boxes, batch)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return Detections(
            boxes, scores, 1 + labels.gather(1, order), torch.full_like(batch.gt_counts, QUERIES)
        )

    def _xyxy(self, boxes: Tensor, batch: Batch) -> Tensor:
        centres, sides = boxes.split(2, dim=2)
        size = batch.sizes.flip(1).repeat(1, 2)[:, None]
        return torch.cat((centres - sides / 2, centres + sides / 2), dim=2) * size


class SlowBody(Toy):
    """The toy with all optional methods of a family."""

    def class_layers(self) -> dict[str, float]:
        return {"classes": -1.5}

    def parameter_groups(self) -> list[ParameterGroup]:
        heads = [*self.classes.parameters(), *self.boxes.parameters()]
        return [ParameterGroup(heads), ParameterGroup(list(self.body.parameters()), 0.1)]


def toy(backbone: str = "none", num_classes: int = 4, **options: Any) -> Detector:
    """A builder like the functions in MODELS."""
    options.pop("pretrained_backbone", None)
    torch.manual_seed(0)
    return SlowBody(Border(**({"min_size": 96, "max_size": 140} | options)), num_classes)


def test_forward_losses_and_detections() -> None:
    torch.manual_seed(0)
    model = Toy(Border(min_size=96, max_size=140), 4)
    images, targets = scene()
    assert not model.learns_masks
    losses = model(images, targets)
    assert set(losses) == {"loss_class", "loss_box"}
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    (group,) = model.parameter_groups()
    assert [id(p) for p in group.parameters] == [id(p) for p in model.parameters()]
    assert group.lr_factor == 1
    with torch.no_grad():
        found = model.eval()(images)
        with unfused():
            expected = model(images)
    assert has_form(model.body)  # the engine works without code in the family
    for image, own, other in zip(images, found, expected, strict=True):
        assert own["boxes"].shape == (QUERIES, 4)
        assert bool((own["boxes"][:, 2:] <= 1.5 * max(image.shape)).all())
        for name, value in other.items():
            torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-3)


def test_a_border_is_a_border() -> None:
    with pytest.raises(TypeError, match="border: expected a Border, got dict"):
        Toy({"min_size": 96}, 4)  # type: ignore[arg-type]


def test_losses_and_detections_are_those_of_the_two_calls() -> None:
    model = toy().eval()
    batch = model.pad(*scene())
    losses, found = model.losses_and_detections(batch)
    assert all(torch.equal(losses[name], value) for name, value in model.losses(batch).items())
    for name, value in named(model.detect(batch)).items():
        assert torch.equal(getattr(found, name), value), name


def test_described_without_a_table_of_anchors() -> None:
    found = describe(toy(), (96, 128))
    assert [part.name for part in found.parts] == ["body", "classes", "boxes"]
    assert found.parameters == sum(p.numel() for p in toy().parameters())
    assert found.parts[1].flops == 2 * 128 * QUERIES * 4
    assert found.levels == ()
    assert found.anchors == 0
    assert "SlowBody, one image of 96 x 128" in str(found)
    assert "anchors" not in str(found)


def test_other_classes() -> None:
    model = toy()
    boxes = model.get_submodule("boxes")
    before = [p.clone() for p in boxes.parameters()]
    replace_classes(model, 9)
    assert model.num_classes == 9
    assert model.get_submodule("classes").bias.tolist() == [-1.5] * 9 * QUERIES  # type: ignore[union-attr]
    assert all(torch.equal(p, q) for p, q in zip(boxes.parameters(), before, strict=True))
    images, targets = scene()
    model(images, [target | {"labels": target["labels"] + 5} for target in targets])
    with pytest.raises(ValueError, match="expected one of the layers"):
        replace_classes(Toy(Border(), 4), 5)  # its class_layers are empty


@pytest.mark.slow
def test_exported(tmp_path: Path) -> None:
    model = toy().eval()
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    sizes = torch.tensor([[96, 128], [96, 128]])
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (model.border.image_mean, model.border.image_std)
    )
    normalised = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
    none = torch.zeros(2, 8, dtype=torch.int64)
    with torch.no_grad():
        expected = model.detect(Batch(normalised, sizes, torch.zeros(2, 8, 4), none, none[:, 0]))
    export_detector(model, tmp_path / "toy.pt2", (96, 128), batch_size=2)
    package = torch.export.load(tmp_path / "toy.pt2").module()(images, sizes)
    export_detector(model, tmp_path / "toy.onnx", (96, 128), batch_size=2)
    session = onnxruntime.InferenceSession(tmp_path / "toy.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["model"]) == "SlowBody"
    onnx = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
    for (name, value), from_onnx in zip(named(expected).items(), onnx, strict=True):
        torch.testing.assert_close(package[name], value, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(from_onnx, value.numpy(), rtol=1e-4, atol=1e-3)


def test_trained_kept_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "toy", toy)
    options = TrainOptions(
        data=write_shapes(tmp_path / "shapes", train=8, val=4, size=64),
        out=tmp_path / "run",
        model="toy",  # type: ignore[arg-type]
        backbone="none",
        epochs=2,
        batch_size=4,
        lr=1e-2,
        min_size=64,
        max_size=64,
    )
    module = train(options)
    assert module.metrics is not None
    assert module.metrics.masks is None
    groups = module.trainer.optimizers[0].param_groups
    rates = [group["initial_lr"] for group in groups]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3])
    assert [group["weight_decay"] for group in groups] == [0.05, 0, 0.05, 0]
    again = load_detector(options.out / "last.ckpt")
    assert isinstance(again, DetectorModule)
    assert type(again.model) is SlowBody
    stats = evaluate(options.out / "last.ckpt", options.data).stats
    assert stats == pytest.approx(module.metrics.stats)
