# SPDX-License-Identifier: BSD-3-Clause
"""RT-DETR and RT-DETRv2 of transformers, converted: same weights, same detections, same losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdet.deploy.export import export_detector
from fastdet.models import RTDETR, replace_classes
from fastdet.models.relative_boxes import relative_boxes
from fastdet.models.transformers_rt_detr import rt_detr_from_transformers
from tests.deploy.runtimes import run_onnxruntime

from .transformers_parity import (
    BORDER,
    CLASSES,
    HEIGHT,
    SMALL,
    WIDTH,
    assert_a_folder_is_converted,
    assert_same_detections,
    detections_of,
    images,
    randomised,
)

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

KINDS = ("basic", "bottleneck", "wider levels", "version 2", "discrete", "trained norms")


def config_of(kind: str = "basic", depths: Sequence[int] = (1, 2, 1, 1), **further: Any) -> Any:
    basic = kind == "basic"
    backbone = transformers.RTDetrResNetConfig(
        layer_type="basic" if basic else "bottleneck",
        hidden_sizes=[64, 72, 80, 88] if basic else [32, 40, 48, 56],
        depths=list(depths),
        out_features=["stage2", "stage3", "stage4"],
    )
    options = SMALL | {"backbone_config": backbone}
    if kind == "wider levels":
        options |= {"encoder_hidden_dim": 24, "decoder_in_channels": [24, 24, 24]}
        options |= {"hidden_expansion": 1.0, "encoder_layers": 2}
    if kind in ("version 2", "discrete"):
        options |= {"decoder_offset_scale": 0.4}
        options |= {"decoder_method": "discrete"} if kind == "discrete" else {}
        return transformers.RTDetrV2Config(**(options | further))
    options |= {"freeze_backbone_batch_norms": kind != "trained norms"}
    return transformers.RTDetrConfig(**(options | further))


def theirs_of(kind: str = "basic", **further: Any) -> Any:
    torch.manual_seed(0)
    config = config_of(kind, **further)
    name = "RTDetrV2ForObjectDetection" if "decoder_method" in config.to_dict() else None
    return randomised(getattr(transformers, name or "RTDetrForObjectDetection")(config))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_detections(kind: str) -> None:
    theirs = theirs_of(kind)
    ours = rt_detr_from_transformers(theirs, BORDER)
    assert ours.num_classes == CLASSES + 1
    assert not ours.training
    with torch.no_grad():
        assert_same_detections(ours(list(images())), detections_of(theirs))


@pytest.mark.parametrize("kind", ["bottleneck", "version 2"])
def test_a_local_folder_with_images_of_another_size(kind: str, tmp_path: Path) -> None:
    theirs = theirs_of(kind, id2label={0: "cat", 1: "dog", 2: "N/A"})
    assert_a_folder_is_converted(theirs, RTDETR, tmp_path)


@pytest.mark.slow
def test_the_discrete_form_exports(tmp_path: Path) -> None:
    """It is the only form that the suite of all families does not have."""
    # Fewer blocks, for a smaller graph. transformers builds no decoder of one layer.
    ours = rt_detr_from_transformers(theirs_of("discrete", depths=(1, 1, 1, 1)), BORDER)
    batch = ours.pad(list(images())[:1])
    with torch.no_grad():
        expected = ours.detect(batch)
    export_detector(ours, tmp_path / "it.onnx", (HEIGHT, WIDTH))
    feed = {"images": images()[:1].numpy(), "sizes": batch.sizes.numpy()}
    found = run_onnxruntime(tmp_path / "it.onnx", feed)
    np.testing.assert_allclose(found["scores"], expected.scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["basic", "version 2"])
def test_the_same_losses(kind: str) -> None:
    """Without denoising, whose random numbers differ."""
    theirs = theirs_of(kind, num_denoising=0)
    ours = rt_detr_from_transformers(theirs, BORDER)
    boxes = [[[3.0, 4, 60, 50], [20, 20, 31, 29]], [[40.0, 8, 95, 60]]]
    targets = [
        {"boxes": torch.tensor(own), "labels": torch.tensor(labels)}
        for own, labels in zip(boxes, ([1, 3], [2]), strict=True)
    ]
    size = torch.tensor([[HEIGHT, WIDTH]])
    given = [
        {"class_labels": t["labels"] - 1, "boxes": relative_boxes(t["boxes"][None], size)[0]}
        for t in targets
    ]
    expected = theirs(pixel_values=images(), labels=given).loss_dict
    losses = ours.losses(ours.pad(list(images()), targets))
    names = {"classification": "loss_vfl", "bbox_regression": "loss_bbox", "bbox_giou": "loss_giou"}
    for name, of_theirs in names.items():
        wanted = torch.stack([v for k, v in expected.items() if k.startswith(of_theirs)]).sum()
        torch.testing.assert_close(losses[name], wanted, rtol=1e-4, atol=1e-5)
    assert len(expected) == 3 * (SMALL["decoder_layers"] + 1)


def test_it_trains_with_denoising_and_for_other_classes() -> None:
    theirs = theirs_of("basic")
    ours = rt_detr_from_transformers(theirs.train(), BORDER)
    assert ours.training
    embedding = theirs.model.denoising_class_embed.weight
    assert torch.equal(ours.head.selection.label_embedding.weight[1:], embedding[:-1])
    replace_classes(ours, 6)
    target = {"boxes": torch.tensor([[3.0, 4, 60, 50]]), "labels": torch.tensor([5])}
    losses = ours(list(images()), [target, target])
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"learn_initial_query": True}, "config.learn_initial_query: expected False, got True"),
        ({"dropout": 0.1}, "config.dropout: expected 0.0, got 0.1"),
        ({"eval_size": 640}, "config.eval_size: expected None, got 640"),
    ],
)
def test_what_has_no_counterpart_is_named(further: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rt_detr_from_transformers(theirs_of("basic", **further), BORDER)
