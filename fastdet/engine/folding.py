# SPDX-License-Identifier: BSD-3-Clause
"""Folds frozen norms into the convolutions before them, for training.

A frozen norm scales and shifts a map: two passes forward and one backward over memory. Here it
scales the filters instead, which are much smaller; the gradient of the filters goes through that
product. The result differs only by rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from fastdet.engine.fusing import Tracer, inputs_to_trace, only_reader, pads_with_zeros

FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
# A trace keeps what Python code decides. Modules of these packages decide nothing at random.
PACKAGES = ("fastdet.", "timm.", "torch.nn.", "torchvision.")


class FoldedConv(nn.Module):
    """A convolution and the frozen norm after it, both of which stay as they are.

    Args:
        conv: a convolution with zero padding.
        norm: one of FROZEN; timm's may have an activation, which is applied.
    """

    def __init__(self, conv: nn.Conv2d, norm: Any) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.after = [
            part
            for part in (getattr(norm, "drop", None), getattr(norm, "act", None))
            if part is not None and type(part) is not nn.Identity
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H', W')."""
        conv, norm = self.conv, self.norm
        scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        weight = torch.mul(conv.weight, scale[:, None, None, None])  # see `recomputing.py`
        geometry: Any = conv.stride, conv.padding, conv.dilation, conv.groups
        y = F.conv2d(x, weight, norm.bias - mean * scale, *geometry)
        for part in self.after:
            y = part(y)
        return y


def folded_graph(module: nn.Module, inputs: Tensor | Sequence[Tensor]) -> nn.Module | None:
    """A module as a graph in which each frozen norm after a convolution is folded into it.

    The graph calls the module's own parts, in the mode in which they are: it is for as long as
    none of them changes its mode.

    Args:
        module: takes a tensor or a list of tensors.
        inputs: an example; only the length of a list is used.

    Returns:
        None if there is no such norm, or if the module cannot be traced for sure.
    """
    if not any(isinstance(part, FROZEN) for part in module.modules()):
        return None
    for part in module.modules():
        known = f"{type(part).__module__}.".startswith(PACKAGES)
        if not known or getattr(part, "grad_checkpointing", False):
            return None
    try:
        graph = _Tracer().trace(module, inputs_to_trace(module, inputs))
    except Exception:  # modules that cannot be traced raise errors of any type
        return None
    if any(node.op == "get_attr" for node in graph.nodes):
        return None  # a parameter that may be replaced, or a tensor made while tracing
    parts: dict[str, Any] = dict(module.named_modules())
    if not _fold(graph, parts):
        return None
    parts.pop("", None)
    folded = fx.GraphModule(parts, graph)
    folded.training = module.training
    return folded


class _Tracer(Tracer):
    """Keeps every module without parts as one node, such as those that drop paths at random."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        has_parts = next(m.children(), None) is not None
        return not has_parts or super().is_leaf_module(m, module_qualified_name)


def _fold(graph: fx.Graph, parts: dict[str, Any]) -> int:
    """Replaces pairs of convolution and norm; returns how many."""
    made: dict[Any, str] = {}
    folded = 0
    for node in list(graph.nodes):
        conv = parts.get(node.target) if node.op == "call_module" else None
        if type(conv) is not nn.Conv2d or not pads_with_zeros(conv) or node.kwargs:
            continue
        after = only_reader(node, parts)
        norm = parts.get(str(after.target)) if after is not None else None
        if after is None or after.op != "call_module" or not isinstance(norm, FROZEN):
            continue
        key = node.target, after.target
        if key not in made:
            made[key] = f"folded_{len(made)}"
            parts[made[key]] = FoldedConv(conv, norm)
        with graph.inserting_after(after):
            pair = graph.call_module(made[key], node.args)
        after.replace_all_uses_with(pair)
        graph.erase_node(after)
        graph.erase_node(node)
        folded += 1
    return folded
