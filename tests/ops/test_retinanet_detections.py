# SPDX-License-Identifier: BSD-3-Clause
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import retinanet_detections
from tests import reference
from tests.ops.heads import (
    NAN,
    Head,
    Kept,
    as_maps_leave_it,
    assert_kept,
    assert_same,
    head,
    parts_of_one_tensor,
    poisoned_head,
    random_head,
)

NUMBERS = (0.05, 10, 0.5, 8)  # score_threshold, topk_candidates, iou_threshold, detections_per_img
Numbers = tuple[float, int, float, int]

LEFT, SHIFTED, RIGHT = [0, 0, 20, 20], [2, 0, 22, 20], [50, 0, 70, 20]


def samples() -> dict[str, tuple[Head, Numbers]]:
    """Name -> (head outputs, numbers)."""
    two_classes = head([[[2, -9], [1, 1.5], [-2, 0]]], [LEFT, SHIFTED, RIGHT])
    table = {
        "hand-worked": (two_classes, NUMBERS),
        "nothing above the threshold": (two_classes, (0.99, 10, 0.5, 8)),
        "threshold 1": (two_classes, (1.0, 10, 0.5, 8)),
        "threshold 0": (two_classes, (0.0, 10, 0.5, 8)),
        "threshold below 0": (two_classes, (-1.0, 10, 0.5, 8)),
        "no candidates": (two_classes, (0.05, 0, 0.5, 8)),
        "no rows": (two_classes, (0.05, 10, 0.5, 0)),
        "no images": (random_head((20, 5), images=0), NUMBERS),
        "an empty level": (random_head((20, 0, 5)), NUMBERS),
        "no anchors": (random_head((0,)), NUMBERS),
        "one class": (random_head((30, 7), num_classes=1), NUMBERS),
        "all logits equal": (
            random_head((20, 9))._replace(logits=[torch.zeros(2, 20, 3), torch.zeros(2, 9, 3)]),
            NUMBERS,
        ),
        "not finite": (poisoned_head(), (0.05, 100, 0.5, 100)),
        "non-contiguous": (as_maps_leave_it(random_head((30, 11))), NUMBERS),
        "views of one tensor": (parts_of_one_tensor(random_head((30, 11))), NUMBERS),
        "expanded": (
            random_head((20,))._replace(logits=[torch.ones(1, 1, 3).expand(2, 20, 3)]),
            NUMBERS,
        ),
        "more than all": (random_head((20, 8)), (0.0, 1000, 1.0, 1000)),
    }
    for n in (15, 16, 17, 63, 64, 65, 130):
        table[f"random {n}"] = (random_head((n, n // 3), seed=n, num_classes=1), (0.2, 12, 0.4, 9))
    return table


def run(h: Head, numbers: Numbers, device: str = "cpu") -> Kept:
    return retinanet_detections(*h.to(device), *numbers)


@pytest.mark.parametrize("name", list(samples()))
def test_equals_reference(name, device):
    h, numbers = samples()[name]
    got = run(h, numbers, device)
    assert [tuple(x.shape) for x in got] == [
        (len(h.sizes), numbers[3], 4),
        *[(len(h.sizes), numbers[3])] * 2,
        (len(h.sizes),),
    ]
    for b in range(len(h.sizes)):
        assert_kept(got, b, reference.retinanet_detections(*h.image(b), *numbers))


def distinct(logits: Tensor) -> Tensor:
    """Logits close to the given ones, all different."""
    return logits + torch.arange(logits.numel()).reshape(logits.shape) * 2.0**-16


def test_hand_worked(device):
    boxes, scores, labels, counts = (x.cpu() for x in run(*samples()["hand-worked"], device))
    # SHIFTED overlaps LEFT by 18 / 22, but its better class is another one.
    assert counts.tolist() == [4]
    assert boxes[0, :5].tolist() == [LEFT, SHIFTED, RIGHT, RIGHT, [0] * 4]
    assert labels[0, :5].tolist() == [0, 1, 1, 0, 0]
    expected = [1 / (1 + math.exp(-x)) for x in (2, 1.5, 0, -2)]
    torch.testing.assert_close(scores[0, :4], torch.tensor(expected))


@pytest.mark.parametrize("score_thresh", [1e-6, 0.05, 0.3, 0.5, 0.7, 0.999, 1 - 2**-24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_threshold_is_exact_in_the_type_of_the_scores(score_thresh, dtype):
    """A logit near the threshold passes if and only if its rounded probability is above it."""
    border = torch.tensor(score_thresh, dtype=torch.float64).logit()
    window = 8 * torch.finfo(dtype).eps * (border.abs() + 1 / (1 - score_thresh))
    logits = (border + window * torch.linspace(-1, 1, 6001, dtype=torch.float64)).to(dtype)
    n = len(logits)
    boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(n, 1)
    levels = [logits.reshape(1, n, 1)], [torch.zeros(1, n, 4, dtype=dtype)]
    *_, counts = retinanet_detections(
        *levels, boxes, torch.tensor([[99, 99]]), score_thresh, n, 1.0, n
    )
    rounded = torch.tensor(score_thresh, dtype=torch.float64).to(dtype)
    passing = logits.double().sigmoid().to(dtype) > rounded
    assert int(counts) == int(passing.sum())
    assert 0 < int(counts) < n


def side_by_side(n: int) -> Tensor:
    """(n, 4) boxes that share edges but do not overlap."""
    place = torch.arange(n, dtype=torch.float32)
    return torch.stack([place, place * 0, place + 1, place * 0 + 5], 1)


def assert_best_are_kept(levels: list[Tensor], k: int, device: str) -> None:
    """The result for levels (B, A_l) of one class is that of a stable sort; no boxes overlap."""
    own = side_by_side(sum(x.shape[1] for x in levels))
    sizes = torch.tensor([[10, len(own) + 1]]).repeat(len(levels[0]), 1)
    h = Head([x[..., None] for x in levels], [x.new_zeros(*x.shape, 4) for x in levels], own, sizes)
    rows = sum(min(k, x.shape[1]) for x in levels)
    boxes, scores, _, counts = (x.cpu() for x in run(h, (0.0, k, 1.0, rows), device))
    assert counts.tolist() == [rows] * len(sizes)
    for b in range(len(sizes)):
        tops = [torch.sort(x[b], stable=True, descending=True) for x in levels]
        logits = torch.cat([top.values[:k] for top in tops])
        places = [top.indices[:k] for top in tops]
        split = own.split([x.shape[1] for x in levels])
        anchors = [x[i] for x, i in zip(split, places, strict=True)]
        order = torch.sort(logits, stable=True, descending=True).indices
        assert boxes[b].equal(torch.cat(anchors)[order].to(boxes.dtype))
        expected = logits[order].to(scores.dtype).sigmoid()
        torch.testing.assert_close(scores[b], expected)


@pytest.mark.parametrize("order", ["rising", "falling", "equal", "shuffled"])
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_selection_among_many(order, k, device):
    """More logits than one chunk, in orders that are good or bad for the running bound."""
    n = 50_001
    logits = {
        "rising": torch.arange(n),
        "falling": -torch.arange(n),
        "equal": torch.zeros(n),
        "shuffled": torch.randperm(n, generator=torch.Generator().manual_seed(0)) // 3,
    }[order].float() / 10_000
    assert_best_are_kept([logits[None]], k, device)


@pytest.mark.parametrize("n", [1, 7, 511, 512, 513, 4093, 4094, 4095, 4096, 4097, 8193])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_selection_at_the_borders_of_tiles_and_chunks(n, dtype, device):
    """The cut is within equal logits; then, logits differ only in their last bits.

    There are three images; the second and third are not aligned to vectors.
    """
    generator = torch.Generator().manual_seed(n)
    few = torch.randint(-3, 4, (3, n), generator=generator).to(dtype)
    close = torch.randint(0, 100, (3, n), generator=generator).to(dtype) * torch.finfo(dtype).eps
    k = n // 20 + 1
    assert_best_are_kept([few, 1 + close], k, device)
    assert_best_are_kept([-1 - close, few[:, :5], few], k, device)


def test_selection_among_millions(device):
    """So many logits that a warp of the CUDA kernels reads several tiles; few logits are large."""
    n, run = 2**21 + 12_345, 2 * 512
    logits = torch.full((1, n), -9.0)
    borders = torch.arange(0, n, 16 * run)
    generator = torch.Generator().manual_seed(0)
    for place in (0, 1, 511, 512, run - 1, run, 8 * run - 1, 8 * run):
        at = (borders + place).clamp(max=n - 1)
        logits[0, at] = torch.randint(0, 4, at.shape, generator=generator).float()
    assert int((logits > -9).sum()) > 1000
    assert_best_are_kept([logits], 500, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype, device):
    h = random_head((130, 33)).to(dtype)
    got = run(h, NUMBERS, device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in got] == [wide, wide, torch.int64, torch.int64]
    for b in range(2):
        assert_kept(got, b, reference.retinanet_detections(*h.image(b), *NUMBERS))


def test_types_are_promoted():
    h = random_head((30,))
    half = h._replace(logits=[x.half() for x in h.logits])
    assert_same(run(half, NUMBERS), run(h, NUMBERS))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_torchvision(seed, device):
    detection = pytest.importorskip("torchvision.models.detection", exc_type=ImportError)
    h = random_head((700, 200, 60), images=2, num_classes=7, seed=seed)
    h = h._replace(logits=[distinct(x) - 2 for x in h.logits])
    module = detection.RetinaNet.postprocess_detections
    sizes = [tuple(size) for size in h.sizes.tolist()]
    theirs = torchvision_settings(0.05, 100, 0.5, 50)
    own = list(h.anchors.split([x.shape[1] for x in h.logits]))
    outputs = {"cls_logits": h.logits, "bbox_regression": h.deltas}
    expected = module(theirs, outputs, [own, own], sizes)
    got = run(h, (0.05, 100, 0.5, 50), device)
    for b, image in enumerate(expected):
        assert len(image["scores"]) > 20
        assert_kept(got, b, (image["boxes"], image["scores"], image["labels"]))


def torchvision_settings(score_thresh: float, topk: int, nms_thresh: float, rows: int):
    """The attributes that torchvision's method reads from its module."""
    from types import SimpleNamespace

    from torchvision.models.detection._utils import BoxCoder

    return SimpleNamespace(
        score_thresh=score_thresh,
        topk_candidates=topk,
        nms_thresh=nms_thresh,
        detections_per_img=rows,
        box_coder=BoxCoder((1.0, 1.0, 1.0, 1.0)),
    )


@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 12), st.floats(0, 1))
def test_fewer_rows_are_the_first_of_more(seed, n, k, score_thresh):
    h = random_head((n, 9), images=1, seed=seed)
    boxes, scores, labels, counts = run(h, (score_thresh, k, 0.5, 40))
    assert (scores[0, : counts[0]].diff() <= 0).all()
    fewer = run(h, (score_thresh, k, 0.5, 3))
    for a, b in zip(fewer, (boxes, scores, labels), strict=False):
        assert a.equal(b[:, :3])
    assert int(fewer[3]) == min(3, int(counts))


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_every_piece_is_read_to_its_ends(num_threads):
    """Good logits only where threads, spans and blocks may begin and end."""
    n, steps = 7 * 2**15 + 5, (2**15, 2**12, 2**6)
    edges = {0, n - 1} | {i * s + j for s in steps for i in (1, 2, 3, 5, 7) for j in (-1, 0, 1)}
    good = torch.tensor(sorted(edges))
    logits = torch.full((n,), -9.0)
    logits[good] = 1.0
    anchors = side_by_side(n)
    levels = [logits.reshape(1, n, 1)], [torch.zeros(1, n, 4)]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        boxes, *_, counts = retinanet_detections(
            *levels, anchors, torch.tensor([[10, n + 1]]), 0.5, 100, 0.5, 100
        )
    finally:
        torch.set_num_threads(before)
    assert counts.tolist() == [len(good)]
    assert boxes[0, : len(good)].equal(anchors[good])


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_result_does_not_depend_on_the_thread_count(images, num_threads):
    h = random_head((30_000, 8000, 100), images=images, num_classes=5)
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, num_threads):
            torch.set_num_threads(n)
            results.append(run(h, (0.3, 400, 0.5, 100)))
    finally:
        torch.set_num_threads(before)
    assert int(results[0][3].min()) == 100
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_results_have_no_gradient():
    h = random_head((20,))
    h.logits[0].requires_grad_()
    h.deltas[0].requires_grad_()
    assert not any(x.requires_grad for x in run(h, NUMBERS))


def test_opcheck(device):
    h = random_head((20, 6)).to(device)
    torch.library.opcheck(torch.ops.fastdet.retinanet_detections, (*h, *NUMBERS))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    h = random_head((40, 12)).to(device)

    def best(logits: list[Tensor], deltas: list[Tensor]) -> Tensor:
        boxes, *_ = retinanet_detections(logits, deltas, h.anchors, h.sizes, *NUMBERS)
        return boxes * 2

    compiled = torch.compile(best, fullgraph=True)
    assert compiled(h.logits, h.deltas).equal(best(h.logits, h.deltas))


def test_bad_input_is_named(device):
    h = random_head((20, 6)).to(device)

    def refused(message: str, error: type[Exception] = RuntimeError, numbers=NUMBERS, **changes):
        with pytest.raises(error, match=message):
            retinanet_detections(*h._replace(**changes), *numbers)

    refused(r"iou_threshold: expected a number in \[0, 1\], got 2", ValueError, (0.1, 10, 2, 8))
    refused("expected at least one level, got none", ValueError, logits=[])
    refused(
        "logits: expected 1 to 8 levels, got 9", logits=h.logits[:1] * 9, deltas=h.deltas[:1] * 9
    )
    refused("deltas: expected one for each level, 2, got 1", deltas=h.deltas[:1])
    refused(
        r"logits: expected floating \(B, A, C\) for each level, got Float \(2, 20\)",
        logits=[x[..., 0] for x in h.logits],
    )
    refused(
        r"logits: expected the dtype, B and C of the first level, got Float \(2, 6, 2\)",
        logits=[h.logits[0], h.logits[1][..., :2]],
    )
    refused(
        r"deltas: expected \(B, A, 4\).*got Float \(2, 20, 3\)",
        deltas=[x[..., :3] for x in h.deltas],
    )
    refused(
        r"deltas: expected \(B, A, 4\).*got Float \(1, 20, 4\)", deltas=[x[:1] for x in h.deltas]
    )
    refused(r"anchors: expected floating \(A, 4\), where A counts", anchors=h.anchors[1:])
    refused(r"sizes: expected int64 \(B, 2\)", sizes=h.sizes.float())
    refused(r"topk_candidates: expected a number >= 0, got -1", numbers=(0.1, -1, 0.5, 8))
    refused(r"detections_per_img: expected a number >= 0, got -1", numbers=(0.1, 10, 0.5, -1))


def test_nan_threshold_lets_nothing_pass():
    *_, counts = run(random_head((20,)), (NAN, 10, 0.5, 8))
    assert counts.tolist() == [0, 0]
