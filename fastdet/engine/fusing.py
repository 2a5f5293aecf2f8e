# SPDX-License-Identifier: BSD-3-Clause
"""Builds the fused form of a network from its graph. `fused.py` decides when the form is used.

A convolution is fused with the operations that follow it: a norm, then a sum, then an activation,
then a factor and an offset of the whole map, if nothing else reads the results between them. It is
not fused across an in-place operation. Two convolutions of one map that are added, as in RepVGG,
become one convolution first.
"""

import functools
import inspect
import operator
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import PH
from torchvision.ops import FrozenBatchNorm2d

from fastdet.engine.activations import Activation, scaled_relu, unary_of
from fastdet.engine.filters import Filters
from fastdet.engine.pooling import MaxPool2d, max_pool
from fastdet.engine.winograd import WinogradConv, has_winograd_shape
from fastdet.ops.upsample_nearest import upsample_nearest

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, BatchNormAct2d, FrozenBatchNormAct2d)
SUMS = (operator.add, operator.iadd, torch.add)
# oneDNN's names of the activations that it can fuse, by module, function or method.
ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu", "relu_"), "relu"),
    **dict.fromkeys((nn.Hardswish, F.hardswish), "hardswish"),
    **dict.fromkeys((nn.SiLU, F.silu), "swish"),
    **dict.fromkeys((nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"), "sigmoid"),
}


SIDES = (32, 32)  # of a map for which oneDNN lays out the filters of 1x1 convolutions


class FusedConv(nn.Module):
    """A convolution with zero padding; then optionally a sum with another map and an activation.

    Args:
        filters, bias: with the norm folded in, if there was one.
        geometry: padding, stride, dilation, groups.
        activation: one of the values of ACTIVATIONS, "none", or limits; after a sum only "relu" or
            "none".
        dtype: in which it is computed.
    """

    def __init__(
        self,
        filters: Filters,
        bias: Tensor | None,
        geometry: Any,
        activation: Activation,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        ready = filters.ready(dtype)
        is_copy = ready.weight is not filters.weight
        weight = ready.weight.contiguous(memory_format=torch.channels_last)
        self.kernel_size = weight.shape[2:]
        self.out_channels = len(weight)
        self.activation = activation
        # A copy is kept in oneDNN's own layout, if that is the same for all sizes of the map: a
        # wrong one is slower.
        if is_copy and dtype == torch.bfloat16 and self.kernel_size == (1, 1):
            size = [1, weight.shape[1], *SIDES]
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, size)
        self.filters = ready._replace(weight=weight)
        self.bias = None if bias is None else bias.to(dtype)

    def forward(self, x: Tensor, other: Tensor | None = None, over_other: bool = False) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H', W'); with `over_other` it overwrites `other`."""
        arguments = self.filters.whole(), self.bias, *self.geometry
        fused = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return fused(x, *arguments, *unary_of(self.activation), "")
        if other.shape != self._output_shape(x) or not _is_channels_last(x, other):
            total = fused(x, *arguments, "none", [], "") + other
            return total.relu_() if self.activation == "relu" else total
        unary = None if self.activation == "none" else self.activation
        if over_other:
            write = torch.ops.mkldnn._convolution_pointwise_.binary
            return write(other, x, *arguments, "add", None, unary, [], "")
        return fused.binary(x, other, *arguments, "add", None, unary, [], "")

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        sides = zip(x.shape[2:], self.kernel_size, *self.geometry[:3], strict=True)
        spatial = ((n + 2 * pad - hop * (k - 1) - 1) // step + 1 for n, k, pad, step, hop in sides)
        return x.shape[0], self.out_channels, *spatial


MakeConv = Callable[[Filters, Tensor | None, Any, Activation, torch.dtype], nn.Module]


def fused_conv(
    filters: Filters,
    bias: Tensor | None,
    geometry: Any,
    activation: Activation,
    dtype: torch.dtype,
) -> nn.Module:
    """A WinogradConv where that is faster, else a FusedConv; the arguments are the latter's."""
    padding, stride, dilation, groups = geometry
    if has_winograd_shape(filters.weight, stride, padding, dilation, groups, dtype):
        ready = filters.ready(dtype)
        return WinogradConv(ready, bias, activation, is_copy=ready.weight is not filters.weight)
    return FusedConv(filters, bias, geometry, activation, dtype)


