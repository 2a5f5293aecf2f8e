# SPDX-License-Identifier: BSD-3-Clause
"""A Cascade R-CNN is a FasterRCNN with other RoI heads, which have three stages.

Each stage refines the boxes of the stage before. As in torchvision's heads each class has its own
deltas; the next stage gets the boxes of the most probable class. Paper:
https://arxiv.org/abs/1712.00726.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdet.models import Batch, Border, Detections, FasterRCNN, describe, replace_classes
from fastdet.models.faster_rcnn import faster_rcnn_parts
from fastdet.models.roi_heads import RoIHeads
from fastdet.ops import decode_boxes

from .scenes import NUM_CLASSES, named, scene, small_model, spread_scores


class CascadeHeads(nn.Module):
    """A sequence of RoI heads with increasing IoU thresholds."""

    learns_masks = False

    def __init__(self, stages: Sequence[RoIHeads]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.num_classes = stages[0].num_classes

    def class_layers(self) -> dict[str, float]:
        return {
            f"stages.{i}.{name}": bias
            for i, stage in enumerate(self._stages())
            for name, bias in stage.class_layers().items()
        }

    def losses(
        self, features: Sequence[Tensor], proposals: Tensor, counts: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for i, stage in enumerate(self._stages()):
            sample = stage.sample(proposals, counts, batch)
            of_stage = stage.box_losses(features, sample, batch)
            losses |= {f"{name}_{i}": loss for name, loss in of_stage.items()}
            counts = sample.valid.sum(dim=1)
            proposals = self._refined(stage, features, sample.boxes, counts, batch.sizes)
        return losses

    def detect(
        self, features: Sequence[Tensor], proposals: Tensor, counts: Tensor, sizes: Tensor
    ) -> Detections:
        *first, last = self._stages()
        for stage in first:
            proposals = self._refined(stage, features, proposals, counts, sizes)
        return last.detect(features, proposals, counts, sizes)

    def _stages(self) -> list[Any]:
        return list(self.stages)

    @torch.no_grad()
    def _refined(
        self,
        stage: RoIHeads,
        features: Sequence[Tensor],
        boxes: Tensor,
        counts: Tensor,
        sizes: Tensor,
    ) -> Tensor:
        logits, deltas = stage(features, boxes, counts)
        label = 1 + logits[..., 1:].argmax(dim=2)
        own = deltas.gather(2, label[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        return decode_boxes(own, boxes, stage.bbox_reg_weights, sizes)


def cascade_rcnn() -> FasterRCNN:
    torch.manual_seed(0)
    backbone = small_model("faster_rcnn").get_submodule("backbone")
    parts = [
        faster_rcnn_parts(
            backbone,
            NUM_CLASSES,
            representation_size=64,
            box_fg_iou_thresh=iou,
            box_bg_iou_thresh=iou,
            bbox_reg_weights=tuple(factor * weight for weight in (10.0, 10.0, 5.0, 5.0)),
        )
        for iou, factor in ((0.5, 1), (0.6, 2), (0.7, 3))
    ]
    heads = CascadeHeads([of_stage["roi_heads"] for of_stage in parts])
    return FasterRCNN(Border(min_size=96, max_size=140), backbone, parts[0]["rpn"], heads)


def test_losses_gradients_and_detections() -> None:
    model = cascade_rcnn()
    losses = model(*scene())
    stages = {f"loss_{name}_{i}" for name in ("classifier", "box_reg") for i in range(3)}
    assert set(losses) == stages | {"loss_objectness", "loss_rpn_box_reg"}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    spread_scores(model).eval()
    batch = model.pad(scene()[0])
    with torch.no_grad():
        found = named(model.detect(batch))
        alone = model.outputs(batch)
        last: Any = model.get_submodule("roi_heads.stages.2")
        unrefined = last.detect(alone.features, alone.proposals, alone.counts, batch.sizes)
    assert bool((found["counts"] > 5).all())
    assert not torch.equal(found["boxes"], unrefined.boxes)  # the other stages moved them


def test_described_and_given_other_classes() -> None:
    model = cascade_rcnn()
    found = describe(model, (96, 96))
    assert [part.name for part in found.parts][-1] == "roi_heads.stages"
    assert len(found.levels) == 5
    replace_classes(model, 7)
    counts = [
        layer.out_features
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and "box_predictor" in name
    ]
    assert counts == 3 * [7, 28]
    assert model.roi_heads.num_classes == model.num_classes == 7
