# SPDX-License-Identifier: BSD-3-Clause
"""match_queries against its definition in float64 and against the matchers of transformers."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastdet.ops import match_queries

optimize = pytest.importorskip("scipy.optimize", reason="the reference solves with SciPy")

INF, NAN = math.inf, math.nan
KINDS = ("focal", "softmax")


class Sample(NamedTuple):
    logits: Tensor  # (..., B, Q, C)
    boxes: Tensor  # (..., B, Q, 4)
    gt_labels: Tensor  # (B, G)
    gt_boxes: Tensor  # (B, G, 4)
    gt_counts: Tensor

    def to(self, device: str, dtype: torch.dtype = torch.float64) -> "Sample":
        tensors = (t.to(device, dtype if t.is_floating_point() else t.dtype) for t in self)
        return Sample(*tensors)


def random_boxes(*shape: int, generator: torch.Generator) -> Tensor:
    centre = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return torch.cat([centre, 0.02 + 0.3 * torch.rand_like(centre)], -1)


def sample(
    queries: int, gts: int, classes: int = 11, layers: tuple[int, ...] = (), seed: int = 0
) -> Sample:
    """Three images; the first has all gts, the second a few, the third none."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*layers, 3, queries, classes, generator=generator, dtype=torch.float64)
    return Sample(
        logits * 3 - 2,
        random_boxes(*layers, 3, queries, generator=generator),
        torch.randint(classes, (3, gts), generator=generator),
        random_boxes(3, gts, generator=generator),
        torch.tensor([gts, gts // 3, 0]),
    )


SIZES = [(1, 1), (1, 5), (7, 3), (8, 8), (9, 2), (30, 12), (12, 30), (63, 17), (65, 64), (100, 1)]


# ---- the definition -----------------------------------------------------------------------------


def corners(boxes: Tensor) -> Tensor:
    centre, sides = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - sides / 2, centre + sides / 2], -1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, 4), (M, 4) xyxy -> (N, M)."""
    a = a[:, None]
    inter = (torch.minimum(a[..., 2:], b[:, 2:]) - torch.maximum(a[..., :2], b[:, :2])).clamp(min=0)
    hull = torch.maximum(a[..., 2:], b[:, 2:]) - torch.minimum(a[..., :2], b[:, :2])
    area = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    union = area[0] + area[1] - inter.prod(-1)
    return inter.prod(-1) / union - (hull.prod(-1) - union) / hull.prod(-1)


def class_costs(logits: Tensor, labels: Tensor, alpha: float, gamma: float, kind: str) -> Tensor:
    """(Q, C), (G,) -> (Q, G)."""
    if kind == "softmax":
        return -logits.softmax(-1)[:, labels]
    p = logits.sigmoid()[:, labels]
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    return positive - (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()


def costs(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    gt_boxes: Tensor,
    weights: tuple[float, float, float] = (2, 5, 2),
    alpha: float = 0.25,
    gamma: float = 2,
    kind: str = "focal",
) -> Tensor:
    """(Q, G) of one image, in float64."""
    logits, boxes, gt_boxes = logits.double(), boxes.double(), gt_boxes.double()
    by_class, by_distance, by_giou = weights
    cost = by_class * class_costs(logits, labels, alpha, gamma, kind)
    cost = cost + by_distance * (boxes[:, None] - gt_boxes).abs().sum(-1)
    return cost - by_giou * generalized_iou(corners(boxes), corners(gt_boxes))


def least(cost: Tensor) -> Tensor:
    """(Q,): the gt of each query."""
    index = torch.full(cost.shape[:1], -1)
    rows, columns = optimize.linear_sum_assignment(cost.numpy())
    index[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return index


def expected(s: Sample, groups: int = 1, **numbers) -> Tensor:
    """The definition, problem by problem."""
    s = Sample(*(t.cpu() for t in s))
    *layers, images, queries, _ = s.logits.shape
    index = torch.full((math.prod(layers), images, groups, queries // groups), -1)
    logits = s.logits.reshape(-1, images, groups, queries // groups, s.logits.size(-1))
    boxes = s.boxes.reshape(-1, images, groups, queries // groups, 4)
    for layer, b, k in torch.cartesian_prod(*(torch.arange(n) for n in index.shape[:3])).tolist():
        count = min(max(int(s.gt_counts[b]), 0), s.gt_labels.size(1))
        labels, gt_boxes = s.gt_labels[b, :count], s.gt_boxes[b, :count]
        cost = costs(logits[layer, b, k], boxes[layer, b, k], labels, gt_boxes, **numbers)
        index[layer, b, k] = least(cost)
    return index.view(*layers, images, queries)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("queries", "gts"), SIZES)
def test_equals_the_definition(queries, gts, kind, device):
    s = sample(queries, gts)
    index = match_queries(*s.to(device), kind=kind)
    assert index.is_contiguous()
    assert index.cpu().equal(expected(s, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_other_numbers(kind, device):
    s = sample(40, 15)
    index = match_queries(*s.to(device), 1, 0.5, 3, alpha=0.6, gamma=1.5, kind=kind).cpu()
    assert index.equal(expected(s, weights=(1, 0.5, 3), alpha=0.6, gamma=1.5, kind=kind))
    index = match_queries(*s.to(device), 0, 0, 1, alpha=0, gamma=0, kind=kind).cpu()
    assert index.equal(expected(s, weights=(0, 0, 1), alpha=0, gamma=0, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_types(dtype, kind, device):
    s = sample(50, 20, layers=(2,)).to("cpu", dtype)
    index = match_queries(*s.to(device, dtype), kind=kind).cpu()
    assert_as_cheap(s, index, expected(s, kind=kind), kind=kind)


def test_types_may_differ(device):
    """As under autocast: half logits with boxes and gts in float32, or in float64."""
    s = sample(30, 9).to("cpu", torch.float32)
    for logits, boxes in ((torch.bfloat16, torch.float32), (torch.float32, torch.float64)):
        mixed = s._replace(logits=s.logits.to(logits), boxes=s.boxes.to(boxes))
        index = match_queries(*(t.to(device) for t in mixed)).cpu()
        assert_as_cheap(mixed, index, expected(mixed))


def assert_as_cheap(s: Sample, index: Tensor, best: Tensor, **numbers) -> None:
    """The same number of matches, and the same total cost up to float32's rounding."""
    assert (index >= 0).sum(-1).equal((best >= 0).sum(-1))
    images, queries = index.shape[-2:]
    for n, (own, other) in enumerate(
        zip(index.view(-1, queries), best.view(-1, queries), strict=True)
    ):
        b = n % images
        cost = costs(
            s.logits.view(-1, queries, s.logits.size(-1))[n],
            s.boxes.view(-1, queries, 4)[n],
            s.gt_labels[b],
            s.gt_boxes[b],
            **numbers,
        )
        totals = [
            float(cost[matched >= 0, matched[matched >= 0]].sum()) for matched in (own, other)
        ]
        assert totals[0] == pytest.approx(totals[1], rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("layers", [(), (1,), (3,), (2, 2)])
def test_decoder_layers(layers, device):
    s = sample(24, 6, layers=layers)
    index = match_queries(*s.to(device)).cpu()
    assert index.shape == (*layers, 3, 24)
    assert index.equal(expected(s))


@pytest.mark.parametrize("groups", [1, 2, 3, 12, 24])
def test_groups(groups, device):
    s = sample(24, 6, layers=(2,))
    index = match_queries(*s.to(device), groups=groups).cpu()
    assert index.equal(expected(s, groups))


def test_hand_worked(device):
    """Query 1 lies on gt 0, query 2 on gt 1; the label tells which of two equal boxes fits."""
    boxes = torch.tensor([[0.8, 0.8, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.3, 0.2]])
    logits = torch.zeros(1, 3, 4)
    gts = torch.stack([boxes[1], boxes[2]])[None]
    arguments = (boxes[None], torch.tensor([[3, 0]]), gts, torch.tensor([2]))
    assert match_queries(logits, *arguments).tolist() == [[-1, 0, 1]]
    equal = torch.stack([boxes[1], boxes[1], boxes[1]])[None]
    logits[0, 2, 3], logits[0, 0, 0] = 4, 4
    arguments = tuple(t.to(device) for t in (equal, *arguments[1:2], equal[:, :2], arguments[3]))
    assert match_queries(logits.to(device), *arguments).tolist() == [[1, -1, 0]]


def test_equal_queries_match_in_order(device):
    s = sample(40, 6)
    s = s._replace(logits=s.logits[:, :1].repeat(1, 40, 1), boxes=s.boxes[:, :1].repeat(1, 40, 1))
    index = match_queries(*s.to(device)).cpu()
    assert sorted(index[0, :6].tolist()) == list(range(6))
    assert sorted(index[1, :2].tolist()) == [0, 1]
    assert (index[0, 6:] == -1).all()
    assert (index[1, 2:] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits(kind, device):
    """p + 1e-8 matters far from 0, and a sigmoid of 1 must not be lost."""
    s = sample(30, 10)
    s = s._replace(logits=s.logits * 12)
    for dtype in (torch.float64, torch.float32):
        rounded = s.to("cpu", dtype)
        index = match_queries(*s.to(device, dtype), kind=kind).cpu()
        assert_as_cheap(rounded, index, expected(rounded, kind=kind), kind=kind)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("place", ["logit", "box", "gt box", "label", "negative label"])
@pytest.mark.parametrize(("kind", "gamma"), [("focal", 2), ("focal", 1.5), ("softmax", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_costs_that_are_not_finite_count_as_the_largest(dtype, kind, gamma, place, value, device):
    for queries, gts in ((20, 8), (8, 20)):
        s = sample(queries, gts).to("cpu", dtype)
        if place == "logit":
            s.logits[0, 3] = value
        elif place == "box":
            s.boxes[0, 3, 2] = value
        elif place == "gt box":
            s.gt_boxes[0, 5, 1] = value
        known = s.gt_labels.clone()
        if "label" in place:
            s.gt_labels[0, 5] = -1 if "negative" in place else 11
        index = match_queries(*s.to(device, dtype), gamma=gamma, kind=kind).cpu()
        cost = costs(s.logits[0], s.boxes[0], known[0], s.gt_boxes[0], gamma=gamma, kind=kind)
        if "label" in place:
            cost[:, 5] = NAN
        cost = torch.where(cost.isfinite(), cost, cost[cost.isfinite()].max())
        rows, best = (index[0] >= 0).nonzero().flatten(), least(cost)
        assert len(rows) == len(index[0][rows].unique()) == min(queries, gts)
        total = cost[rows, index[0][rows]].sum()
        assert total.item() == pytest.approx(cost[best >= 0, best[best >= 0]].sum().item())


def test_nothing_is_finite(device):
    s = sample(6, 4)
    s.boxes.fill_(NAN)
    index = match_queries(*s.to(device)).cpu()
    assert sorted(index[0].tolist()) == [-1, -1, 0, 1, 2, 3]


def test_boxes_without_area(device):
    s = sample(20, 8)
    s.boxes[0, ::2, 2:], s.gt_boxes[0, ::2, 2:] = 0, 0
    index = match_queries(*s.to(device)).cpu()
    assert sorted(index[0][index[0] >= 0].tolist()) == list(range(8))


def test_reads_nothing_beyond_the_counts(device):
    s = sample(20, 9).to(device)
    s.gt_counts.copy_(torch.tensor([5, 9, 2]))
    wanted = match_queries(*s)
    s.gt_boxes[0, 5:], s.gt_labels[0, 5:] = NAN, 2**40
    s.gt_boxes[2, 2:], s.gt_labels[2, 2:] = s.boxes[2, 7], -5
    assert match_queries(*s).equal(wanted)


def test_counts_beyond_both_ends(device):
    s = sample(20, 9).to(device)
    s.gt_counts.copy_(torch.tensor([99, -3, 9]))
    within = s._replace(gt_counts=s.gt_counts.clamp(0, 9))
    assert match_queries(*s).equal(match_queries(*within))


@pytest.mark.parametrize(
    ("images", "queries", "gts", "classes"),
    [(0, 5, 3, 4), (2, 0, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0), (0, 0, 0, 0)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_empty(images, queries, gts, classes, kind, device):
    index = match_queries(
        torch.zeros(2, images, queries, classes, device=device),
        torch.full((2, images, queries, 4), 0.5, device=device),
        torch.zeros(images, gts, dtype=torch.int64, device=device),
        torch.full((images, gts, 4), 0.5, device=device),
        torch.full((images,), gts, device=device),
        kind=kind,
    )
    assert index.shape == (2, images, queries)
    assert (index >= 0).sum() == (2 * images * min(queries, gts) if queries else 0)


# ---- transformers -------------------------------------------------------------------------------


def transformers_matcher(kind: str, name: str):
    losses = pytest.importorskip(f"transformers.loss.{name}", reason="transformers is not there")
    if name == "loss_rt_detr":
        config = SimpleNamespace(
            matcher_class_cost=2,
            matcher_bbox_cost=5,
            matcher_giou_cost=2,
            use_focal_loss=kind == "focal",
            matcher_alpha=0.25,
            matcher_gamma=2.0,
        )
        return losses.RTDetrHungarianMatcher(config)
    matcher = {"focal": "DeformableDetrHungarianMatcher", "softmax": "HungarianMatcher"}[kind]
    return getattr(losses, matcher)(2, 5, 2)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("focal", "loss_deformable_detr"),
        ("focal", "loss_rt_detr"),
        ("softmax", "loss_rt_detr"),
        ("softmax", "loss_for_object_detection"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_transformers(kind, name, dtype, device):
    matcher = transformers_matcher(kind, name)
    for queries, gts in ((100, 20), (30, 30), (10, 25)):
        s = sample(queries, gts, classes=20).to("cpu", dtype)
        targets = [
            {"class_labels": s.gt_labels[b, :count], "boxes": s.gt_boxes[b, :count]}
            for b, count in enumerate(s.gt_counts.tolist())
        ]
        theirs = torch.full((3, queries), -1)
        pairs = matcher({"logits": s.logits, "pred_boxes": s.boxes}, targets)
        for b, (rows, columns) in enumerate(pairs):
            theirs[b, rows] = columns
        assert match_queries(*s.to(device, dtype), kind=kind).cpu().equal(theirs)


# ---- the operator -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [2, 3])
def test_result_does_not_depend_on_the_thread_count(num_threads):
    s = sample(60, 20, layers=(6,))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            results.append(match_queries(*s))
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1])


def test_gradients_do_not_flow(device):
    s = sample(5, 3).to(device)
    s.logits.requires_grad_()
    s.boxes.requires_grad_()
    assert not match_queries(*s).requires_grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [(), (2,)])
def test_opcheck(layers, kind, device):
    s = sample(8, 3, layers=layers).to(device)
    numbers = (2.0, 5.0, 2.0, 0.25, 2.0, kind, 2)
    torch.library.opcheck(torch.ops.fastdet.match_queries, (*s, *numbers))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def matched(*tensors: Tensor) -> Tensor:
        index = match_queries(*tensors)
        return torch.where(index >= 0, tensors[1].sum(-1), 0).sum(-1)

    s = sample(12, 4, layers=(2,)).to(device)
    compiled = torch.compile(matched, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(*s), matched(*s))


def test_bad_numbers_are_named(device):
    s = sample(6, 3).to(device)
    with pytest.raises(ValueError, match=r"kind: expected one of .*, got 'sigmoid'"):
        match_queries(*s, kind="sigmoid")
    for name, number, expected_words in (
        ("cost_class", NAN, "a finite number, got nan"),
        ("cost_bbox", -INF, "a finite number, got -inf"),
        ("cost_giou", INF, "a finite number, got inf"),
        ("alpha", 2, r"a number in \[0, 1\], got 2"),
        ("alpha", NAN, r"a number in \[0, 1\], got nan"),
        ("gamma", -1, "a finite number >= 0, got -1"),
        ("gamma", INF, "a finite number >= 0, got inf"),
    ):
        with pytest.raises(RuntimeError, match=f"{name}: expected {expected_words}"):
            match_queries(*s, **{name: number})


def test_bad_input_is_named(device):
    s = sample(6, 3).to(device)
    for groups in (0, 4, -1):
        with pytest.raises(
            RuntimeError, match=rf"groups: expected a divisor of Q = 6, got {groups}"
        ):
            match_queries(*s, groups=groups)
    with pytest.raises(RuntimeError, match=r"kind: expected focal or softmax, got 'x'"):
        torch.ops.fastdet.match_queries(*s, 2, 5, 2, 0.25, 2, "x", 1)
    for field, bad, message in (
        (
            "logits",
            s.logits[0],
            r"logits: expected floating \(..., B, Q, C\).*got Double \(6, 11\)",
        ),
        ("logits", s.logits.long(), r"logits: expected floating .*got Long"),
        ("boxes", s.boxes[:, 1:], r"boxes: expected floating \(..., B, Q, 4\).*got Double \(3, 5"),
        ("boxes", s.boxes[..., 1:], r"boxes: expected floating .*got Double \(3, 6, 3\)"),
        ("gt_labels", s.gt_labels[1:], r"gt_labels: expected int64 \(B, G\).*got Long \(2, 3\)"),
        ("gt_labels", s.gt_labels.int(), r"gt_labels: expected int64 \(B, G\).*got Int"),
        ("gt_boxes", s.gt_boxes[:, 1:], r"gt_boxes: expected floating \(B, G, 4\).*got Double"),
        ("gt_counts", s.gt_counts.int(), r"gt_counts: expected int64 \(B,\).*got Int"),
    ):
        with pytest.raises(RuntimeError, match=message):
            match_queries(*s._replace(**{field: bad}))
