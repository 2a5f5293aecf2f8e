# SPDX-License-Identifier: BSD-3-Clause
"""The first layers of a network, band by band."""

import pytest
import torch
from torch import Tensor, nn

from fastdet.engine import bands
from fastdet.engine.bands import Bands, divide_into_bands
from fastdet.engine.fused import run_fused, unfused
from fastdet.engine.fusing import fused_graph

STEMS = {
    "resnet": lambda: [
        nn.Conv2d(3, 32, 7, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ],
    "deep": lambda: [
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0)),
    ],
    "no padding": lambda: [
        nn.Conv2d(3, 8, 4, stride=3),
        nn.Conv2d(8, 8, (3, 1), padding=(3, 0), dilation=(3, 1)),
        nn.MaxPool2d(2),
    ],
}


def network(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = STEMS[name]()
    channels = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)][-1]
    layers += [nn.Conv2d(channels, 24, 1), nn.ReLU()]
    return nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)


def image(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return x.to(memory_format=torch.channels_last)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The rows of all bands."""
    made: list[tuple[int, int]] = []
    own = Bands._band

    def band(self: Bands, x: Tensor, heights: list[int], first: int, last: int) -> Tensor:
        made.append((first, last))
        return own(self, x, heights, first, last)

    monkeypatch.setattr(Bands, "_band", band)
    return made


@pytest.mark.parametrize("name", STEMS)
@pytest.mark.parametrize("height", [70, 97, 131])
@pytest.mark.parametrize("images", [1, 2])
def test_bands_are_the_whole(
    name: str, height: int, images: int, runs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all sizes, so that borders lie at each place of a band."""
    monkeypatch.setattr(bands, "MOST_BYTES", 7_000 if name == "no padding" else 60_000)
    module, x = network(name), image(images, 3, height, 41)
    with torch.no_grad():
        found = run_fused(module, x)
        expected = module(x)
    assert len(runs) > images
    ends = [last for _, last in runs]
    assert all(first in (0, last) for (first, _), last in zip(runs[1:], ends[:-1], strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_small_maps_and_nchw_are_not_divided(runs: list) -> None:
    module = network("resnet")
    with torch.no_grad():
        run_fused(module, image(1, 3, 128, 128))
        run_fused(module, image(1, 3, 64, 64).contiguous())
        run_fused(module, image(0, 3, 64, 64))
    assert runs == []


def test_only_layers_up_to_a_strided_one_are_divided() -> None:
    class Twice(nn.Module):
        """Reads the first map twice."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.rest = nn.Conv2d(3, 8, 3, stride=2), network("resnet")[2:3]

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.rest(y).sum() + y.sum()

    x = image(1, 3, 32, 32)
    kept = {"resnet": 1, "deep": 1, "no padding": 1}
    for name in STEMS:
        graph = fused_graph(network(name), x, torch.float32)
        divide_into_bands(graph)
        calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
        assert calls[0] == "bands"
        assert len(calls) == 1 + kept[name]
    graph = fused_graph(Twice().eval(), x, torch.float32)
    divide_into_bands(graph)
    assert not hasattr(graph, "bands")


def test_bfloat16_and_changed_weights(runs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "MOST_BYTES", 60_000)
    module, x = network("deep"), image(1, 3, 96, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = run_fused(module, x)
        with unfused():
            expected = module(x)
    assert (found.float() - expected.float()).norm() < 0.02 * expected.float().norm()
    with torch.no_grad():
        before = run_fused(module, x)
        module[0].weight.mul_(2)
        after = run_fused(module, x)
        torch.testing.assert_close(after, module(x), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after, atol=0.1)
