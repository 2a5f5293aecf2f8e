# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdet.numpy
from fastdet.ops import soft_nms
from tests import reference
from tests.ops.test_nms import hostile, random_boxes, samples

METHODS = pytest.mark.parametrize("method", ["linear", "gaussian"])
NAN = float("nan")


def distinct(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    boxes, _ = random_boxes(n, seed, dtype)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return boxes, ((order + 1).double() / (n + 1)).to(dtype)


def unpadded(result: tuple[Tensor, Tensor, Tensor]) -> tuple[list[int], Tensor]:
    """The picks; checks the padding."""
    keep, scores, count = result
    k = int(count)
    assert (keep[k:] == -1).all()
    assert (scores[k:] == 0).all()
    return keep[:k].tolist(), scores[:k].cpu()


def test_hand_worked(device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10], [0, 0, 10, 10]])
    scores, labels = torch.tensor([0.8, 0.6, 0.5, 0.4]), torch.tensor([3, 3, 3, -9])
    boxes, scores, labels = boxes.to(device), scores.to(device), labels.to(device)
    keep, left = unpadded(soft_nms(boxes, scores, 0.3))
    # the second loses half to the first; the fourth equals the first and loses all
    assert keep == [0, 2, 1]
    torch.testing.assert_close(left, torch.tensor([0.8, 0.5, 0.3]))
    keep, left = unpadded(soft_nms(boxes, scores, 0.3, labels=labels))
    assert keep == [0, 2, 3, 1]
    torch.testing.assert_close(left, torch.tensor([0.8, 0.5, 0.4, 0.3]))
    keep, left = unpadded(soft_nms(boxes, scores, method="gaussian", labels=labels))
    assert keep == [0, 2, 3, 1]
    torch.testing.assert_close(left[3], torch.tensor(0.6 * np.exp(-0.5), dtype=torch.float32))


@METHODS
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 200])
def test_equals_reference(n, method, device):
    boxes, scores = random_boxes(n, n, torch.float64)
    scores[::7] = NAN
    labels = torch.arange(n) % 3 * 2**61
    for own_labels in (None, labels):
        for threshold, score_threshold in ((0.3, 0.001), (0.0, 0.0), (1.0, 0.2)):
            rule = (threshold, 0.4, score_threshold, method)
            moved = None if own_labels is None else own_labels.to(device)
            keep, left = unpadded(soft_nms(boxes.to(device), scores.to(device), *rule, moved))
            picks, pick_scores = reference.soft_nms(boxes, scores, *rule, own_labels)
            assert keep == picks
            np.testing.assert_allclose(left, pick_scores, rtol=1e-12)


@METHODS
@pytest.mark.parametrize("name", list(samples("cpu")))
def test_samples_are_the_same_on_every_device(name, method, device):
    boxes, scores, threshold = samples("cpu")[name]
    labels = torch.arange(len(boxes)) % 2
    for own_labels in (None, labels):
        arrays = (boxes.numpy(), scores.numpy(), threshold, 0.5, 0.01, method)
        ids = None if own_labels is None else own_labels.numpy()
        expected, expected_scores = fastdet.numpy.soft_nms(*arrays, ids)
        moved = None if own_labels is None else own_labels.to(device)
        out = soft_nms(boxes.to(device), scores.to(device), threshold, 0.5, 0.01, method, moved)
        keep, left = unpadded(out)
        assert keep == expected.tolist()
        assert np.array_equal(left.numpy(), expected_scores)


@METHODS
@pytest.mark.parametrize("name", list(hostile(2)))
def test_hostile_boxes_are_the_same_on_every_device(name, method, device):
    boxes = hostile(300)[name]
    _, scores = distinct(300, 1)
    labels = torch.arange(300) % 40 % 7
    expected, expected_scores = fastdet.numpy.soft_nms(
        boxes.numpy(), scores.numpy(), method=method, labels=labels.numpy()
    )
    moved = boxes.to(device), scores.to(device)
    keep, left = unpadded(soft_nms(*moved, method=method, labels=labels.to(device)))
    assert keep == expected.tolist()
    assert np.array_equal(left.numpy(), expected_scores)


