# SPDX-License-Identifier: BSD-3-Clause
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdet.numpy
from fastdet import _native
from fastdet.ops import weighted_boxes_fusion
from fastdet.ops.weighted_boxes_fusion import CONF_TYPES
from tests import reference

INF, NAN = float("inf"), float("nan")


def ensemble(
    n: int, models: int, classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes in [0, 1] that several models found about the same objects; no scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    objects = max(1, n // (2 * models))
    corner = torch.rand(objects, 2, generator=generator, dtype=torch.float64) * 0.8
    truth = torch.cat([corner, corner + 0.02 + corner.flip(0) * 0.2], 1)
    of_object = torch.randint(objects, (n,), generator=generator)
    sides = (truth[:, 2:] - truth[:, :2]).repeat(1, 2)[of_object]
    noise = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    boxes = (truth[of_object] + 0.1 * sides * noise).clamp(0, 1)
    boxes = torch.cat([boxes.view(n, 2, 2).amin(1), boxes.view(n, 2, 2).amax(1)], 1)
    scores = torch.rand(n, generator=generator, dtype=torch.float64)
    labels = of_object % classes
    return boxes.to(dtype), scores.to(dtype), labels, torch.arange(n) % models


def fuse(rows: tuple[Tensor, ...], weights: list[float], *rest: object) -> tuple[Tensor, ...]:
    return weighted_boxes_fusion(*rows, weights, *rest)


def test_hand_worked():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [20, 20, 24, 24], [0, 0, 4, 4]])
    scores = torch.tensor([0.75, 0.25, 0.5, 0.625])
    labels, models = torch.tensor([1, 1, 1, 7]), torch.tensor([0, 1, 0, 0])
    fused, new_scores, new_labels = fuse((boxes, scores, labels, models), [1, 1])
    assert fused.tolist() == [[0, 0, 4, 3.75], [0, 0, 4, 4], [20, 20, 24, 24]]
    assert new_scores.tolist() == [0.5, 0.3125, 0.25]  # a model did not find the last two
    assert new_labels.tolist() == [1, 7, 1]
    assert fused.dtype == torch.float32
    of_max = fuse((boxes, scores, labels, models), [1, 1], 0.55, 0.0, "max")
    assert of_max[1].tolist() == [0.75, 0.625, 0.5]
    # With weight 2 the second box comes third: 0.5 of it, 0.75 of the first.
    fused, new_scores, _ = fuse((boxes, scores, labels, models), [1, 2])
    assert fused[0].tolist() == pytest.approx([0, 0, 4, 3.6])
    assert new_scores[0].item() == pytest.approx(1.25 / 2 * 2 / 3)
    fused, *_ = fuse((boxes, scores, labels, models), [1, 1], 0.55, 0.3)
    assert fused.tolist() == [[0, 0, 4, 4], [0, 0, 4, 4], [20, 20, 24, 24]]


def test_a_box_joins_the_fused_box_that_it_overlaps_most():
    boxes = torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10], [4, 0, 14, 10]])
    rows = boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    fused, *_ = fuse((*rows, torch.arange(3)), [1, 1, 1], 0.3)
    assert sorted(fused[:, 0].tolist()) == pytest.approx([0, (6 * 0.8 + 4 * 0.7) / 1.5])


@pytest.mark.parametrize("allows_overflow", [False, True])
@pytest.mark.parametrize("conf_type", CONF_TYPES)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 60, 200])
def test_equals_reference(n, conf_type, allows_overflow):
    for weights in ([1.0], [1.0, 2.0, 0.5]):
        for threshold in (0.0, 0.55, 0.9):
            rows = ensemble(n, len(weights), seed=n)
            rest = (weights, threshold, 0.1, conf_type, allows_overflow)
            fused, scores, labels = weighted_boxes_fusion(*rows, *rest)
            expected = reference.weighted_boxes_fusion(*rows, *rest)
            np.testing.assert_allclose(fused, np.reshape(expected[0], (-1, 4)), atol=1e-6)
            np.testing.assert_allclose(scores, expected[1], rtol=1e-6)
            assert labels.tolist() == expected[2]


def test_more_models_than_bits_of_a_word():
    rows = ensemble(300, 130, classes=1)
    weights = torch.linspace(0.5, 2, 130).tolist()
    for conf_type in CONF_TYPES:
        got = weighted_boxes_fusion(*rows, weights, conf_type=conf_type)
        expected = reference.weighted_boxes_fusion(*rows, weights, 0.55, 0.0, conf_type, False)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-6)


