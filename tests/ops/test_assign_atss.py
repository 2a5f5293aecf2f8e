# SPDX-License-Identifier: BSD-3-Clause
"""assign_atss against its definition, and against mmdetection's form of it in torch."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import assign_atss
from tests import reference

INF, NAN = math.inf, math.nan


class Sample(NamedTuple):
    anchors: Tensor  # (A, 4)
    level_sizes: list[int]
    gt_boxes: Tensor  # (B, G, 4)
    gt_counts: Tensor

    def to(self, device: str, dtype: torch.dtype = torch.float32) -> "Sample":
        boxes = self.anchors.to(device, dtype), self.gt_boxes.to(device, dtype)
        return Sample(boxes[0], self.level_sizes, boxes[1], self.gt_counts.to(device))


def pyramid(side: int, strides: tuple[int, ...], scale: float = 8, at_a_place: int = 1) -> Sample:
    """Square anchors, `at_a_place` on each point of each level; no gts."""
    levels = []
    for stride in strides:
        y, x, k = torch.meshgrid(
            torch.arange(stride / 2, side, stride),
            torch.arange(stride / 2, side, stride),
            torch.arange(float(at_a_place)),
            indexing="ij",
        )
        half = scale * stride / 2 * (1 + 0.3 * k)
        levels.append(torch.stack([x - half, y - half, x + half, y + half], -1).reshape(-1, 4))
    sizes = [len(level) for level in levels]
    return Sample(torch.cat(levels), sizes, torch.zeros(0, 0, 4), torch.zeros(0).long())


def random_gts(images: int, gts: int, side: float = 128, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The first image has all gts, the second a few, the third none."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, gts, 2, generator=generator) * side * 0.8
    sides = 2 + torch.rand(images, gts, 2, generator=generator) * side * 0.6
    counts = torch.tensor([gts, gts // 3, 0, *[gts] * images][:images])
    return torch.cat([corner, corner + sides], -1), counts


def sample(gts: int, seed: int = 0, images: int = 3, **options) -> Sample:
    boxes, counts = random_gts(images, gts, seed=seed)
    made = pyramid(128, (8, 16, 32), **options)
    return made._replace(gt_boxes=boxes, gt_counts=counts)


def expect_definition(s: Sample, device: str, topk: int = 9, dtype=torch.float32) -> None:
    s = s.to("cpu", dtype)
    index, iou = assign_atss(*s.to(device, dtype), topk)
    assert index.is_contiguous()
    assert iou.is_contiguous()
    assert iou.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert index.shape == iou.shape == (len(s.gt_boxes), len(s.anchors))
    for b, count in enumerate(s.gt_counts.clamp(0, s.gt_boxes.size(1)).tolist()):
        expected = reference.assign_atss(s.anchors, s.level_sizes, s.gt_boxes[b, :count], topk)
        assert index[b].tolist() == expected[0]
        assert iou[b].double().tolist() == expected[1]


# ---- the definition -----------------------------------------------------------------------------


@pytest.mark.parametrize("at_a_place", [1, 3])
@pytest.mark.parametrize("gts", [0, 1, 2, 16, 40])
def test_equals_the_definition(gts, at_a_place, device):
    expect_definition(sample(gts, at_a_place=at_a_place), device)


@pytest.mark.parametrize("topk", [1, 2, 4, 17, 64, 256])
def test_numbers_of_candidates(topk, device):
    expect_definition(sample(12), device, topk)
    expect_definition(sample(12, at_a_place=3), device, topk)


@pytest.mark.parametrize("size", [0, 1, 2, 8, 9, 10, 63, 64, 65, 128, 129, 600])
def test_sizes_of_levels(size, device):
    generator = torch.Generator().manual_seed(size)
    corner = torch.rand(size + 70, 2, generator=generator) * 100
    sides = 4 + torch.rand(size + 70, 2, generator=generator) * 50
    anchors = torch.cat([corner, corner + sides], 1)
    for sizes in ([size, 70], [70, size, 0], [size + 70]):
        expect_definition(Sample(anchors, sizes, *random_gts(3, 9)), device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype, device):
    s = sample(20)
    expect_definition(s._replace(gt_boxes=s.gt_boxes / 3, anchors=s.anchors / 3), device, 9, dtype)


def test_hand_worked(device):
    """IoUs 1, 0.5, 0.25, 0: mean 0.4375 and deviation 0.4270, so only the first is positive."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 5, 5], [20, 20, 30, 30]])
    gts, counts = torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([1])
    arguments = (anchors.to(device), [4], gts.to(device), counts.to(device))
    index, iou = assign_atss(*arguments)
    assert index.tolist() == [[0, -1, -1, -1]]
    assert iou.tolist() == [[1, 0, 0, 0]]
    # IoUs 1 and 0.5 alone: mean 0.75, deviation 0.3536; none reaches 1.1.
    assert assign_atss(*arguments, topk=2)[0].tolist() == [[-1, -1, -1, -1]]
    # A level has one anchor each: all four count again.
    assert assign_atss(arguments[0], [1, 1, 1, 1], *arguments[2:])[0].tolist() == [[0, -1, -1, -1]]