class FusedLinear(nn.Module):
    """A linear layer and an activation.

    Args:
        linear: the layer.
        activation: one of the values of ACTIVATIONS, or "none".
        dtype: of the weights.
        flattens: whether the input is maps to flatten. channels_last maps are flattened in memory
            order, without a copy, and the weights are permuted to match.
    """

    def __init__(
        self, linear: nn.Linear, activation: str, dtype: torch.dtype, flattens: bool
    ) -> None:
        super().__init__()
        self.linear = linear
        self.dtype = dtype
        self.activation = activation
        self.flattens = flattens
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.weights: dict[tuple[int, ...], Tensor] = {}  # by (C, h, w); () if not channels_last

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), or (K, C, h, w) -> (K, out_features)."""
        shape: tuple[int, ...] = ()
        if self.flattens:
            if x.dim() == 4 and _is_channels_last(x):
                shape = tuple(x.shape[1:])
                x = x.permute(0, 2, 3, 1)
            x = x.flatten(1)
        if shape not in self.weights:
            self.weights[shape] = self._laid_out(shape)
        weight = self.weights[shape]
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, self.activation, [], "")

    def _laid_out(self, shape: tuple[int, ...]) -> Tensor:
        weight = self.linear.weight.detach().to(self.dtype)
        if shape:
            weight = weight.unflatten(1, shape).permute(0, 2, 3, 1).flatten(1)
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


def fused_graph(
    module: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    dtype: torch.dtype,
    make_conv: MakeConv = fused_conv,
) -> fx.GraphModule:
    """A module in eval mode as a graph of fused layers.

    Args:
        module: takes a tensor or a list of tensors.
        inputs: an example of the graph's inputs; only the length of a list is used.
        dtype: float32 or bfloat16, the dtype of the weights and of the graph's inputs.
        make_conv: makes the layer of a convolution from the arguments of FusedConv.

    Raises:
        Exception: of any type, if the module cannot be traced.
    """
    graph = Tracer().trace(module, inputs_to_trace(module, inputs))
    parts: dict[str, Any] = dict(module.named_modules())
    _erase_identities(graph, parts)
    _take_sizes_of_inputs(graph, parts)
    _take_upsampling(graph)
    _take_pooling(graph, parts)
    _merge_branches(graph, parts)
    if make_conv is fused_conv:
        _join_small_readers(graph, parts)
    _fuse(graph, parts, dtype, make_conv)
    _write_over_summands(graph, parts)
    for node in graph.nodes:
        if node.op == "get_attr":
            parts[node.target] = operator.attrgetter(node.target)(module)
    parts.pop("", None)
    fused = fx.GraphModule(parts, graph).eval()
    parts.clear()  # of the merged convolutions; something of torch.fx still refers to it
    return fused


def inputs_to_trace(module: nn.Module, inputs: Tensor | Sequence[Tensor]) -> dict[str, Any] | None:
    """What a tracer needs to know of a list: its length."""
    if isinstance(inputs, Tensor):
        return None
    name = next(iter(inspect.signature(module.forward).parameters))
    return {name: [PH] * len(inputs)}


class Tracer(fx.Tracer):
    """Keeps norms as single nodes. Modules that run in other threads are not traced."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether calls of this module are one node."""
        return isinstance(m, NORMS) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Traces a call; a call in another thread runs."""
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Traces the reading of a parameter; in another thread it is the parameter."""
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


# ---- operations to fuse --------------------------------------------------------------------------


class _Chain(NamedTuple):
    """A layer and the operations after it that can be fused with it; `last` is the last of them."""

    last: fx.Node
    norm: str | None = None
    other: fx.Node | None = None
    activation: str = "none"
    affine: tuple[str, str] | None = None  # names of the parameters: a factor, an offset


