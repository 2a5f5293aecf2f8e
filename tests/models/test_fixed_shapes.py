# SPDX-License-Identifier: BSD-3-Clause
"""Shapes depend only on the shape of the batch, and padding rows have no effect.

Fake tensors have no values, so code that reads a value (`.item()`, `nonzero`, boolean indexing)
raises an error.
"""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastdet.engine.fused import unfused
from fastdet.models import MODELS, Batch, Detections, Detector, roi_heads

from .scenes import garbage_beyond_counts, named, scene, small_model, spread_scores

pytestmark = pytest.mark.parametrize("family", MODELS)


class Detect(nn.Module):
    """`detect` as the forward of a module, for torch.export."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Detections:
        return self.model.detect(batch)


def fake_batch() -> Batch:
    return Batch(
        images=torch.rand(2, 3, 96, 128).contiguous(memory_format=torch.channels_last),
        sizes=torch.ones(2, 2, dtype=torch.int64),
        gt_boxes=torch.rand(2, 8, 4),
        gt_labels=torch.ones(2, 8, dtype=torch.int64),
        gt_counts=torch.ones(2, dtype=torch.int64),
        gt_masks=torch.ones(2, 8, 96, 128, dtype=torch.bool),
    )


def test_losses_backward_and_detect_read_no_value(family: str) -> None:
    with FakeTensorMode():
        model, batch = small_model(family), fake_batch()
        losses = model.losses(batch)
        torch.stack(list(losses.values())).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        detections = model.eval().detect(batch)
    assert isinstance(detections.boxes, FakeTensor)
    rows = detections.scores.shape[1]
    assert detections.boxes.shape == (2, rows, 4)
    assert detections.labels.shape == (2, rows)
    assert detections.counts.shape == (2,)


@pytest.mark.slow
def test_exported_detect_equals_eager(family: str) -> None:
    images, _ = scene()
    model = spread_scores(small_model(family)).eval()
    batch = model.pad(images)
    exported = torch.export.export(Detect(model), (batch,), strict=True).module()
    with torch.no_grad(), unfused():
        expected, got = model.detect(batch), exported(batch)
    assert isinstance(got, Detections)
    assert bool((expected.counts > 10).all())
    for name, value in named(expected).items():
        torch.testing.assert_close(getattr(got, name), value, rtol=1e-4, atol=1e-4, msg=name)


def test_padding_rows_change_nothing(family: str) -> None:
    images, targets = scene()
    batch = small_model(family).pad(images, targets)
    results: list[dict[str, Any]] = []
    for padded in (batch, garbage_beyond_counts(batch)):
        model = spread_scores(small_model(family))
        torch.manual_seed(3)
        losses = model.losses(padded)
        torch.stack(list(losses.values())).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        detections = named(model.eval().detect(padded))
        results.append(losses | gradients | detections)
    assert not torch.equal(batch.gt_boxes, garbage_beyond_counts(batch).gt_boxes)
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_more_rows_of_padding_change_nothing(family: str) -> None:
    images, targets = scene()
    model = small_model(family)
    batch = model.pad(images, targets)
    wider = batch._replace(
        gt_boxes=nn.functional.pad(batch.gt_boxes, (0, 0, 0, 24)),
        gt_labels=nn.functional.pad(batch.gt_labels, (0, 24)),
        gt_masks=None
        if batch.gt_masks is None
        else nn.functional.pad(batch.gt_masks, (0, 0, 0, 0, 0, 24)),
    )
    # Sample all proposals: else the number of rows would change which ones are sampled.
    for module in model.modules():
        if hasattr(module, "batch_size_per_image"):
            module.batch_size_per_image = 20_000  # type: ignore[assignment]
    losses, wider_losses = model.losses(batch), model.losses(wider)
    for name, loss in losses.items():
        torch.testing.assert_close(wider_losses[name], loss, rtol=1e-5, atol=0, msg=name)


def test_trimming_is_the_same_as_computing_every_row(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = scene()
    model = spread_scores(small_model(family)).eval()
    batch = model.pad(images)
    with torch.no_grad():
        trimmed = model.detect(batch)
        monkeypatch.setattr(roi_heads, "rows_in_use", lambda counts, rows: rows)
        full = model.detect(batch)
    for name, value in named(full).items():
        torch.testing.assert_close(getattr(trimmed, name), value, rtol=1e-5, atol=1e-5, msg=name)