def test_equal_ious_all_reach_the_threshold(device):
    third = torch.tensor([[0.0, 0, 7, 3]])
    gts = torch.tensor([[[0.0, 0, 7, 9]]])
    arguments = (
        third.repeat(7, 1).to(device),
        [3, 4],
        gts.to(device),
        torch.tensor([1]).to(device),
    )
    assert assign_atss(*arguments)[0].tolist() == [[0] * 7]


def test_a_single_candidate_is_positive(device):
    arguments = (torch.tensor([[0.0, 0, 9, 9]]), [1], torch.tensor([[[0.0, 0, 10, 10]]]))
    arguments = (
        arguments[0].to(device),
        [1],
        arguments[2].to(device),
        torch.tensor([1]).to(device),
    )
    assert assign_atss(*arguments)[0].tolist() == [[0]]


def test_an_anchor_of_several_goes_to_the_largest_iou(device):
    """Gts 1 and 2 are equal: the lowest row."""
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    gts = torch.tensor([[[0.0, 0, 10, 12], [0, 0, 10, 11], [0, 0, 10, 11]]])
    index, iou = assign_atss(
        anchors.to(device), [1], gts.to(device), torch.tensor([3], device=device)
    )
    assert index.tolist() == [[1]]
    assert iou[0, 0].item() == pytest.approx(10 / 11)


def test_centres_must_be_inside_by_a_margin(device):
    """The centres' depths are 0.0078125 and 0.015625 pixels."""
    gts = torch.tensor([[[0.0, 0, 40, 40]]])
    for depth, expected in ((1 / 128, -1), (1 / 64, 0)):
        anchors = torch.tensor([[depth - 8, 12, depth + 8, 28]])
        arguments = (anchors.to(device), [1], gts.to(device), torch.tensor([1], device=device))
        assert assign_atss(*arguments)[0].tolist() == [[expected]]


def test_equal_distances_are_picked_in_order(device):
    """600 anchors in one place, and some before and behind them that are nearer."""
    anchors = torch.tensor([[0.0, 0, 20, 20]]).repeat(600, 1)
    anchors[::2] += torch.tensor([3.0, 0, 3, 0])
    anchors[1::4] -= torch.tensor([3.0, 0, 3, 0])
    gts = torch.tensor([[[0.0, 0, 20, 20], [3, 0, 23, 20], [-3, 0, 17, 20]]])
    for topk in (9, 100, 256):
        expect_definition(Sample(anchors, [600], gts, torch.tensor([3])), device, topk)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30, 3e38])
