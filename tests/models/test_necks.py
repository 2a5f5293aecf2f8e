# SPDX-License-Identifier: BSD-3-Clause
"""Necks: PAFPN and BiFPN beside written-out references, and every neck in a whole detector."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdet.engine.fused import has_form, run_fused, unfused
from fastdet.models import MODELS, describe
from fastdet.models.backbones import timm_pyramid
from fastdet.models.necks import NECKS, BiFPN, LastLevelMaxPool, LastLevelP6P7, neck_named

from .scenes import scene, small_model, spread_scores

CHANNELS = (3, 5, 7)
EXTRA_LEVELS: dict[str, Callable[[], nn.Module]] = {
    "max pool": LastLevelMaxPool,
    "P6 and P7 of P5": lambda: LastLevelP6P7(6, 6),
    "P6 and P7 of C5": lambda: LastLevelP6P7(CHANNELS[-1], 6),
}

every_neck = pytest.mark.parametrize("neck", NECKS)


def maps(sides: tuple[int, ...] = (24, 12, 6), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Feature maps of random values, finest first; they are 8 columns wider than high."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, channels, side, side + 8 // 2**i, generator=generator, dtype=dtype)
        for i, (channels, side) in enumerate(zip(CHANNELS, sides, strict=True))
    ]


def made(kind: str, extra: str = "P6 and P7 of P5") -> nn.Module:
    """A neck in float64 whose weights, biases and statistics are all random."""
    neck: Any = NECKS[kind]
    torch.manual_seed(0)
    built = neck(CHANNELS, 6, EXTRA_LEVELS[extra]()).double().eval()
    with torch.no_grad():
        for name, tensor in (*built.named_parameters(), *built.named_buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.2, 1.5) if "running_var" in name else tensor.normal_()
    return built


def conv(x: Tensor, weights: dict[str, Tensor], name: str, **options: Any) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **options)


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Nearest-neighbour resize, pixel by pixel."""
    out = torch.empty(*x.shape[:2], *like.shape[2:], dtype=x.dtype)
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            source_row = row * x.shape[2] // out.shape[2]
            source_column = column * x.shape[3] // out.shape[3]
            out[:, :, row, column] = x[:, :, source_row, source_column]
    return out


