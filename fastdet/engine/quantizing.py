# SPDX-License-Identifier: BSD-3-Clause
"""`quantize(model, images)`: the convolutions of a detector in 8-bit integers, for a CPU.

A detector calls its networks through `run_fused`. `calibrate` runs it on images and notes the range
of every map of these networks. `quantized_by` then makes a copy of the detector whose networks are
graphs of integer layers (`quantized.py`). Between two of these a map stays in integers.

Convolutions with an activation that oneDNN does not fuse in integers stay floating, in float32 or
in autocast's bfloat16. So does all that is neither a convolution nor a linear layer, except what
passes numbers on unchanged, such as max pooling.

The last layers, which give logits, deltas and masks, multiply integers, but their results are not
rounded to integers.

A range is the one with the least mean squared error of rounding and clipping, on a sample of the
numbers of each map. The same holds for the transformed inputs of layers that Winograd's algorithm
can compute.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastdet.engine.activations import Activation, Limits
from fastdet.engine.filters import Filters
from fastdet.engine.fused import Inputs, ReadyNetwork, forget_fused, watched_by
from fastdet.engine.fusing import FusedConv, FusedLinear, fused_graph, upsample
from fastdet.engine.pooling import MaxPool2d, max_pool, takes_bytes
from fastdet.engine.quantized import (
    CONV_ACTIVATIONS,
    LARGEST,
    LINEAR_ACTIVATIONS,
    Dequantize,
    FloatLayer,
    Grid,
    Passed,
    Quantize,
    QuantizedConv,
    QuantizedLinear,
    ToFloat,
    has_winograd_shape,
    warn_if_slow,
)
from fastdet.ops.winograd_int8 import POSITIONS, winograd_positions

AnyModule = TypeVar("AnyModule", bound=nn.Module)

SAMPLE = 8192  # numbers of each map and image from which its range is chosen
SAMPLE_OF_POSITIONS = 512  # of each position of transformed inputs
CLIPS = 41  # ranges to choose from: 0.2 to 1 of the range of all numbers

# For each network, in the order of the calls: see `_Network.calibration`.
Calibration = dict[str, dict[str, Any]]


def quantize(model: AnyModule, images: Iterable[Tensor]) -> AnyModule:
    """A copy of a detector that computes its convolutions in 8-bit integers on the CPU.

    It is called as the detector, in eval mode, and gives detections of nearly the same boxes and
    scores. Its attribute `calibration` makes it again: `quantized_by(model, calibration)`.

    Args:
        model: a detector of `fastdet.models` in eval mode, of float32 on the CPU. It stays as it
            is.
        images: (C, H, W) in [0, 1], as for `model(images)`: a few dozen like those of the use.

    Raises:
        TypeError, ValueError: the model is in training mode, on another device, of another type
            or already quantised, or none of its networks can be quantised; no image.
    """
    return quantized_by(model, calibrate(model, images))


@torch.no_grad()
def calibrate(model: nn.Module, images: Iterable[Tensor]) -> Calibration:
    """The ranges of the maps of a detector's networks on some images: plain data, to be saved.

    Args, Raises: see `quantize`.
    """
    _check(model)
    names = {module: name for name, module in model.named_modules()}
    networks: dict[nn.Module, _Network | None] = {}

    def watch(module: nn.Module, inputs: Inputs) -> Any:
        if module not in networks:
            networks[module] = _Network.of(module, inputs)
        network = networks[module]
        if network is None or module not in names:
            return module(inputs)
        return network.observe(inputs)

    with torch.autocast("cpu", enabled=False), watched_by(watch):
        for image in images:
            model([image])
    if not networks:
        raise ValueError("images: expected at least one image to calibrate with, got none")
    found = {
        names[module]: network.calibration()
        for module, network in networks.items()
        if network is not None and module in names and network.has_integers()
    }
    if not found:
        raise ValueError(f"{type(model).__name__}: none of its networks can be quantised")
    return found


def quantized_by(model: AnyModule, calibration: Calibration) -> AnyModule:
    """The quantised copy of a detector, from its calibration; see `quantize`.

    Raises:
        ValueError: the calibration is of another model or of another version of fastdet.
    """
    _check(model)
    warn_if_slow()
    forget_fused(model)
    made = copy.deepcopy(model).requires_grad_(False)
    for name, known in calibration.items():
        module = dict(made.named_modules()).get(name)
        if module is None:
            raise ValueError(f"calibration: {type(model).__name__} has no network {name!r}")
        made.set_submodule(name, QuantizedNetwork(module, name, known))
    made.calibration = calibration  # pyright: ignore[reportArgumentType]
    return made


def is_quantized(model: nn.Module) -> bool:
    """Whether a detector is one of `quantize`."""
    return any(isinstance(part, QuantizedNetwork) for part in model.modules())


class QuantizedNetwork(ReadyNetwork):
    """A network of a detector as a graph of integer and floating layers.

    Args:
        module: the network in float32.
        name: of the network in its detector, for errors.
        calibration: of this network.
    """

    def __init__(self, module: nn.Module, name: str, calibration: dict[str, Any]) -> None:
        super().__init__()
        self.eval()
        levels = calibration["levels"]
        example: Any = torch.zeros(0) if levels is None else [torch.zeros(0)] * levels
        network = _Network.of(module, example)
        if (
            network is None
            or network.ranged_names() != set(calibration["ranges"])
            or network.winograd_names() != set(calibration.get("positions", ()))
        ):
            raise ValueError(
                f"calibration: its maps are not those of the network {name!r}; quantise the "
                "detector again"
            )
        self.name = name
        self.graph = network.in_integers(calibration["ranges"], calibration["positions"])

    def forward(self, inputs: Inputs) -> Any:
        """As the network."""
        return self.graph(inputs if isinstance(inputs, Tensor) else list(inputs))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedNetwork":
        probe = fn(torch.zeros(1))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            raise ValueError(
                f"a quantised detector runs on the CPU, its floating layers in float32 or under "
                f"autocast; got {probe.device.type} and {probe.dtype}"
            )
        return super()._apply(fn, recurse)


def _check(model: nn.Module) -> None:
    name = type(model).__name__
    if is_quantized(model):
        raise ValueError(f"model: expected a detector in float32, got a quantised {name}")
    if any(part.training for part in model.modules()):
        raise ValueError(f"model: expected a {name} in eval mode; call model.eval() first")
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != "cpu":
            raise ValueError(f"model: expected a {name} on the CPU, got one on {tensor.device}")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"model: expected a {name} of float32, got {tensor.dtype}")
    mkldnn = torch.backends.mkldnn
    if not (mkldnn.is_available() and mkldnn.enabled):
        raise ValueError("quantize: expected a torch with oneDNN (mkldnn), which is missing or off")


# ---- the plan of a network -----------------------------------------------------------------------


def _folded_conv(
    filters: Filters, bias: Tensor | None, geometry: Any, activation: Activation, dtype: torch.dtype
) -> FusedConv:
    """A FusedConv whose filters have no factors any more, for layers that keep them."""
    if filters.scale is not None or filters.centre is not None:
        filters = Filters(filters.folded(dtype))
    return FusedConv(filters, bias, geometry, activation, dtype)


class _Network:
    """The graph of a network in float32, what becomes integers, and samples of its maps."""

    def __init__(self, graph: fx.GraphModule, levels: int | None) -> None:
        self.graph = graph
        self.levels = levels
        self.samples: dict[str, list[Tensor]] = {}
        self.position_samples: dict[str, list[Tensor]] = {}  # (16, numbers)

    @classmethod
    def of(cls, module: nn.Module, inputs: Inputs) -> "_Network | None":
        """None if the module cannot be traced."""
        try:
            graph = fused_graph(module, inputs, torch.float32, _folded_conv)
        except Exception:  # modules that cannot be traced raise errors of any type
            return None
        return cls(graph, None if isinstance(inputs, Tensor) else len(inputs))

    def observe(self, inputs: Inputs) -> Any:
        """The outputs for the inputs. Takes samples of the maps."""
        ranged, of_winograd = self.ranged_names(), self.winograd_names()
        samples, position_samples = self.samples, self.position_samples

        class Sampler(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n.name in of_winograd:
                    (x, *_), _ = self.fetch_args_kwargs_from_env(n)
                    position_samples.setdefault(n.name, []).append(_sample_of_positions(x))
                if n.name in ranged:
                    samples.setdefault(n.name, []).append(_sample(value))
                return value

        return Sampler(self.graph).run(inputs)

    def ranged_names(self) -> set[str]:
        """The nodes whose ranges are needed."""
        names = set()
        for node in self.graph.graph.nodes:
            if self._layer(node) is not None:
                names.add(node.name)
                names |= {x.name for x in _nodes(node.args)}
            elif _passes(node):
                names |= {node.name, *(x.name for x in _maps(node))}
        return names

    def winograd_names(self) -> set[str]:
        """The layers that Winograd's algorithm can compute."""
        layers = ((node, self._layer(node)) for node in self.graph.graph.nodes)
        return {
            node.name
            for node, layer in layers
            if isinstance(layer, FusedConv) and has_winograd_shape(layer)
        }

    def calibration(self) -> dict[str, Any]:
        """Plain data: `levels` is the length of the input's list; None: a tensor."""
        of_positions = {
            name: [list(_range(numbers)) for numbers in torch.cat(samples, 1)]
            for name, samples in self.position_samples.items()
        }
        unknown = [[0.0, 0.0]] * POSITIONS
        known = {name: _range(torch.cat(samples)) for name, samples in self.samples.items()}
        return {
            "levels": self.levels,
            "ranges": {
                name: list(known.get(name, (0.0, 0.0))) for name in sorted(self.ranged_names())
            },
            "positions": {
                name: of_positions.get(name, unknown) for name in sorted(self.winograd_names())
            },
        }

    def has_integers(self) -> bool:
        """Whether a layer becomes integers."""
        return any(self._is_integer(node) for node in self.graph.graph.nodes)

    def _layer(self, node: fx.Node) -> FusedConv | FusedLinear | None:
        layer = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        return layer if isinstance(layer, (FusedConv, FusedLinear)) else None

    def _is_integer(self, node: fx.Node) -> bool:
        layer = self._layer(node)
        if layer is None:
            return False
        if isinstance(layer, FusedConv) and isinstance(layer.activation, Limits):
            return True
        known = CONV_ACTIVATIONS if isinstance(layer, FusedConv) else LINEAR_ACTIVATIONS
        return layer.activation in known

    # ---- the graph in integers -------------------------------------------------------------------

    def in_integers(
        self, ranges: dict[str, Sequence[float]], positions: dict[str, Any]
    ) -> fx.GraphModule:
        """The graph with integer layers; changes this network's own graph."""
        graph = self.graph.graph
        of_layers = self._positions_of_layers(positions)
        integer = {node for node in graph.nodes if self._is_integer(node)}
        grids = self._grids(integer, ranges)
        in_q = self._maps_in_integers(integer)
        made: dict[Any, str] = {}

        def call(key: Any, make: Callable[[], nn.Module], *args: Any, **kwargs: Any) -> fx.Node:
            if key not in made:
                made[key] = f"int8_{len(made)}"
                self.graph.add_submodule(made[key], make())
            return graph.call_module(made[key], args, kwargs)

        for node in list(graph.nodes):
            result = grids[node] if node in in_q else None
            found = self._replacement(node, result, grids, integer, of_layers)
            if found is None:
                continue
            with graph.inserting_before(node):
                new = call(*found, *node.args, **node.kwargs)
            _move(node, new, grids, in_q, integer)
        self._convert(graph, grids, in_q, integer, call)
        graph.eliminate_dead_code()
        self.graph.recompile()
        self.graph.delete_all_unused_submodules()
        return self.graph.eval()

    def _replacement(
        self,
        node: fx.Node,
        result: Grid | None,
        grids: dict[fx.Node, Grid],
        integer: set[fx.Node],
        positions: dict[Any, Tensor],
    ) -> tuple[Any, Callable[[], nn.Module]] | None:
        """The layer in the place of a node, as a key of equal layers and what makes one.

        None: the node stays. `result` is the grid of the result; None: that is floating.
        `positions`: of `_positions_of_layers`.
        """
        layer = self._layer(node)
        if node in integer:
            grid, *others = (grids[x] for x in _nodes(node.args))
            other = others[0] if others else None
            key = node.target, grid, other, result
            if isinstance(layer, FusedConv):
                ranges = positions.get(node.target)
                return key, functools.partial(QuantizedConv, layer, grid, other, result, ranges)
            assert layer is not None
            return key, functools.partial(QuantizedLinear, layer, grid, result)
        if layer is not None:
            return (node.target,), functools.partial(FloatLayer, layer)
        if result is None:
            return None
        function = _function(node)
        return (function, result), functools.partial(Passed, function, result)

    def _positions_of_layers(self, positions: dict[str, Any]) -> dict[Any, Tensor]:
        """Of the layers by their targets: the ranges over all calls of a layer, (16, 2)."""
        found: dict[Any, Tensor] = {}
        for node in self.graph.graph.nodes:
            if node.name in positions:
                own = torch.tensor(positions[node.name])
                low, high = found.get(node.target, own).unbind(1)
                both = torch.minimum(low, own[:, 0]), torch.maximum(high, own[:, 1])
                found[node.target] = torch.stack(both, 1)
        return found

    def _maps_in_integers(self, integer: set[fx.Node]) -> set[fx.Node]:
        """The nodes whose results are integers because an integer layer reads them."""
        found: set[fx.Node] = set()
        for node in reversed(self.graph.graph.nodes):
            wanted = any(
                user in integer or (user in found and _passes(user) and node in _maps(user))
                for user in node.users
            )
            has_sum = node in integer and len(node.args) > 1
            if (wanted and (node in integer or _passes(node))) or has_sum:
                found.add(node)
        return found

    def _grids(
        self, integer: set[fx.Node], ranges: dict[str, Sequence[float]]
    ) -> dict[fx.Node, Grid]:
        """The grid of each map. Maps that share a layer, or that pass through, share their grid."""
        groups: dict[fx.Node, fx.Node] = {}

        def head(node: fx.Node) -> fx.Node:
            while groups.setdefault(node, node) is not node:
                node = groups[node]
            return node

        def join(nodes: Sequence[fx.Node]) -> None:
            for node in nodes[1:]:
                groups[head(node)] = head(nodes[0])

        first_calls: dict[Any, fx.Node] = {}
        for node in self.graph.graph.nodes:
            if node in integer:
                twin = first_calls.setdefault((node.target, len(node.args)), node)
                join([twin, node])
                for mine, its in zip(_nodes(node.args), _nodes(twin.args), strict=True):
                    join([its, mine])
            elif _passes(node):
                join([node, *_maps(node)])
        limits: dict[fx.Node, list[float]] = {}
        for node in self.graph.graph.nodes:
            if node.name in ranges:
                low, high = limits.setdefault(head(node), [0.0, 0.0])
                own = ranges[node.name]
                limits[head(node)] = [min(low, own[0]), max(high, own[1])]
        return {
            node: grid_of(*limits[head(node)])
            for node in self.graph.graph.nodes
            if head(node) in limits
        }

    def _convert(
        self,
        graph: fx.Graph,
        grids: dict[fx.Node, Grid],
        in_q: set[fx.Node],
        integer: set[fx.Node],
        call: Callable[..., fx.Node],
    ) -> None:
        """Puts Quantize and Dequantize between integers and floating numbers."""
        passed = {x for x in in_q if x not in integer}

        def put(layer: Callable[..., nn.Module], *grid: Grid, after: fx.Node, to: Any) -> None:
            if to:
                with graph.inserting_after(after):
                    new = call((layer, *grid), functools.partial(layer, *grid), after)
                for reader in to:
                    reader.replace_input_with(after, new)

        for node in list(graph.nodes):
            readers = [user for user in node.users if not _reads_size(user)]
            in_integers = [x for x in readers if x in integer or (x in passed and node in _maps(x))]
            floating = [x for x in readers if x not in in_integers]
            if node in in_q:
                put(Dequantize, grids[node], after=node, to=floating)
                continue
            if node.op == "placeholder":
                put(ToFloat, after=node, to=floating)
            if in_integers:
                put(Quantize, grids[node], after=node, to=in_integers)