@pytest.mark.parametrize("place", ["anchor", "gt box"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_are_not_finite_or_huge(dtype, place, value, device):
    s = sample(12)
    for corner in range(4):
        if place == "anchor":
            s.anchors[corner::9, corner] = value
        else:
            s.gt_boxes[0, corner, corner] = value
    expect_definition(s, device, dtype=dtype)


def test_boxes_without_area(device):
    s = sample(12)
    s.anchors[::3, 2:] = s.anchors[::3, :2]
    s.anchors[1::5] = s.anchors[1::5].flip(-1)
    s.gt_boxes[0, 0, 2] = s.gt_boxes[0, 0, 0]
    s.gt_boxes[0, 1] = s.gt_boxes[0, 1].flip(0)
    expect_definition(s, device)


def test_reads_nothing_beyond_the_counts(device):
    s = sample(9).to(device)
    s.gt_counts.copy_(torch.tensor([5, 9, 2]))
    wanted = assign_atss(*s)
    s.gt_boxes[0, 5:], s.gt_boxes[2, 2:] = NAN, s.anchors[7]
    for a, b in zip(assign_atss(*s), wanted, strict=True):
        assert a.equal(b)


def test_counts_beyond_both_ends(device):
    s = sample(9).to(device)
    s.gt_counts.copy_(torch.tensor([99, -3, 9]))
    within = s._replace(gt_counts=s.gt_counts.clamp(0, 9))
    for a, b in zip(assign_atss(*s), assign_atss(*within), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize(("images", "anchors", "gts"), [(0, 5, 3), (2, 0, 3), (2, 5, 0), (0, 0, 0)])
def test_empty(images, anchors, gts, device):
    index, iou = assign_atss(
        torch.ones(anchors, 4, device=device),
        [anchors],
        torch.ones(images, gts, 4, device=device),
        torch.full((images,), gts, device=device),
    )
    assert index.shape == iou.shape == (images, anchors)
    assert (index == -1).all()
    assert (iou == 0).all()


def test_no_levels(device):
    gts = torch.tensor([[[0.0, 0, 1, 1]]], device=device)
    counts = torch.tensor([1], device=device)
    assert assign_atss(torch.zeros(0, 4, device=device), [], gts, counts)[0].shape == (1, 0)


@given(st.integers(0, 10**6), st.integers(1, 150), st.integers(0, 8), st.integers(1, 12))
def test_permuted_anchors_permute_the_result(seed, anchors, gts, topk):
    """Random reals: no two distances are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(anchors, 2, generator=generator, dtype=torch.float64) * 100
    sides = 4 + torch.rand(anchors, 2, generator=generator, dtype=torch.float64) * 50
    rows = torch.cat([corner, corner + sides], 1)
    targets = random_gts(3, gts, seed=seed)
    order = torch.randperm(anchors, generator=generator)
    expected = assign_atss(rows, [anchors], *targets, topk)
    got = assign_atss(rows[order], [anchors], *targets, topk)
    assert all(a.equal(b[:, order]) for a, b in zip(got, expected, strict=True))


# ---- mmdetection --------------------------------------------------------------------------------


def by_matrices(s: Sample, topk: int) -> tuple[Tensor, Tensor]:
    """The steps of mmdetection's ATSSAssigner for the first image, with torch's matrices."""
    anchors, gts = s.anchors, s.gt_boxes[0]
    inter = (
        torch.minimum(anchors[:, None, 2:], gts[:, 2:])
        - torch.maximum(anchors[:, None, :2], gts[:, :2])
    ).clamp(min=0)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (anchors, gts)]
    overlaps = inter.prod(-1) / (areas[0][:, None] + areas[1] - inter.prod(-1))  # (A, G)
    centres = [(x[:, :2] + x[:, 2:]) / 2 for x in (anchors, gts)]
    distances = (centres[0][:, None] - centres[1]).pow(2).sum(-1).sqrt()
    candidates, begin = [], 0
    for size in s.level_sizes:
        nearest = distances[begin : begin + size].topk(min(topk, size), dim=0, largest=False)
        candidates.append(nearest.indices + begin)
        begin += size
    candidates = torch.cat(candidates)  # (n, G)
    own = overlaps.gather(0, candidates)
    positive = own >= own.mean(0) + own.std(0)
    x, y = centres[0][candidates].unbind(-1)
    depths = [x - gts[:, 0], y - gts[:, 1], gts[:, 2] - x, gts[:, 3] - y]
    positive &= torch.stack(depths).amin(0) > 0.01
    best = torch.full_like(overlaps, -1).scatter_(0, candidates, torch.where(positive, own, -1))
    iou, index = best.max(1)
    return torch.where(iou >= 0, index, -1), iou.clamp(min=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("topk", [4, 9])
def test_equals_mmdetection(topk, seed, device):
    s = sample(15, seed=seed, images=1)
    index, iou = assign_atss(*s.to(device), topk)
    theirs = by_matrices(s, topk)
    assert index[0].cpu().equal(theirs[0])
    assert iou[0].cpu().equal(theirs[1])
    assert (index >= 0).sum() > 15


# ---- the operator -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [2, 3])
def test_result_does_not_depend_on_the_thread_count(num_threads):
    made = pyramid(640, (8, 16, 32, 64))
    boxes, counts = random_gts(3, 150, side=640)
    s = made._replace(gt_boxes=boxes, gt_counts=counts)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            results.append(assign_atss(*s))
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_gradients_do_not_flow(device):
    s = sample(5).to(device)
    s.anchors.requires_grad_()
    assert not assign_atss(*s)[1].requires_grad


@pytest.mark.parametrize("gts", [0, 5])
def test_opcheck(gts, device):
    torch.library.opcheck(torch.ops.fastdet.assign_atss, (*sample(gts).to(device), 9))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    s = sample(5).to(device)

    def total(anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor) -> Tensor:
        index, iou = assign_atss(anchors, s.level_sizes, gt_boxes, gt_counts)
        return torch.where(index >= 0, iou, 0).sum(1)

    arguments = s.anchors, s.gt_boxes, s.gt_counts
    compiled = torch.compile(total, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(*arguments), total(*arguments))


def test_bad_input_is_named(device):
    s = sample(3).to(device)
    for topk in (0, 257):
        with pytest.raises(RuntimeError, match=rf"topk: expected a number in 1 .. 256, got {topk}"):
            assign_atss(*s, topk)
    for field, bad, message in (
        ("anchors", s.gt_boxes, r"anchors: expected floating \(A, 4\), got Float \(3, 3, 4\)"),
        ("anchors", s.anchors.long(), r"anchors: expected floating .*got Long"),
        ("level_sizes", [256, 64, 15], r"level_sizes: expected numbers with the sum A = 336, got"),
        ("level_sizes", [400, -64], r"level_sizes: expected a number >= 0, got -64"),
        ("level_sizes", [336] + [0] * 16, r"level_sizes: expected at most 16 levels, got 17"),
        ("gt_boxes", s.anchors, r"gt_boxes: expected floating \(B, G, 4\), got Float \(336, 4\)"),
        ("gt_counts", s.gt_counts[1:], r"gt_counts: expected int64 \(B,\).*got Long \(2\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            assign_atss(*s._replace(**{field: bad}))
