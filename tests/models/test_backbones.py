# SPDX-License-Identifier: BSD-3-Clause
"""timm bodies: strides, frozen layers, initial BatchNorm weights."""

import pytest
import torch
from torch import nn

from fastdet.models.backbones import timm_body


def trainable(body: nn.Module) -> list[str]:
    return [
        name
        for name, child in body.named_children()
        if any(p.requires_grad for p in child.parameters())
    ]


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_four_maps_of_strides_4_to_32(name: str) -> None:
    body, channels = timm_body(name)
    maps = body(torch.rand(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == channels
    assert [64 // m.shape[2] for m in maps] == [4, 8, 16, 32]
    assert [96 // m.shape[3] for m in maps] == [4, 8, 16, 32]


def test_from_scratch_everything_trains() -> None:
    body, _ = timm_body("resnet18")
    assert all(parameter.requires_grad for parameter in body.parameters())
    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(bool((norm.weight == 1).all()) for norm in norms)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (5, ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]),
        (4, ["layer1", "layer2", "layer3", "layer4"]),
        (3, ["layer2", "layer3", "layer4"]),
        (1, ["layer4"]),
        (0, []),
    ],
)
def test_frozen_layers(layers: int, expected: list[str]) -> None:
    body, _ = timm_body("resnet18", trainable_layers=layers)
    assert trainable(body) == expected


def test_frozen_batch_norm() -> None:
    body, _ = timm_body("resnet18", frozen_batch_norm=True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    before = {name: value.clone() for name, value in body.named_buffers()}
    body.train()(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in body.named_buffers())


def test_errors_name_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"trainable_layers: expected 0 .. 5, got 6"):
        timm_body("resnet18", trainable_layers=6)
    with pytest.raises(ValueError, match=r"expected strides \(4, 8, 16, 32\), got"):
        timm_body("levit_128")
