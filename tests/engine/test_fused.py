# SPDX-License-Identifier: BSD-3-Clause
"""The fused form of a module: used where it is allowed, equal to the module, never out of date."""

import copy
import functools
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d

from fastdet import _native
from fastdet.engine.fused import _forms, forget_fused, has_form, run_fused, unfused
from fastdet.engine.fusing import FusedConv, fused_graph
from fastdet.models import Detector, from_torchvision
from fastdet.models.backbones import timm_body
from tests.models.scenes import scene, small_model, spread_scores
from tests.models.test_torchvision_weights import assert_same_detections, picture, torchvision_model


def norm(channels: int, kind: Callable[[int], Any] = nn.BatchNorm2d) -> Any:
    made = kind(channels)
    generator = torch.Generator().manual_seed(channels)
    for tensor in (made.weight.data, made.bias.data, made.running_mean, made.running_var):
        tensor.copy_(torch.rand(channels, generator=generator) + 0.2)
    return made


def conv_norm(kind: Callable[[int], Any] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), norm(8, kind), nn.ReLU(inplace=True))


class Graph(nn.Module):
    """Two layers that keep the map size, connected by a function."""

    def __init__(self, connect: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.connect = connect
        self.a = nn.Conv2d(6, 6, 1)
        self.b = nn.Sequential(nn.Conv2d(6, 6, 1), norm(6))

    def forward(self, x: Tensor) -> Any:
        return self.connect(self, x)


def read_again(net: Any, x: Tensor) -> list[Tensor]:
    """A summand that is read after the sum, and one that is a view of such a summand."""
    first = net.a(x)
    view = first[:, :4]
    total = (net.b(first) + first).relu()
    other = net.a(total)
    return [first, total, view, net.b(other) + other, other.flatten(1)]


def summand_read_later(net: Any, x: Tensor) -> list[Tensor]:
    first = net.a(x)
    total = net.b(x) + first
    return [total, net.a(first)]


def residual(net: Any, x: Tensor) -> Tensor:
    for _ in range(2):
        shortcut = net.a(x)
        out = net.b(net.b(x).relu_())
        out += shortcut
        x = F.relu(out, inplace=True)
    return x


def pyramid(net: Any, x: Tensor) -> list[Tensor]:
    fine, coarse = net.a(x), net.a(F.max_pool2d(x, 2))
    inner = net.b(fine)
    total = inner + F.interpolate(coarse, size=inner.shape[-2:], mode="nearest")
    return [net.b(total), coarse]


def enlarged(net: Any, x: Tensor) -> list[Tensor]:
    small = net.a(x)
    nearest = [
        F.interpolate(small, size=(20, 13), mode="nearest"),
        F.interpolate(small, size=12, mode="nearest"),
        F.interpolate(small, None, 2),
    ]
    return [*map(net.b, nearest), F.interpolate(small, size=(4, 13), mode="bilinear")]


def broadcast(net: Any, x: Tensor) -> Tensor:
    return net.a(x) + net.b(F.adaptive_avg_pool2d(x, 1))


def written_between(net: Any, x: Tensor) -> Tensor:
    first = net.b(x)
    second = net.a(first)
    first.relu_()
    return second + first


def summand_written(net: Any, x: Tensor) -> list[Tensor]:
    first = net.b(x)
    kept = F.max_pool2d(first, 1)
    kept += net.a(x)
    return [kept, kept - 1]


def branches(net: Any, x: Tensor) -> Tensor:
    """RepVGG's block, twice with the same weights."""
    for _ in range(2):
        x = F.silu(net.b(x) + net.a(x))
    return x


def branches_apart(net: Any, x: Tensor) -> list[Tensor]:
    """Sums of convolutions that must stay two: of other maps, or of one that is written between."""
    other = net.a(x) + net.b(x.flip(2))
    copy = x * 1
    first = net.a(copy)
    copy.relu_()
    return [other, first + net.b(copy), net.a(x) + net.a(x)]


def itself_twice(net: Any, x: Tensor) -> Tensor:
    first = net.a(x)
    return net.b(first + first) + first.sigmoid()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": conv_norm,
    "frozen norm": lambda: conv_norm(FrozenBatchNorm2d),
    "norm and activation": lambda: nn.Sequential(
        nn.Conv2d(6, 8, 3, groups=2, bias=False), norm(8, BatchNormAct2d), nn.Hardswish()
    ),
    "activations": lambda: nn.Sequential(
        *(layer for act in (nn.SiLU, nn.Sigmoid, nn.GELU) for layer in (nn.Conv2d(6, 6, 1), act()))
    ),
    "other padding": lambda: nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
        norm(6),
        nn.Conv2d(6, 6, 3, 1, "same"),
    ),
    "head": lambda: nn.Sequential(
        nn.Conv2d(6, 8, 1), nn.Flatten(), nn.Linear(8 * 9 * 11, 5), nn.ReLU(), nn.Linear(5, 3)
    ),
    "linear": lambda: nn.Sequential(nn.Linear(11, 5, bias=False), nn.SiLU()),
}
for function in (
    read_again,
    summand_read_later,
    residual,
    pyramid,
    enlarged,
    broadcast,
    written_between,
    summand_written,
    itself_twice,
    branches,
    branches_apart,
):
    NETWORKS[function.__name__] = functools.partial(Graph, function)


