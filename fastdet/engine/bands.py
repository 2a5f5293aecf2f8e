# SPDX-License-Identifier: BSD-3-Clause
"""The first layers of a network, band by band, so that their maps are never whole.

The largest maps of a network lie between its first layers: at half of the image's size, before a
pooling or a strided convolution. Here bands of rows go through these layers one after the other,
each with the rows around it that its results depend on. About a tenth of the rows are computed
twice. In return, the maps of a band stay in the cache, and the peak of memory is lower.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fastdet.engine.fusing import FusedConv
from fastdet.engine.winograd import WinogradConv

MOST_BYTES = 8 << 20  # of the largest map of a band
TILE = 4  # rows of results that WinogradConv computes together: bands begin where tiles do


class Rows(NamedTuple):
    """How the rows of a layer's result depend on those of its input."""

    kernel: int  # the number of input rows of a result's row, with the gaps of a dilation
    stride: int
    padding: int

    def of(self, rows: int) -> int:
        """The rows of the result of this many rows."""
        return (rows + 2 * self.padding - self.kernel) // self.stride + 1


class Bands(nn.Module):
    """Layers one after the other, band by band if their maps are large.

    Args:
        layers: each a FusedConv, a WinogradConv or a max pooling.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.rows = [rows for layer in layers if (rows := rows_of(layer)) is not None]
        self.stride = math.prod(rows.stride for rows in self.rows)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the result of the last layer."""
        heights = [x.shape[2]]
        for rows in self.rows:
            heights.append(rows.of(heights[-1]))
        step = self._step(x, heights)
        whole = step >= heights[-1] and len(x) == 1
        if whole or not x.is_contiguous(memory_format=torch.channels_last):
            return self.layers(x)
        result: Tensor | None = None
        for i in range(len(x)):
            for first in range(0, heights[-1], step):
                last = min(first + step, heights[-1])
                band = self._band(x[i : i + 1], heights, first, last)
                if result is None:
                    shape = len(x), band.shape[1], heights[-1], band.shape[3]
                    layout = torch.channels_last
                    result = torch.empty(shape, dtype=band.dtype, memory_format=layout)
                result[i, :, first:last] = band[0]
        return self.layers(x) if result is None else result

    def _step(self, x: Tensor, heights: list[int]) -> int:
        """How many rows of the result a band has: a multiple of TILE."""
        width, channels, largest = x.shape[3], x.shape[1], 0
        for layer, rows, height in zip(self.layers, self.rows, heights[1:], strict=True):
            width = width // rows.stride
            channels = getattr(layer, "out_channels", channels)
            largest = max(largest, channels * height * width * x.element_size())
        pieces = max(1, math.ceil(largest / MOST_BYTES))
        return max(TILE, math.ceil(heights[-1] / pieces / TILE) * TILE)

    def _band(self, image: Tensor, heights: list[int], first: int, last: int) -> Tensor:
        """The rows [first, last) of the result."""
        begin, end = first, last
        for rows, height in zip(reversed(self.rows), reversed(heights[:-1]), strict=True):
            begin = max(0, begin * rows.stride - rows.padding)
            end = min(height, (end - 1) * rows.stride - rows.padding + rows.kernel)
        begin -= begin % (TILE * self.stride)
        # Near the cut the layers pad with zeros where there are rows. What depends on that is left
        # out. At the border of the image, the padding is right.
        band = self.layers(image[:, :, begin:end])
        return band[:, :, first - begin // self.stride :][:, :, : last - first]


def rows_of(layer: Any) -> Rows | None:
    """None for a layer that bands cannot go through."""
    if isinstance(layer, WinogradConv):
        return Rows(3, 1, 1)
    if isinstance(layer, FusedConv):
        padding, stride, dilation, _ = layer.geometry
        return Rows(dilation[0] * (layer.kernel_size[0] - 1) + 1, stride[0], padding[0])
    if isinstance(layer, nn.MaxPool2d) and not layer.ceil_mode and not layer.return_indices:
        kernel, stride, padding, dilation = (
            number if isinstance(number, int) else number[0]
            for number in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        )
        return Rows(dilation * (kernel - 1) + 1, stride, padding)
    return None


def divide_into_bands(network: fx.GraphModule) -> None:
    """Replaces the first layers of a fused network, up to a strided one, by `Bands`."""
    graph = network.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    nodes: list[fx.Node] = []
    node = inputs[0]
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_module" or user.args != (node,) or user.kwargs:
            break
        if rows_of(network.get_submodule(str(user.target))) is None:
            break
        nodes.append(user)
        node = user
    layers = [network.get_submodule(str(node.target)) for node in nodes]
    while layers and (rows := rows_of(layers[-1])) is not None and rows.stride == 1:
        layers.pop()
    if len(layers) < 2:
        return
    network.add_submodule("bands", Bands(layers))
    last = nodes[len(layers) - 1]
    with graph.inserting_after(last):
        banded = graph.call_module("bands", (inputs[0],))
    last.replace_all_uses_with(banded)
    for node in reversed(nodes[: len(layers)]):
        graph.erase_node(node)
    network.recompile()
