# SPDX-License-Identifier: BSD-3-Clause
"""3x3 convolutions by Winograd's algorithm beside torch's, as a detector's networks have them.

The floor is 36 multiply-adds for 16 outputs, where a direct convolution has 144; in the gradient of
the filters, 16 for 4.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import gradients, seeded
from fastdet.engine.filters import Filters
from fastdet.engine.winograd import WinogradConv, WinogradMode

# Channels, filters, height and width, of an image of 800 x 1216.
LAYERS = {
    "a head's layer at level 3": (256, 256, 100, 152),
    "a head's layer at level 7": (256, 256, 7, 10),
    "RetinaNet's classes at level 3": (256, 819, 100, 152),
    "a ResNet's first stage": (64, 64, 200, 304),
    "a ResNet's last stage": (512, 512, 25, 38),
}


class Layer:
    """A map and the weight of a convolution, channels_last."""

    def __init__(self, beside: Beside, name: str) -> None:
        self.channels, self.filters, self.height, self.width = LAYERS[name]
        if beside.run.quick:
            self.height = self.width = 6
        self.words = f"{name}, {self.channels} -> {self.filters}, {self.height} x {self.width}"
        layout = torch.channels_last
        size = (1, self.channels, self.height, self.width)
        self.x = torch.randn(size, generator=seeded(1)).to(memory_format=layout)
        shape = (self.filters, self.channels, 3, 3)
        self.weight = torch.randn(shape, generator=seeded(2)).to(memory_format=layout) / 48

    def operations(self, side: int) -> int:
        """Multiply-adds of tiles of side x side outputs."""
        tiles = -(-self.height // side) * -(-self.width // side)
        return (side + 2) ** 2 * tiles * self.channels * self.filters


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def bench_inference(beside: Beside, name: str) -> None:
    layer = Layer(beside, name)
    conv = WinogradConv(Filters(layer.weight), None, "none")
    x, weight = layer.x, layer.weight
    beside(
        Case(
            op="winograd_conv",
            workload=layer.words,
            sides={
                "fastdet": lambda: conv(x),
                "torch": lambda: F.conv2d(x, weight, padding=1),
            },
            floor=stream(
                reads=4 * (x.numel() + weight.numel()),
                writes=4 * layer.filters * layer.height * layer.width,
            ),
            operations=layer.operations(4),
            exact=lambda: F.conv2d(x.double(), weight.double(), padding=1),
        )
    )


@pytest.mark.parametrize("name", [*LAYERS][:1])
def bench_training(beside: Beside, name: str) -> None:
    layer = Layer(beside, name)
    x, weight = layer.x.requires_grad_(), layer.weight.requires_grad_()

    def theirs() -> Tensor:
        return F.conv2d(x, weight, None, (1, 1), (1, 1))

    def ours() -> Tensor:
        with WinogradMode():
            return theirs()

    beside(
        Case(
            op="winograd_conv",
            workload=f"{layer.words}, forward and backward",
            sides={
                "fastdet": gradients(ours, [x, weight]),
                "torch": gradients(theirs, [x, weight]),
            },
            operations=2 * layer.operations(4) + layer.operations(2),
        )
    )
