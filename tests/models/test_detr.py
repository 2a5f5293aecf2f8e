# SPDX-License-Identifier: BSD-3-Clause
"""DETR and Deformable DETR: their options, rates and losses; that they learn.

That networks, losses and detections are those of the definition is tested against transformers, in
test_transformers_weights.py and test_set_losses.py.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdet.models import DETR, DeformableDETR, deformable_detr_parts
from fastdet.models.query_detections import detections_of_sigmoid, detections_of_softmax

from .dense_reference import assert_learns
from .scenes import TinyBody, scene, small_model, tiny_model

FAMILIES = ("detr", "deformable_detr")
REFINED = {"box_refine": True, "two_stage": True}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_body_trains_more_slowly(family: str) -> None:
    model = small_model(family, backbone_lr_factor=0.3)
    slow, usual = model.parameter_groups()
    assert (slow.lr_factor, usual.lr_factor) == (0.3, 1.0)
    names = {id(p): name for name, p in model.named_parameters()}
    of_slow, of_usual = ({names[id(p)] for p in group.parameters} for group in (slow, usual))
    assert of_slow | of_usual == set(names.values())
    assert not of_slow & of_usual
    assert {name for name in names.values() if name.startswith("backbone.body.")} <= of_slow
    others = {name.split(".")[-2] for name in of_slow if not name.startswith("backbone.body.")}
    assert others == (set() if family == "detr" else {"sampling_offsets", "reference_points"})


def test_frozen_parameters_are_in_no_group() -> None:
    model = small_model("detr")
    model.get_submodule("backbone.body").requires_grad_(False)
    slow, usual = model.parameter_groups()
    assert not slow.parameters
    assert all(parameter.requires_grad for parameter in usual.parameters)


def test_two_stages() -> None:
    model = tiny_model("deformable_detr", **REFINED)
    assert isinstance(model, DeformableDETR)
    assert len(model.heads) == 2  # one for each layer
    losses = model(*scene())
    names = ("classification", "bbox_regression", "bbox_giou")
    assert set(losses) == {*names, *(f"proposal_{name}" for name in names)}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    weights = [tiny_model("deformable_detr", **REFINED, bbox_giou_weight=w) for w in (1.0, 3.0)]
    once, thrice = (m.eval().losses(m.pad(*scene())) for m in weights)
    for name in losses:
        factor = 3.0 if name.endswith("giou") else 1.0
        torch.testing.assert_close(thrice[name], factor * once[name], msg=name)


def test_a_query_starts_from_a_proposal() -> None:
    """Untrained heads change no box: the detections are the boxes that pixels start from."""
    model = tiny_model("deformable_detr", **REFINED).eval()
    batch = model.pad(scene()[0])
    with torch.no_grad():
        outputs: Any = model.outputs(batch)
    sides = outputs.boxes[..., 2:].flatten(0, -2).unique(dim=0)
    expected = torch.tensor([[0.05, 0.05], [0.1, 0.1], [1.0, 1.0]])  # of two levels; no proposal
    for side in sides:
        assert float((side - expected).abs().amax(1).min()) < 1e-3, side


def test_two_stages_refine() -> None:
    with pytest.raises(ValueError, match="two_stage: expected box_refine=True, too, got False"):
        deformable_detr_parts(TinyBody(), 3, two_stage=True)


@pytest.mark.parametrize(("extra_levels", "strides"), [(0, 3), (2, 5)])
def test_extra_levels(extra_levels: int, strides: int) -> None:
    model = small_model("deformable_detr", extra_levels=extra_levels)
    images, targets = scene()
    maps = model.get_submodule("backbone")(model.pad(images).images)
    assert [x.shape[2] for x in maps] == [20, 10, 5, 3, 2][:strides]
    assert all(bool(loss > 0) for loss in model(images, targets).values())


@pytest.mark.parametrize("option", ["num_queries", "decoder_layers", "detections_per_img"])
@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_below_one_are_named(family: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}: expected a number from 1 on, got 0"):
        tiny_model(family, **{option: 0})


@pytest.mark.parametrize("neck", ["fpn", "pafpn", "bifpn", "hybrid", "elan"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_detects_on_another_neck(family: str, neck: str) -> None:
    model = small_model(family, neck=neck).eval()
    with torch.no_grad():
        assert all(len(found["scores"]) for found in model(scene()[0]))


def test_a_smaller_weight_of_the_other_layers() -> None:
    models = [tiny_model("detr", dropout=0.0, aux_weight=weight) for weight in (0.0, 0.5, 1.0)]
    none, half, all_layers = (model(*scene()) for model in models)
    for name, loss in half.items():
        torch.testing.assert_close(loss, (none[name] + all_layers[name]) / 2, msg=name)
        assert none[name] < loss


def test_detections_by_hand() -> None:
    """Queries at the left and in the middle of an image of 100 x 50 in a batch of 128 x 64."""
    boxes = torch.tensor([[[0.0, 0.5, 0.2, 1.0], [0.5, 0.5, 0.5, 0.5]]])
    sizes = torch.tensor([[50, 100]])
    corners = [[0.0, 0, 10, 50], [25.0, 12.5, 75, 37.5]]  # the left one is clipped

    def logits(*rows: list[float]) -> Tensor:
        return torch.tensor([rows]).log()

    found = detections_of_softmax(
        logits([0.7, 0.2, 0.1], [0.2, 0.1, 0.7]),
        boxes,
        sizes,
        score_thresh=0.15,
        detections_per_img=5,
    )
    assert found.counts.tolist() == [2]
    assert found.labels.tolist() == [[2, 1]]
    assert found.scores.tolist() == [pytest.approx([0.7, 0.2])]
    torch.testing.assert_close(found.boxes[0], torch.tensor(corners[::-1]))
    odds = logits([4.0, 1 / 3], [1 / 4, 9.0])  # scores 0.8, 0.25, 0.2 and 0.9
    found = detections_of_sigmoid(odds, boxes, sizes, score_thresh=0.21, detections_per_img=4)
    assert found.counts.tolist() == [3]
    assert found.labels.tolist() == [[2, 1, 2, 0]]
    assert found.scores.tolist() == [pytest.approx([0.9, 0.8, 0.25, 0])]
    expected = torch.tensor([corners[1], corners[0], corners[0], [0.0] * 4])
    torch.testing.assert_close(found.boxes[0], expected)


def test_transformers_norm_between_layers() -> None:
    """Queries are normalised again, so only the last layer's differ where there is one layer."""
    model = tiny_model("detr", decoder_layers=1, dropout=0.0).eval()
    assert isinstance(model, DETR)
    batch = model.pad(scene()[0])
    with torch.no_grad():
        once = model.outputs(batch).queries
        model.decoder.norm_between = True  # type: ignore[assignment]
        twice = model.outputs(batch).queries
        torch.testing.assert_close(twice, model.decoder.norm(once))  # type: ignore[operator]


@pytest.mark.slow
def test_it_learns() -> None:
    assert_learns(
        "deformable_detr", steps=150, **REFINED, dropout=0.0, backbone_lr_factor=1.0, heads=2
    )
