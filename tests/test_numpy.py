# SPDX-License-Identifier: BSD-3-Clause
"""fastdet.numpy: hand-worked samples, and the same bits as the torch ops."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastdet
import fastdet.numpy as fnp
from tests import reference

INF, NAN = float("inf"), float("nan")
IOUS = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
METHODS = ("linear", "gaussian")


def random_boxes(n: int, seed: int = 0, dtype: str = "f4", width: float = 100.0) -> np.ndarray:
    """(n, 4) boxes that overlap often."""
    generator = np.random.default_rng(seed)
    corner = generator.random((n, 2)) * width
    return np.concatenate([corner, corner + 1 + generator.random((n, 2)) * 40], 1).astype(dtype)


def random_scores(n: int, seed: int = 0, dtype: str = "f4") -> np.ndarray:
    """(n,) with ties."""
    return (np.random.default_rng(seed).integers(0, max(n // 2, 1), n) / max(n, 1)).astype(dtype)


def expect_same(ours, theirs) -> None:
    """The same type, shape and bits as the torch op's, or each of several."""
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            expect_same(one, other)
        return
    assert ours.dtype == theirs.numpy().dtype
    assert np.array_equal(ours, theirs.numpy(), equal_nan=ours.dtype.kind == "f")


def tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


@pytest.mark.parametrize("first", ["import fastdet.numpy", "import fastdet; fastdet.numpy"])
def test_torch_is_not_imported(first):
    code = (
        "import sys; sys.modules['torch'] = None\n"  # makes `import torch` an ImportError
        f"{first}\n"
        "import numpy as np\n"
        "print(fastdet.numpy.nms(np.ones((3, 4), 'f4'), np.ones(3, 'f4'), 0.5))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[0 1 2]\n", "")


# ---- nms, batched_nms ---------------------------------------------------------------------------


def test_nms_hand_worked():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], "f4")
    scores = np.array([0.5, 0.9, 0.1], "f4")
    assert fnp.nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert fnp.batched_nms(boxes, scores, np.array([7, -(2**62), 7]), 0.5).tolist() == [1, 0, 2]
    boxes[1, 2], scores[2] = INF, NAN
    assert fnp.nms(boxes, scores, 0.5).tolist() == [0]


@pytest.mark.parametrize("n", [0, 1, 16, 65, 1000])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_nms_is_that_of_torch(dtype, n):
    boxes, scores = random_boxes(n, dtype=dtype), random_scores(n, dtype=dtype)
    idxs = np.arange(n) % 3
    expect_same(fnp.nms(boxes, scores, 0.4), fastdet.nms(*tensors(boxes, scores), 0.4))
    expect_same(
        fnp.batched_nms(boxes, scores, idxs, 0.4),
        fastdet.batched_nms(*tensors(boxes, scores, idxs), 0.4),
    )


# ---- soft_nms -----------------------------------------------------------------------------------


def test_soft_nms_hand_worked():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10], [0, 0, 10, 10]], "f4")
    scores = np.array([0.8, 0.6, 0.5, 0.4], "f4")
    keep, kept_scores = fnp.soft_nms(boxes, scores, 0.3, method="linear")
    # the second loses half to the first; the fourth equals the first and loses all
    assert keep.tolist() == [0, 2, 1]
    np.testing.assert_allclose(kept_scores, [0.8, 0.5, 0.3], rtol=1e-6)
    keep, kept_scores = fnp.soft_nms(boxes, scores, 0.6, score_threshold=0.0, method="linear")
    assert keep.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(kept_scores, [0.8, 0.6, 0.5, 0.0], rtol=1e-6)
    keep, kept_scores = fnp.soft_nms(boxes, scores, sigma=0.5, method="gaussian")
    assert keep.tolist() == [0, 2, 1, 3]
    expected = [0.8, 0.5, 0.6 * np.exp(-0.5), 0.4 * np.exp(-2) * np.exp(-0.5)]
    np.testing.assert_allclose(kept_scores, expected, rtol=1e-6)


def test_soft_nms_drops_what_is_not_finite_and_breaks_ties_by_index():
    boxes = np.repeat(np.array([[0, 0, 1, 1]], "f4"), 6, 0) + np.arange(6, dtype="f4")[:, None] * 9
    boxes[1, 0] = -INF
    scores = np.array([0.5, 0.9, NAN, INF, 0.5, 0.5], "f4")
    keep, kept_scores = fnp.soft_nms(boxes, scores)
    assert keep.tolist() == [0, 4, 5]
    assert kept_scores.tolist() == [0.5] * 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 200])
