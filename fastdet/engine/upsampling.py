# SPDX-License-Identifier: BSD-3-Clause
"""1x1 convolutions of an upsampled map beside another one, as in the necks of DETRs.

Copies of a pixel have the same products. So the convolution of the upsampled channels is computed
before the upsampling: for a map of half the size, with a quarter of the multiplications. The other
channels are added to it. The concatenated map, which is the largest of such a neck, is not made.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastdet.engine.activations import Limits
from fastdet.engine.fusing import FusedConv, upsample

# What is applied to the sum, in place, by oneDNN's names.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "hardswish": functools.partial(F.hardswish, inplace=True),
    "swish": functools.partial(F.silu, inplace=True),
    "sigmoid": torch.sigmoid_,
}


class UpsampledConv(nn.Module):
    """A 1x1 convolution of an upsampled map and another map, one after the other in the channels.

    Args:
        conv: the convolution of both; its weight is not copied.
        first: whether the upsampled channels are the first ones.
    """

    def __init__(self, conv: FusedConv, first: bool) -> None:
        super().__init__()
        self.conv = conv
        self.first = first

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, C, h, w) and (B, D, H, W) -> (B, out_channels, H, W)."""
        conv, size = self.conv, fine.shape[2:]
        if not all(x.is_contiguous(memory_format=torch.channels_last) for x in (coarse, fine)):
            parts = [upsample(coarse, size), fine]
            return conv(torch.cat(parts if self.first else parts[::-1], dim=1))
        inputs = [x.shape[1] for x in (coarse, fine)]
        weights = conv.filters.whole().split(inputs if self.first else inputs[::-1], dim=1)
        of_coarse, of_fine = weights if self.first else weights[::-1]
        run: Any = torch.ops.mkldnn
        small = run._convolution_pointwise(
            coarse, of_coarse, conv.bias, *conv.geometry, "none", [], ""
        )
        total = upsample(small, size)
        run._convolution_pointwise_.binary(
            total, fine, of_fine, None, *conv.geometry, "add", None, None, [], ""
        )
        return FUNCTIONS[str(conv.activation)](total)


def convolve_before_upsampling(network: fx.GraphModule) -> None:
    """Replaces the 1x1 convolutions of an upsampled map beside another one in a fused network."""
    graph = network.graph
    for node in list(graph.nodes):
        maps = _concatenated(node)
        if maps is None or not all(_is_pointwise(user, node, network) for user in node.users):
            continue
        first = maps[0].target is upsample
        grown, fine = maps if first else maps[::-1]
        for user in list(node.users):
            name = f"{user.target}_upsampled"
            if not hasattr(network, name):
                conv: Any = network.get_submodule(str(user.target))
                network.add_submodule(name, UpsampledConv(conv, first))
            with graph.inserting_before(user):
                result = graph.call_module(name, (grown.args[0], fine))
            user.replace_all_uses_with(result)
            graph.erase_node(user)
        graph.erase_node(node)
        graph.erase_node(grown)
    network.recompile()


def _concatenated(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two maps that a node concatenates, if one of them is upsampled for that alone."""
    if node.target is not torch.cat or len(node.args) != 1 or node.kwargs != {"dim": 1}:
        return None
    maps: Any = node.args[0]
    if len(maps) != 2 or maps[0] is maps[1]:
        return None
    grown = [x for x in maps if x.target is upsample and len(x.users) == 1]
    return tuple(maps) if len(grown) == 1 else None


def _is_pointwise(node: fx.Node, source: fx.Node, network: fx.GraphModule) -> bool:
    """Whether the node is a 1x1 convolution in float32 of all pixels of the source."""
    conv = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(conv, FusedConv) or node.args != (source,):
        return False
    pairs = [tuple(numbers) for numbers in conv.geometry[:2]]
    return (
        tuple(conv.kernel_size) == (1, 1)
        and pairs == [(0, 0), (1, 1)]
        and conv.geometry[3] == 1
        and conv.filters.weight.dtype == torch.float32  # in bfloat16, sums would be rounded twice
        and not isinstance(conv.activation, Limits)
    )
