# SPDX-License-Identifier: BSD-3-Clause
"""Old names still work, say what the new one is, and are the same objects."""

import dataclasses
import importlib
import sys
from typing import Any

import pytest
import torch

from fastdet.models import FCOS, Border, FasterRCNN, MaskRCNN, RetinaNet
from tests.models.scenes import NUM_CLASSES, scene, small_model


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fastdet.export", "fastdet.deploy.export"),
        ("fastdet.prediction", "fastdet.predicting"),
        ("fastdet.models.fused", "fastdet.engine.fused"),
    ],
)
def test_modules(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        module = importlib.import_module(old)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name) is getattr(importlib.import_module(new), name), name


@pytest.mark.parametrize(
    "name",
    [field.name for field in dataclasses.fields(Border) if field.name != "antialias"],  # newer
)
def test_the_borders_numbers_on_the_detector(name: str) -> None:
    model: Any = small_model("fcos")
    with pytest.warns(DeprecationWarning, match=f"model.border.{name}"):
        assert getattr(model, name) == getattr(model.border, name)
    value = {"min_size": 77, "max_size": 777, "size_divisor": 7, "fixed_size": (70, 60)}.get(
        name, (0.5, 0.5, 0.5)
    )
    with pytest.warns(DeprecationWarning, match=f"model.border.{name}"):
        setattr(model, name, value)
    assert getattr(model.border, name) == value


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("faster_rcnn", FasterRCNN),
        ("fcos", FCOS),
        ("mask_rcnn", MaskRCNN),
        ("retinanet", RetinaNet),
    ],
)
def test_a_constructor_of_backbone_classes_and_options(family: str, kind: Any) -> None:
    expected = small_model(family)
    with pytest.warns(DeprecationWarning, match=rf"{kind.__name__}\(backbone, num_classes"):
        model = kind(expected.backbone, NUM_CLASSES, min_size=96, max_size=140)
    assert type(model) is type(expected)
    model.load_state_dict(expected.state_dict())
    with torch.no_grad():
        for own, other in zip(model.eval()(scene()[0]), expected.eval()(scene()[0]), strict=True):
            assert all(torch.equal(own[key], value) for key, value in other.items())


@pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", [FasterRCNN, FCOS, MaskRCNN, RetinaNet])
def test_an_option_that_is_missing_or_unknown(kind: Any) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'num_classes'"):
        kind(torch.nn.Identity())
    with pytest.raises(TypeError, match="unexpected keyword argument 'min_sise'"):
        kind(torch.nn.Identity(), 4, min_sise=96)
    with pytest.raises(TypeError, match=r"missing .* required"):
        kind(Border())