def halved(x: Tensor) -> Tensor:
    """The maximum of the 3 x 3 pixels around every second pixel."""
    out = torch.empty(*x.shape[:2], -(-x.shape[2] // 2), -(-x.shape[3] // 2), dtype=x.dtype)
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            rows = slice(max(0, 2 * row - 1), 2 * row + 2)
            columns = slice(max(0, 2 * column - 1), 2 * column + 2)
            out[:, :, row, column] = x[:, :, rows, columns].amax(dim=(2, 3))
    return out


def with_extra_levels(
    levels: list[Tensor], features: list[Tensor], weights: dict[str, Tensor], extra: str
) -> list[Tensor]:
    if extra == "max pool":
        return [*levels, levels[-1][:, :, ::2, ::2]]
    source = levels[-1] if extra == "P6 and P7 of P5" else features[-1]
    p6 = conv(source, weights, "extra_blocks.p6", stride=2, padding=1)
    return [*levels, p6, conv(p6.clamp(min=0), weights, "extra_blocks.p7", stride=2, padding=1)]


def pafpn(features: list[Tensor], weights: dict[str, Tensor], extra: str) -> list[Tensor]:
    """mmdetection's PAFPN.forward, level by level."""
    c3, c4, c5 = features
    m5 = conv(c5, weights, "top_down.inner_blocks.2.0")
    m4 = conv(c4, weights, "top_down.inner_blocks.1.0") + enlarged(m5, c4)
    m3 = conv(c3, weights, "top_down.inner_blocks.0.0") + enlarged(m4, c3)
    p3 = conv(m3, weights, "top_down.layer_blocks.0.0", padding=1)
    p4 = conv(m4, weights, "top_down.layer_blocks.1.0", padding=1)
    p5 = conv(m5, weights, "top_down.layer_blocks.2.0", padding=1)
    n4 = p4 + conv(p3, weights, "down_blocks.0", stride=2, padding=1)
    n5 = p5 + conv(n4, weights, "down_blocks.1", stride=2, padding=1)
    out4 = conv(n4, weights, "out_blocks.0", padding=1)
    out5 = conv(n5, weights, "out_blocks.1", padding=1)
    return with_extra_levels([p3, out4, out5], features, weights, extra)


def normed(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    mean, var, scale, shift = (
        weights[f"{name}.{key}"][:, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def fused(summands: list[Tensor], weights: dict[str, Tensor], name: str) -> Tensor:
    """Equation of the paper's fast normalised fusion, then EfficientDet's convolution."""
    w = [max(0.0, value) for value in weights[f"{name}.weights"].tolist()]
    total = torch.zeros_like(summands[0])
    for factor, summand in zip(w, summands, strict=True):
        total += factor / (sum(w) + 1e-4) * summand
    total = total * total.sigmoid()
    total = conv(total, weights, f"{name}.depthwise", padding=1, groups=total.shape[1])
    return normed(conv(total, weights, f"{name}.pointwise"), weights, f"{name}.norm")


def bifpn(features: list[Tensor], weights: dict[str, Tensor], extra: str) -> list[Tensor]:
    """The equations of the EfficientDet paper, level by level; three cells."""
    levels = [
        normed(conv(x, weights, f"laterals.{i}.0"), weights, f"laterals.{i}.1")
        for i, x in enumerate(features)
    ]
    levels = with_extra_levels(levels, features, weights, extra)
    last = len(levels) - 1
    for cell in range(3):
        names = f"cells.{cell}.top_down", f"cells.{cell}.bottom_up"
        inner = {last: levels[last]}
        for level in range(last - 1, -1, -1):
            summands = [levels[level], enlarged(inner[level + 1], levels[level])]
            inner[level] = fused(summands, weights, f"{names[0]}.{last - 1 - level}")
        out = [inner[0]]
        for level in range(1, last + 1):
            summands = [levels[level]] + ([inner[level]] if level < last else [])
            summands.append(halved(out[level - 1]))
            out.append(fused(summands, weights, f"{names[1]}.{level - 1}"))
        levels = out
    return levels


REFERENCES = {"pafpn": pafpn, "bifpn": bifpn}


@pytest.mark.parametrize("extra", EXTRA_LEVELS)
@pytest.mark.parametrize("kind", REFERENCES)
def test_equals_the_written_out_reference(kind: str, extra: str) -> None:
    neck, features = made(kind, extra), maps()
    with torch.no_grad():
        got = neck(features)
    expected = REFERENCES[kind](features, neck.state_dict(), extra)
    assert len(got) == (4 if extra == "max pool" else 5)
    for level, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10, msg=str(level))


@every_neck
def test_maps_whose_sides_were_rounded_down_or_up(neck: str) -> None:
    """From 27 pixels on, a body that rounds down has 13 and 6, one that rounds up 14 and 7."""
    for sides in ((27, 13, 6), (27, 14, 7)):
        features = maps(sides)
        got = made(neck)(features)
        assert [x.shape[2:] for x in got[:3]] == [x.shape[2:] for x in features]
        assert all(bool(x.isfinite().all()) for x in got)


@every_neck
def test_the_fused_form_is_the_same(neck: str) -> None:
    features = [x.contiguous(memory_format=torch.channels_last) for x in maps(dtype=torch.float32)]
    module = made(neck).float()
    with torch.no_grad():
        with unfused():
            expected = module(features)
        got = run_fused(module, features)
    assert has_form(module)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_no_extra_levels_and_more_cells() -> None:
    for kind in NECKS.values():
        neck: Any = kind
        assert len(neck(CHANNELS, 6)(maps(dtype=torch.float32))) == 3
    deep = BiFPN(CHANNELS, 6, repeats=5)
    assert len(deep.cells) == 5
    assert len(deep(maps(dtype=torch.float32))) == 3


def test_a_weight_below_zero_takes_no_part() -> None:
    neck = made("bifpn")
    first: Any = neck.get_submodule("cells.0.top_down.0")
    first.weights.data.copy_(torch.tensor([1.0, -2.0]))
    summands = [torch.randn(1, 6, 4, 4).double() for _ in range(3)]
    alone = first([summands[0], summands[1]])
    torch.testing.assert_close(alone, first([summands[0], summands[2]]))


def test_levels_of_one_pixel_in_a_batch_of_one_image_train() -> None:
    neck = BiFPN(CHANNELS, 6, LastLevelP6P7(6, 6))
    features = [x[:1, :, :side, :side] for x, side in zip(maps((4, 2, 1)), (4, 2, 1), strict=True)]
    levels = neck([x.float() for x in features])
    assert [x.shape[2:] for x in levels] == [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)]
    torch.stack([x.square().sum() for x in levels]).sum().backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    coarsest: Any = neck.get_submodule("cells.0.bottom_up.3.norm")
    assert int(coarsest.num_batches_tracked) == 0
    assert bool((coarsest.running_var == 1).all())


def test_a_neck_is_one_graph() -> None:
    """BiFPN with one cell: each cell is the same, and PAFPN has only operations that it has."""
    neck, features = BiFPN(CHANNELS, 6, LastLevelP6P7(6, 6), repeats=1).double().eval(), maps()
    compiled = torch.compile(neck, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for mine, theirs in zip(compiled(features), neck(features), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("family", "neck"), [("faster_rcnn", "pafpn"), ("retinanet", "bifpn"), ("fcos", "hybrid")]
)
def test_a_detector_with_the_neck(family: str, neck: str) -> None:
    model = small_model(family, neck=neck)
    losses = model(*scene())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    spread_scores(model).eval()
    batch = model.pad(scene()[0])
    backbone: Any = model.get_submodule("backbone")
    with torch.no_grad():
        assert bool((model.detect(batch).counts > 0).all())
        found = run_fused(backbone, batch.images)
        with unfused():
            expected = backbone(batch.images)
    assert has_form(backbone)
    for mine, theirs in zip(found, expected, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-4
    description = describe(model, (96, 96))
    assert len(description.levels) == 5
    assert "backbone.fpn" in [part.name for part in description.parts]


@pytest.mark.slow
def test_every_family_takes_each_neck() -> None:
    for family, build in MODELS.items():
        with FakeTensorMode():  # without random numbers, which take most of the time
            models = [build("resnet10t", 3, neck=neck, fpn_channels=8) for neck in NECKS]
        kinds = {type(model.get_submodule("backbone.fpn")) for model in models}
        assert kinds == set(NECKS.values()), family


def test_the_pyramid_keeps_its_names_and_an_own_neck_is_taken() -> None:
    plain = timm_pyramid("resnet10t", lambda _: LastLevelMaxPool(), fpn_channels=8)
    names = [name for name in plain.state_dict() if name.startswith("fpn.")]
    assert names[0] == "fpn.inner_blocks.0.0.weight"
    assert {name.split(".")[1] for name in names} == {"inner_blocks", "layer_blocks"}

    def deep(in_channels: Any, out_channels: int, extra_blocks: nn.Module) -> nn.Module:
        return BiFPN(in_channels, out_channels, extra_blocks, repeats=2)

    own: Any = timm_pyramid("resnet10t", lambda _: LastLevelMaxPool(), neck=deep, fpn_channels=8)
    assert len(own.fpn.cells) == 2
    assert own.strides == (4, 8, 16, 32)
    with pytest.raises(
        ValueError,
        match="neck: expected one of fpn, pafpn, bifpn, hybrid, elan or a function, got 'pan'",
    ):
        timm_pyramid("resnet10t", lambda _: LastLevelMaxPool(), neck="pan")


def test_a_map_of_one_pixel_has_exact_gradients_in_bfloat16() -> None:
    """torch's own gradient then has whatever was in the memory."""
    extra, x = LastLevelP6P7(8, 8), torch.rand(2, 8, 2, 2)
    (_, p6, p7) = extra([x], [x])
    torch.testing.assert_close(p7, extra.p7(F.relu(p6)))
    expected = torch.autograd.grad(extra.p7(F.relu(p6)).sum(), extra.p7.weight, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(p7.sum(), extra.p7.weight), expected)
    for _ in range(20):
        torch.full((4096,), torch.nan).resize_(0)  # what the memory may hold
        with torch.autocast("cpu", torch.bfloat16):
            (*_, p7) = extra([x], [x])
        (gradient,) = torch.autograd.grad(p7.sum(), extra.p7.weight)
        torch.testing.assert_close(gradient, expected[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("neck", ["pan", None])
def test_other_necks_are_named(neck: Any) -> None:
    with pytest.raises(ValueError, match=f"neck: expected one of fpn, .* got {neck!r}"):
        neck_named(neck)
