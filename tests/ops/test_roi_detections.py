# SPDX-License-Identifier: BSD-3-Clause
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import roi_detections
from tests import reference
from tests.ops.heads import INF, NAN, SIZE, Kept, assert_kept

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
NUMBERS = (0.05, 0.5, 8)  # score_threshold, iou_threshold, detections_per_img
Numbers = tuple[float, float, int]

LEFT, SHIFTED, RIGHT = [0.0, 0, 20, 20], [2.0, 0, 22, 20], [50.0, 0, 70, 20]


class Head(NamedTuple):
    """logits (B, K, C), deltas (B, K, C, 4), proposals (B, K, 4), counts (B,), sizes (B, 2)."""

    logits: Tensor
    deltas: Tensor
    proposals: Tensor
    counts: Tensor | None
    sizes: Tensor

    def to(self, device: str) -> "Head":
        return Head(*(x if x is None else x.to(device) for x in self))


def random_head(rois: int, images: int = 2, num_classes: int = 4, seed: int = 0) -> Head:
    """Proposals that overlap often, some partly outside; the last image has the fewest."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, rois, 2, generator=generator) * 90 - 5
    sides = 4 + torch.rand(images, rois, 2, generator=generator) * 40
    return Head(
        torch.randn(images, rois, num_classes, generator=generator) * 2,
        torch.randn(images, rois, num_classes, 4, generator=generator),
        torch.cat([corner, corner + sides], 2),
        rois - torch.arange(images) * (rois // 3),
        torch.tensor(SIZE) - 8 * torch.arange(images)[:, None],
    )


def hand_worked() -> Head:
    logits = torch.tensor([[[0.0, 2, -9], [0, 1, 1.5], [3, 1, -9]]])
    proposals = torch.tensor([[LEFT, SHIFTED, RIGHT]])
    return Head(logits, torch.zeros(1, 3, 3, 4), proposals, None, torch.tensor([SIZE]))


def poisoned() -> Head:
    h = random_head(40, images=1, seed=5)
    for i, value in enumerate((NAN, INF, -INF)):
        h.logits[0, 4 * i, 1] = value
        h.deltas[0, 4 * i + 1, :, i] = value
        h.proposals[0, 4 * i + 2, i] = value
    h.logits[0, 3] = -INF
    return h


def strided(h: Head) -> Head:
    def reversed_strides(x: Tensor) -> Tensor:
        order = tuple(reversed(range(x.dim())))
        return x.permute(order).contiguous().permute(order)

    return Head(*(x if x is None else reversed_strides(x) for x in h))


def samples() -> dict[str, tuple[Head, Numbers]]:
    """Name -> (head outputs, numbers)."""
    equal = random_head(20)._replace(logits=torch.zeros(2, 20, 4))
    table = {
        "hand-worked": (hand_worked(), NUMBERS),
        "nothing above the threshold": (hand_worked(), (0.99, 0.5, 8)),
        "threshold 0": (hand_worked(), (0.0, 0.5, 8)),
        "threshold 1": (hand_worked(), (1.0, 0.5, 8)),
        "no rows": (hand_worked(), (0.05, 0.5, 0)),
        "no images": (random_head(20, images=0), NUMBERS),
        "no proposals": (random_head(0), NUMBERS),
        "background alone": (random_head(20, num_classes=1), NUMBERS),
        "counts out of range": (
            random_head(20)._replace(counts=torch.tensor([-3, 99])),
            NUMBERS,
        ),
        "all logits equal": (equal, NUMBERS),
        "not finite": (poisoned(), (0.05, 0.5, 100)),
        "non-contiguous": (strided(random_head(30)), NUMBERS),
        "expanded": (
            random_head(20)._replace(logits=torch.tensor([0.0, 1, 2, -1]).expand(2, 20, 4)),
            NUMBERS,
        ),
        "more than all": (random_head(20), (0.0, 1.0, 1000)),
    }
    for n in (15, 16, 17, 31, 32, 33):
        table[f"{n} classes"] = (random_head(9, num_classes=n, seed=n), (0.01, 0.4, 20))
    for n in (31, 32, 33, 65):
        table[f"{n} proposals"] = (random_head(n, seed=n), (0.2, 0.4, 20))
    return table


def run(h: Head, numbers: Numbers, device: str = "cpu") -> Kept:
    return roi_detections(*h.to(device), WEIGHTS, *numbers)


def expected_of_image(h: Head, b: int, numbers: Numbers) -> tuple[Tensor, Tensor, Tensor]:
    count = h.logits.shape[1] if h.counts is None else max(0, int(h.counts[b]))
    rows = (x[b, :count] for x in (h.logits, h.deltas, h.proposals))
    return reference.roi_detections(*rows, h.sizes[b], WEIGHTS, *numbers)


@pytest.mark.parametrize("name", list(samples()))
def test_equals_reference(name, device):
    h, numbers = samples()[name]
    got = run(h, numbers, device)
    assert [tuple(x.shape) for x in got] == [
        (len(h.sizes), numbers[2], 4),
        *[(len(h.sizes), numbers[2])] * 2,
        (len(h.sizes),),
    ]
    for b in range(len(h.sizes)):
        assert_kept(got, b, expected_of_image(h, b, numbers))


def test_hand_worked(device):
    boxes, scores, labels, counts = (x.cpu() for x in run(hand_worked(), NUMBERS, device))
    # In class 1 LEFT suppresses SHIFTED, their IoU is 18 / 22. RIGHT is mostly background.
    assert counts.tolist() == [3]
    assert boxes[0, :4].tolist() == [LEFT, SHIFTED, RIGHT, [0] * 4]
    assert labels[0, :4].tolist() == [1, 2, 1, 0]
    softmax = hand_worked().logits.softmax(2)[0]
    torch.testing.assert_close(scores[0, :3], softmax[[0, 1, 2], [1, 2, 1]])


def test_short_sides_are_dropped(device):
    h = hand_worked().to(device)
    *_, counts = roi_detections(*h, WEIGHTS, *NUMBERS, min_size=20.0)
    assert counts.tolist() == [3]
    *_, counts = roi_detections(*h, WEIGHTS, *NUMBERS, min_size=20.5)
    assert counts.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype, device):
    h = random_head(65)
    h = h._replace(logits=h.logits.to(dtype), deltas=h.deltas.to(dtype))
    got = run(h, NUMBERS, device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in got] == [wide, wide, torch.int64, torch.int64]
    for b in range(2):
        assert_kept(got, b, expected_of_image(h, b, NUMBERS))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_torchvision(seed, device):
    heads = pytest.importorskip("torchvision.models.detection.roi_heads", exc_type=ImportError)
    from torchvision.models.detection._utils import BoxCoder

    h = random_head(300, num_classes=7, seed=seed)._replace(counts=None)
    settings = SimpleNamespace(
        box_coder=BoxCoder(WEIGHTS), score_thresh=0.05, nms_thresh=0.5, detections_per_img=60
    )
    boxes, scores, labels = heads.RoIHeads.postprocess_detections(
        settings,
        h.logits.flatten(0, 1),
        h.deltas.flatten(0, 1).flatten(1),
        list(h.proposals),
        [tuple(size) for size in h.sizes.tolist()],
    )
    got = run(h, (0.05, 0.5, 60), device)
    for b in range(2):
        assert len(scores[b]) == 60
        assert_kept(got, b, (boxes[b], scores[b], labels[b]))


@given(st.integers(0, 10**6), st.integers(0, 70), st.floats(0, 1))
def test_rows_beyond_the_counts_are_never_read(seed, rois, score_thresh):
    h = random_head(rois, seed=seed)
    assert h.counts is not None
    beyond = torch.arange(rois) >= h.counts[:, None]
    junk = h._replace(
        logits=h.logits.masked_fill(beyond[..., None], 99.0),
        proposals=h.proposals.masked_fill(beyond[..., None], NAN),
    )
    numbers = (score_thresh, 0.5, 30)
    for a, b in zip(run(junk, numbers), run(h, numbers), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_result_does_not_depend_on_the_thread_count(images, num_threads):
    h = random_head(700, images=images, num_classes=21)
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, num_threads):
            torch.set_num_threads(n)
            results.append(run(h, (0.02, 0.5, 100)))
    finally:
        torch.set_num_threads(before)
    assert int(results[0][3].min()) == 100
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_results_have_no_gradient():
    h = random_head(20)
    h.logits.requires_grad_()
    h.deltas.requires_grad_()
    assert not any(x.requires_grad for x in run(h, NUMBERS))


def test_opcheck(device):
    h = random_head(20).to(device)
    torch.library.opcheck(torch.ops.fastdet.roi_detections, (*h, *WEIGHTS, *NUMBERS, 1e-2))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    h = random_head(40).to(device)

    def best(logits: Tensor, deltas: Tensor) -> Tensor:
        boxes, *_ = roi_detections(logits, deltas, *h[2:], WEIGHTS, *NUMBERS)
        return boxes * 2

    compiled = torch.compile(best, fullgraph=True)
    assert compiled(h.logits, h.deltas).equal(best(h.logits, h.deltas))


def test_bad_input_is_named():
    h = random_head(20)

    def refused(message: str, error: type[Exception] = RuntimeError, numbers=NUMBERS, **changes):
        with pytest.raises(error, match=message):
            roi_detections(*h._replace(**changes), WEIGHTS, *numbers)

    refused(r"iou_threshold: expected a number in \[0, 1\], got 2", ValueError, (0.1, 2, 8))
    refused(r"logits: expected floating \(B, K, C\).*got Float \(2, 20\)", logits=h.logits[..., 0])
    refused(
        r"deltas: expected \(B, K, C, 4\).*got Float \(2, 20, 3, 4\)", deltas=h.deltas[:, :, 1:]
    )
    refused(r"proposals: expected floating \(B, K, 4\)", proposals=h.proposals[:, 1:])
    refused(r"counts: expected int64 \(B,\)", counts=torch.zeros(3, dtype=torch.int64))
    refused(r"sizes: expected int64 \(B, 2\)", sizes=h.sizes[:1])
    refused(r"detections_per_img: expected a number >= 0, got -1", numbers=(0.1, 0.5, -1))
    with pytest.raises(ValueError, match="weights: expected four finite numbers > 0"):
        roi_detections(*h, (1, 1, 0, 1), *NUMBERS)