def _fuse(graph: fx.Graph, parts: dict[str, Any], dtype: torch.dtype, make_conv: MakeConv) -> None:
    """Replaces layers and the operations after them by FusedConv, WinogradConv and FusedLinear."""
    made: dict[Any, str] = {}  # so that a layer that is called at several levels is built once
    for node in list(graph.nodes):
        layer: Any = parts.get(node.target) if node.op == "call_module" else None
        args = node.args
        if len(args) != 1 or node.kwargs:
            continue
        if type(layer) in (nn.Conv2d, _MergedConv) and pads_with_zeros(layer):
            chain = _chain(node, parts)
            args = args if chain.other is None else (*args, chain.other)
            norm = None if chain.norm is None else parts[chain.norm]
            affine = chain.affine and tuple(_parameter(name, parts) for name in chain.affine)
            make = functools.partial(_conv, layer, norm, chain.activation, affine, dtype, make_conv)
            key = node.target, chain.norm, chain.activation, chain.affine
        elif type(layer) is nn.Linear:
            chain = _with_activation(_Chain(node), parts)
            flat = _flattened(args[0], parts)
            args = args if flat is None else (flat,)
            make = functools.partial(FusedLinear, layer, chain.activation, dtype, flat is not None)
            key = node.target, flat is not None, chain.activation
        else:
            continue
        if key not in made:
            made[key] = f"fused_{len(made)}"
            parts[made[key]] = make()
        with graph.inserting_after(chain.last):
            fused = graph.create_node("call_module", made[key], args, {}, name=node.name)
        chain.last.replace_all_uses_with(fused)
        _erase_unused(graph, chain.last)


# ---- parallel convolutions -----------------------------------------------------------------------

MOST_JOINED = 64  # output channels; a 1x1 convolution of so few takes as long as to read its map


def _join_small_readers(graph: fx.Graph, parts: dict[str, Any]) -> None:
    """Replaces 1x1 convolutions of one map, as at a head's end, by one: the map is read once."""
    made: dict[Any, str] = {}
    for node in list(graph.nodes):
        readers = list(node.users)
        convs = [_small_conv(reader, parts) for reader in readers]
        if len(convs) < 2 or None in convs or sum(c.out_channels for c in convs) > MOST_JOINED:
            continue
        key = tuple(reader.target for reader in readers)
        if key not in made:
            made[key] = f"joined_{len(made)}"
            parts[made[key]] = _joined(convs)
        with graph.inserting_after(node):
            joined = graph.call_module(made[key], (node,))
        place, first = joined, 0
        for reader, conv in zip(readers, convs, strict=True):
            with graph.inserting_after(place):
                place = graph.call_method("narrow", (joined, 1, first, conv.out_channels))
            first += conv.out_channels
            reader.replace_all_uses_with(place)
            graph.erase_node(reader)


def _small_conv(node: fx.Node, parts: dict[str, Any]) -> Any:
    """The 1x1 convolution that a node calls, if nothing is fused with it; None for another node."""
    conv: Any = parts.get(str(node.target)) if node.op == "call_module" else None
    if type(conv) is not nn.Conv2d or len(node.args) != 1 or node.kwargs:
        return None
    geometry = conv.kernel_size, conv.stride, conv.padding, conv.groups
    is_small = geometry == ((1, 1), (1, 1), (0, 0), 1) and _chain(node, parts) == _Chain(node)
    return conv if is_small else None