def test_soft_nms_equals_reference(n, method):
    for width in (30.0, 300.0):
        boxes, scores = random_boxes(n, n, "f8", width), random_scores(n, n, "f8")
        for threshold, score_threshold in ((0.3, 0.001), (0.0, 0.0), (1.0, 0.2)):
            keep, kept_scores = fnp.soft_nms(boxes, scores, threshold, 0.4, score_threshold, method)
            picks, pick_scores = reference.soft_nms(
                *tensors(boxes, scores), threshold, 0.4, score_threshold, method
            )
            assert keep.tolist() == picks
            np.testing.assert_allclose(kept_scores, pick_scores, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_soft_nms_in_float32_is_near_that_in_float64(method):
    boxes = random_boxes(300, 1)
    scores = np.random.default_rng(1).permutation(300).astype("f4") / 300
    keep, kept_scores = fnp.soft_nms(boxes, scores, method=method, score_threshold=0.01)
    exact, exact_scores = fnp.soft_nms(
        boxes.astype("f8"), scores.astype("f8"), method=method, score_threshold=0.01
    )
    assert kept_scores.dtype == np.float32
    both = {int(i): float(s) for i, s in zip(exact, exact_scores, strict=True)}
    shared = [i for i in keep.tolist() if i in both]
    assert len(shared) >= 0.98 * max(len(keep), len(exact))
    ours = dict(zip(keep.tolist(), kept_scores.tolist(), strict=True))
    np.testing.assert_allclose([ours[i] for i in shared], [both[i] for i in shared], rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("far", [0.0, 1e30, 1.7e308])
def test_soft_nms_at_any_coordinates(far, method):
    # Equal boxes, and a few so far away that differences of coordinates overflow.
    boxes = np.repeat(np.array([[5.0, 5, 9, 9]]), 150, 0)
    boxes[::50] += [-far, -far, far, far]
    keep, kept_scores = fnp.soft_nms(boxes, np.full(150, 0.5), score_threshold=0.0, method=method)
    assert sorted(keep.tolist()) == list(range(150))
    assert (np.diff(kept_scores) <= 0).all()


@given(st.integers(0, 10**6), st.integers(1, 150), st.sampled_from(METHODS))
def test_soft_nms_does_not_depend_on_the_order_of_its_input(seed, n, method):
    boxes = random_boxes(n, seed)
    generator = np.random.default_rng(seed)
    scores, order = generator.permutation(n).astype("f4") / n, generator.permutation(n)
    keep, kept_scores = fnp.soft_nms(boxes, scores, method=method)
    again, scores_again = fnp.soft_nms(boxes[order], scores[order], method=method)
    assert sorted(order[again].tolist()) == sorted(keep.tolist())
    assert np.array_equal(scores_again, kept_scores)


def test_soft_nms_is_the_same_on_every_isa():
    from fastdet import _native

    before, results = _native.cpu_isa(), []
    boxes, scores = random_boxes(500), random_scores(500)
    try:
        for isa in _native.usable_cpu_isas():
            _native.set_cpu_isa(isa)
            results.append([fnp.soft_nms(boxes, scores, method=method) for method in METHODS])
    finally:
        _native.set_cpu_isa(before)
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


# ---- multiclass_nms -----------------------------------------------------------------------------


def test_multiclass_nms_hand_worked():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], "f4")
    scores = np.array([[0.9, 0.3], [0.8, 0.85], [0.1, 0.2]], "f4")
    kept, kept_scores, labels = fnp.multiclass_nms(boxes, scores, 0.15, 0.5)
    assert labels.tolist() == [0, 1, 1]
    assert np.array_equal(kept, boxes)
    assert np.array_equal(kept_scores, np.array([0.9, 0.85, 0.2], "f4"))
    kept, kept_scores, labels = fnp.multiclass_nms(boxes, scores, 0.05, 0.5, multi_label=True)
    # box 1 goes as class 0, and box 0 as class 1
    assert labels.tolist() == [0, 1, 1, 0]
    assert np.array_equal(kept, boxes[[0, 1, 2, 2]])
    assert np.array_equal(kept_scores, np.array([0.9, 0.85, 0.2, 0.1], "f4"))
    assert fnp.multiclass_nms(boxes, scores, 0.05, 0.5, 1, multi_label=True)[2].tolist() == [0]
    assert fnp.multiclass_nms(boxes, scores, 0.05, 0.5, max_candidates=1)[2].tolist() == [0]
    assert fnp.multiclass_nms(boxes, scores, 0.95, 0.5)[0].shape == (0, 4)


