# SPDX-License-Identifier: BSD-3-Clause
"""Detectors in 8-bit integers: the layers against exact arithmetic, the detectors against float."""

import copy
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet import _native
from fastdet.deploy.export import export_detector
from fastdet.engine import calibrate, quantize, quantized, quantized_by
from fastdet.engine.activations import Activation, Limits
from fastdet.engine.filters import Filters
from fastdet.engine.fusing import FusedConv, FusedLinear
from fastdet.engine.quantized import KEPT_LAYOUTS, FloatLayer, Grid, QuantizedConv, QuantizedLinear
from fastdet.engine.quantizing import QuantizedNetwork, _Network, _range, grid_of
from fastdet.models import MODELS, Detector
from fastdet.ops.winograd_int8 import winograd_roundings_int8
from tests.deploy.runtimes import RUNTIMES
from tests.engine.recorded_calls import recorded_calls
from tests.models.scenes import scene, small_model, spread_scores, tiny_model

QUICK = ("faster_rcnn", "retinanet")
every_family = pytest.mark.parametrize(
    "family",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
FUNCTIONS: dict[Activation, Any] = {
    "none": lambda x: x,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "swish": F.silu,
    Limits(-0.1, math.inf): lambda x: x.clamp(min=-0.1),
    Limits(-math.inf, 0.2): lambda x: x.clamp(max=0.2),
}


def integers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return q.contiguous(memory_format=torch.channels_last) if q.dim() == 4 else q


def exact(q: Tensor, grid: Grid) -> Tensor:
    return (q.double() - grid.zero_point) * grid.scale


def rounded(x: Tensor, grid: Grid) -> Tensor:
    return ((x / grid.scale).round() + grid.zero_point).clamp(0, 255)


def assert_rounded(found: Tensor, expected: Tensor, grid: Grid) -> None:
    """Equal, but where the number lies between two integers, within float32's rounding."""
    assert found.dtype == torch.uint8
    steps = (found.double() - rounded(expected, grid)).abs()
    assert steps.max() <= 1
    assert (steps > 0).double().mean() < 0.002
    assert found.double().std() > 5  # else nearly all is clipped, and the test shows nothing


GEOMETRIES = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilation": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 4},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 8},
}


def conv_of(name: str, activation: Activation = "relu") -> FusedConv:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 24, **GEOMETRIES[name])
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups
    return FusedConv(Filters(conv.weight.detach()), conv.bias, geometry, activation, torch.float32)


def convolved(layer: QuantizedConv, q: Tensor) -> Tensor:
    own = layer.content
    weight = own.weight.double() * own.scale.double()[:, None, None, None]
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    return F.conv2d(exact(q, layer.grid), weight, own.bias.double(), *geometry)


@torch.no_grad()
@pytest.mark.parametrize("zero_point", [0, 128])
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_convolution_is_rounded_once(name: str, activation: Activation, zero_point: int) -> None:
    result = Grid(0.02, 40)
    layer = QuantizedConv(conv_of(name, activation), Grid(0.01, zero_point), None, result)
    q = integers(2, 8, 15, 17)
    assert_rounded(layer(q), FUNCTIONS[activation](convolved(layer, q)), result)