@pytest.mark.parametrize("allows_overflow", [False, True])
@pytest.mark.parametrize("conf_type", CONF_TYPES)
@pytest.mark.parametrize("n", [1, 40, 900])
def test_equals_ensemble_boxes_to_the_bit(n, conf_type, allows_overflow):
    ensemble_boxes = pytest.importorskip("ensemble_boxes", exc_type=ImportError)
    weights = [1.0, 0.5, 2.0]
    boxes, scores, labels, models = ensemble(n, 3, seed=n)
    by_model = [torch.where(models == m)[0] for m in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # boxes without area, which we leave out without a word
        expected = ensemble_boxes.weighted_boxes_fusion(
            *([part[rows].numpy() for rows in by_model] for part in (boxes, scores, labels)),
            weights=weights,
            iou_thr=0.55,
            skip_box_thr=0.05,
            conf_type=conf_type,
            allows_overflow=allows_overflow,
        )
    got = weighted_boxes_fusion(
        boxes, scores, labels, models, weights, 0.55, 0.05, conf_type, allows_overflow
    )
    assert len(set(expected[1])) == len(expected[1])  # ties would make their order uncertain
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_boxes_that_take_no_part():
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(7, 1)
    boxes[0, 2], boxes[1, 0], boxes[2, 3] = 0, NAN, -1
    scores = torch.tensor([0.9, 0.8, 0.7, NAN, INF, 0.1, 0.3])
    rows = boxes, scores, torch.zeros(7, dtype=torch.int64), torch.zeros(7, dtype=torch.int64)
    fused, new_scores, _ = fuse(rows, [1.0], 0.5, 0.2)
    assert fused.tolist() == [[0, 0, 1, 1]]
    assert new_scores.tolist() == [pytest.approx(0.3)]


def test_equal_scores_keep_the_order_of_the_input():
    step = torch.arange(5)[:, None] * 10.0
    boxes = torch.cat([step, step, step + 1, step + 1], 1).flip(0)
    labels = torch.tensor([4, 0, 4, 1, 0])
    fused, _, new_labels = fuse((boxes, torch.ones(5), labels, torch.zeros_like(labels)), [1.0])
    assert fused.equal(boxes)
    assert new_labels.equal(labels)


def test_scores_of_zero_have_a_finite_mean():
    rows = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1.1]]), torch.zeros(2)
    ids = torch.zeros(2, dtype=torch.int64)
    fused, scores, _ = fuse((*rows, ids, ids), [1.0])
    assert fused.tolist() == [[0, 0, 1, 1]]
    assert scores.tolist() == [0]


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_a_permutation_changes_nothing(seed, n):
    rows = ensemble(n, 3, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    got = fuse(tuple(x[order] for x in rows), [1.0, 2.0, 3.0])
    for a, b in zip(got, fuse(rows, [1.0, 2.0, 3.0]), strict=True):
        torch.testing.assert_close(a, b)


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_fused_boxes_lie_between_their_members(seed, n):
    rows = ensemble(n, 2, classes=1, seed=seed)
    fused, scores, _ = fuse(rows, [1.0, 1.0], 0.4)
    eps = 1e-6
    assert (fused >= rows[0].amin(0) - eps).all()
    assert (fused <= rows[0].amax(0) + eps).all()
    assert (scores.diff() <= 0).all()
    assert (scores <= 1).all()


def test_every_instruction_set_has_the_same_bits():
    rows, before = ensemble(700, 3, classes=1), _native.cpu_isa()
    results = []
    try:
        for isa in _native.usable_cpu_isas():
            _native.set_cpu_isa(isa)
            results.append(fuse(rows, [1.0, 1.0, 1.0]))
    finally:
        _native.set_cpu_isa(before)
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_types(dtype):
    rows = ensemble(60, 3, dtype=dtype)
    fused, scores, _ = fuse(rows, [1.0, 1.0, 1.0])
    assert fused.dtype == scores.dtype == dtype
    wide = fuse((rows[0].double(), rows[1].double(), *rows[2:]), [1.0, 1.0, 1.0])
    assert fused.equal(wide[0].to(dtype))
    assert scores.equal(wide[1].to(dtype))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_numpy_has_the_same_bits(dtype):
    rows = ensemble(300, 3)
    boxes, scores = (x.numpy().astype(dtype) for x in rows[:2])
    ids = [x.numpy().astype(np.int32) for x in rows[2:]]
    ours = fastdet.numpy.weighted_boxes_fusion(boxes, scores, *ids, [1, 2, 3], 0.5, 0.1, "max")
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores), *rows[2:]
    theirs = weighted_boxes_fusion(*tensors, [1, 2, 3], 0.5, 0.1, "max")
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.numpy().dtype
        assert np.array_equal(a, b.numpy())


def test_opcheck():
    rows = ensemble(12, 2)
    arguments = (*rows, [1.0, 2.0], 0.55, 0.0, "avg", False)
    torch.library.opcheck(torch.ops.fastdet.weighted_boxes_fusion, arguments)


def test_bad_input_gets_one_clear_line():
    rows = ensemble(4, 2)
    arrays = [x.numpy() for x in rows]
    for weights in ([], [1.0, 0.0], [1.0, NAN], [1.0, INF]):
        with pytest.raises(ValueError, match=r"^weights: expected finite numbers > 0, got \["):
            fuse(rows, weights)
        with pytest.raises(ValueError, match=r"^weights: expected finite numbers > 0, got \["):
            fastdet.numpy.weighted_boxes_fusion(*arrays, weights)
    with pytest.raises(ValueError, match=r"^iou_threshold: expected a number in \[0, 1\], got 2"):
        fuse(rows, [1.0, 1.0], 2)
    with pytest.raises(ValueError, match=r"^conf_type: expected one of \('avg', .*, got 'mean'"):
        fuse(rows, [1.0, 1.0], 0.5, 0.0, "mean")
    expected = "fusion: models: expected indices of the 1 weights, got 1$"
    with pytest.raises(RuntimeError, match=expected):
        fuse(rows, [1.0])
    with pytest.raises(ValueError, match=expected):
        fastdet.numpy.weighted_boxes_fusion(*arrays, [1.0])
    with pytest.raises(RuntimeError, match=r"models: expected int64 \(N,\) with the N of boxes"):
        fuse((*rows[:3], rows[3][:2]), [1.0, 1.0])