def _move(
    node: fx.Node,
    new: fx.Node,
    grids: dict[fx.Node, Grid],
    in_q: set[fx.Node],
    integer: set[fx.Node],
) -> None:
    """Puts a new node in the place of a node."""
    node.replace_all_uses_with(new)
    new.graph.erase_node(node)
    if node in grids:
        grids[new] = grids[node]
    for known in (in_q, integer):
        if node in known:
            known.add(new)


# ---- operations that pass numbers on -------------------------------------------------------------

_RELUS = (F.relu, torch.relu, "relu", "relu_")


def _passes(node: fx.Node) -> bool:
    """Whether each number of the result is one of the inputs', or zero."""
    if node.op == "call_module":
        module = _module(node)
        if isinstance(module, MaxPool2d):
            return module.takes_bytes()
        return type(module) is nn.ReLU
    if node.target is max_pool:
        return takes_bytes(*node.args[1:], **node.kwargs)
    if node.target in (upsample, torch.cat, *_RELUS):
        return True
    mode = node.kwargs.get("mode", "nearest")
    return node.target is F.interpolate and str(mode) == "nearest"


def _nodes(arguments: Sequence[Any]) -> list[fx.Node]:
    return [x for x in arguments if isinstance(x, fx.Node)]


def _maps(node: fx.Node) -> list[fx.Node]:
    """The maps that an operation passes on."""
    first: Any = node.args[0]
    return list(first) if isinstance(first, (list, tuple)) else [first]


