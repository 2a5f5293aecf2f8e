# SPDX-License-Identifier: BSD-3-Clause
"""assign_task_aligned against its definition in float64 and against Ultralytics' assigner."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import assign_task_aligned
from tests import reference

from .dense import Sample, grid, sample

INF, NAN = math.inf, math.nan


def expected(s: Sample, *numbers) -> tuple[Tensor, Tensor]:
    """The definition, image by image."""
    s = Sample(*(t.cpu() for t in s))
    index, metric = [], []
    for b, count in enumerate(s.gt_counts.clamp(0, s.gt_boxes.size(1)).tolist()):
        gts = s.gt_labels[b, :count], s.gt_boxes[b, :count]
        own = reference.assign_task_aligned(s.scores[b], s.boxes[b], s.points, *gts, *numbers)
        index.append(own[0])
        metric.append(own[1])
    shape = s.scores.shape[:2]
    return (
        torch.tensor(index, dtype=torch.int64).reshape(shape),
        torch.tensor(metric, dtype=torch.float64).reshape(shape),
    )


def expect_definition(s: Sample, device: str, *numbers, dtype: torch.dtype = torch.float64) -> None:
    rounded = s.to("cpu", dtype)
    index, metric = assign_task_aligned(*rounded.to(device, dtype), *numbers)
    assert index.is_contiguous()
    assert metric.is_contiguous()
    assert metric.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = expected(rounded, *numbers)
    assert index.cpu().equal(wanted[0])
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(
        metric.cpu().double(), wanted[1], rtol=tolerance, atol=0.1 * tolerance
    )


# ---- the definition -----------------------------------------------------------------------------


@pytest.mark.parametrize("gts", [0, 1, 2, 15, 16, 17, 40])
def test_equals_the_definition(gts, device):
    expect_definition(sample(gts), device)


@pytest.mark.parametrize("anchors", [0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 129])
def test_numbers_of_anchors(anchors, device):
    generator = torch.Generator().manual_seed(anchors)
    points = torch.rand(anchors, 2, generator=generator, dtype=torch.float64) * 128
    expect_definition(sample(9, points), device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("numbers", [(), (13, 1.0, 6.0), (5, 0.7, 2.0), (10, 0.5, 6.0, 16.0)])
def test_other_types(dtype, numbers, device):
    expect_definition(sample(20), device, *numbers, dtype=dtype)


@pytest.mark.parametrize(
    "numbers",
    [
        (1,),
        (3,),
        (256,),
        (13, 1.0, 6.0),
        (10, 1.0, 1.0),
        (10, 0.0, 2.5),
        (10, 2.0, 0.5),
        (10, 1.5, 0.0),
        (10, 0.5, 6.0, 8.0),
        (10, 0.5, 6.0, 40.0),
        (256, 0.5, 6.0, 1000.0),
    ],
)
def test_other_numbers(numbers, device):
    expect_definition(sample(20), device, *numbers)


def test_hand_worked(device):
    """Two gts share the points; each prediction fits one of them better."""
    gt_boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 20, 20]]])
    points = torch.tensor([[5.0, 5], [5, 5], [15, 15], [25, 25], [5, 10]])
    boxes = torch.stack(
        [gt_boxes[0, 0], gt_boxes[0, 1], gt_boxes[0, 1], gt_boxes[0, 1], gt_boxes[0, 0]]
    )
    scores = torch.full((1, 5, 2), 0.25)
    scores[0, 2] = 0.01
    s = Sample(scores, boxes[None], points, torch.tensor([[0, 1]]), gt_boxes, torch.tensor([2]))
    index, metric = assign_task_aligned(*(t.to(device) for t in s))
    # Anchor 3 is outside; anchor 4 is on the edge of gt 0, so it is a candidate of gt 1 alone.
    assert index.tolist() == [[0, 1, 1, -1, 1]]
    assert metric[0, :4].tolist() == pytest.approx([1, 1, 0.2, 0])
    assert 0 < metric[0, 4] < 0.01


def test_an_anchor_of_several_goes_to_the_largest_overlap_even_of_a_gt_that_did_not_pick_it(device):
    """Gt 2 fits anchor 0 best, but picks anchor 1, whose score is higher."""
    gt_boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 12]]])
    boxes = torch.tensor([[[0.0, 0, 10, 12], [0, 0, 10, 12]]])
    scores = torch.tensor([[[0.9, 0.9, 0.1], [0.0, 0.0, 0.9]]])
    points = torch.tensor([[5.0, 5], [5, 5]])
    s = Sample(scores, boxes, points, torch.tensor([[0, 1, 2]]), gt_boxes, torch.tensor([3]))
    index, metric = assign_task_aligned(*(t.to(device) for t in s), topk=1)
    assert index.tolist() == [[2, 2]]
    assert metric[0].tolist() == pytest.approx([(1 / 9) ** 0.5, 1])


def test_equal_candidates_are_picked_in_order(device):
    """Equal alignments: the lowest anchors. Equal overlaps: the lowest row."""
    points = torch.full((700, 2), 5.0)
    gts = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    boxes, scores = gts[:, :1].repeat(1, 700, 1), torch.full((1, 700, 2), 0.5)
    s = Sample(scores, boxes, points, torch.tensor([[1, 0, 1]]), gts, torch.tensor([3]))
    index, metric = assign_task_aligned(*(t.to(device) for t in s), topk=20)
    assert index.tolist() == [[0] * 20 + [-1] * 680]
    assert metric[0, :20].tolist() == pytest.approx([1.0] * 20)


@pytest.mark.parametrize("rising", [False, True])
def test_many_candidates(rising, device):
    """More than a warp of the device stores at once; the best come last, or first."""
    s = sample(4, torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) * 100, images=1)
    s.gt_boxes[:] = torch.tensor([-1.0, -1, 101, 101])
    s.boxes[:] = torch.tensor([0.0, 0, 90, 90])
    s.scores[0, :, :] = (torch.arange(2000.0)[:, None] + 1) / 2000
    if not rising:
        s = s._replace(scores=s.scores.flip(1))
    expect_definition(s, device)
    expect_definition(s, device, 256)


def test_a_crowd(device):
    """Most anchors are picked by several gts."""
    points = grid(64, (8, 16))[0]
    expect_definition(sample(300, points, images=1, extent=64), device)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("place", ["score", "box", "point", "gt box"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_are_not_finite(dtype, place, value, device):
    s = sample(12)
    if place == "score":
        s.scores[0, ::3, 2] = value
    elif place == "box":
        for corner in range(4):
            s.boxes[0, corner::9, corner] = value
    elif place == "point":
        s.points[::5, 1] = value
    else:
        for corner in range(4):
            s.gt_boxes[0, corner, corner] = value
    expect_definition(s, device, dtype=dtype)


def test_negative_scores_are_no_candidates(device):
    s = sample(12)
    s.scores[0, ::3] *= -1
    expect_definition(s, device)
    expect_definition(s, device, 10, 2.0, 1.0)


@pytest.mark.parametrize("min_side", [0.0, 20.0])
def test_gts_without_area_and_with_other_labels(min_side, device):
    s = sample(12)
    s.gt_boxes[0, 0, 2] = s.gt_boxes[0, 0, 0]
    s.gt_boxes[0, 1] = s.gt_boxes[0, 1].flip(0)
    s.gt_boxes[0, 2, 3] = s.gt_boxes[0, 2, 1] - 5
    s.gt_labels[0, 3:6] = torch.tensor([-1, 5, 2**40])
    expect_definition(s, device, 10, 0.5, 6.0, min_side)


def test_boxes_without_area(device):
    s = sample(12)
    s.boxes[0, ::2, 2:] = s.boxes[0, ::2, :2]
    s.boxes[0, 1::4] = s.boxes[0, 1::4].flip(-1)
    expect_definition(s, device)


def test_huge_numbers(device):
    s = sample(6).to("cpu", torch.float32)
    s.boxes[0, ::2] *= 1e30
    s.gt_boxes[0, ::2] *= 1e30
    index, metric = assign_task_aligned(*s.to(device, torch.float32))
    assert index.max() >= 0
    assert metric.isfinite().all()


def test_reads_nothing_beyond_the_counts(device):
    s = sample(9).to(device)
    s.gt_counts.copy_(torch.tensor([5, 9, 2]))
    wanted = assign_task_aligned(*s)
    s.gt_boxes[0, 5:], s.gt_labels[0, 5:] = NAN, 2**40
    s.gt_boxes[2, 2:], s.gt_labels[2, 2:] = s.boxes[2, 7], -5
    for a, b in zip(assign_task_aligned(*s), wanted, strict=True):
        assert a.equal(b)


def test_counts_beyond_both_ends(device):
    s = sample(9).to(device)
    s.gt_counts.copy_(torch.tensor([99, -3, 9]))
    within = s._replace(gt_counts=s.gt_counts.clamp(0, 9))
    for a, b in zip(assign_task_aligned(*s), assign_task_aligned(*within), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize(
    ("images", "anchors", "gts", "classes"),
    [(0, 5, 3, 4), (2, 0, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0), (0, 0, 0, 0)],
)
def test_empty(images, anchors, gts, classes, device):
    index, metric = assign_task_aligned(
        torch.zeros(images, anchors, classes, device=device),
        torch.zeros(images, anchors, 4, device=device),
        torch.zeros(anchors, 2, device=device),
        torch.zeros(images, gts, dtype=torch.int64, device=device),
        torch.ones(images, gts, 4, device=device),
        torch.full((images,), gts, device=device),
    )
    assert index.shape == metric.shape == (images, anchors)
    assert (index == -1).all()
    assert (metric == 0).all()


@given(st.integers(0, 10**6), st.integers(1, 100), st.integers(0, 8))
def test_permuted_anchors_permute_the_result(seed, anchors, gts):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(anchors, 2, generator=generator, dtype=torch.float64) * 128
    s = sample(gts, points, seed=seed)
    order = torch.randperm(anchors, generator=generator)
    moved = s._replace(scores=s.scores[:, order], boxes=s.boxes[:, order], points=points[order])
    for a, b in zip(assign_task_aligned(*moved), assign_task_aligned(*s), strict=True):
        assert a.equal(b[:, order])


# ---- Ultralytics --------------------------------------------------------------------------------


def by_ultralytics(s: Sample, topk: int, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Its index, -1 where the target is 0; and its target."""
    tal = pytest.importorskip("ultralytics.utils.tal", reason="ultralytics is not there")
    classes, gts = s.scores.size(2), s.gt_labels.size(1)
    assigner = tal.TaskAlignedAssigner(topk=topk, num_classes=classes, alpha=alpha, beta=beta)
    _, _, targets, foreground, index = assigner(
        s.scores,
        s.boxes,
        s.points,
        s.gt_labels[..., None],
        s.gt_boxes,
        (torch.arange(gts) < s.gt_counts[:, None])[..., None],
    )
    target = targets.sum(-1)
    return torch.where(foreground & (target > 0), index, -1), target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("numbers", [(10, 0.5, 6.0), (13, 1.0, 6.0), (7, 0.5, 2.0)])
