# SPDX-License-Identifier: BSD-3-Clause
"""replace_classes: like a detector built for the new classes, but other weights are kept."""

import pytest
import torch
from torch import nn

from fastdet.models import MODELS, replace_classes

from .scenes import NUM_CLASSES, scene, small_model, spread_scores

CLASS_LAYERS = ("cls_score", "bbox_pred", "mask_fcn_logits", "cls_logits")


@pytest.mark.parametrize("family", MODELS)
def test_the_shapes_of_a_new_model_and_the_weights_of_the_old(family: str) -> None:
    model = small_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert replace_classes(model, NUM_CLASSES + 3) is model
    new = MODELS[family]("resnet18", NUM_CLASSES + 3, fpn_channels=16)
    shapes = {name: value.shape for name, value in new.state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    changed = {
        name
        for name, value in model.state_dict().items()
        if value.shape != before[name].shape or not torch.equal(value, before[name])
    }
    assert changed
    for name in changed:
        assert name.split(".")[-2] in CLASS_LAYERS, name
    for name, bias in new.state_dict().items():
        if name.endswith("cls_logits.bias") and "classification" in name:
            assert torch.equal(model.state_dict()[name], bias)


@pytest.mark.parametrize("family", MODELS)
def test_the_new_classes_are_learned_and_found(family: str) -> None:
    model = small_model(family)
    torch.manual_seed(0)  # families draw different random numbers before
    replace_classes(model, 9)
    images, targets = scene()
    targets[0]["labels"] = torch.tensor([8, 5, 1])
    torch.stack(list(model(images, targets).values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    labels = torch.cat([found["labels"] for found in spread_scores(model).eval()(images)])
    assert labels.max() > NUM_CLASSES - 1
    with pytest.raises(ValueError, match=r"expected 1 \.\. 8"):
        model.train()(images, [{**target, "labels": target["labels"] + 8} for target in targets])


def test_what_cannot_be() -> None:
    model = small_model("faster_rcnn")
    with pytest.raises(
        ValueError, match="num_classes: expected at least 2, background and one class"
    ):
        replace_classes(model, 1)
    model.roi_heads.box_predictor = nn.Identity()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"expected one of the layers roi_heads\.box_predictor"):
        replace_classes(model, 5)
