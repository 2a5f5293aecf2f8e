# SPDX-License-Identifier: BSD-3-Clause
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastdet

pytest.importorskip("torchvision", exc_type=ImportError)
from torchvision import ops
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

NAN = float("nan")
TREE = Path(__file__).resolve().parents[1]


def random_boxes(n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 80
    size = 1 + torch.rand(n, 2, generator=generator, dtype=torch.float64) * 40
    return torch.cat([corner, corner + size], 1).to(dtype)


def distinct_scores(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randperm(n, generator=torch.Generator().manual_seed(1)) / n).to(dtype)


def in_force() -> bool:
    """fastdet's nms drops a NaN score; torchvision's keeps it, as the best."""
    boxes, scores = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6]]), torch.tensor([NAN, 0.5])
    return ops.nms(boxes, scores, 0.5).tolist() == [1]


@pytest.fixture
def override() -> Iterator[None]:
    with fastdet.override_torchvision():
        yield
    assert not in_force()


def test_undo_is_the_end_of_it_and_may_be_repeated():
    assert not in_force()
    handle = fastdet.override_torchvision()
    assert in_force()
    handle.undo()
    assert not in_force()
    handle.undo()
    with fastdet.override_torchvision():
        handle.undo()
        assert in_force()
    assert not in_force()


def test_an_exception_undoes_it():
    with pytest.raises(ZeroDivisionError), fastdet.override_torchvision():
        raise ZeroDivisionError
    assert not in_force()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nested_calls_may_be_undone_in_any_order(order):
    handles = [fastdet.override_torchvision(), fastdet.override_torchvision()]
    handles[order[0]].undo()
    assert in_force()
    handles[order[1]].undo()
    assert not in_force()


