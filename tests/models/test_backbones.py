# SPDX-License-Identifier: BSD-3-Clause
"""timm bodies: which models fit, strides, frozen stages, layers that torch computes wrongly."""

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdet.models import faster_rcnn
from fastdet.models.backbones import (
    BackboneWithFPN,
    check_sizes,
    fixed_image_size,
    timm_body,
    timm_pyramid,
)
from fastdet.models.body_stages import NEVER_FROZEN
from fastdet.models.necks import FeaturePyramidNetwork, LastLevelMaxPool
from fastdet.models.strided_pointwise import StridedPointwiseConv2d
from fastdet.models.timm_bodies import _search, fit_of


def trainable(body: nn.Module) -> list[str]:
    return [
        name
        for name, child in body.named_children()
        if any(p.requires_grad for p in child.parameters())
    ]


def frozen(body: nn.Module) -> set[str]:
    return {name for name, p in body.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_four_maps_of_strides_4_to_32(name: str) -> None:
    body, channels = timm_body(name)
    maps = body(torch.rand(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == channels
    assert [64 // m.shape[2] for m in maps] == [4, 8, 16, 32]
    assert [96 // m.shape[3] for m in maps] == [4, 8, 16, 32]


# How each is built: with fixed windows, in NHWC, with windows of 8, as a plain ViT; the divisor.
OTHER_WAYS = {
    "swin_tiny_patch4_window7_224": ({"feature_cls", "dynamic_img_size", "always_partition"}, 32),
    "test_mambaout": ({"feature_cls"}, 32),
    "test_maxvit": ({"feature_cls"}, 160),
    "test_vit": ({"dynamic_img_size"}, 32),
    "vit_tiny_patch16_dinov3_qkvb": ({"dynamic_img_size"}, 32),
}


@pytest.mark.parametrize("name", OTHER_WAYS)
def test_other_models_get_what_they_need(name: str) -> None:
    body, channels = timm_body(name)
    options, divisor = OTHER_WAYS[name]
    way = fit_of(name).way
    assert set(way.options) - {"features_only", "out_indices"} == options
    with torch.no_grad():
        maps = body.eval()(torch.rand(1, 3, 65, 100))
    sizes = [(17, 25), (9, 13), (5, 7), (3, 4)]
    shapes = [(1, c, *size) for c, size in zip(channels, sizes, strict=True)]
    assert [tuple(x.shape) for x in maps] == shapes
    assert way.divisor == divisor


def test_patches_of_14_are_made_16() -> None:
    name = "vit_small_patch14_dinov2"
    with torch.device("meta"):
        body, channels = timm_body(name)
        maps = body(torch.rand(1, 3, 64, 96))
        assert fit_of(name).way.options["patch_size"] == 16
    assert channels == [96, 192, 384, 384]
    assert [x.shape[3] for x in maps] == [24, 12, 6, 3]


def test_a_model_of_one_size_needs_that_size() -> None:
    with pytest.raises(ValueError, match=r"'test_coatnet' has no maps .* give fixed_size"):
        faster_rcnn("test_coatnet", 3)
    model = faster_rcnn("test_coatnet", 3, fixed_size=(60, 90), fpn_channels=8)
    maps = model.backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert fixed_image_size() is None
    assert fixed_image_size((60, 90), 8, min_size=4) == (64, 96)


def test_tables_of_positions_that_are_too_small_are_noticed() -> None:
    """MViTv2's shapes fit any image, but its tables end at 224 pixels."""
    with pytest.raises(ValueError, match=r"'mvitv2_tiny' has no maps .* give fixed_size"):
        timm_body("mvitv2_tiny")
    way = _search("mvitv2_tiny", (32, 64), of_one_size=True).way  # it takes squares only
    assert (way.options["img_size"], way.divisor) == ((64, 64), 64)


def test_the_weights_of_a_seed_do_not_depend_on_the_trials() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        weights.append(timm_body("test_maxvit")[0].state_dict())
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())


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


# The first children of each of the stages 1 .. 4, as their authors divide them; before is the stem.
STAGES = {
    "efficientnet_b0": ["blocks.1.", "blocks.2.", "blocks.3.", "blocks.5."],
    "mobilenetv3_small_050": ["blocks.0.", "blocks.1.", "blocks.2.", "blocks.4."],
    "mvitv2_tiny": [f"model.stages.{i}." for i in range(4)],
    "hrnet_w18_small": ["layer1.", "transition1.", "transition2.", "transition3."],
    "swin_tiny_patch4_window7_224": [f"body.model.layers.{i}." for i in range(4)],
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_what_its_map_adds(name: str) -> None:
    with torch.device("meta"):
        body, _ = timm_body(name, trainable_layers=3)
        parts = fit_of(name).parts
    names = [n for n, _ in body.named_parameters()]
    starts = [next(i for i, n in enumerate(names) if n.startswith(s)) for s in STAGES[name]]
    assert starts[0] > 0
    assert frozen(body) == set(names[: starts[1]])
    expected = [sum(i >= start for start in starts) for i in range(len(names))]
    assert parts == dict(zip(names, expected, strict=True))


def test_stages_of_a_plain_vit_are_quarters_of_its_blocks() -> None:
    body, _ = timm_body("test_vit", trainable_layers=3)
    parts = fit_of("test_vit").parts
    assert parts is not None
    new = {n for n, part in parts.items() if part == NEVER_FROZEN}
    first = {n for n in parts if "blocks." not in n or ".blocks.0." in n or ".blocks.1." in n}
    assert frozen(body) == first - new  # two of six blocks
    assert len(new) == 8  # weights and biases of three deconvolutions and a norm
    assert not new & frozen(timm_body("test_vit", trainable_layers=0)[0])


def test_gradients_reach_what_is_trained_and_nothing_else() -> None:
    body, _ = timm_body("test_efficientnet", trainable_layers=2)
    sum(x.square().mean() for x in body(torch.rand(1, 3, 64, 64))).backward()  # type: ignore[union-attr]
    for name, parameter in body.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


class Body(nn.Module):
    """Four maps of the strides of a body, the first one larger than it should be."""

    def __init__(self, surplus: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.surplus = surplus

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.conv(images)
        maps = [x[:, :, ::s, ::s] for s in (4, 8, 16, 32)]
        return [nn.functional.pad(maps[0], (0, self.surplus)), *maps[1:]]


def pyramid(surplus: int) -> BackboneWithFPN:
    return BackboneWithFPN(Body(surplus), FeaturePyramidNetwork([4] * 4, 4, LastLevelMaxPool()))


def test_maps_of_other_sizes_are_refused() -> None:
    images = torch.rand(1, 3, 64, 96)
    expected = r"expected a map of stride 4 of 16 x 24 for images of 64 x 96, got 16 x 26"
    with pytest.raises(ValueError, match=expected):
        pyramid(2)(images)
    with FakeTensorMode(), pytest.raises(ValueError, match=expected):
        pyramid(2)(torch.rand(1, 3, 64, 96))
    torch.compile(pyramid(0), fullgraph=True, backend="eager")(images)
    torch.export.export(pyramid(0), (images,), strict=True)


def test_a_side_that_is_no_multiple_may_be_rounded_either_way() -> None:
    images = torch.rand(1, 3, 65, 63)
    for height, width in ((16, 15), (17, 16)):
        check_sizes([torch.rand(1, 2, height, width)], images, (4,))
    with pytest.raises(ValueError, match="got 17 x 17"):
        check_sizes([torch.rand(1, 2, 17, 17)], images, (4,))


def test_narrow_strided_pointwise_layers_are_not_torchs() -> None:
    torch.manual_seed(0)
    body, _ = timm_body("repvgg_a0")
    kinds = Counter(type(m) for m in body.modules() if isinstance(m, nn.Conv2d))
    assert kinds[StridedPointwiseConv2d] == 1  # the stem's: it reads three channels
    images = torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    sum(x.square().mean() for x in body(images)).backward()  # type: ignore[union-attr]
    (conv,) = (m for m in body.modules() if isinstance(m, StridedPointwiseConv2d))
    assert conv.weight.grad is not None
    assert bool(conv.weight.grad.isfinite().all())


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"groups": 3}])
def test_a_strided_pointwise_layer_equals_torchs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 6, 1, stride=(2, 3), **options).double()
    ours = StridedPointwiseConv2d(3, 6, 1, stride=(2, 3), **options).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 9, 13, dtype=torch.float64)  # NCHW, where torch is right
    gradients = []
    for layer in (ours, theirs):
        layer(images).square().sum().backward()
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_errors_name_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"trainable_layers: expected 0 .. 5, got 6"):
        timm_body("resnet18", trainable_layers=6)
    with pytest.raises(ValueError, match=r"expected strides \(4, 8, 16, 32\), got \(16, 32, 64\);"):
        timm_body("levit_128s")
    with pytest.raises(ValueError, match=r"expected the name of a timm model, got 'resnet19'; sim"):
        timm_body("resnet19")
    created: list[str] = []
    monkeypatch.setattr(timm, "create_model", lambda name, **_: created.append(name))
    with pytest.raises(ValueError, match=r"batch_norm: expected one of frozen, eval, .* 'fixed'"):
        timm_body("resnet18", batch_norm="fixed")
    assert not created


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_what_only_unused_maps_need_does_not_train(name: str) -> None:
    """Training in several processes waits for the gradient of each parameter that trains."""
    pyramid = timm_pyramid(name, lambda _: LastLevelMaxPool(), maps=3, fpn_channels=8)
    sum(x.sum() for x in pyramid(torch.rand(2, 3, 64, 64))).backward()  # type: ignore[union-attr]
    for own, parameter in pyramid.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, own
    everything = all(parameter.requires_grad for parameter in pyramid.parameters())
    assert everything == (name == "resnet10t")
