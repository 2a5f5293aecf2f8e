# SPDX-License-Identifier: BSD-3-Clause
"""What `fastdet info` says of the CUDA operators, and when calls skip autograd."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdet import _native
from fastdet.ops import box_iou, library


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ("13.0", "13.2", "loaded"),
        ("", "13.0", "loaded"),
        ("13.0", None, "loaded"),
        (
            "13.0",
            "12.8",
            "loaded; built with CUDA 13.0, but torch with CUDA 12.8: the driver must be for both",
        ),
    ],
)
def test_another_cuda_than_torchs_is_named(monkeypatch, ours, theirs, said):
    monkeypatch.setattr(library, "_why_no_cuda", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_native, "cuda_version", ours)
    monkeypatch.setattr(torch.version, "cuda", theirs)
    assert library.info()["CUDA ops"] == said


def calls_below_autograd(*tensors):
    return not isinstance(library.skip_autograd(*tensors), contextlib.nullcontext)


def test_a_call_skips_autograd_only_where_no_gradient_can_be_wanted():
    plain, learnt = torch.rand(3, 4), torch.rand(3, 4, requires_grad=True)
    assert calls_below_autograd(plain, plain)
    assert not calls_below_autograd(plain, learnt)
    assert not calls_below_autograd(torch.nn.Parameter(plain, requires_grad=False))
    with FakeTensorMode() as mode:
        assert not calls_below_autograd(mode.from_tensor(plain))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_gradient_of_a_batch_under_vmap_is_kept():
    """The wrapper of a batch does not require grad, but what it wraps does."""
    sets = torch.tensor([0.0, 0.0, 2.0, 2.0]) + torch.rand(2, 3, 4)
    anchors = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 4.0, 3.0]])

    def gradient(ious):
        learnt = sets.clone().requires_grad_()
        ious(learnt).sum().backward()
        return learnt.grad

    one_by_one = gradient(lambda sets: torch.stack([box_iou(boxes, anchors) for boxes in sets]))
    batched = gradient(torch.vmap(lambda boxes: box_iou(boxes, anchors)))
    assert torch.equal(batched, one_by_one)
    assert batched.abs().sum() > 0


def test_an_operator_called_below_autograd_can_still_be_called_with_a_gradient():
    boxes = torch.tensor([0.0, 0.0, 2.0, 2.0]) + torch.rand(3, 4)
    anchors = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    expected = box_iou(boxes, anchors)
    learnt = boxes.clone().requires_grad_()
    ious = box_iou(learnt, anchors)
    ious.sum().backward()
    assert learnt.grad is not None
    assert torch.equal(ious, expected)
    assert not expected.requires_grad