def _function(node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_module":
        module = _module(node)
        return F.relu if type(module) is nn.ReLU else module
    return F.relu if node.target in _RELUS else node.target  # pyright: ignore[reportReturnType]


def _module(node: fx.Node) -> nn.Module:
    owner: Any = node.graph.owning_module
    return owner.get_submodule(str(node.target))


def _reads_size(node: fx.Node) -> bool:
    return node.target is getattr or node.target == "size"


# ---- ranges --------------------------------------------------------------------------------------


def grid_of(low: float, high: float) -> Grid:
    """The grid of the numbers low <= 0 to high >= 0; zero is on it."""
    span = high - low
    if not span > 0:
        return Grid(1.0, 0)
    scale = span / LARGEST
    return Grid(scale, min(max(round(-low / scale), 0), LARGEST))


def _sample(value: Tensor) -> Tensor:
    """SAMPLE of the numbers at even distances, and the least and the largest one."""
    flat = value.detach().permute(0, *range(2, value.dim()), 1).reshape(-1).float()
    if len(flat) == 0:
        return flat
    return torch.cat((flat[:: _odd_step(len(flat), SAMPLE)], flat.min()[None], flat.max()[None]))


def _sample_of_positions(x: Tensor) -> Tensor:
    """SAMPLE_OF_POSITIONS numbers of each position, and the least and the largest: (16, n)."""
    numbers = winograd_positions(x.float())
    if numbers.shape[1] == 0:
        return numbers
    step = _odd_step(numbers.shape[1], SAMPLE_OF_POSITIONS)
    ends = numbers.amin(1, keepdim=True), numbers.amax(1, keepdim=True)
    return torch.cat((numbers[:, ::step], *ends), 1)


def _odd_step(count: int, most: int) -> int:
    """From one sampled number to the next. A power of two would take the same channels only."""
    step = -(-count // most)
    return step + 1 - step % 2


def _range(sample: Tensor) -> tuple[float, float]:
    """The range whose grid has the least mean squared error on the sample; it includes 0."""
    if len(sample) == 0:
        return 0.0, 0.0
    low, high = min(float(sample.min()), 0.0), max(float(sample.max()), 0.0)
    best, least = (low, high), float("inf")
    for part in torch.linspace(1.0, 0.2, CLIPS).tolist():
        grid = grid_of(low * part, high * part)
        q = (sample / grid.scale + grid.zero_point).round().clamp(0, LARGEST)
        error = float(((q - grid.zero_point) * grid.scale - sample).double().square().mean())
        if error < least:
            best, least = (low * part, high * part), error
    return best