@pytest.mark.parametrize("seed", range(5))
def test_equals_ultralytics(seed, numbers, dtype, device):
    """Predictions fit well enough that each gt finds topk candidates with an alignment above 0."""
    s = sample(12, images=2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    sides = 40 + 30 * torch.rand(2, 12, 2, generator=generator, dtype=torch.float64)
    s.gt_boxes[..., 2:] = s.gt_boxes[..., :2] + sides
    around = torch.cat([s.points - 25, s.points + 25], -1)
    s = s._replace(boxes=around + (s.boxes - around) * 0.2).to("cpu", dtype)
    index, metric = assign_task_aligned(*s.to(device, dtype), *numbers, min_side=16.0)
    theirs, target = by_ultralytics(s, *numbers)
    assert index.cpu().equal(theirs)
    torch.testing.assert_close(metric.cpu(), target, rtol=1e-4, atol=1e-6)
    assert (index >= 0).sum() > 20


# ---- the operator -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [2, 3])
def test_result_does_not_depend_on_the_thread_count(num_threads):
    s = sample(200, grid(640)[0], extent=640, images=2).to("cpu", torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            results.append(assign_task_aligned(*s))
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_scores_of_any_strides(device):
    s = sample(20).to(device)
    wanted = assign_task_aligned(*s)
    by_class = s._replace(scores=s.scores.transpose(1, 2).contiguous().transpose(1, 2))
    repeated = s._replace(scores=s.scores[:1, :, :1].expand(3, -1, 5))
    for a, b in zip(assign_task_aligned(*by_class), wanted, strict=True):
        assert a.equal(b)
    copied = repeated._replace(scores=repeated.scores.contiguous())
    for a, b in zip(assign_task_aligned(*repeated), assign_task_aligned(*copied), strict=True):
        assert a.equal(b)


def test_types_may_differ(device):
    """As under autocast: half scores with boxes in float32, or in float64."""
    s = sample(20).to("cpu", torch.float32)
    s = s._replace(scores=s.scores.bfloat16())
    index, metric = assign_task_aligned(*(t.to(device) for t in s))
    assert metric.dtype == torch.float32
    assert index.cpu().equal(expected(s)[0])
    wide = s._replace(gt_boxes=s.gt_boxes.double())
    index, metric = assign_task_aligned(*(t.to(device) for t in wide))
    assert metric.dtype == torch.float64
    assert index.cpu().equal(expected(wide)[0])


def test_gradients_do_not_flow(device):
    s = sample(5).to(device)
    s.scores.requires_grad_()
    s.boxes.requires_grad_()
    assert not assign_task_aligned(*s)[1].requires_grad


@pytest.mark.parametrize("gts", [0, 5])
def test_opcheck(gts, device):
    arguments = (*sample(gts).to(device, torch.float32), 10, 0.5, 6.0, 0.0)
    torch.library.opcheck(torch.ops.fastdet.assign_task_aligned, arguments)


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def total(*tensors: Tensor) -> Tensor:
        index, metric = assign_task_aligned(*tensors)
        return torch.where(index >= 0, metric, 0).sum(1)

    s = sample(5).to(device, torch.float32)
    compiled = torch.compile(total, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(*s), total(*s))


def test_bad_numbers_are_named(device):
    s = sample(3).to(device)
    for name, number, words in (
        ("topk", 0, r"a number in 1 .. 256, got 0"),
        ("topk", 257, r"a number in 1 .. 256, got 257"),
        ("alpha", -1, "a finite number >= 0, got -1"),
        ("beta", NAN, "a finite number >= 0, got nan"),
        ("min_side", INF, "a finite number >= 0, got inf"),
    ):
        with pytest.raises(RuntimeError, match=f"{name}: expected {words}"):
            assign_task_aligned(*s, **{name: number})


def test_bad_input_is_named(device):
    s = sample(3).to(device)
    for field, bad, message in (
        ("scores", s.scores[0], r"scores: expected floating \(B, A, C\), got Double \(336, 5\)"),
        ("scores", s.scores.long(), r"scores: expected floating .*got Long"),
        ("boxes", s.boxes[:, 1:], r"boxes: expected floating \(B, A, 4\).*got Double \(3, 335, 4"),
        ("boxes", s.boxes[..., 1:], r"boxes: expected floating .*got Double \(3, 336, 3\)"),
        ("points", s.points[1:], r"points: expected floating \(A, 2\).*got Double \(335, 2\)"),
        ("points", s.boxes[0], r"points: expected floating \(A, 2\).*got Double \(336, 4\)"),
        ("gt_labels", s.gt_labels[1:], r"gt_labels: expected int64 \(B, G\).*got Long \(2, 3\)"),
        ("gt_labels", s.gt_labels.int(), r"gt_labels: expected int64 \(B, G\).*got Int"),
        ("gt_boxes", s.gt_boxes[:, 1:], r"gt_boxes: expected floating \(B, G, 4\).*got Double"),
        ("gt_counts", s.gt_counts.int(), r"gt_counts: expected int64 \(B,\).*got Int"),
    ):
        with pytest.raises(RuntimeError, match=message):
            assign_task_aligned(*s._replace(**{field: bad}))