@METHODS
@pytest.mark.parametrize("n", [1023, 1024, 1025, 2100])
def test_sizes_around_the_block(n, method, device):
    boxes, scores = hostile(n)["spread"], distinct(n)[1]
    expected, expected_scores = fastdet.numpy.soft_nms(boxes.numpy(), scores.numpy(), method=method)
    keep, left = unpadded(soft_nms(boxes.to(device), scores.to(device), method=method))
    assert keep == expected.tolist()
    assert np.array_equal(left.numpy(), expected_scores)


@METHODS
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 5))
def test_labels_are_independent(method, seed, n, classes):
    boxes, scores = distinct(n, seed)
    labels = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed)) - 2**62
    keep, left = unpadded(soft_nms(boxes, scores, method=method, labels=labels))
    got = dict(zip(keep, left.tolist(), strict=True))
    for label in labels.unique():
        rows = torch.where(labels == label)[0]
        alone, alone_scores = unpadded(soft_nms(boxes[rows], scores[rows], method=method))
        for i, score in zip(alone, alone_scores.tolist(), strict=True):
            assert got.pop(int(rows[i])) == score
    assert not got
    assert (left.diff() <= 0).all()


def test_of_equal_scores_the_first_box_of_any_label_is_picked(device):
    boxes = torch.arange(6.0)[:, None] * 9 + torch.tensor([0.0, 0, 1, 1])
    labels = torch.tensor([5, 1, 5, 0, 1, 5])
    keep, _ = unpadded(
        soft_nms(boxes.to(device), torch.ones(6, device=device), labels=labels.to(device))
    )
    assert keep == list(range(6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_types_are_computed_in_float32(dtype, device):
    boxes, scores = distinct(65, dtype=dtype)
    got = soft_nms(boxes.to(device), scores.to(device))
    assert got[1].dtype == torch.float32
    for a, b in zip(got, soft_nms(boxes.float(), scores.float()), strict=True):
        assert a.cpu().equal(b)


def test_opcheck(device):
    boxes, scores = (x.to(device) for x in distinct(12))
    labels = torch.arange(12, device=device) % 2
    for own_labels in (None, labels):
        arguments = (boxes, scores, own_labels, 0.3, 0.5, 0.001, "gaussian")
        torch.library.opcheck(torch.ops.fastdet.soft_nms, arguments)


def test_compiles_without_a_graph_break():
    boxes, scores = distinct(40)
    compiled = torch.compile(soft_nms, fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(boxes, scores), soft_nms(boxes, scores), strict=True):
        assert ours.equal(theirs)


def test_bad_input_gets_one_clear_line(device):
    boxes, scores = (x.to(device) for x in distinct(3))
    with pytest.raises(ValueError, match=r"^iou_threshold: expected a number in \[0, 1\], got 2"):
        soft_nms(boxes, scores, 2)
    with pytest.raises(ValueError, match=r"^sigma: expected a number > 0, got 0"):
        soft_nms(boxes, scores, sigma=0)
    with pytest.raises(ValueError, match=r"^score_threshold: expected a number >= 0, got nan"):
        soft_nms(boxes, scores, score_threshold=NAN)
    with pytest.raises(ValueError, match=r"^method: expected one of \('linear', .*, got 'hard'"):
        soft_nms(boxes, scores, method="hard")
    with pytest.raises(RuntimeError, match=r"labels: expected int64 \(N,\) with the N of"):
        soft_nms(boxes, scores, labels=scores)
    with pytest.raises(RuntimeError, match="method: expected linear or gaussian, got 'h'"):
        torch.ops.fastdet.soft_nms(boxes, scores, None, 0.3, 0.5, 0.001, "h")