def multiclass_nms_by_numpy(boxes, scores, score_threshold, iou_threshold, multi_label):
    """Boxes and labels of the pairs that fastdet's batched_nms keeps."""
    box, label = np.nonzero(scores > score_threshold)
    if not multi_label:
        best = np.nan_to_num(scores, nan=-INF).argmax(1)
        box, label = box[label == best[box]], label[label == best[box]]
    keep = fnp.batched_nms(boxes[box], scores[box, label], label, iou_threshold)
    return boxes[box][keep], scores[box, label][keep], label[keep]


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n", "num_classes"), [(0, 3), (1, 1), (65, 7), (3000, 20), (50, 300)])
def test_multiclass_nms_equals_its_parts(n, num_classes, transposed, multi_label):
    boxes = random_boxes(n, n)
    scores = random_scores(n * num_classes, n).reshape(n, num_classes)
    scores[1::7] = NAN
    threshold = float(np.nanquantile(scores, 0.9)) if n else 0.5
    given_scores = np.ascontiguousarray(scores.T).T if transposed else scores
    got = fnp.multiclass_nms(boxes, given_scores, threshold, 0.6, 10**6, multi_label=multi_label)
    expected = multiclass_nms_by_numpy(boxes, scores, threshold, 0.6, multi_label)
    for ours, theirs in zip(got, expected, strict=True):
        assert np.array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_multiclass_nms_takes_the_best_candidates(transposed, multi_label):
    n, num_classes = 500, 9
    boxes = random_boxes(n, width=1e4)
    scores = np.random.default_rng(5).permutation(n * num_classes).reshape(n, num_classes) / 4500.0
    given_scores = np.ascontiguousarray(scores.T).T if transposed else scores
    boxes64 = boxes.astype("f8")
    options = {"multi_label": multi_label, "max_candidates": 40}
    kept = fnp.multiclass_nms(boxes64, given_scores, 0.1, 1.0, **options)[1]
    best = scores.max(1) if not multi_label else scores.ravel()
    assert np.array_equal(kept, np.sort(best)[::-1][:40])


def test_multiclass_nms_of_half_types():
    boxes, scores = random_boxes(50, dtype="f2"), random_scores(100, dtype="f2").reshape(50, 2)
    got = fnp.multiclass_nms(boxes, scores, 0.2, 0.5)
    expected = fnp.multiclass_nms(boxes.astype("f4"), scores.astype("f4"), 0.2, 0.5)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


# ---- retinanet_detections -----------------------------------------------------------------------


def heads(dtype: str = "f4", num_images: int = 2) -> tuple[list, list, np.ndarray, np.ndarray]:
    """Logits, deltas, anchors and sizes of three levels of 5 classes."""
    generator = np.random.default_rng(6)
    counts = (300, 70, 0)
    logits = [generator.standard_normal((num_images, n, 5)).astype(dtype) for n in counts]
    deltas = [generator.standard_normal((num_images, n, 4)).astype(dtype) / 4 for n in counts]
    anchors = random_boxes(sum(counts), 6)
    return logits, deltas, anchors, np.array([[90, 120], [70, 60]])[:num_images]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("num_images", [0, 1, 2])
@pytest.mark.parametrize("numbers", [(0.5, 50, 0.5, 30), (0.0, 10**6, 0.9, 900), (1.0, 0, 0.0, 0)])
def test_retinanet_detections_are_those_of_torch(dtype, num_images, numbers):
    logits, deltas, anchors, sizes = heads(dtype, num_images)
    expect_same(
        fnp.retinanet_detections(logits, deltas, anchors, sizes, *numbers),
        fastdet.retinanet_detections(
            tensors(*logits), tensors(*deltas), *tensors(anchors, sizes), *numbers
        ),
    )


def test_retinanet_detections_read_any_layout():
    logits, deltas, anchors, sizes = heads()
    expected = fnp.retinanet_detections(logits, deltas, anchors, sizes, 0.5, 50, 0.5, 30)
    assert (expected[3] > 10).all()
    for layout in layouts(logits[0]):
        other = [[layouts(x)[layout] for x in argument] for argument in (logits, deltas)]
        got = fnp.retinanet_detections(*other, anchors, sizes, 0.5, 50, 0.5, 30)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


# ---- box_iou and its kin ------------------------------------------------------------------------


def test_box_iou_hand_worked():
    boxes1 = np.array([[0, 0, 2, 2], [3, 3, 3, 3]], "f4")
    boxes2 = np.array([[0, 0, 2, 1], [1, 1, 3, 3], [3, 3, 3, 3]], "f4")
    expected = np.array([[1 / 2, 1 / 7, 0], [0, 0, 0]], "f4")
    assert np.array_equal(fnp.box_iou(boxes1, boxes2), expected)