def test_it_holds_in_every_thread(override):
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(in_force()))
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.slow
def test_nothing_appears_on_the_screen():
    code = (
        "import torch, torchvision, fastdet\n"
        "fastdet.override_torchvision()\n"
        "torchvision.ops.nms(torch.ones(1, 4), torch.ones(1), 0)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True
    )
    said = [line for line in done.stderr.splitlines() if "overrid" in line.lower()]
    assert (done.stdout, said) == ("", [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_nms_is_the_same(dtype, threshold, device):
    boxes, scores = random_boxes(300, dtype).to(device), distinct_scores(300, dtype).to(device)
    ids = torch.arange(300, device=device) % 3
    expected = ops.nms(boxes, scores, threshold), ops.batched_nms(boxes, scores, ids, threshold)
    with fastdet.override_torchvision():
        assert ops.nms(boxes, scores, threshold).equal(expected[0])
        assert ops.batched_nms(boxes, scores, ids, threshold).equal(expected[1])
        empty = ops.nms(boxes[:0], scores[:0], threshold)
    assert (empty.dtype, empty.shape) == (torch.int64, (0,))


def boxes_by_class(classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Each class has the same pairs of boxes of a picture of 1,200 pixels: one of each goes."""
    corner = torch.arange(12).float()[:, None] * 96 + torch.tensor([0.0, 8.0])
    pairs = torch.cat([torch.cat([corner, corner + 64], 1), torch.cat([corner, corner + 62], 1)])
    boxes = pairs.repeat(classes, 1)
    scores = torch.linspace(0.9, 0.1, len(boxes))
    return boxes.to(dtype), scores.to(dtype), torch.arange(classes).repeat_interleave(24)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_batched_nms_is_exact_in_every_type(dtype, many, device):
    boxes, scores, labels = (x.to(device) for x in boxes_by_class(80 if many else 30, dtype))
    expected = fastdet.batched_nms(boxes, scores, labels, 0.5)
    assert len(expected) == len(boxes) // 2
    alone = ops.batched_nms  # as another module has it, that imported it by name
    with fastdet.override_torchvision():
        for ids in (labels, labels.int()):
            assert ops.boxes.batched_nms(boxes, scores, ids, 0.5).equal(expected)
            assert alone(boxes, scores, ids, 0.5).equal(expected)


def test_batched_nms_is_torchvisions_again_afterwards():
    names = ("_batched_nms_coordinate_trick", "_batched_nms_vanilla")
    before = [getattr(ops.boxes, name) for name in names]
    with fastdet.override_torchvision(), fastdet.override_torchvision():
        assert all(getattr(ops.boxes, n) is not old for n, old in zip(names, before, strict=True))
    assert [getattr(ops.boxes, name) for name in names] == before


def test_what_our_batched_nms_does_not_take_is_torchvisions():
    boxes, scores, labels = boxes_by_class(3, torch.float32)
    expected = ops.batched_nms(boxes, scores, labels.float(), 0.5)
    with fastdet.override_torchvision():
        assert ops.batched_nms(boxes, scores, labels.float(), 0.5).equal(expected)
        with pytest.raises(RuntimeError):
            ops.batched_nms(boxes, scores[:-1], labels, 0.5)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_batched_nms_is_torchvisions():
    def best(boxes: Tensor, scores: Tensor, idxs: Tensor) -> Tensor:
        return ops.boxes._batched_nms_coordinate_trick(boxes, scores, idxs, 0.5)

    boxes, scores, labels = boxes_by_class(3, torch.float32)
    expected = best(boxes, scores, labels)
    with fastdet.override_torchvision():
        scripted = torch.jit.script(best)
    assert scripted(boxes, scores, labels).equal(expected)
    assert "fastdet" not in str(scripted.inlined_graph)


def pooled_and_gradient(x: Tensor, rois: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    pooled = ops.roi_align(leaf, rois, (7, 5), 0.5, **options)
    weight = torch.linspace(-1, 1, pooled.numel(), dtype=pooled.dtype, device=pooled.device)
    (gradient,) = torch.autograd.grad((pooled * weight.view_as(pooled)).sum(), leaf)
    return pooled.detach(), gradient


def features_and_rois(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 6, 40, 44, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    index = torch.arange(30)[:, None] % 2
    return x.to(dtype), torch.cat([index.to(dtype), random_boxes(30, dtype)], 1)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "strided"])
def test_roi_align_and_its_backward_are_the_same(layout, ratio, aligned, device):
    x, rois = (t.to(device) for t in features_and_rois())
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x, rois = x.mT, rois.repeat(1, 2)[:, 5:]
    expected = pooled_and_gradient(x, rois, sampling_ratio=ratio, aligned=aligned)
    with fastdet.override_torchvision():
        got = pooled_and_gradient(x, rois, sampling_ratio=ratio, aligned=aligned)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert ours.stride() == theirs.stride()


def test_roi_align_runs_our_kernels(override):
    # torchvision's pools something else from a box that is not finite.
    x, rois = features_and_rois()
    rois[0, 3] = NAN
    pooled, gradient = pooled_and_gradient(x, rois)
    assert pooled[0].count_nonzero() == 0
    assert gradient.isfinite().all()


def test_roi_align_of_half_is_nearer_to_the_truth_than_torchvisions():
    x, rois = features_and_rois(torch.float16)
    exact = ops.roi_align(x.double(), rois.double(), 7, 0.5, 2)
    theirs = (ops.roi_align(x, rois, 7, 0.5, 2) - exact).abs().max()
    with fastdet.override_torchvision():
        pooled = ops.roi_align(x, rois, 7, 0.5, 2)
    assert pooled.dtype == torch.float16
    assert (pooled - exact).abs().max() < theirs


def test_an_expanded_gradient_and_a_second_derivative(override):
    x, rois = features_and_rois()
    leaf = x.requires_grad_()
    (gradient,) = torch.autograd.grad(ops.roi_align(leaf, rois, 7, 0.5).sum(), leaf)
    assert gradient.isfinite().all()
    (gradient,) = torch.autograd.grad(
        ops.roi_align(leaf, rois, 7, 0.5).square().sum(), leaf, create_graph=True
    )
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(gradient.sum(), leaf)


@pytest.mark.parametrize(
    ("boxes", "scores", "threshold"),
    [
        (random_boxes(5).long(), distinct_scores(5), 0.5),
        (random_boxes(5).long(), distinct_scores(5).long(), 0.5),
        (random_boxes(5), distinct_scores(5, torch.float64), 0.5),
        (random_boxes(5), distinct_scores(4), 0.5),
        (random_boxes(5)[:, :3], distinct_scores(5), 0.5),
        (random_boxes(5)[0], distinct_scores(5), 0.5),
        (random_boxes(5), distinct_scores(5)[None], 0.5),
        (random_boxes(50), distinct_scores(50), 1.5),
        (random_boxes(50), distinct_scores(50), -0.5),
        (random_boxes(50), distinct_scores(50), NAN),
        (torch.ones(5, 4), distinct_scores(5), -0.5),
    ],
)
def test_what_our_nms_does_not_take_is_torchvisions(boxes, scores, threshold):
    def outcome() -> tuple[type, str] | list[int]:
        try:
            return ops.nms(boxes, scores, threshold).tolist()
        except (RuntimeError, NotImplementedError, IndexError) as error:
            return type(error), str(error).splitlines()[0]

    expected = outcome()
    with fastdet.override_torchvision():
        assert outcome() == expected


@pytest.mark.parametrize(
    ("x", "rois"),
    [
        (torch.ones(1, 2, 8, 8), torch.ones(3, 4)),
        (torch.ones(1, 2, 8, 8), torch.ones(3, 5, dtype=torch.float64)),
        (torch.ones(1, 2, 8, 8).long(), torch.ones(3, 5).long()),
        (torch.ones(0, 2, 8, 8), torch.ones(0, 5)),
        (torch.ones(1, 2, 8, 8), torch.ones(0, 5)),
    ],
)
def test_what_our_roi_align_does_not_take_is_torchvisions(x, rois):
    def outcome() -> tuple[type, str] | torch.Size:
        try:
            return torch.ops.torchvision.roi_align(x, rois, 1.0, 7, 7, 2, False).shape
        except (RuntimeError, NotImplementedError) as error:
            return type(error), str(error).splitlines()[0]

    expected = outcome()
    with fastdet.override_torchvision():
        assert outcome() == expected


def deform_conv_tensors(
    groups: int = 1, offset_groups: int = 1, mask: bool = True, dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    """Input, offset, weight, bias and mask of a 3 x 2 kernel, padded by 1, with the stride 2."""
    generator = torch.Generator().manual_seed(5)
    points = offset_groups * 6
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in (
            (2, 6, 9, 8),
            (2, 2 * points, 5, 5),
            (4, 6 // groups, 3, 2),
            (4,),
            (2, points, 5, 5),
        )
    ]
    return [*tensors[:4], tensors[4] if mask else None]


def convolved_and_gradients(tensors: list[Tensor | None]) -> list[Tensor]:
    leaves = [None if x is None else x.detach().requires_grad_() for x in tensors]
    input, offset, weight, bias, mask = leaves
    found = ops.deform_conv2d(input, offset, weight, bias, stride=2, padding=1, mask=mask)
    grad = torch.linspace(-1, 1, found.numel(), dtype=found.dtype, device=found.device)
    wanted = [x for x in leaves if x is not None]
    return [found.detach(), *torch.autograd.grad(found, wanted, grad.view_as(found))]


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@pytest.mark.parametrize("groups", [(1, 1), (2, 3)])
@pytest.mark.parametrize("mask", [False, True])
def test_deform_conv2d_and_its_backward_are_the_same(mask, groups, layout, device):
    tensors = [None if x is None else x.to(device) for x in deform_conv_tensors(*groups, mask)]
    if layout == "channels_last":
        assert tensors[0] is not None
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    expected = convolved_and_gradients(tensors)
    with fastdet.override_torchvision():
        got = convolved_and_gradients(tensors)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
        assert ours.stride() == theirs.stride()


def test_a_module_runs_our_deform_conv2d(override):
    # torchvision's kernel reads anywhere if an offset is NaN.
    layer = ops.DeformConv2d(6, 4, 3, padding=1)
    offset = torch.full((1, 18, 5, 5), NAN)
    found = layer(torch.ones(1, 6, 5, 5), offset)
    assert layer.bias is not None
    assert found.equal(layer.bias[:, None, None].expand(1, 4, 5, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deform_conv2d_of_half_types(dtype, override):
    # torchvision's CPU kernel has no bfloat16.
    half = deform_conv_tensors(dtype=dtype)
    exact = convolved_and_gradients([None if x is None else x.double() for x in half])
    for ours, expected in zip(convolved_and_gradients(half), exact, strict=True):
        assert ours.dtype == dtype
        rounding = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours.double(), expected, rtol=rounding, atol=30 * rounding)


@pytest.mark.parametrize(
    ("position", "tensor"),
    [
        (0, torch.ones(2, 6, 9, 8).long()),
        (0, torch.ones(6, 9, 8)),
        (1, torch.ones(2, 12, 5, 4)),
        (1, torch.ones(2, 11, 5, 5)),
        (1, torch.ones(2, 12, 5, 5, dtype=torch.float64)),
        (2, torch.ones(4, 4, 3, 2)),
        (3, torch.ones(5)),
        (4, torch.ones(2, 7, 5, 5)),
    ],
)
def test_what_our_deform_conv2d_does_not_take_is_torchvisions(position, tensor):
    tensors = deform_conv_tensors()
    tensors[position] = tensor

    def outcome() -> tuple[type, str] | torch.Size:
        try:
            return ops.deform_conv2d(*tensors[:4], stride=2, padding=1, mask=tensors[4]).shape
        except (RuntimeError, ValueError, NotImplementedError, ZeroDivisionError) as error:
            return type(error), str(error).splitlines()[0]

    expected = outcome()
    with fastdet.override_torchvision():
        assert outcome() == expected


def test_autocast_is_torchvisions():
    x, rois = features_and_rois()

    def both() -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = x.bfloat16()
            return [ops.roi_align(half, rois, 7, 0.5, 2), ops.nms(rois[:, 1:], rois[:, 1], 0.5)]

    expected = both()
    with fastdet.override_torchvision():
        for ours, theirs in zip(both(), expected, strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_code(override):
    def best(boxes: Tensor, scores: Tensor) -> Tensor:
        return torch.ops.torchvision.nms(boxes, scores, 0.5)

    boxes, scores = random_boxes(50), distinct_scores(50)
    scores[scores.argmax()] = NAN
    assert torch.jit.script(best)(boxes, scores).equal(fastdet.nms(boxes, scores, 0.5))


@pytest.mark.slow
def test_compiled_code_whatever_was_in_force_when_it_was_compiled():
    def run(x: Tensor, rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = ops.roi_align(x * 2, rois, 7, 0.5, 2)
        ids = torch.zeros(len(rois), dtype=torch.int64)
        kept = ops.batched_nms(rois[:, 1:], rois[:, 1], ids, 0.5)
        return pooled + 1, ops.nms(rois[:, 1:], rois[:, 1], 0.5), kept

    x, rois = features_and_rois()
    x = x.contiguous(memory_format=torch.channels_last)
    pooled, kept, kept_by_class = run(x.double(), rois.double())
    compiled = torch.compile(run, fullgraph=True)
    with fastdet.override_torchvision():
        first = compiled(x, rois)
    for got in (first, compiled(x, rois)):
        torch.testing.assert_close(got[0].double(), pooled, rtol=1e-5, atol=3e-5)  # theirs needs it
        assert got[1].equal(kept)
        assert got[2].equal(kept_by_class)


@pytest.fixture(scope="module")
def detectors() -> dict[str, torch.nn.Module]:
    """torchvision's own, with random weights, in float64: no comparison hangs on a rounding."""
    torch.manual_seed(0)
    sizes = {"min_size": 96, "max_size": 128}
    few = {"rpn_post_nms_top_n_train": 60, "rpn_post_nms_top_n_test": 60, "box_score_thresh": 0.0}
    body = partial(
        resnet_fpn_backbone,
        backbone_name="resnet18",
        weights=None,
        trainable_layers=5,
        norm_layer=torch.nn.BatchNorm2d,
    )
    with_p7 = body(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    models = {
        "faster_rcnn": detection.fasterrcnn_mobilenet_v3_large_fpn(
            weights=None, weights_backbone=None, num_classes=5, **sizes, **few
        ),
        "mask_rcnn": detection.MaskRCNN(body(), 3, box_detections_per_img=20, **sizes, **few),
        "retinanet": detection.RetinaNet(with_p7, 5, score_thresh=0.0, **sizes),
    }
    return {name: model.double() for name, model in models.items()}


def images_and_targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(3, 96, 120, generator=generator, dtype=torch.float64) for _ in range(2)]
    targets = [
        {
            "boxes": random_boxes(4, torch.float64, seed) * 0.6,
            "labels": torch.tensor([1, 2, 1, 2]),
            "masks": torch.ones(4, 96, 120, dtype=torch.uint8),
        }
        for seed in range(2)
    ]
    return images, targets


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "retinanet"])
def test_torchvisions_detectors_detect_the_same(name, detectors):
    model, (images, _) = detectors[name].eval(), images_and_targets()
    with torch.no_grad():
        expected = model(images)
        with fastdet.override_torchvision():
            got = model(images)
    assert min(len(one["scores"]) for one in expected) > 10
    for ours, theirs in zip(got, expected, strict=True):
        assert ours["labels"].equal(theirs["labels"])
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_torchvisions_detectors_train_the_same(name, detectors):
    model, (images, targets) = detectors[name].train(), images_and_targets()

    def losses_and_gradients() -> tuple[dict[str, Tensor], list[Tensor]]:
        torch.manual_seed(4)  # the samplers draw
        losses = model(images, targets)
        weights = [p for p in model.parameters() if p.requires_grad]
        return losses, list(torch.autograd.grad(sum(losses.values()), weights))

    expected = losses_and_gradients()
    with fastdet.override_torchvision():
        got = losses_and_gradients()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_packages_that_it_reaches() -> None:
    """The table in the documentation, for the packages that are installed."""
    tool = runpy.run_path(str(TREE / "tools" / "override_reach.py"))
    page = (TREE / "docs" / "override_torchvision.md").read_text()
    for package, code, run in tool["ROWS"]:
        if find_spec(package) is None:
            continue
        assert tool["row"](package, code, run) in page, package