def maps(layout: torch.memory_format = torch.channels_last, rows: int = 2) -> Tensor:
    x = torch.rand(rows, 6, 9, 11, generator=torch.Generator().manual_seed(1)) - 0.3
    return x.contiguous(memory_format=layout)


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", NETWORKS)
def test_form_equals_module(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for rows in (2, 1, 0):
        x = maps(layout, rows)
        before = x.clone()
        for _ in range(2):
            expected, found = tensors(network(x.clone())), tensors(run_fused(network, x))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(x, before)
    assert has_form(network)


class RepVGG(nn.Module):
    """A sum of a 3x3, which Winograd's algorithm can compute, and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), norm(32))
        self.point = nn.Sequential(nn.Conv2d(32, 32, 1, bias=False), norm(32))

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.wide(x) + self.point(x))


class HeadEnd(nn.Module):
    """Convolutions of one map at a head's end; of another map, with an activation, at its start."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(6, 8, 1)
        self.logits = nn.Conv2d(8, 3, 1, bias=False)
        self.deltas = nn.Conv2d(8, 12, 1)
        self.gate = nn.Conv2d(6, 5, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        found = []
        for x in maps:
            own = self.shared(x).relu()
            deltas = self.deltas(own)
            found += [self.logits(own), deltas.mul_(2), self.gate(x).sigmoid()]
        return found


@torch.no_grad()
def test_small_convolutions_of_one_map_are_joined() -> None:
    torch.manual_seed(0)
    network, levels = HeadEnd().eval(), [maps(), maps()[..., ::2, ::2]]
    expected, found = network(levels), run_fused(network, levels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (form,) = _forms[network].values()
    assert form.graph is not None
    called = [node.target for node in form.graph.graph.nodes if node.op == "call_module"]
    assert len(called) == 6  # of each map: shared, logits with deltas, gate
    assert len(set(called)) == 3
    network.logits.weight.add_(1)
    torch.testing.assert_close(run_fused(network, levels), network(levels), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_branches_of_repvgg_are_one_convolution(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = RepVGG().eval()
    x = torch.randn(2, 32, 9, 11).contiguous(memory_format=torch.channels_last)
    graph = fused_graph(block, x, dtype)
    layers = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    assert [node.op for node in layers] == ["call_module"]
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    found = graph(x.to(dtype)).float()
    torch.testing.assert_close(found, block(x), rtol=tolerance, atol=tolerance)


class Affine(nn.Module):
    """A factor and an offset of a whole map, as HGNetV2 has them."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.offset = nn.Parameter(torch.tensor([offset]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.offset


@torch.no_grad()
@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("affine", [(1.5, 0.3), (0.7, -0.2), (-1.2, 0.4), (-0.6, -0.1), (0.0, 0.5)])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_and_an_offset_are_part_of_a_convolution(
    activation: Any,
    affine: tuple[float, float],
    kernel_size: int,
    has_norm: bool,
    dtype: torch.dtype,
) -> None:
    """With a 3x3 one, Winograd's algorithm; zeros around the next convolution are zeros."""
    is_part = activation is not nn.SiLU
    if not is_part and dtype != torch.float32:
        pytest.skip("the factor would make a float32 map")
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, kernel_size, padding=kernel_size // 2, bias=not has_norm)
    between = norm(32) if has_norm else nn.Identity()
    after = nn.Conv2d(32, 4, 3, padding=1)
    network = nn.Sequential(conv, between, activation(), Affine(*affine), after).eval()
    x = torch.randn(2, 32, 9, 11).contiguous(memory_format=torch.channels_last)
    graph = fused_graph(network, x, dtype)
    ops = [node.op for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    assert (ops == ["call_module"] * 2) == is_part
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    found = graph(x.to(dtype)).float()
    torch.testing.assert_close(found, network(x), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_a_changed_factor_is_seen() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), Affine(1.0, 0.5)).eval()
    x = torch.randn(1, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    run_fused(network, x)
    network[2].scale.fill_(-2.0)
    torch.testing.assert_close(run_fused(network, x), network(x))


@torch.no_grad()
@pytest.mark.parametrize("amx", [False, True])
def test_bfloat16_3x3_convolutions_are_as_exact(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With AMX, oneDNN's products of bfloat16 are faster than Winograd's of float32."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 72, 3, padding=1).bfloat16()
    x = torch.randn(2, 64, 19, 22).relu().bfloat16().contiguous(memory_format=torch.channels_last)
    graph = fused_graph(nn.Sequential(conv, nn.ReLU()), x, torch.bfloat16)
    (layer,) = [part for name, part in graph.named_children() if name.startswith("fused")]
    assert isinstance(layer, FusedConv) == (amx or _native.cpu_isa() == "baseline")
    exact = copy.deepcopy(conv).double()(x.double()).relu()
    own, found = conv(x).relu(), graph(x)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() <= 1.05 * (own - exact).norm()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pyramids_are_enlarged_by_our_kernel(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Graph(pyramid).eval().to(dtype)
    run_fused(network, maps().to(dtype))
    ours = torch.ops.fastdet.upsample_nearest
    sizes: list[Any] = []
    monkeypatch.setattr(
        torch.ops.fastdet,
        "upsample_nearest",
        lambda x, *size: (sizes.append(size), ours(x, *size))[1],
    )
    run_fused(network, maps().to(dtype))
    assert sizes == [(9, 11)]


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_form_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = tensors(network(maps())), tensors(run_fused(network, maps()))
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own.float(), other.float(), rtol=0.05, atol=0.05)
    assert has_form(network)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv3_small_050", "efficientnet_b0"])
@pytest.mark.parametrize("frozen", [False, True])
def test_backbones_are_as_exact_in_the_form(backbone: str, frozen: bool) -> None:
    torch.manual_seed(0)
    body = timm_body(backbone, batch_norm="frozen" if frozen else "train")[0].eval()
    x = picture(65, 96)[None].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = copy.deepcopy(body).double()(x.double())
        own, fused = body(x), run_fused(body, x)
    assert has_form(body)
    for i, level in enumerate(exact):
        errors = [(found[i].double() - level).norm() / level.norm() for found in (own, fused)]
        assert errors[1] <= 2 * errors[0] + 1e-7


@pytest.mark.parametrize("name", ["faster_rcnn_of_parts", "retinanet_of_parts", "fcos_of_parts"])
def test_detections_equal_torchvisions(name: str) -> None:
    theirs = torchvision_model(name)
    ours: Any = from_torchvision(theirs)
    for seed in (3, 4):
        images = [picture(90, 133, seed=seed), picture(121, 71, channels=1, seed=5)]
        assert assert_same_detections(theirs, ours, images) >= 10
    two_stages = hasattr(ours, "rpn")
    heads = [ours.rpn.head, ours.roi_heads.box_head] if two_stages else list(ours.head.children())
    assert has_form(ours.backbone)
    assert all(map(has_form, heads)) or has_form(ours.head)


# ---- when the module itself runs -----------------------------------------------------------------


def in_training(network: nn.Module) -> Any:
    network.get_submodule("1").train()
    return run_fused(network, maps())


def with_hook(network: nn.Module) -> Any:
    seen: list[Any] = []
    network.get_submodule("1").register_forward_hook(lambda _, inputs, output: seen.append(output))
    result = run_fused(network, maps())
    assert len(seen) == 1
    return result


def with_other_forward(network: nn.Module) -> Any:
    network.get_submodule("2").forward = torch.neg  # type: ignore[method-assign]
    result = run_fused(network, maps())
    assert bool((result < 0).any())
    return result


def with_gradients(network: nn.Module) -> Any:
    with torch.enable_grad():
        run_fused(network, maps()).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def in_float64(network: nn.Module) -> Any:
    return run_fused(network.double(), maps().double())


def while_flops_are_counted(network: nn.Module) -> Any:
    with FlopCounterMode(display=False) as counter:
        run_fused(network, maps())
    assert counter.get_total_flops() > 0


def without_mkldnn(network: nn.Module) -> Any:
    before = torch.backends.mkldnn.set_flags(_enabled=False)
    run_fused(network, maps())
    torch.backends.mkldnn.set_flags(*before)


def while_off(network: nn.Module) -> Any:
    with unfused():
        run_fused(network, maps())


def of_inference_tensors(network: nn.Module) -> Any:
    with torch.inference_mode():
        run_fused(conv_norm().eval(), maps())


def while_compiled(network: nn.Module) -> Any:
    compiled = torch.compile(lambda x: run_fused(network, x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(maps()), network(maps()))


@torch.no_grad()
@pytest.mark.parametrize(
    "call",
    [
        in_training,
        with_hook,
        with_other_forward,
        with_gradients,
        in_float64,
        while_flops_are_counted,
        without_mkldnn,
        while_off,
        of_inference_tensors,
        while_compiled,
    ],
)
def test_where_the_module_itself_runs(call: Callable[[nn.Module], Any]) -> None:
    network = conv_norm().eval()
    gc.collect()
    before = len(_forms)
    call(network)
    assert not has_form(network)
    assert len(_forms) == before


class Undecided(nn.Module):
    """A module that depends on values, which a trace does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool((x > 2).any()) else -x


class Deceived(nn.Module):
    """A module that behaves differently in a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if type(x) is Tensor else self.conv(x) + 1


@torch.no_grad()
@pytest.mark.parametrize("kind", [Undecided, Deceived])
def test_modules_without_a_form(kind: type[nn.Module]) -> None:
    network = kind().eval()
    for _ in range(2):
        assert torch.equal(run_fused(network, maps()), network(maps()))
    assert not has_form(network)


# ---- when a form is rebuilt and freed ------------------------------------------------------------


def step(network: Any) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(network.parameters(), lr=0.1).step()


def load(network: Any) -> None:
    network.load_state_dict({key: value + 1 for key, value in network.state_dict().items()})


def replace_parameter(network: Any) -> None:
    network[0].weight = nn.Parameter(network[0].weight + 1)


def replace_layer(network: Any) -> None:
    network[2] = nn.Sigmoid()


def move_statistics(network: Any) -> None:
    network.train()(maps())
    network.eval()


def assign_data(network: Any) -> None:
    network[0].weight.data = network[0].weight.data + 1


def write_through_data(network: Any) -> None:
    network[0].weight.data.add_(1)
    forget_fused(network)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        step,
        load,
        replace_parameter,
        replace_layer,
        move_statistics,
        assign_data,
        write_through_data,
    ],
)
def test_changes_are_seen(change: Callable[[Any], None]) -> None:
    network = conv_norm().eval()
    before = run_fused(network, maps())
    assert has_form(network)
    change(network)
    after = run_fused(network, maps())
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, network(maps()))


@torch.no_grad()
def test_state_copies_and_files_do_not_know_the_form() -> None:
    model = spread_scores(small_model("retinanet")).eval()
    images, _ = scene()
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    expected = model(images)
    assert has_form(model.head)  # type: ignore[arg-type]
    state = model.state_dict()
    assert list(state) == list(fresh)
    assert all(torch.equal(state[key], value) for key, value in fresh.items())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any(has_form(part) for part in other.modules())
        for own, first in zip(other(images), expected, strict=True):
            assert all(torch.equal(own[key], value) for key, value in first.items())


@pytest.mark.slow
def test_forms_go_when_training_begins_and_when_the_model_goes() -> None:
    model: Detector | None = small_model("faster_rcnn").eval()
    images, targets = scene()
    assert model is not None
    gc.collect()
    before = len(_forms)
    for leave in (model.train, None):
        model.eval()
        with torch.no_grad():
            model(images)
        assert len(_forms) > before
        model.eval()  # already in eval mode: the forms are kept
        assert len(_forms) > before
        if leave is not None:
            leave()
            assert len(_forms) == before
            torch.stack(list(model(images, targets).values())).sum().backward()
    gone = weakref.ref(model)
    del leave
    model = None
    gc.collect()
    assert gone() is None
    assert len(_forms) == before


@torch.no_grad()
def test_other_threads_run_while_one_is_traced() -> None:
    body = timm_body("resnet18")[0].eval()
    small, x = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU()).eval(), maps()
    expected, faults, done = small(x), [], threading.Event()

    def run() -> None:
        try:
            while not done.is_set():
                assert torch.equal(small(x), expected)
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with torch.no_grad():
        for _ in range(5):
            forget_fused(body)
            run_fused(body, torch.rand(1, 3, 32, 32))
            assert has_form(body)
    done.set()
    thread.join()
    assert not faults


def test_a_step_of_a_fused_optimizer_is_seen() -> None:
    """The step does not change the versions of the weights, and Lightning does not call train()."""
    network = conv_norm().eval()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, fused=True)
    with torch.no_grad():
        run_fused(network, maps())
    assert has_form(network)
    network(maps()).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(run_fused(network, maps()), network(maps()))