@pytest.mark.parametrize("op", IOUS)
@pytest.mark.parametrize(
    ("shape1", "shape2"),
    [
        ((7, 4), (1030, 4)),
        ((0, 4), (5, 4)),
        ((5, 4), (0, 4)),
        ((3, 5, 4), (3, 17, 4)),
        ((0, 5, 4), (0, 3, 4)),
    ],
)
@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f4"), ("f2", "f4"), ("f2", "f2")])
def test_ious_are_those_of_torch(op, shape1, shape2, dtypes):
    boxes1, boxes2 = (
        random_boxes(int(np.prod(shape[:-1])), seed, dtype).reshape(shape)
        for seed, (shape, dtype) in enumerate(zip((shape1, shape2), dtypes, strict=True))
    )
    if boxes1.size and boxes2.size:
        boxes1[..., 0, :] = boxes2[..., 0, :] = [NAN, 0, 1, 1]
    theirs = getattr(fastdet, op)(*tensors(boxes1, boxes2))
    expect_same(getattr(fnp, op)(boxes1, boxes2), theirs)
    if op in IOUS[2:]:
        theirs = getattr(fastdet, op)(*tensors(boxes1, boxes2), eps=0.5)
        expect_same(getattr(fnp, op)(boxes1, boxes2, eps=0.5), theirs)


