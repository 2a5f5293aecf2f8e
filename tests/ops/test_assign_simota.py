# SPDX-License-Identifier: BSD-3-Clause
"""assign_simota against its definition in float64, and against mmdetection's form in torch."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fastdet.ops import assign_simota
from tests import reference

from . import dense
from .dense import grid

INF, NAN = math.inf, math.nan


class Sample(NamedTuple):
    scores: Tensor  # (B, A, C)
    boxes: Tensor  # (B, A, 4)
    points: Tensor  # (A, 2)
    strides: Tensor  # (A,)
    gt_labels: Tensor  # (B, G)
    gt_boxes: Tensor  # (B, G, 4)
    gt_counts: Tensor

    def to(self, device: str, dtype: torch.dtype = torch.float64) -> "Sample":
        return dense.moved(self, device, dtype)


def sample(gts: int, anchors: tuple[Tensor, Tensor] | None = None, *numbers, **options) -> Sample:
    """As `dense.sample`, of anchors with strides."""
    points, strides = grid(128) if anchors is None else anchors
    own = dense.sample(gts, points, *numbers, **options)
    return Sample(*own[:3], strides, *own[3:])


def scattered(anchors: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(anchors, 2, generator=generator, dtype=torch.float64) * 128
    return points, 4 + 20 * torch.rand(anchors, generator=generator, dtype=torch.float64)


def expect_definition(s: Sample, device: str, *numbers, dtype: torch.dtype = torch.float64) -> None:
    s = s.to("cpu", dtype)
    index, iou = assign_simota(*s.to(device, dtype), *numbers)
    assert index.is_contiguous()
    assert iou.is_contiguous()
    assert index.shape == iou.shape == s.scores.shape[:2]
    assert iou.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for b, count in enumerate(s.gt_counts.clamp(0, s.gt_boxes.size(1)).tolist()):
        gts = s.gt_labels[b, :count], s.gt_boxes[b, :count]
        expected = reference.assign_simota(
            s.scores[b], s.boxes[b], s.points, s.strides, *gts, *numbers
        )
        assert index[b].tolist() == expected[0]
        assert iou[b].tolist() == pytest.approx(expected[1], rel=1e-5, abs=1e-6)


# ---- the definition -----------------------------------------------------------------------------


@pytest.mark.parametrize("gts", [0, 1, 2, 15, 16, 17, 40])
def test_equals_the_definition(gts, device):
    expect_definition(sample(gts), device)


@pytest.mark.parametrize("anchors", [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 129])
def test_numbers_of_anchors(anchors, device):
    expect_definition(sample(9, scattered(anchors)), device)


@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 31, 255, 256, 257, 600])
def test_numbers_of_classes(classes, device):
    s = sample(6, scattered(70), classes, images=1)
    expect_definition(s, device)
    expect_definition(s._replace(scores=s.scores**8), device, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("numbers", [(), (1.5, 5, 0.5, 2.0)])
def test_other_types(dtype, numbers, device):
    expect_definition(sample(20), device, *numbers, dtype=dtype)


@pytest.mark.parametrize(
    "numbers",
    [
        (0.0,),
        (0.5,),
        (100.0,),
        (2.5, 1),
        (2.5, 256),
        (2.5, 10, 0.0, 3.0),
        (2.5, 10, 1.0, 0.0),
        (2.5, 10, -1.0, -2.0),
    ],
)
def test_other_numbers(numbers, device):
    expect_definition(sample(20), device, *numbers)


def test_hand_worked(device):
    """IoUs 1, 1 and 0.5: the gt picks two; of three equal class costs the IoUs decide."""
    gt = torch.tensor([0.0, 0, 16, 16])
    boxes = torch.stack([gt, torch.tensor([0.0, 0, 16, 8]), gt, gt + 100])[None]
    points = torch.tensor([[8.0, 8], [8, 8], [8, 8], [108, 108]])
    scores, strides = torch.full((1, 4, 2), 0.5), torch.full((4,), 8.0)
    arguments = (scores, boxes, points, strides, torch.tensor([[1]]), gt[None, None])
    arguments = tuple(t.to(device) for t in (*arguments, torch.tensor([1])))
    index, iou = assign_simota(*arguments)
    assert index.tolist() == [[0, -1, 0, -1]]
    assert iou.tolist() == [[1, 0, 1, 0]]
    # With the scores of another class high, anchor 0 costs more than anchor 1.
    arguments[0][0, 0, 0] = 0.95
    assert assign_simota(*arguments)[0].tolist() == [[-1, 0, 0, -1]]
    assert assign_simota(*arguments, candidate_topk=1)[0].tolist() == [[-1, -1, 0, -1]]


def test_others_are_picked_only_after_central_ones(device):
    """Gt 1 contains no point, and picks among the candidates of gt 0."""
    gt_boxes = torch.tensor([[[0.0, 0, 40, 40], [101, 101, 103, 103]]])
    points = torch.tensor([[20.0, 20], [4, 4], [500, 500]])
    boxes = torch.stack([gt_boxes[0, 0], gt_boxes[0, 0], gt_boxes[0, 1]])[None]
    s = Sample(
        torch.full((1, 3, 1), 0.5),
        boxes,
        points,
        torch.full((3,), 4.0),
        torch.tensor([[0, 0]]),
        gt_boxes,
        torch.tensor([2]),
    )
    # Anchor 2 fits gt 1, but it is no candidate: it is in no gt and near no centre.
    index = assign_simota(*(t.to(device) for t in s))[0]
    assert index.tolist() == [[0, 0, -1]]
    expect_definition(s, device)
    # Anchor 1 costs both gts less than anchor 0, but only anchor 0 is central to gt 0.
    s.scores[0, 0], s.scores[0, 1] = 0.1, 0.9
    assert assign_simota(*(t.to(device) for t in s), candidate_topk=1)[0].tolist() == [[0, 1, -1]]


def test_equal_candidates_are_picked_in_order(device):
    """Equal costs: the lowest anchors, and the lowest row."""
    points, strides = torch.full((700, 2), 5.0), torch.full((700,), 8.0)
    gts = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    boxes, scores = gts[:, :1].repeat(1, 700, 1), torch.full((1, 700, 2), 0.5)
    s = Sample(scores, boxes, points, strides, torch.tensor([[1, 0, 1]]), gts, torch.tensor([3]))
    index, iou = assign_simota(*(t.to(device) for t in s), candidate_topk=20)
    assert index.tolist() == [[0] * 20 + [-1] * 680]
    assert iou[0].tolist() == [1.0] * 20 + [0.0] * 680


@pytest.mark.parametrize("rising", [False, True])
def test_many_candidates(rising, device):
    """More than a warp of the device stores at once; the cheapest come last, or first."""
    s = sample(3, scattered(2000), classes=2, images=1)
    s.strides[:] = 50
    s.gt_boxes[:] = torch.tensor([-1.0, -1, 129, 129])
    s.boxes[:] = torch.tensor([0.0, 0, 120, 120])
    s.scores[0] = (torch.arange(2000.0, dtype=torch.float64)[:, None] + 1) / 2001
    if not rising:
        s = s._replace(scores=s.scores.flip(1))
    expect_definition(s, device)
    expect_definition(s, device, 2.5, 256)


def test_a_crowd(device):
    """Most anchors are picked by several gts, also by some that they are not central to."""
    expect_definition(sample(200, grid(64, (8, 16)), images=1, extent=64), device)


def test_small_gts(device):
    """Most gts contain no point."""
    s = sample(60)
    s.gt_boxes[..., 2:] = s.gt_boxes[..., :2] + 3
    expect_definition(s, device)
    expect_definition(s, device, 0.25)


@pytest.mark.parametrize("value", [NAN, INF, -INF, -0.25, 1.25])
@pytest.mark.parametrize("place", ["score", "box", "point", "stride", "gt box"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_are_not_finite_or_no_probabilities(dtype, place, value, device):
    s = sample(12)
    if place == "score":
        s.scores[0, ::3, 2] = value
    elif place == "box":
        for corner in range(4):
            s.boxes[0, corner::9, corner] = value
    elif place == "point":
        s.points[::5, 1] = value
    elif place == "stride":
        s.strides[::5] = value
    else:
        for corner in range(4):
            s.gt_boxes[0, corner, corner] = value
    expect_definition(s, device, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_0_and_1(dtype, device):
    """No logarithm counts more than 100."""
    s = sample(20)
    generator = torch.Generator().manual_seed(1)
    hit = torch.rand(s.scores.shape, generator=generator)
    s.scores[hit < 0.1], s.scores[hit > 0.9] = 0, 1
    expect_definition(s, device, dtype=dtype)


def test_gts_without_area_and_with_other_labels(device):
    s = sample(12)
    s.gt_boxes[0, 0, 2] = s.gt_boxes[0, 0, 0]
    s.gt_boxes[0, 1] = s.gt_boxes[0, 1].flip(0)
    s.gt_boxes[0, 2, 3] = s.gt_boxes[0, 2, 1] - 5
    s.gt_labels[0, 3:6] = torch.tensor([-1, 5, 2**40])
    expect_definition(s, device)


def test_boxes_without_area(device):
    s = sample(12)
    s.boxes[0, ::2, 2:] = s.boxes[0, ::2, :2]
    s.boxes[0, 1::4] = s.boxes[0, 1::4].flip(-1)
    expect_definition(s, device)


def test_reads_nothing_beyond_the_counts(device):
    s = sample(9).to(device)
    s.gt_counts.copy_(torch.tensor([5, 9, 2]))
    wanted = assign_simota(*s)
    s.gt_boxes[0, 5:], s.gt_labels[0, 5:] = NAN, 2**40
    s.gt_boxes[2, 2:], s.gt_labels[2, 2:] = s.boxes[2, 7], -5
    for a, b in zip(assign_simota(*s), wanted, strict=True):
        assert a.equal(b)


def test_counts_beyond_both_ends(device):
    s = sample(9).to(device)
    s.gt_counts.copy_(torch.tensor([99, -3, 9]))
    within = s._replace(gt_counts=s.gt_counts.clamp(0, 9))
    for a, b in zip(assign_simota(*s), assign_simota(*within), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize(
    ("images", "anchors", "gts", "classes"),
    [(0, 5, 3, 4), (2, 0, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0), (0, 0, 0, 0)],
)
def test_empty(images, anchors, gts, classes, device):
    index, iou = assign_simota(
        torch.zeros(images, anchors, classes, device=device),
        torch.zeros(images, anchors, 4, device=device),
        torch.zeros(anchors, 2, device=device),
        torch.ones(anchors, device=device),
        torch.zeros(images, gts, dtype=torch.int64, device=device),
        torch.ones(images, gts, 4, device=device),
        torch.full((images,), gts, device=device),
    )
    assert index.shape == iou.shape == (images, anchors)
    assert (index == -1).all()
    assert (iou == 0).all()


@given(st.integers(0, 10**6), st.integers(1, 100), st.integers(0, 8))
def test_permuted_anchors_permute_the_result(seed, anchors, gts):
    s = sample(gts, scattered(anchors, seed), seed=seed)
    order = torch.randperm(anchors, generator=torch.Generator().manual_seed(seed))
    moved = s._replace(
        scores=s.scores[:, order],
        boxes=s.boxes[:, order],
        points=s.points[order],
        strides=s.strides[order],
    )
    for a, b in zip(assign_simota(*moved), assign_simota(*s), strict=True):
        assert a.equal(b[:, order])


# ---- mmdetection --------------------------------------------------------------------------------


def by_matrices(s: Sample) -> Tensor:
    """The steps of mmdetection's SimOTAAssigner for the first image, with torch's matrices."""
    scores, boxes, labels, gts = s.scores[0], s.boxes[0], s.gt_labels[0], s.gt_boxes[0]
    point = s.points[:, None]  # (A, 1, 2)
    centre, reach = (gts[:, :2] + gts[:, 2:]) / 2, 2.5 * s.strides[:, None, None]
    in_box = torch.cat([point - gts[:, :2], gts[:, 2:] - point], -1).amin(-1) > 0  # (A, G)
    in_centre = torch.cat([point - (centre - reach), centre + reach - point], -1).amin(-1) > 0
    valid = (in_box | in_centre).any(1).nonzero().squeeze(1)
    low, high = boxes[valid, None, :2], boxes[valid, None, 2:]
    inter = (torch.minimum(high, gts[:, 2:]) - torch.maximum(low, gts[:, :2])).clamp(min=0).prod(-1)
    overlap = inter / ((high - low).prod(-1) + (gts[:, 2:] - gts[:, :2]).prod(-1) - inter)
    target = functional.one_hot(labels, scores.size(1)).to(scores.dtype)
    pairs = len(valid), len(gts), scores.size(1)
    by_class = functional.binary_cross_entropy(
        scores[valid, None].expand(pairs), target.expand(pairs), reduction="none"
    ).sum(-1)
    cost = by_class - 3 * (overlap + 1e-7).log() + 100_000 * ~(in_box & in_centre)[valid]
    picks = overlap.topk(min(10, len(valid)), 0).values.sum(0).int().clamp(min=1)
    picked = torch.zeros_like(cost, dtype=torch.bool)
    for g, k in enumerate(picks.tolist()):
        picked[cost[:, g].topk(k, largest=False).indices, g] = True
    several = picked.sum(1) > 1
    cheapest = functional.one_hot(cost.argmin(1), len(gts)).bool()
    picked = torch.where(several[:, None], cheapest, picked)
    index = torch.full((len(boxes),), -1)
    index[valid] = torch.where(picked.any(1), picked.int().argmax(1), -1)
    return index


@pytest.mark.parametrize("seed", range(5))
def test_equals_mmdetection(seed, device):
    """In float64: in float32 its costs beyond 100,000 have two decimals."""
    s = sample(15, seed=seed, images=1)
    index, _ = assign_simota(*s.to(device))
    assert index[0].cpu().equal(by_matrices(s))
    assert (index >= 0).sum() > 15


# ---- the operator -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [2, 3])
def test_result_does_not_depend_on_the_thread_count(num_threads):
    s = sample(200, grid(640), extent=640, images=2).to("cpu", torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            results.append(assign_simota(*s))
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_types_may_differ(device):
    """As under autocast: half scores with boxes in float32, or in float64."""
    s = sample(20).to("cpu", torch.float32)
    s = s._replace(scores=s.scores.bfloat16())
    wide = s._replace(strides=s.strides.double())
    for mixed, dtype in ((s, torch.float32), (wide, torch.float64)):
        index, iou = assign_simota(*(t.to(device) for t in mixed))
        assert iou.dtype == dtype
        same = assign_simota(*mixed.to(device, dtype))
        assert index.equal(same[0])
        assert iou.equal(same[1])


def test_gradients_do_not_flow(device):
    s = sample(5).to(device)
    s.scores.requires_grad_()
    s.boxes.requires_grad_()
    assert not assign_simota(*s)[1].requires_grad


@pytest.mark.parametrize("gts", [0, 5])
def test_opcheck(gts, device):
    arguments = (*sample(gts).to(device, torch.float32), 2.5, 10, 1.0, 3.0)
    torch.library.opcheck(torch.ops.fastdet.assign_simota, arguments)


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def total(*tensors: Tensor) -> Tensor:
        index, iou = assign_simota(*tensors)
        return torch.where(index >= 0, iou, 0).sum(1)

    s = sample(5).to(device, torch.float32)
    compiled = torch.compile(total, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(*s), total(*s))


def test_bad_numbers_are_named(device):
    s = sample(3).to(device)
    for name, number, words in (
        ("candidate_topk", 0, r"a number in 1 .. 256, got 0"),
        ("candidate_topk", 257, r"a number in 1 .. 256, got 257"),
        ("center_radius", -1, "a finite number >= 0, got -1"),
        ("cls_weight", NAN, "a finite number, got nan"),
        ("iou_weight", -INF, "a finite number, got -inf"),
    ):
        with pytest.raises(RuntimeError, match=f"{name}: expected {words}"):
            assign_simota(*s, **{name: number})


def test_bad_input_is_named(device):
    s = sample(3).to(device)
    for field, bad, message in (
        ("scores", s.scores[0], r"scores: expected floating \(B, A, C\), got Double \(336, 5\)"),
        ("boxes", s.boxes[:, 1:], r"boxes: expected floating \(B, A, 4\).*got Double \(3, 335, 4"),
        ("points", s.points[1:], r"points: expected floating \(A, 2\).*got Double \(335, 2\)"),
        ("strides", s.points, r"strides: expected floating \(A,\).*got Double \(336, 2\)"),
        ("strides", s.strides.long(), r"strides: expected floating \(A,\).*got Long"),
        ("gt_labels", s.gt_labels.int(), r"gt_labels: expected int64 \(B, G\).*got Int"),
        ("gt_boxes", s.gt_boxes[:, 1:], r"gt_boxes: expected floating \(B, G, 4\).*got Double"),
        ("gt_counts", s.gt_counts.int(), r"gt_counts: expected int64 \(B,\).*got Int"),
    ):
        with pytest.raises(RuntimeError, match=message):
            assign_simota(*s._replace(**{field: bad}))
