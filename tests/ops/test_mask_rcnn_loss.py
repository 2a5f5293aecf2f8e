# SPDX-License-Identifier: BSD-3-Clause
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastdet.ops import mask_rcnn_loss
from tests import reference

from .test_crop_masks import NOT_FINITE, ODD, blobs, random_boxes, random_match


class Sample(NamedTuple):
    logits: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor
    match: Tensor


def sample(device: str, rows: int = 9, classes: int = 4, size: tuple[int, int] = (5, 6)) -> Sample:
    """Two images; some rows match no mask and have labels that are not classes."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, rows, classes, *size, generator=generator) * 4
    match = random_match(2, rows, gts=3)
    labels = torch.randint(0, classes, (2, rows), generator=generator)
    labels = torch.where(match < 0, labels * 100 - 50, labels)
    tensors = (logits, labels, blobs(2, 3, 40, 60), random_boxes(2, rows), match)
    return Sample(*(t.to(device) for t in tensors))


def channels_last(logits: Tensor) -> Tensor:
    return logits.movedim(2, -1).contiguous().movedim(-1, 2)


def samples(device: str) -> dict[str, Sample]:
    """By name."""
    base = sample(device)
    odd = torch.tensor([*ODD, *NOT_FINITE], device=device)[None]
    zeros = torch.zeros(1, len(odd[0]), dtype=torch.int64, device=device)
    return {
        "random": base,
        "channels_last": base._replace(logits=channels_last(base.logits)),
        "no match": base._replace(match=base.match * 0 - 1),
        "no such mask": base._replace(match=torch.where(base.match < 0, 3, base.match)),
        "no rows": Sample(
            base.logits[:, :0], base.labels[:, :0], base.masks, base.boxes[:, :0], base.match[:, :0]
        ),
        "no masks": base._replace(masks=base.masks[:, :0]),
        "no images": Sample(*(t[:0] for t in base)),
        "one class": sample(device, classes=1),
        "28 x 28": sample(device, rows=3, size=(28, 28)),
        "17 pixels": sample(device, size=(1, 17)),
        "odd boxes": Sample(
            base.logits[:1, :1].repeat(1, 10, 1, 1, 1), zeros, base.masks[:1], odd, zeros
        ),
        "uint8": base._replace(masks=base.masks.byte()),
        "non-contiguous": base._replace(logits=base.logits.mT.contiguous().mT),
        "expanded": base._replace(logits=base.logits[:, :1, :1].expand_as(base.logits)),
        "huge logits": base._replace(logits=base.logits * 1e4),
        "float64": base._replace(logits=base.logits.double(), boxes=base.boxes.double()),
    }


SAMPLES = list(samples("cpu"))


@pytest.mark.parametrize("name", SAMPLES)
def test_loss_and_gradient_equal_reference(name, device):
    s = samples(device)[name]
    leaf = s.logits.detach().requires_grad_()
    loss = mask_rcnn_loss(leaf, *s[1:])
    cpu = Sample(*(t.cpu() for t in s))
    wide = cpu.logits.double().requires_grad_()
    expected = reference.mask_rcnn_loss(wide, *cpu[1:])
    assert loss.dtype == s.logits.dtype
    close = 1e-12 if loss.dtype == torch.float64 else 4e-6
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=close, atol=close)
    (got,) = torch.autograd.grad(loss * 3, leaf)
    (wanted,) = torch.autograd.grad(expected * 3, wide)
    torch.testing.assert_close(got.cpu().double(), wanted, rtol=close, atol=close / 10)


def test_hand_worked(device):
    logits = torch.zeros(1, 2, 2, 1, 2, device=device)
    logits[0, 0, 1] = torch.tensor([math.log(3), -math.log(3)])
    masks = torch.ones(1, 1, 8, 8, dtype=torch.bool, device=device)
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]], device=device).repeat(1, 2, 1)
    labels, match = (torch.tensor([[1, 1]]).to(device), torch.tensor([[0, -1]]).to(device))
    loss = mask_rcnn_loss(logits.requires_grad_(), labels, masks, boxes, match)
    torch.testing.assert_close(loss.item(), (math.log(4 / 3) + math.log(4)) / 2)
    (grad,) = torch.autograd.grad(loss, logits)
    expected = torch.zeros_like(grad)
    expected[0, 0, 1, 0] = torch.tensor([-0.125, -0.375])
    torch.testing.assert_close(grad, expected)


def test_equals_torchvision(device):
    heads = pytest.importorskip("torchvision.models.detection.roi_heads", exc_type=ImportError)
    s = sample(device, rows=30, size=(14, 14))
    s = s._replace(logits=s.logits.double(), boxes=s.boxes.double())
    # In torchvision labels belong to the masks, and every row matches a mask.
    match = s.match.clamp(min=0)
    gt_labels = torch.tensor([[1, 3, 0], [2, 2, 1]], device=device)
    leaf = s.logits.requires_grad_()
    loss = mask_rcnn_loss(leaf, gt_labels.gather(1, match), s.masks, s.boxes, match)
    theirs = leaf.detach().cpu().flatten(0, 1).requires_grad_()
    boxes, masks, labels, matched = (list(t.cpu()) for t in (s.boxes, s.masks, gt_labels, match))
    expected = heads.maskrcnn_loss(theirs, boxes, masks, labels, matched)
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-10, atol=0)
    (got,) = torch.autograd.grad(loss, leaf)
    (wanted,) = torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(got.cpu().flatten(0, 1), wanted, rtol=1e-10, atol=1e-15)


def test_a_matched_row_whose_label_is_no_class_is_nan(device):
    s = samples(device)["random"]
    row = s.match[0].argmax()
    for label in (-1, 4):
        labels = s.labels.clone()
        labels[0, row] = label
        leaf = s.logits.detach().requires_grad_()
        loss = mask_rcnn_loss(leaf, labels, *s[2:])
        assert loss.isnan()
        (grad,) = torch.autograd.grad(loss, leaf)
        nan = torch.zeros(2, 9, dtype=torch.bool, device=device)
        nan[0, row] = True
        assert grad.isnan().equal(nan[:, :, None, None, None].expand_as(grad))


@pytest.mark.parametrize("layout", ["random", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_computed_in_float32(dtype, layout, device):
    s = samples(device)[layout]
    half = s.logits.to(dtype).requires_grad_()
    wide = half.detach().float().requires_grad_()
    loss, expected = (mask_rcnn_loss(x, *s[1:]) for x in (half, wide))
    assert loss.equal(expected)
    (got,) = torch.autograd.grad(loss * 1000, half)
    (wanted,) = torch.autograd.grad(expected * 1000, wide)
    assert got.dtype == dtype
    assert got.stride() == half.stride()
    torch.testing.assert_close(got.float(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_gradient_has_the_layout_of_the_logits(device):
    for s in (sample(device), samples(device)["channels_last"]):
        leaf = s.logits.detach().requires_grad_()
        (grad,) = torch.autograd.grad(mask_rcnn_loss(leaf, *s[1:]), leaf)
        assert grad.stride() == s.logits.stride()


def test_gradcheck(device):
    s = sample(device, rows=3, size=(2, 3))
    leaf = s.logits.double().requires_grad_()
    others = (s.labels, s.masks, s.boxes.double(), s.match)
    assert torch.autograd.gradcheck(lambda x: mask_rcnn_loss(x, *others), (leaf,), nondet_tol=0.0)


def test_no_second_derivative(device):
    s = sample(device)
    leaf = s.logits.requires_grad_()
    (grad,) = torch.autograd.grad(mask_rcnn_loss(leaf, *s[1:]), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


def test_autocast_changes_nothing(device):
    s = sample(device)
    with torch.autocast(device, torch.bfloat16):
        loss = mask_rcnn_loss(*s)
    assert loss.equal(mask_rcnn_loss(*s))


def test_result_does_not_depend_on_the_thread_count():
    s = sample("cpu", rows=70)
    results, before = [], torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            leaf = s.logits.detach().requires_grad_()
            loss = mask_rcnn_loss(leaf, *s[1:])
            results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


def test_opcheck(device):
    s = sample(device)
    ops = torch.ops.fastdet
    torch.library.opcheck(ops.mask_rcnn_loss, (s.logits.clone().requires_grad_(), *s[1:]))
    loss, residual, count = ops.mask_rcnn_loss(*s)
    for last in (False, True):
        torch.library.opcheck(
            ops.mask_rcnn_loss_backward, (torch.ones_like(loss), residual, s.labels, count, 4, last)
        )


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    results = []
    s = sample(device)
    for run in (mask_rcnn_loss, torch.compile(mask_rcnn_loss, fullgraph=True, dynamic=True)):
        leaf = s.logits.detach().requires_grad_()
        loss = run(leaf * 2, *s[1:])
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_input_is_named(device):
    s = sample(device)
    with pytest.raises(RuntimeError, match=r"logits: expected floating \(B, K, C, h, w\)"):
        mask_rcnn_loss(s.logits[0], *s[1:])
    with pytest.raises(RuntimeError, match=r"labels: expected int64 \(B, K\)"):
        mask_rcnn_loss(s.logits, s.labels[:, :2], *s[2:])
    with pytest.raises(
        RuntimeError, match=r"boxes: expected floating \(B, K, 4\) with the B and K"
    ):
        mask_rcnn_loss(s.logits[:, :5], s.labels[:, :5], *s[2:])
    with pytest.raises(RuntimeError, match=r"masks: expected bool or uint8"):
        mask_rcnn_loss(*s._replace(masks=s.masks.int()))