@pytest.mark.parametrize("name", IOUS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", ">i8"])
def test_ious_of_integers_are_those_of_float32(name, dtype):
    boxes1, boxes2 = (random_boxes(n).astype(dtype) for n in (6, 9))
    got = getattr(fnp, name)(boxes1, boxes2)
    assert got.dtype == np.float32
    expected = getattr(fnp, name)(boxes1.astype("f4"), boxes2.astype("f4"))
    assert np.array_equal(got, expected)
    wide = getattr(fnp, name)(boxes1.astype("f8"), boxes2)
    assert wide.dtype == np.float64


@pytest.mark.parametrize("fmt", ["xyxy", "xywh", "cxcywh"])
@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f2", "f8"), ("i8", "f2"), ("i4", "u1")])
def test_box_iou_of_other_formats_is_that_of_torch(fmt, dtypes):
    boxes1, boxes2 = (random_boxes(30, i).astype(dtype) for i, dtype in enumerate(dtypes))
    expect_same(
        fnp.box_iou(boxes1, boxes2, fmt), fastdet.box_iou(*tensors(boxes1, boxes2), fmt=fmt)
    )


# ---- match_anchors ------------------------------------------------------------------------------


def test_match_anchors_hand_worked():
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60], [NAN, 0, 1, 1]], "f4")
    index, iou = fnp.match_anchors(
        anchors, np.array([[[0, 0, 10, 10]]], "f4"), np.array([1]), 0.7, 0.5
    )
    assert index.tolist() == [[0, -2, -1, -2]]
    np.testing.assert_allclose(iou, [[1, 0.6, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("rule", ["anchor_best", "gt_best", "none"])
@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f4", "f8"), ("f2", "f2")])
@pytest.mark.parametrize("per_image", [False, True])
def test_match_anchors_is_that_of_torch(rule, dtypes, per_image):
    anchors = random_boxes(1200, 1, dtypes[0]).reshape((3, 400, 4) if per_image else (1200, 4))
    gt_boxes = random_boxes(60, 2, dtypes[1]).reshape(3, 20, 4)
    counts = np.array([20, 0, 7])
    expect_same(
        fnp.match_anchors(anchors, gt_boxes, counts, 0.6, 0.4, rule),
        fastdet.match_anchors(*tensors(anchors, gt_boxes, counts), 0.6, 0.4, rule),
    )
    empty = fnp.match_anchors(anchors[..., :0, :], gt_boxes, counts, 0.6, 0.4, rule)
    assert [x.shape for x in empty] == [(3, 0), (3, 0)]
    index, iou = fnp.match_anchors(anchors, gt_boxes[:, :0], counts, 0.6, 0.4, rule)
    assert (index == -1).all()
    assert (iou == 0).all()


# ---- dense assigners ----------------------------------------------------------------------------


def predictions_and_gts(dtypes: tuple[str, str]) -> tuple[np.ndarray, ...]:
    """Scores, boxes, points, gt_labels, gt_boxes and gt_counts of two images."""
    generator = np.random.default_rng(0)
    points = generator.random((300, 2)).astype(dtypes[1]) * 90
    boxes = np.concatenate([points - 8, points + 8], 1) + generator.random((2, 300, 4)) * 5
    corner = generator.random((2, 9, 2)) * 60
    gt_boxes = np.concatenate([corner, corner + 5 + generator.random((2, 9, 2)) * 40], 2)
    return (
        generator.random((2, 300, 7)).astype(dtypes[0]),
        boxes.astype(dtypes[1]),
        points,
        generator.integers(0, 7, (2, 9)),
        gt_boxes.astype(dtypes[1]),
        np.array([9, 4]),
    )


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f4", "f8"), ("f8", "f8")])
def test_assign_task_aligned_is_that_of_torch(dtypes):
    arguments = predictions_and_gts(dtypes)
    for numbers in ((), (5, 1.0, 2.0, 20.0)):
        got = fnp.assign_task_aligned(*arguments, *numbers)
        assert (got[0] >= 0).sum() > 9
        expect_same(got, fastdet.assign_task_aligned(*tensors(*arguments), *numbers))
    none = fnp.assign_task_aligned(
        *(x[:, :0] for x in arguments[:2]), arguments[2][:0], *arguments[3:]
    )
    assert none[0].shape == none[1].shape == (2, 0)


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f4", "f8"), ("f8", "f8")])
def test_assign_atss_is_that_of_torch(dtypes):
    _, boxes, _, _, gt_boxes, counts = predictions_and_gts(dtypes)
    anchors = boxes[0].astype(dtypes[0])
    for sizes, topk in (([200, 60, 40], 9), ((300,), 4)):
        got = fnp.assign_atss(anchors, sizes, gt_boxes, counts, topk)
        assert (got[0] >= 0).sum() > 3
        expected = fastdet.assign_atss(
            torch.from_numpy(anchors), sizes, *tensors(gt_boxes, counts), topk
        )
        expect_same(got, expected)
    assert fnp.assign_atss(anchors[:0], [0], gt_boxes, counts)[0].shape == (2, 0)


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f4", "f8"), ("f8", "f8")])
def test_assign_simota_is_that_of_torch(dtypes):
    scores, boxes, points, *gts = predictions_and_gts(dtypes)
    strides = np.linspace(2, 9, 300, dtype=dtypes[1])
    for numbers in ((), (1.5, 5, 0.5, 2.0)):
        got = fnp.assign_simota(scores, boxes, points, strides, *gts, *numbers)
        assert (got[0] >= 0).sum() > 9
        expected = fastdet.assign_simota(*tensors(scores, boxes, points, strides, *gts), *numbers)
        expect_same(got, expected)
    none = fnp.assign_simota(scores[:, :0], boxes[:, :0], points[:0], strides[:0], *gts)
    assert none[0].shape == none[1].shape == (2, 0)


# ---- linear_assignment, match_queries -----------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(3, 3), (2, 12, 30), (2, 2, 30, 12), (0, 4), (4, 0), (0, 2, 3)])
def test_linear_assignment_is_that_of_torch(shape, dtype):
    cost = np.random.default_rng(0).random(shape).astype(dtype)
    expect_same(fnp.linear_assignment(cost), fastdet.linear_assignment(*tensors(cost)))
    counts = np.full(shape[:-2], 2), np.full(shape[:-2], 1)
    torch_counts = [torch.from_numpy(own) for own in counts]
    expect_same(
        fnp.linear_assignment(cost, *counts),
        fastdet.linear_assignment(torch.from_numpy(cost), *torch_counts),
    )


def test_linear_assignment_hand_worked():
    cost = np.array([[1, 2], [1, 5], [NAN, INF]], "f4")
    assert fnp.linear_assignment(cost).tolist() == [1, 0, -1]
    assert fnp.linear_assignment(cost.T).tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["focal", "softmax"])
@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f4", "f8"), ("f8", "f8")])
def test_match_queries_is_that_of_torch(dtypes, kind):
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((2, 3, 24, 7)).astype(dtypes[0])
    boxes = generator.random((2, 3, 24, 4)).astype(dtypes[1])
    gts = generator.integers(0, 7, (3, 9)), generator.random((3, 9, 4)).astype(dtypes[1])
    arguments = (logits, boxes, *gts, np.array([9, 0, 4]))
    numbers = (1, 2, 3, 0.4, 1.5, kind, 2)
    expect_same(
        fnp.match_queries(*arguments, *numbers),
        fastdet.match_queries(*tensors(*arguments), *numbers),
    )
    none = fnp.match_queries(logits[..., :0, :], boxes[..., :0, :], *arguments[2:])
    assert none.shape == (2, 3, 0)


# ---- encode_boxes, decode_boxes -----------------------------------------------------------------


def test_decode_boxes_hand_worked():
    anchors = np.array([[0, 0, 10, 20]], "f4")
    deltas = np.array([[1, 0.5, np.log(2), 0]], "f4")
    boxes = fnp.decode_boxes(deltas, anchors)
    np.testing.assert_allclose(boxes, [[5, 10, 25, 30]], rtol=1e-6)
    np.testing.assert_allclose(fnp.encode_boxes(boxes, anchors), deltas, rtol=1e-5)
    clipped = fnp.decode_boxes(deltas, anchors, sizes=np.array([[25, 20]]))
    np.testing.assert_allclose(clipped, [[5, 10, 20, 25]], rtol=1e-6)


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f2", "f4"), ("f2", "f2"), ("f4", "f8")])
@pytest.mark.parametrize(
    ("shape", "anchor_shape"),
    [
        ((2, 30, 4), (30, 4)),
        ((2, 30, 4), (2, 30, 4)),
        ((2, 30, 4), (2, 1, 4)),
        ((2, 30, 4), (1, 30, 4)),
        ((2, 30, 4), (4,)),
        ((4,), (4,)),
        ((2, 0, 4), (0, 4)),
        ((0, 3, 4), (3, 4)),
    ],
)
def test_box_coding_is_that_of_torch(dtypes, shape, anchor_shape):
    generator = np.random.default_rng(3)
    deltas = (generator.standard_normal(shape) * 2).astype(dtypes[0])
    anchors = random_boxes(int(np.prod(anchor_shape[:-1])), 4, dtypes[1]).reshape(anchor_shape)
    weights = (10.0, 10.0, 5.0, 5.0)
    expect_same(
        fnp.encode_boxes(deltas, anchors, weights),
        fastdet.encode_boxes(*tensors(deltas, anchors), weights),
    )
    all_sizes = [None]
    if len(shape) == 3:
        all_sizes.append(np.array([[60, 80], [40, 90]])[: shape[0]])
    for sizes in all_sizes:
        theirs = None if sizes is None else torch.from_numpy(sizes)
        expect_same(
            fnp.decode_boxes(deltas, anchors, weights, sizes),
            fastdet.decode_boxes(*tensors(deltas, anchors), weights, theirs),
        )
    if anchor_shape == (30, 4):
        expect_same(
            fnp.encode_boxes(anchors, deltas), fastdet.encode_boxes(*tensors(anchors, deltas))
        )


# ---- layouts, threads, errors -------------------------------------------------------------------


def layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    """The same numbers in another memory layout."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    unaligned = np.frombuffer(b"\0" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)
    read_only = array.copy()
    read_only.flags.writeable = False
    return {
        "strided": wide[..., ::2],
        "Fortran": np.asfortranarray(array),
        "reversed": np.ascontiguousarray(array[::-1])[::-1],
        "big-endian": array.astype(array.dtype.newbyteorder(">")),
        "unaligned": unaligned,
        "read-only": read_only,
    }


@pytest.mark.parametrize("layout", list(layouts(np.zeros((1, 4)))))
def test_any_layout(layout):
    boxes, scores = random_boxes(40), random_scores(40)
    idxs = np.arange(40) % 2
    other_boxes, other_scores, other_idxs = (layouts(x)[layout] for x in (boxes, scores, idxs))
    assert np.array_equal(fnp.nms(other_boxes, other_scores, 0.5), fnp.nms(boxes, scores, 0.5))
    assert np.array_equal(
        fnp.batched_nms(other_boxes, other_scores, other_idxs, 0.5),
        fnp.batched_nms(boxes, scores, idxs, 0.5),
    )
    assert np.array_equal(fnp.box_iou(other_boxes, other_boxes), fnp.box_iou(boxes, boxes))
    assert np.array_equal(
        fnp.decode_boxes(other_boxes, other_boxes), fnp.decode_boxes(boxes, boxes)
    )


def test_idxs_of_other_integer_types():
    boxes, scores, idxs = random_boxes(40), random_scores(40), np.arange(40) % 3
    expected = fnp.batched_nms(boxes, scores, idxs, 0.5)
    for dtype in ("i1", "u1", "i4", "u8"):
        assert np.array_equal(fnp.batched_nms(boxes, scores, idxs.astype(dtype), 0.5), expected)


def test_the_gil_is_released():
    boxes1, boxes2 = random_boxes(1500), random_boxes(20_000)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    fnp.box_iou(boxes1[:1], boxes2)
    start = time.perf_counter()
    fnp.box_iou(boxes1, boxes2)
    end = time.perf_counter()
    done.set()
    ticker.join()
    assert sum(start < at < end for at in ticks) >= 2


def test_bad_input_is_named():
    boxes, scores = random_boxes(5), random_scores(5)
    with pytest.raises(ValueError, match=r"iou_threshold: expected a number in \[0, 1\], got 1.5"):
        fnp.nms(boxes, scores, 1.5)
    with pytest.raises(ValueError, match=r"nms: boxes: expected \(N, 4\), got float32 \(5, 3\)"):
        fnp.nms(boxes[:, :3], scores, 0.5)
    with pytest.raises(ValueError, match=r"scores: expected \(N,\) with the N of boxes, got .*4,"):
        fnp.nms(boxes, scores[:4], 0.5)
    with pytest.raises(TypeError, match="boxes: expected a NumPy array, got list"):
        fnp.nms(boxes.tolist(), scores, 0.5)
    with pytest.raises(TypeError, match=r"boxes: expected float16, float32 or float64, got int64"):
        fnp.nms(boxes.astype("i8"), scores, 0.5)
    with pytest.raises(TypeError, match=r"scores: expected float16, .* got complex64 \(5,\)"):
        fnp.nms(boxes, scores.astype("c8"), 0.5)
    with pytest.raises(TypeError, match=r"boxes2: expected float16, .* got longdouble|float128"):
        fnp.box_iou(boxes, boxes.astype(np.longdouble))
    with pytest.raises(ValueError, match=r"batched_nms: idxs: expected \(N,\).*int64 \(4,\)"):
        fnp.batched_nms(boxes, scores, np.zeros(4, "i8"), 0.5)
    with pytest.raises(TypeError, match="idxs: expected integers, got float32"):
        fnp.batched_nms(boxes, scores, scores, 0.5)
    with pytest.raises(
        ValueError, match=r"box_iou: boxes2: expected \(M, 4\), .*got .*\(1, 5, 4\)"
    ):
        fnp.box_iou(boxes, boxes[None])
    with pytest.raises(ValueError, match=r"box_iou: boxes2: expected .*\(B, M, 4\) with the B"):
        fnp.box_iou(boxes[None], np.stack([boxes, boxes]))
    with pytest.raises(
        ValueError, match=r"box_iou: boxes1: expected \(N, 4\) .*got float32 \(5, 3"
    ):
        fnp.box_iou(boxes[:, :3], boxes, fmt="xywh")
    with pytest.raises(ValueError, match=r"fmt: expected one of .*got 'yxyx'"):
        fnp.box_iou(boxes, boxes, fmt="yxyx")
    with pytest.raises(TypeError, match="boxes1: expected floating or integer boxes, got bool"):
        fnp.box_iou(boxes > 0, boxes)
    with pytest.raises(ValueError, match=r"method: expected one of .*'linear', 'gaussian'"):
        fnp.soft_nms(boxes, scores, method="hard")
    with pytest.raises(ValueError, match="sigma: expected a number > 0, got 0"):
        fnp.soft_nms(boxes, scores, sigma=0)
    with pytest.raises(ValueError, match="score_threshold: expected a number >= 0, got nan"):
        fnp.soft_nms(boxes, scores, score_threshold=NAN)
    counts = np.array([5])
    with pytest.raises(ValueError, match=r"low: expected a number <= high = 0.3, got 0.7"):
        fnp.match_anchors(boxes, boxes[None], counts, 0.3, 0.7)
    with pytest.raises(ValueError, match=r"low_quality: expected one of .*got 'best'"):
        fnp.match_anchors(boxes, boxes[None], counts, 0.7, 0.3, "best")
    with pytest.raises(ValueError, match=r"match_anchors: gt_boxes: expected \(B, G, 4\)"):
        fnp.match_anchors(boxes, boxes, counts, 0.7, 0.3)
    with pytest.raises(ValueError, match=r"match_anchors: gt_counts: expected \(B,\)"):
        fnp.match_anchors(boxes, boxes[None], np.array([5, 5]), 0.7, 0.3)
    with pytest.raises(ValueError, match=r"match_anchors: anchors: expected \(A, 4\)"):
        fnp.match_anchors(np.stack([boxes, boxes]), boxes[None], counts, 0.7, 0.3)
    with pytest.raises(
        ValueError, match=r"assign_atss: level_sizes: expected numbers with the sum A"
    ):
        fnp.assign_atss(boxes, [4], boxes[None], counts)
    dense = predictions_and_gts(("f4", "f4"))
    with pytest.raises(
        ValueError, match=r"assign_task_aligned: points: expected \(A, 2\) with the"
    ):
        fnp.assign_task_aligned(*dense[:2], dense[2][1:], *dense[3:])
    with pytest.raises(ValueError, match=r"assign_simota: strides: expected \(A,\) with the A of"):
        fnp.assign_simota(*dense[:3], dense[2], *dense[3:])
    with pytest.raises(ValueError, match=r"topk: expected a number in 1 .. 256, got 0"):
        fnp.assign_task_aligned(*dense, 0)
    with pytest.raises(ValueError, match=r"linear_assignment: cost: expected \(\.\.\., R, C\)"):
        fnp.linear_assignment(scores)
    with pytest.raises(ValueError, match=r"linear_assignment: row_counts: expected \(...\) with"):
        fnp.linear_assignment(boxes, counts)
    queries = (boxes[None], boxes[None], np.zeros((1, 5), "i8"), boxes[None], counts)
    with pytest.raises(ValueError, match=r"kind: expected one of .*got 'best'"):
        fnp.match_queries(*queries, kind="best")
    with pytest.raises(ValueError, match=r"match_queries: groups: expected a divisor of Q = 5"):
        fnp.match_queries(*queries, groups=2)
    with pytest.raises(ValueError, match=r"match_queries: alpha: expected a number in \[0, 1\], g"):
        fnp.match_queries(*queries, alpha=-1)
    with pytest.raises(ValueError, match=r"match_queries: gt_boxes: expected \(B, G, 4\)"):
        fnp.match_queries(*queries[:3], boxes, counts)
    for wrong in (0, -1, NAN, INF):
        for code in (fnp.encode_boxes, fnp.decode_boxes):
            with pytest.raises(ValueError, match="weights: expected four finite numbers > 0, got"):
                code(boxes, boxes, (1, wrong, 1, 1))
    for iou in (fnp.distance_box_iou, fnp.complete_box_iou):
        for eps in (-1e-7, NAN, INF):
            with pytest.raises(ValueError, match=f"eps: expected a finite number >= 0, got {eps}"):
                iou(boxes, boxes, eps)
    with pytest.raises(ValueError, match=r"encode_boxes: expected rows of 4, got boxes \(5, 3\)"):
        fnp.encode_boxes(boxes[:, :3], boxes)
    with pytest.raises(ValueError, match=r"encode_boxes: expected shapes that broadcast"):
        fnp.encode_boxes(boxes, boxes[:4])
    with pytest.raises(ValueError, match=r"decode_boxes: anchors: .*deltas \(5, 4\).*\(1, 5, 4\)"):
        fnp.decode_boxes(boxes, boxes[None])
    with pytest.raises(ValueError, match=r"decode_boxes: sizes: expected \(B, 2\) with the B"):
        fnp.decode_boxes(boxes[None], boxes, sizes=np.ones((3, 2), "i8"))
    with pytest.raises(ValueError, match=r"multiclass_nms: scores: expected \(N, C\) with the N"):
        fnp.multiclass_nms(boxes, boxes[:4], 0.1, 0.5)
    with pytest.raises(
        ValueError, match=r"multiclass_nms: scores: .*, here transposed, got .*4, 3"
    ):
        fnp.multiclass_nms(boxes, np.zeros((4, 3), "f4").T, 0.1, 0.5)
    with pytest.raises(ValueError, match=r"multiclass_nms: scores: expected \(N, C\)"):
        fnp.multiclass_nms(boxes, scores, 0.1, 0.5)
    with pytest.raises(ValueError, match="score_threshold: expected a number, got nan"):
        fnp.multiclass_nms(boxes, boxes, NAN, 0.5)
    with pytest.raises(ValueError, match="max_candidates: expected a number >= 0, got -1"):
        fnp.multiclass_nms(boxes, boxes, 0.1, 0.5, max_candidates=-1)


def test_bad_heads_are_named():
    logits, deltas, anchors, sizes = heads()
    numbers = (0.5, 50, 0.5, 30)

    def refused(match, logits=logits, deltas=deltas, anchors=anchors, sizes=sizes, numbers=numbers):
        with pytest.raises(ValueError, match=match):
            fnp.retinanet_detections(logits, deltas, anchors, sizes, *numbers)

    refused("logits: expected at least one level, got none", logits=[], deltas=[])
    refused("deltas: expected one for each level, 3, got 2", deltas=deltas[:2])
    refused(r"logits: expected \(B, A, C\) .* got float32 \(300, 5\)", [logits[0][0], *logits[1:]])
    refused(
        r"logits: expected .* got float32 \(2, 70, 4\)", [logits[0], logits[1][..., :4], logits[2]]
    )
    refused(r"deltas: expected \(B, A, 4\) with the B", deltas=[deltas[1], deltas[0], deltas[2]])
    refused(r"anchors: expected \(A, 4\), where A counts all levels", anchors=anchors[1:])
    refused(r"sizes: expected \(B, 2\) with the B", sizes=sizes[:1])
    refused(r"iou_threshold: expected a number in \[0, 1\], got 2", numbers=(0.5, 50, 2, 30))
    refused("topk_candidates: expected a number >= 0, got -1", numbers=(0.5, -1, 0.5, 30))
    with pytest.raises(TypeError, match=r"deltas: expected float16, .* got int64"):
        fnp.retinanet_detections(logits, [x.astype("i8") for x in deltas], anchors, sizes, *numbers)
