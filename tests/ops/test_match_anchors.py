# SPDX-License-Identifier: BSD-3-Clause
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import match_anchors
from tests import reference

INF, NAN = float("inf"), float("nan")
RULES = ("anchor_best", "gt_best", "none")


class Sample(NamedTuple):
    anchors: Tensor  # (A, 4) or (B, A, 4)
    gt_boxes: Tensor  # (B, G, 4)
    gt_counts: Tensor
    high: float = 0.5
    low: float = 0.3


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    """Boxes on a coarse grid: many IoUs are equal, some are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (*shape, 2), generator=generator) * 5.0
    return torch.cat(
        [corner, corner + torch.randint(1, 7, (*shape, 2), generator=generator) * 5], -1
    )


def grid() -> Tensor:
    """2,400 anchors of three sizes in row order, so most blocks of anchors are far from a gt."""
    y, x, side = torch.meshgrid(
        torch.arange(20) * 6.0,
        torch.arange(40) * 6.0,
        torch.tensor([6.0, 18.0, 40.0]),
        indexing="ij",
    )
    boxes = torch.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], -1).reshape(-1, 4)
    boxes[7::301] = NAN
    boxes[9::299, 2] = boxes[9::299, 0]
    boxes[11::293] = boxes[11::293].flip(1)
    return boxes


def grid_gts() -> Tensor:
    """Gts inside many anchors, outside all, equal to an anchor, large, of zero width, inverted."""
    gts = [[99, 50, 102, 53], [900, 0, 910, 9], [3, 3, 9, 9], [40, 30, 190, 90], [60, 60, 60, 70]]
    return torch.tensor([[*gts, [230, 110, 236, 131], [130, 9, 90, 40], [20.5, 20, 61, 59]]])


def samples(device: str) -> dict[str, Sample]:
    def one(anchors: list, gts: list, high: float = 0.5, low: float = 0.3) -> Sample:
        boxes = torch.tensor(gts, dtype=torch.float32).reshape(1, -1, 4)
        rows = torch.tensor(anchors, dtype=torch.float32).reshape(-1, 4)
        return Sample(rows, boxes, torch.tensor([boxes.size(1)]), high, low)

    unit, half, shifted, far = [0, 0, 10, 10], [0, 0, 10, 5], [2, 0, 12, 10], [50, 50, 60, 60]
    table = {
        "hand-worked": one([unit, shifted, half, [0, 0, 10, 3.5], far], [unit], 0.6, 0.4),
        "no anchors": one([], [unit]),
        "no gts": one([unit, far], []),
        "neither": one([], []),
        "one": one([unit], [shifted]),
        "zero-area anchor and gt": one([unit, [5, 5, 5, 9], [3, 3, 3, 3]], [[3, 3, 3, 3], unit]),
        "inverted": one([[10, 10, 0, 0], unit], [[10, 10, 0, 0], shifted]),
        "tied gts": one([unit, shifted], [shifted, unit, unit, shifted]),
        "tied anchors, one gt": one([half, [0, 5, 10, 10], far], [unit], 0.9, 0.8),
        "anchor is the best of two gts": one(
            [[0, 0, 20, 10], far], [unit, [10, 0, 20, 10]], 0.9, 0.8
        ),
        "best of a gt but closer to another": one(
            [[0, 0, 10, 10]], [[0, 0, 10, 9], [8, 0, 18, 10]], 0.95, 0.9
        ),
        "a gt that overlaps nothing": one([unit, shifted, far], [unit, [90, 90, 99, 99]]),
        "nothing overlaps": one([unit, shifted], [far]),
        "IoU exactly at both thresholds": one([half, [0, 0, 10, 2.5]], [unit, far], 0.5, 0.25),
        # float32(0.7) is below the double 0.7, float32(0.3) above the double 0.3
        "IoU at thresholds that round": one([[0, 0, 10, 7], [0, 0, 10, 3]], [unit, far], 0.7, 0.3),
        "thresholds 0": one([unit, far], [shifted], 0.0, 0.0),
        "low 0": one([unit, far], [shifted], 0.9, 0.0),
        "thresholds 1": one([unit, shifted], [unit, shifted], 1.0, 1.0),
        "not finite": one(
            [unit, [NAN, 0, 9, 9], far, [0, 0, INF, 9]],
            [[0, 0, INF, 10], shifted, [NAN] * 4, [-INF, -INF, INF, INF]],
        ),
        "no gt is finite": one([unit, [0, 0, INF, 9]], [[0, 0, INF, 10]], 0.0, 0.0),
        "no anchor is finite": one([[0, 0, INF, 9]], [unit]),
        "huge": one([[0, 0, 1e30, 1e30], unit], [[0, 0, 1e30, 1e30], unit]),
        "no images": Sample(
            random_boxes(3), torch.zeros(0, 2, 4), torch.zeros(0, dtype=torch.int64)
        ),
        "counts beyond both ends": Sample(
            random_boxes(9), random_boxes(3, 4, seed=1), torch.tensor([-3, 9, 2])
        ),
        "anchors of each image": Sample(
            random_boxes(3, 40), random_boxes(3, 5, seed=1), torch.tensor([5, 0, 3])
        ),
        "strided": Sample(
            random_boxes(40, 3).transpose(0, 1),
            random_boxes(3, 10, seed=1)[:, ::2],
            torch.tensor([5, 7, 5, 7, 3])[::2],
        ),
    }
    # Memory that is not aligned to vectors, and more gts than a block of threads holds.
    table["between vectors"] = Sample(
        random_boxes(34).flatten()[3:-1].view(33, 4),
        random_boxes(1, 8, seed=1).flatten()[1:-3].view(1, 7, 4),
        torch.tensor([7]),
    )
    for num_gts in (31, 32, 33, 255, 257, 600):
        table[f"{num_gts} gts"] = Sample(
            random_boxes(100), random_boxes(1, num_gts, seed=1), torch.tensor([num_gts])
        )
        table[f"{num_gts} gts"].gt_boxes[0, : num_gts // 2] = NAN
    overlapping = [0, 2, 3, 5, 7]
    order = torch.randperm(2400, generator=torch.Generator().manual_seed(0))
    table["grid"] = Sample(grid(), grid_gts()[:, overlapping], torch.tensor([5]), 0.7, 0.3)
    table["shuffled grid"] = table["grid"]._replace(anchors=grid()[order])
    table["grid, gts that overlap nothing"] = Sample(grid(), grid_gts(), torch.tensor([8]), 0.7)
    for n in (15, 16, 17, 63, 64, 65, 255, 256, 257):
        table[f"random {n}"] = Sample(
            random_boxes(n, seed=n), random_boxes(2, 6, seed=n + 1), torch.tensor([6, 4])
        )
    return {name: sample._replace(
        anchors=sample.anchors.to(device),
        gt_boxes=sample.gt_boxes.to(device),
        gt_counts=sample.gt_counts.to(device),
    ) for name, sample in table.items()}  # fmt: skip


SAMPLES = list(samples("cpu"))


def expect_reference(sample: Sample, rule: str, index: Tensor, iou: Tensor) -> None:
    anchors, gt_boxes, gt_counts, high, low = sample
    num_images, num_gts = gt_boxes.shape[:2]
    assert index.shape == iou.shape == (num_images, anchors.size(-2))
    for b in range(num_images):
        count = min(max(int(gt_counts[b]), 0), num_gts)
        rows = (anchors[b] if anchors.dim() == 3 else anchors).cpu()
        expected = reference.match_anchors(rows, gt_boxes[b, :count].cpu(), high, low, rule)
        assert index[b].tolist() == expected[0].tolist()
        assert iou[b].cpu().equal(expected[1])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SAMPLES)
def test_equals_reference(name, rule, device):
    sample = samples(device)[name]
    index, iou = match_anchors(*sample, rule)
    assert index.is_contiguous()
    assert iou.is_contiguous()
    expect_reference(sample, rule, index, iou)


@pytest.mark.parametrize(
    ("name", "anchor_best", "gt_best", "none"),
    [
        ("hand-worked", [0, 0, -2, -1, -1], [0, 0, -2, -1, -1], [0, 0, -2, -1, -1]),
        ("no gts", [-1, -1], [-1, -1], [-1, -1]),
        ("tied gts", [1, 0], [2, 3], [1, 0]),
        ("tied anchors, one gt", [0, 0, -1], [0, 0, -1], [-1, -1, -1]),
        ("anchor is the best of two gts", [0, -1], [1, -1], [-1, -1]),
        ("best of a gt but closer to another", [0], [1], [-2]),
        ("a gt that overlaps nothing", [0, 0, 0], [0, 0, -1], [0, 0, -1]),
        ("IoU exactly at both thresholds", [0, 0], [0, -2], [0, -2]),
        ("IoU at thresholds that round", [0, 0], [0, -2], [0, -2]),
        ("not finite", [1, -2, -1, -2], [1, -2, -1, -2], [1, -2, -1, -2]),
        ("no gt is finite", [-1, -2], [-1, -2], [-1, -2]),
    ],
)
def test_hand_worked(name, anchor_best, gt_best, none):
    for rule, expected in zip(RULES, (anchor_best, gt_best, none), strict=True):
        assert match_anchors(*samples("cpu")[name], rule)[0].tolist() == [expected]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["random 65", "grid"])
def test_other_types(name, dtype, rule, device):
    sample = samples("cpu")[name]
    sample = sample._replace(
        anchors=(sample.anchors / 3).to(dtype), gt_boxes=(sample.gt_boxes / 3).to(dtype)
    )
    index, iou = match_anchors(
        sample.anchors.to(device),
        sample.gt_boxes.to(device),
        sample.gt_counts.to(device),
        sample.high,
        sample.low,
        rule,
    )
    assert iou.dtype == (dtype if dtype == torch.float64 else torch.float32)
    expect_reference(sample, rule, index, iou)


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize(
    "name", ["a gt that overlaps nothing", "nothing overlaps", "random 257", "low 0", "tied gts"]
)
def test_equals_torchvision(name, allow_low_quality, device):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    from torchvision.models.detection._utils import Matcher

    anchors, gt_boxes, gt_counts, high, low = samples("cpu")[name]
    matcher = Matcher(high, low, allow_low_quality)
    rule = "anchor_best" if allow_low_quality else "none"
    index, iou = match_anchors(
        anchors.to(device), gt_boxes.to(device), gt_counts.to(device), high, low, rule
    )
    for b, count in enumerate(gt_counts.tolist()):
        matrix = torchvision.ops.box_iou(gt_boxes[b, :count], anchors)
        assert index[b].cpu().equal(matcher(matrix))
        assert iou[b].cpu().equal(matrix.amax(0))


def test_many_anchors_equal_the_matrix(device):
    # More than one piece of work per image; random reals, so that rounding matters.
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(20000, 2, generator=generator) * 500
    anchors = torch.cat([corner, corner + 1 + torch.rand(20000, 2, generator=generator) * 90], 1)
    gt_boxes = anchors[torch.randperm(20000, generator=generator)[:24]].reshape(2, 12, 4) + 0.7
    index, iou = match_anchors(
        anchors.to(device), gt_boxes.to(device), torch.tensor([12, 9], device=device), 0.7, 0.3
    )
    for b, count in enumerate([12, 9]):
        gts = gt_boxes[b, :count, None]
        sides = (
            torch.minimum(gts[..., 2:], anchors[:, 2:])
            - torch.maximum(gts[..., :2], anchors[:, :2])
        ).clamp(min=0)
        inter = sides.prod(-1)
        area = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (gts, anchors)]
        matrix = inter / (area[0] + area[1] - inter)  # (count, A)
        best, gt = matrix.max(0)
        rescued = (matrix == matrix.amax(1, keepdim=True)).any(0)
        expected = torch.where(rescued | (best >= 0.7), gt, torch.where(best >= 0.3, -2, -1))
        assert iou[b].cpu().equal(best)
        assert index[b].cpu().equal(expected)


def test_reads_nothing_beyond_the_counts(device):
    anchors, gt_boxes, gt_counts, high, low = samples(device)["random 65"]
    gt_counts -= 2
    expected = match_anchors(anchors, gt_boxes, gt_counts, high, low)
    gt_boxes[0, 4:], gt_boxes[1, 2:] = NAN, anchors[0]
    got = match_anchors(anchors, gt_boxes, gt_counts, high, low)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(0, 8), st.sampled_from(RULES))
def test_permuted_anchors_permute_the_result(seed, num_anchors, num_gts, rule):
    anchors, gt_boxes = (
        random_boxes(num_anchors, seed=seed),
        random_boxes(1, num_gts, seed=seed + 1),
    )
    order = torch.randperm(num_anchors, generator=torch.Generator().manual_seed(seed))
    counts = torch.tensor([num_gts])
    expected = match_anchors(anchors, gt_boxes, counts, 0.5, 0.3, rule)
    got = match_anchors(anchors[order], gt_boxes, counts, 0.5, 0.3, rule)
    assert all(a.equal(b[:, order]) for a, b in zip(got, expected, strict=True))


@given(st.integers(0, 10**6), st.integers(1, 80), st.integers(1, 8))
def test_every_gt_that_overlaps_has_an_anchor(seed, num_anchors, num_gts):
    anchors, gt_boxes = (
        random_boxes(num_anchors, seed=seed),
        random_boxes(1, num_gts, seed=seed + 1),
    )
    gt_boxes = gt_boxes.unique(dim=1)  # of equal gts only the last one is assigned
    counts = torch.tensor([gt_boxes.size(1)])
    index, _ = match_anchors(anchors, gt_boxes, counts, 2.0, 2.0, "gt_best")
    best = {}
    for g in range(gt_boxes.size(1)):
        _, iou = match_anchors(anchors, gt_boxes[:, g : g + 1], torch.tensor([1]), 2.0, 2.0, "none")
        best[g] = iou[0] if iou.any() else None
    for a, g in enumerate(index[0].tolist()):
        candidates = [k for k, iou in best.items() if iou is not None and iou[a] == iou.max()]
        assert g == max(candidates, default=-1)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_result_does_not_depend_on_the_thread_count(num_threads):
    anchors, gt_boxes = random_boxes(9000), random_boxes(2, 9, seed=1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            results.append(match_anchors(anchors, gt_boxes, torch.tensor([9, 4]), 0.9, 0.3))
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_gradients_do_not_flow(device):
    anchors, gt_boxes, gt_counts, high, low = samples(device)["one"]
    _, iou = match_anchors(
        anchors.requires_grad_(), gt_boxes.requires_grad_(), gt_counts, high, low
    )
    assert not iou.requires_grad


@pytest.mark.parametrize("name", ["one", "no gts", "anchors of each image"])
def test_opcheck(name, device):
    torch.library.opcheck(torch.ops.fastdet.match_anchors, (*samples(device)[name], "anchor_best"))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def positives(anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor) -> Tensor:
        index, iou = match_anchors(anchors, gt_boxes, gt_counts, 0.5, 0.3)
        return torch.where(index >= 0, iou, 0).sum(1)

    arguments = samples(device)["random 65"][:3]
    compiled = torch.compile(positives, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(*arguments), positives(*arguments))


def test_bad_input_is_named(device):
    anchors, gt_boxes, counts, high, low = samples(device)["anchors of each image"]
    with pytest.raises(ValueError, match=r"low: expected a number <= high = 0.3, got 0.5"):
        match_anchors(anchors, gt_boxes, counts, 0.3, 0.5)
    with pytest.raises(ValueError, match=r"low_quality: expected one of .*, got 'best'"):
        match_anchors(anchors, gt_boxes, counts, high, low, "best")
    with pytest.raises(RuntimeError, match=r"low_quality: expected anchor_best.*, got 'best'"):
        torch.ops.fastdet.match_anchors(anchors, gt_boxes, counts, high, low, "best")
    with pytest.raises(
        RuntimeError, match=r"gt_boxes: expected floating \(B, G, 4\), got Float \(5, 4\)"
    ):
        match_anchors(anchors, gt_boxes[0], counts, high, low)
    with pytest.raises(
        RuntimeError, match=r"anchors: expected floating \(A, 4\).*got Float \(2, 40"
    ):
        match_anchors(anchors[:2], gt_boxes, counts, high, low)
    with pytest.raises(RuntimeError, match=r"anchors: expected floating \(A, 4\).*got Long"):
        match_anchors(anchors.long(), gt_boxes, counts, high, low)
    with pytest.raises(RuntimeError, match=r"gt_counts: expected int64 \(B,\).*got Int"):
        match_anchors(anchors, gt_boxes, counts.int(), high, low)
    with pytest.raises(RuntimeError, match=r"gt_counts: expected int64 \(B,\).*got Long \(2\)"):
        match_anchors(anchors, gt_boxes, counts[:2], high, low)