@torch.no_grad()
@pytest.mark.parametrize("sides", [(15, 17), (1, 1)])
@pytest.mark.parametrize("name", ["1x1", "3x3"])
@pytest.mark.parametrize("over_other", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_a_sum_is_rounded_once(
    activation: str, over_other: bool, name: str, sides: tuple[int, int]
) -> None:
    grid, of_other, result = Grid(0.01, 3), Grid(0.013, 90), Grid(0.03, 60)
    layer = QuantizedConv(conv_of(name, activation), grid, of_other, result)
    q, other = integers(2, 8, *sides), integers(2, 24, *sides)
    before = other.clone()
    expected = FUNCTIONS[activation](convolved(layer, q) + exact(other, of_other))
    assert_rounded(layer(q, other, over_other), expected, result)
    if not over_other:
        assert torch.equal(other, before)


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_a_floating_result(autocast: bool) -> None:
    layer = QuantizedConv(conv_of("3x3", "none"), Grid(0.01, 77), None, None)
    q = integers(2, 8, 15, 17)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = layer(q)
    assert found.dtype == (torch.bfloat16 if autocast else torch.float32)
    tolerance = 1e-2 if autocast else 1e-5
    torch.testing.assert_close(found.double(), convolved(layer, q), rtol=tolerance, atol=tolerance)


def wide_layer(
    inputs: int = 96, outputs: int = 64, other: Grid | None = None, result: Grid | None = None
) -> QuantizedConv:
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups
    filters = Filters(conv.weight.detach())
    fused = FusedConv(filters, conv.bias, geometry, "relu", torch.float32)
    ranges = torch.tensor([[-5.1, 5.1]]).repeat(16, 1)
    ranges[5] = torch.tensor([-0.12, 10.08])
    positions = ranges if quantized.has_winograd_shape(fused) else None
    return QuantizedConv(fused, Grid(0.01, 3), other, result, positions)


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("has_sum", [False, True])
@pytest.mark.parametrize("result", [None, Grid(0.012, 0)])
def test_winograd_is_near(
    result: Grid | None, has_sum: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded_calls(monkeypatch, "winograd_conv_int8")
    monkeypatch.setattr("fastdet.engine.quantized.has_fast_winograd", lambda: True)
    of_other = Grid(0.013, 90)
    layer = wide_layer(other=of_other if has_sum else None, result=result)
    q, others = integers(2, 96, 19, 22), (integers(2, 64, 19, 22),) if has_sum else ()
    before = [other.clone() for other in others]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, again = layer(q, *others), copy.deepcopy(layer)(q, *others)
    assert calls == ["winograd_conv_int8"] * 2
    assert torch.equal(found, again)
    assert all(map(torch.equal, others, before))
    expected = convolved(layer, q) + sum(exact(other, of_other) for other in others)
    expected = expected.relu()
    if result is not None:
        assert found.dtype == torch.uint8
        expected = exact(rounded(expected, result).to(torch.uint8), result)
        found = exact(found, result)
    else:
        assert found.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert (found.double() - expected).norm() < 0.03 * expected.norm()
    assert expected.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(
    ("inputs", "outputs", "sides"), [(95, 64, (20, 20)), (96, 63, (20, 20)), (96, 64, (19, 21))]
)
def test_few_channels_and_small_maps_stay_direct(
    inputs: int, outputs: int, sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded_calls(monkeypatch, "winograd_conv_int8")
    monkeypatch.setattr("fastdet.engine.quantized.has_fast_winograd", lambda: True)
    wide_layer(inputs, outputs)(integers(1, inputs, *sides))
    assert not calls
    wide_layer()(integers(1, 96, 20, 20))
    assert calls == ["winograd_conv_int8"]


class TwoLevels(nn.Module):
    """A wide layer that two maps share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(96, 64, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """As a head."""
        return [self.conv(x) for x in maps]


@torch.no_grad()
def test_levels_share_the_ranges_of_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdet.engine.quantized.has_fast_winograd", lambda: True)
    module = TwoLevels().eval()
    generator = torch.Generator().manual_seed(1)
    maps = [size * torch.randn(1, 96, 20, 21, generator=generator) for size in (1.0, 3.0)]
    network = _Network.of(module, maps)
    assert network is not None
    network.observe(maps)
    calibration = json.loads(json.dumps(network.calibration()))
    first, second = (torch.tensor(ranges) for ranges in calibration["positions"].values())
    assert first.shape == second.shape == (16, 2)
    assert (first.diff(dim=1) < second.diff(dim=1)).all()
    small = QuantizedNetwork(module, "head", calibration)
    (layer,) = (part for part in small.modules() if isinstance(part, QuantizedConv))
    widest = torch.stack(
        (torch.minimum(first, second)[:, 0], torch.maximum(first, second)[:, 1]), 1
    )
    assert layer.roundings is not None
    assert torch.equal(layer.roundings, winograd_roundings_int8(widest, layer.grid.scale))
    for x, found in zip(maps, small(maps), strict=True):
        expected = module.conv(x)
        assert (found - expected).norm() < 0.1 * expected.norm()
    del calibration["positions"]
    with pytest.raises(ValueError, match="quantise the detector again"):
        QuantizedNetwork(module, "head", calibration)


@pytest.mark.parametrize("multiplies_bytes", [True, False])
@pytest.mark.parametrize("has_amx", [True, False])
def test_where_winograd_is_fast(
    has_amx: bool, multiplies_bytes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def cpu_has_byte_products(isa: str) -> bool:
        asked.append(isa)
        return multiplies_bytes

    monkeypatch.setattr("fastdet._native.cpu_has_byte_products", cpu_has_byte_products)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: has_amx)
    quantized._has_fast_winograd.cache_clear()
    assert quantized.has_fast_winograd() == (multiplies_bytes and not has_amx)
    quantized._has_fast_winograd.cache_clear()
    assert asked == [_native.cpu_isa()]


@torch.no_grad()
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_linear_layer(rows: int, channels_last: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(8 * 3 * 5, 32)
    grid, result = Grid(0.01, 30), Grid(0.02, 100)
    layer = QuantizedLinear(FusedLinear(linear, "none", torch.float32, True), grid, result)
    q = integers(max(rows, 1), 8, 3, 5)[:rows]
    q = q if channels_last else q.contiguous()
    own = layer.content
    weight = own.weight.double() * own.scale.double()[:, None]
    found = layer(q)
    assert found.shape == (rows, 32)
    if rows:
        expected = F.linear(exact(q, grid).flatten(1), weight, own.bias.double())
        assert_rounded(found, expected, result)


def test_weights_are_near() -> None:
    conv = conv_of("3x3")
    own = QuantizedConv(conv, Grid(1.0, 0), None, None).content
    found = own.weight.double() * own.scale.double()[:, None, None, None]
    weight = conv.filters.whole()
    largest = weight.double().abs().flatten(1).amax(1)[:, None, None, None]
    assert ((found - weight).abs() <= largest / 127 / 2 * 1.001).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 3.0), (-4.0, 0.0), (0.0, 0.0)])
def test_zero_is_on_the_grid(low: float, high: float) -> None:
    scale, zero_point = grid_of(low, high)
    assert scale > 0
    assert 0 <= zero_point <= 255
    assert -zero_point * scale <= low + scale / 2
    assert (255 - zero_point) * scale >= high - scale / 2


def test_the_range_has_the_least_error() -> None:
    """Of numbers with long tails it leaves out the rarest; of even ones it keeps all."""
    even = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    assert _range(even)[1] > 0.98
    tails = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) ** 3
    low, high = _range(tails)
    whole = float(tails.min()), float(tails.max())
    assert high < 0.9 * whole[1]
    assert error(tails, grid_of(low, high)) < 0.9 * error(tails, grid_of(*whole))


def error(x: Tensor, grid: Grid) -> float:
    q = rounded(x.double(), grid)
    return float(((q - grid.zero_point) * grid.scale - x).square().mean())


# ---- detectors -----------------------------------------------------------------------------------


def detector(family: str, **numbers: Any) -> Detector:
    return spread_scores(small_model(family, **numbers)).eval()


def networks(model: nn.Module) -> dict[str, QuantizedNetwork]:
    return {n: part for n, part in model.named_modules() if isinstance(part, QuantizedNetwork)}


def tensors(outputs: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]


@every_family
def test_every_family(family: str) -> None:
    """Images of several sizes in one batch; the model itself stays as it is."""
    model = detector(family)
    images = scene()[0]
    with torch.inference_mode():
        before = model(images)
        small = quantize(model, images)
        found = small(images)
        after = model(images)
    assert type(small) is type(model)
    assert "backbone" in networks(small)
    for mine, own, again in zip(found, before, after, strict=True):
        assert mine.keys() == own.keys()
        assert all(torch.equal(own[key], again[key]) for key in own)
        assert all(torch.isfinite(x).all() for x in mine.values())
        assert mine["boxes"].shape[1:] == (4,)


@pytest.mark.parametrize("family", QUICK)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_outputs_are_near(family: str, autocast: bool) -> None:
    model = detector(family)
    images = scene()[0]
    small = quantize(model, images)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        batch = model.pad(images)
        maps, own = (list(m.backbone(batch.images)) for m in (small, model))
        for mine, its in zip(maps, own, strict=True):
            assert mine.shape == its.shape
            error = (mine.float() - its.float()).norm() / its.float().norm()
            assert 1e-6 < error < 0.2


def test_what_stays_floating() -> None:
    small = quantize(detector("retinanet"), scene()[0])
    kinds = {
        name: [type(part).__name__ for part in network.graph.modules()]
        for name, network in networks(small).items()
    }
    assert kinds.keys() == {"backbone", "head"}
    for names in kinds.values():
        assert names.count("FloatLayer") == names.count("ToFloat") == 0
    assert kinds["backbone"].count("Quantize") == 1  # the images
    assert kinds["head"].count("QuantizedConv") == 10
    assert kinds["backbone"].count("Dequantize") <= 2
    convs = [x for x in networks(small)["head"].graph.modules() if isinstance(x, QuantizedConv)]
    assert sum(conv.result is None for conv in convs) == 2  # logits and deltas


def test_several_threads_share_a_layer() -> None:
    """With more map sizes than a layer keeps layouts of."""
    layer = QuantizedConv(conv_of("3x3"), Grid(0.01, 3), None, Grid(0.02, 40))
    maps = [integers(1, 8, side, 2 * side) for side in range(2, 4 * KEPT_LAYOUTS)]
    expected = [layer(q) for q in maps]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(layer, maps * 20))
    assert len(layer.content.packed) == KEPT_LAYOUTS
    for mine, own in zip(found, expected * 20, strict=True):
        assert torch.equal(mine, own)


def test_the_same_images_give_the_same_detector() -> None:
    model, images = detector("retinanet"), scene()[0]
    first, second = calibrate(model, images), calibrate(model, iter(images))
    assert first == second
    again = quantized_by(model, json.loads(json.dumps(first)))
    small = quantize(model, images)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert small.calibration == first


@pytest.mark.parametrize("kept", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_detect_the_same(kept: Any) -> None:
    small = quantize(detector("faster_rcnn"), scene()[0])
    with torch.inference_mode():
        expected = small(scene()[0])
        found = kept(small)(scene()[0])
    for mine, own in zip(found, expected, strict=True):
        assert all(torch.equal(mine[key], own[key]) for key in own)


def test_loaded_weights_are_used() -> None:
    """Also by a detector that has computed before, with copies of its weights in other layouts."""
    first = quantize(detector("retinanet"), scene()[0])
    other = copy.deepcopy(first)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(0.5)
    with torch.inference_mode():
        before, expected = first(scene()[0]), other(scene()[0])
        first.load_state_dict(other.state_dict())
        found = first(scene()[0])
    assert not torch.equal(before[0]["scores"], expected[0]["scores"])
    for mine, own in zip(found, expected, strict=True):
        assert all(torch.equal(mine[key], own[key]) for key in own)


def test_a_floating_layer_uses_loaded_weights() -> None:
    first, other = (
        FloatLayer(FusedLinear(nn.Linear(8, 24), "none", torch.float32, False)) for _ in range(2)
    )
    x = torch.rand(3, 8).bfloat16()
    with torch.no_grad():
        before, expected = first(x), other(x)
        first.load_state_dict(other.state_dict())
        assert torch.equal(first(x), expected)
    assert not torch.equal(before, expected)


def test_no_detection() -> None:
    model = small_model("faster_rcnn", box_score_thresh=0.999).eval()
    small = quantize(model, [torch.rand(3, 96, 96)])
    with torch.inference_mode():
        found = small([torch.zeros(3, 60, 131)])
    assert [len(x["boxes"]) for x in found] == [0]


def test_refusals() -> None:
    model, images = detector("retinanet"), scene()[0]
    small = quantize(model, images)
    with pytest.raises(ValueError, match="a quantised detector cannot be trained"):
        small.train()
    assert not any(part.training for part in small.modules())
    assert small.eval() is small
    with pytest.raises(ValueError, match=r"runs on the CPU.*got cpu and torch.float64"):
        small.double()
    with pytest.raises(ValueError, match=r"runs on the CPU.*got meta"):
        small.to("meta")
    with pytest.raises(ValueError, match="images: expected at least one image"):
        quantize(model, [])
    with pytest.raises(ValueError, match="expected a detector in float32, got a quantised Ret"):
        quantize(small, images)
    with pytest.raises(ValueError, match="expected a RetinaNet in eval mode"):
        quantize(copy.deepcopy(model).train(), images)
    with pytest.raises(ValueError, match=r"expected a RetinaNet of float32, got torch\.float64"):
        quantize(copy.deepcopy(model).double(), images)
    with pytest.raises(ValueError, match="expected a RetinaNet on the CPU, got one on meta"):
        quantize(copy.deepcopy(model).to("meta"), images)
    with pytest.raises(ValueError, match="maps are not those of the network 'backbone'"):
        quantized_by(detector("faster_rcnn"), small.calibration)
    with pytest.raises(ValueError, match="RetinaNet has no network 'other'"):
        quantized_by(model, {"other": small.calibration["backbone"]})


def test_a_processor_without_byte_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdet.engine.quantized.has_byte_products", lambda: False)
    model = detector("retinanet")
    with pytest.warns(UserWarning, match="no 8-bit products"):
        small = quantize(model, scene()[0])
    weights = [x for x in small.state_dict().values() if x.dtype == torch.int8]
    assert weights
    assert max(int(x.abs().max()) for x in weights) == 63
    assert np.isfinite(small(scene()[0])[0]["scores"].detach().numpy()).all()


@pytest.mark.slow
def test_a_file_detects_the_same(tmp_path: Path) -> None:
    """ONNX with QuantizeLinear and DequantizeLinear around the convolutions."""
    model = spread_scores(tiny_model("retinanet")).eval()
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    small = quantize(model, [image])
    export_detector(small, tmp_path / "int8.onnx", (96, 128))
    operators = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    with torch.inference_mode():
        (expected,) = small([image])
    feed = {"images": image[None].numpy(), "sizes": np.array([[96, 128]])}
    for run in RUNTIMES.values():
        found = run(tmp_path / "int8.onnx", feed)
        scores = torch.from_numpy(found["scores"][0, : found["counts"][0]])
        rows = min(len(scores), len(expected["scores"]))
        assert rows > 50
        torch.testing.assert_close(scores[:50], expected["scores"][:50], rtol=0, atol=0.01)
