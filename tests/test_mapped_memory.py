# SPDX-License-Identifier: BSD-3-Clause
"""Memory of its own for weights, and weights that are made in pieces."""

import pytest
import torch
from torch import nn

from fastdet.engine.fusing import FOLDED_AT_ONCE, FusedConv, fused_graph
from fastdet.memory import LEAST_BYTES, mapped_empty, trim_heap


@pytest.mark.parametrize("size", [0, 1, LEAST_BYTES // 4 - 1, LEAST_BYTES // 4, 5 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mapped_tensor_is_an_ordinary_one(size: int, dtype: torch.dtype) -> None:
    tensor = mapped_empty((2, size), dtype)
    assert tensor.shape == (2, size)
    assert tensor.dtype == dtype
    assert not tensor.any()
    tensor.fill_(3)
    view = tensor[1]
    del tensor
    trim_heap()
    assert (view == 3).all()  # the view keeps the memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_in_pieces_is_folding_of_the_whole(dtype: torch.dtype) -> None:
    conv, norm = nn.Conv2d(130, 67, 3, stride=2), nn.BatchNorm2d(67).eval()
    assert conv.weight.numel() > FOLDED_AT_ONCE
    norm.running_mean, norm.running_var = torch.rand(67), torch.rand(67) + 0.5
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    graph = fused_graph(nn.Sequential(conv, norm).eval(), torch.rand(1, 130, 8, 8), dtype)
    (fused,) = (part for part in graph.modules() if isinstance(part, FusedConv))
    scale = (norm.running_var.double() + norm.eps).rsqrt() * norm.weight.detach()
    weight = conv.weight.detach() * scale[:, None, None, None]
    assert torch.equal(fused.weight, weight.to(dtype))
    assert fused.weight.is_contiguous(memory_format=torch.channels_last)
    mean = norm.running_mean - conv.bias.detach()
    assert torch.equal(fused.bias, (norm.bias.detach() - mean * scale).to(dtype))