def _joined(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One convolution with the outputs of all, one after another."""
    outputs = sum(conv.out_channels for conv in convs)
    joined = _MergedConv(convs[0].in_channels, outputs, 1, device="meta")
    joined.filters = Filters(torch.cat([conv.weight.detach() for conv in convs]))
    shifts = [c.weight.new_zeros(c.out_channels) if c.bias is None else c.bias for c in convs]
    joined.bias = nn.Parameter(torch.cat([shift.detach() for shift in shifts]), False)
    return joined


class _Branch(NamedTuple):
    """A convolution and its norm, if it has one, whose result is read by a sum alone."""

    conv: fx.Node
    norm: str | None


class _MergedConv(nn.Conv2d):
    """What several convolutions become: the geometry, with `filters` in place of a weight."""

    filters: Filters


def _merge_branches(graph: fx.Graph, parts: dict[str, Any]) -> None:
    """Replaces the sum of two convolutions of one map by one convolution."""
    made: dict[Any, str] = {}
    for node in list(graph.nodes):
        if node.target not in SUMS or node.kwargs or len(node.args) != 2:
            continue
        left, right = (_branch(arg, node, parts) for arg in node.args)
        if left is None or right is None or left.conv.args != right.conv.args:
            continue
        key = left.conv.target, left.norm, right.conv.target, right.norm
        convs = [parts[str(branch.conv.target)] for branch in (left, right)]
        if left.conv is right.conv or not _fit(*convs):
            continue
        if key not in made:
            made[key] = f"merged_{len(made)}"
            norms = [None if b.norm is None else parts[b.norm] for b in (left, right)]
            parts[made[key]] = _merged(convs, norms)
        with graph.inserting_before(node):
            merged = graph.call_module(made[key], left.conv.args)
        node.replace_all_uses_with(merged)
        _erase_unused(graph, node)


def _branch(node: Any, total: fx.Node, parts: dict[str, Any]) -> _Branch | None:
    """The branch that ends in `node`, a summand of `total`; None if this is none."""
    norm = None
    if _is_norm(node, parts):
        norm = str(node.target)
        if _activation_of_norm(parts[norm]) != "none" or only_reader(node, parts) is not total:
            return None
        total, node = node, node.args[0]
    if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1:
        return None
    conv = parts[str(node.target)]
    if type(conv) is not nn.Conv2d or not pads_with_zeros(conv) or node.kwargs:
        return None
    # Nothing may write the map before the place of the sum, where the merged convolution reads it.
    return _Branch(node, norm) if only_reader(node, parts) is total else None


def _is_norm(node: Any, parts: dict[str, Any]) -> bool:
    is_module = isinstance(node, fx.Node) and node.op == "call_module"
    return is_module and isinstance(parts[str(node.target)], NORMS)


def _fit(first: nn.Conv2d, second: nn.Conv2d) -> bool:
    """Whether the two read the same pixels, except that one reads further around them."""
    same = all(
        getattr(first, name) == getattr(second, name)
        for name in ("stride", "groups", "in_channels", "out_channels")
    )
    geometries: list[Any] = [(conv.kernel_size, conv.padding) for conv in (first, second)]
    centred = first.dilation == second.dilation == (1, 1) and all(
        kernel == 2 * pad + 1
        for sides, padding in geometries
        for kernel, pad in zip(sides, padding, strict=True)
    )
    return same and centred


def _merged(convs: Sequence[nn.Conv2d], norms: Sequence[nn.Module | None]) -> nn.Conv2d:
    """The sum of convolutions, each with its norm, as one convolution."""
    height, width = (max(conv.kernel_size[side] for conv in convs) for side in (0, 1))
    (large, bias), (small, other) = sorted(
        (_with_norm(conv, norm) for conv, norm in zip(convs, norms, strict=True)),
        key=lambda branch: branch[0].weight[0, 0].numel(),
        reverse=True,
    )
    down, across = height - large.weight.shape[2], width - large.weight.shape[3]
    if down or across:  # 1 x 3 and 3 x 1
        sides = across // 2, across // 2, down // 2, down // 2
        large = large._replace(weight=F.pad(large.weight, sides))
    stride: Any = convs[0].stride
    merged = _MergedConv(
        convs[0].in_channels,
        convs[0].out_channels,
        (height, width),
        stride,
        (height // 2, width // 2),
        groups=convs[0].groups,
        device="meta",
    )
    merged.filters = large._replace(centre=small)
    shifts = [shift for shift in (bias, other) if shift is not None]
    merged.bias = nn.Parameter(torch.stack(shifts).sum(0), False) if shifts else None
    return merged


def _conv(
    conv: nn.Conv2d,
    norm: nn.Module | None,
    activation: Activation,
    affine: tuple[Tensor, ...] | None,
    dtype: torch.dtype,
    make_conv: MakeConv,
) -> nn.Module:
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups
    filters, bias = _with_norm(conv, norm)
    if affine is not None:
        scale, offset = affine
        ones = filters.weight.new_ones(len(filters.weight), dtype=scale.dtype)
        filters = filters.times(scale * ones)
        bias = offset * ones if bias is None else bias * scale + offset
        if activation == "relu":
            activation = scaled_relu(float(scale), float(offset))
    return make_conv(filters, bias, geometry, activation, dtype)


def pads_with_zeros(conv: nn.Conv2d) -> bool:
    """Whether the padding is zeros, and given in pixels."""
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _chain(node: fx.Node, parts: dict[str, Any]) -> _Chain:
    """Finds the norm, the sum and the activation after a convolution."""
    chain = _Chain(node)
    user = only_reader(node, parts)
    norm = str(user.target) if user is not None and user.op == "call_module" else ""
    if user is not None and isinstance(parts.get(norm), NORMS):
        activation = _activation_of_norm(parts[norm])
        if activation is None:
            return chain
        chain = chain._replace(last=user, norm=norm, activation=activation)
        if activation != "none":
            return _with_affine(chain, parts)
    user = only_reader(chain.last, parts)
    other = None if user is None else _summand(user, chain.last)
    if user is None or other is None:
        return _with_affine(_with_activation(chain, parts), parts)
    summed = _with_activation(chain._replace(last=user, other=other), parts)
    if summed.activation not in ("none", "relu"):
        summed = summed._replace(last=user, activation="none")
    return summed


def _with_activation(chain: _Chain, parts: dict[str, Any]) -> _Chain:
    user = only_reader(chain.last, parts)
    if user is None or user.args != (chain.last,) or set(user.kwargs) - {"inplace"}:
        return chain
    kind = type(parts[str(user.target)]) if user.op == "call_module" else user.target
    if kind not in ACTIVATIONS:
        return chain
    return chain._replace(last=user, activation=ACTIVATIONS[kind])


def _with_affine(chain: _Chain, parts: dict[str, Any]) -> _Chain:
    """Adds a product with a parameter of one number, and a sum with another one after it."""
    if chain.activation not in ("none", "relu"):
        return chain
    product = only_reader(chain.last, parts)
    scale = None if product is None else _number(product, chain.last, (operator.mul,), parts)
    total = None if product is None or scale is None else only_reader(product, parts)
    if product is None or scale is None or total is None:
        return chain
    offset = _number(total, product, (operator.add,), parts)
    return chain if offset is None else chain._replace(last=total, affine=(scale, offset))


def _number(node: fx.Node, of: fx.Node, kinds: Any, parts: dict[str, Any]) -> str | None:
    """The name of the parameter of one number with which `node` changes `of`, or None."""
    if node.op != "call_function" or node.target not in kinds or len(node.args) != 2:
        return None
    (other,) = [x for x in node.args if x is not of] or [None]
    if not isinstance(other, fx.Node) or other.op != "get_attr":
        return None
    name = str(other.target)
    parameter = _parameter(name, parts)
    return name if parameter.numel() == 1 and parameter.dim() <= 1 else None


def _parameter(name: str, parts: dict[str, Any]) -> Tensor:
    module, _, own = name.rpartition(".")
    return getattr(parts[module], own).detach()


def only_reader(node: fx.Node, parts: dict[str, Any]) -> fx.Node | None:
    """The only node that reads this node; None if there are more or an in-place node is between."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    between = node.next
    while between is not user:
        if _writes(between, parts):
            return None
        between = between.next
    return user


def _writes(node: fx.Node, parts: dict[str, Any]) -> bool:
    """Whether the node may change one of its input tensors."""
    if node.op == "call_module":
        return bool(getattr(parts[str(node.target)], "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else node.target.__name__
    in_name = name.endswith("_") or name in ("setitem", *(f"i{op}" for op in _OPERATORS))
    return in_name or "out" in node.kwargs or True in (*node.args[1:], *node.kwargs.values())


_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "pow", "and", "or", "xor", "mod")


def _summand(node: fx.Node, mine: fx.Node) -> fx.Node | None:
    """The node that is added to `mine`; None if this node is not such a sum."""
    if node.op != "call_function" or node.target not in SUMS or node.kwargs or len(node.args) != 2:
        return None
    left, right = node.args
    if left is not mine and node.target is operator.iadd:
        return None  # other nodes may read the summand that is overwritten
    other = right if left is mine else left
    return other if isinstance(other, fx.Node) and other is not mine else None


def _activation_of_norm(norm: Any) -> str | None:
    """The activation inside a norm layer, or "none"; None if oneDNN cannot fuse it."""
    act, drop = getattr(norm, "act", None), getattr(norm, "drop", None)
    if isinstance(drop, nn.Module) and type(drop) is not nn.Identity:
        return None
    if act is None or type(act) is nn.Identity:
        return "none"
    return ACTIVATIONS.get(type(act))


def _flattened(node: Any, parts: dict[str, Any]) -> fx.Node | None:
    """The input of a node that flattens all dimensions but the first, with one reader; or None."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    if node.op == "call_module":
        flatten = parts[str(node.target)]
        whole = type(flatten) is nn.Flatten and (flatten.start_dim, flatten.end_dim) == (1, -1)
    else:
        dims = (*node.args[1:], *node.kwargs.values())
        whole = node.target in (torch.flatten, "flatten") and dims in ((1,), (1, -1))
    source = node.args[0] if whole else None
    return source if isinstance(source, fx.Node) else None


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Erases an unused node, and then its inputs if they are unused, too."""
    sources = node.all_input_nodes
    if node.users or node.op == "placeholder":
        return
    graph.erase_node(node)
    for source in sources:
        _erase_unused(graph, source)


def _erase_identities(graph: fx.Graph, parts: dict[str, Any]) -> None:
    """Erases layers that return their input; timm has them between a norm and an activation."""
    for node in list(graph.nodes):
        if node.op == "call_module" and type(parts[str(node.target)]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _take_sizes_of_inputs(graph: fx.Graph, parts: dict[str, Any]) -> None:
    """Reads the height and width of a 1x1 convolution's result from its input instead.

    A feature pyramid reads the size of a lateral map before it adds the coarser level. Without this
    change the map has two readers, and the sum cannot be fused.
    """
    for node in graph.nodes:
        if node.target is not getattr or node.args[1:] != ("shape",):
            continue
        (source, _) = node.args
        conv = parts.get(source.target) if source.op == "call_module" else None
        if type(conv) is not nn.Conv2d:
            continue
        same = (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0))
        sides = slice(-2, None, None)
        if same and all(u.target is operator.getitem and u.args[1] == sides for u in node.users):
            node.args = (source.args[0], "shape")


def _take_upsampling(graph: fx.Graph) -> None:
    """Replaces nearest-neighbour resizes by `upsample_nearest`, which writes into huge pages."""
    for node in graph.nodes:
        given = {name: value for name, value in node.kwargs.items() if value not in (None, False)}
        plain = given.keys() == {"size", "mode"} and given["mode"] == "nearest"
        if node.target is F.interpolate and plain:
            node.target, node.args, node.kwargs = upsample, (*node.args, given["size"]), {}


def _take_pooling(graph: fx.Graph, parts: dict[str, Any]) -> None:
    """Replaces max pooling by our kernel, which keeps no indices and is fast in bfloat16."""
    for node in graph.nodes:
        if node.op == "call_module" and type(parts[str(node.target)]) is nn.MaxPool2d:
            parts[str(node.target)] = MaxPool2d.of(parts[str(node.target)])
        elif node.target is F.max_pool2d:
            node.target = max_pool


def upsample(x: Tensor, size: Any) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), by the nearest pixel."""
    if x.dim() != 4 or isinstance(size, int) or not _is_channels_last(x):
        return F.interpolate(x, size, mode="nearest")
    height, width = size
    return upsample_nearest(x, height, width)


# ---- weights and memory --------------------------------------------------------------------------


def _with_norm(conv: nn.Conv2d, norm: Any) -> tuple[Filters, Tensor | None]:
    """Filters and bias of a convolution and the norm after it, if there is one.

    Factors and bias are in float64 if there is a norm.
    """
    filters = conv.filters if isinstance(conv, _MergedConv) else Filters(conv.weight.detach())
    bias = None if conv.bias is None else conv.bias.detach()
    if norm is None:
        return filters, bias
    if norm.running_mean is None:
        raise ValueError(f"{type(norm).__name__} has no statistics of its own")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    mean = norm.running_mean if bias is None else norm.running_mean - bias
    bias = -mean * scale if norm.bias is None else norm.bias.detach() - mean * scale
    return filters.times(scale), bias


def _write_over_summands(graph: fx.Graph, parts: dict[str, Any]) -> None:
    """Lets a sum overwrite its summand if that is not a view and no later node reads it."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _is_fused(node, parts, FusedConv) or len(node.args) != 2:
            continue
        x, other = node.args
        assert isinstance(other, fx.Node)
        readers = [user for user in other.users if user is not node]
        if (
            _makes_new(other, parts)
            and x is not other
            and all(
                _makes_new(user, parts)
                and user.args[0] is other
                and other not in user.args[1:]
                and place[user] < place[node]
                for user in readers
            )
        ):
            node.update_kwarg("over_other", True)


def _makes_new(node: fx.Node, parts: dict[str, Any]) -> bool:
    """Whether the node is a layer whose result is new memory and not a view of its input."""
    if _is_fused(node, parts, FusedConv, WinogradConv, MaxPool2d):
        return True
    return node.target in (F.interpolate, upsample, max_pool)


def _is_fused(node: fx.Node, parts: dict[str, Any], *kinds: type[nn.Module]) -> bool:
    kinds = kinds or (FusedConv, WinogradConv)
    return node.op == "call_module" and isinstance(parts[str(node.target)], kinds)


def _is_channels_last(*maps: Tensor) -> bool:
    return all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
