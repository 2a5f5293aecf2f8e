# SPDX-License-Identifier: BSD-3-Clause
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import rpn_proposals
from tests import reference
from tests.ops.heads import (
    Head,
    Kept,
    as_maps_leave_it,
    assert_kept,
    head,
    parts_of_one_tensor,
    poisoned_head,
    random_head,
)

# pre_nms_top_n, post_nms_top_n, iou_threshold, score_threshold, min_size
NUMBERS = (10, 12, 0.5, 0.0, 1e-3)
Numbers = tuple[int, int, float, float, float]

LEFT, SHIFTED, RIGHT = [0, 0, 20, 20], [2, 0, 22, 20], [50, 0, 70, 20]


def rpn(h: Head) -> Head:
    """The same head with one logit per anchor."""
    return h._replace(logits=[x[..., 0] for x in h.logits])


def random_rpn(counts: tuple[int, ...], images: int = 2, seed: int = 0) -> Head:
    return rpn(random_head(counts, images, 1, seed))


def samples() -> dict[str, tuple[Head, Numbers]]:
    """Name -> (head outputs, numbers)."""
    two_levels = rpn(head([[[1], [3], [-1]], [[2], [-3]]], [LEFT, SHIFTED, RIGHT, LEFT, RIGHT]))
    table = {
        "hand-worked": (two_levels, NUMBERS),
        "score threshold": (two_levels, (10, 12, 0.5, 0.5, 1e-3)),
        "score at the threshold": (
            two_levels._replace(logits=[torch.tensor([[0.0, 3, -1]]), torch.tensor([[-1.0, 0]])]),
            (10, 12, 1.0, 0.5, 1e-3),
        ),
        "sides too short": (two_levels, (10, 12, 0.5, 0.0, 20.5)),
        "sides just long enough": (two_levels, (10, 12, 0.5, 0.0, 20.0)),
        "no candidates": (two_levels, (0, 12, 0.5, 0.0, 1e-3)),
        "no rows": (two_levels, (10, 0, 0.5, 0.0, 1e-3)),
        "no images": (random_rpn((20, 5), images=0), NUMBERS),
        "an empty level": (random_rpn((20, 0, 5)), NUMBERS),
        "no anchors": (random_rpn((0,)), NUMBERS),
        "all logits equal": (
            random_rpn((20, 9))._replace(logits=[torch.zeros(2, 20), torch.zeros(2, 9)]),
            NUMBERS,
        ),
        "not finite": (rpn(poisoned_head()), (100, 100, 0.5, 0.0, 1e-3)),
        "non-contiguous": (rpn(as_maps_leave_it(random_head((30, 11)))), NUMBERS),
        "views of one tensor": (parts_of_one_tensor(random_rpn((30, 11))), NUMBERS),
        "expanded": (
            random_rpn((20,))._replace(logits=[torch.ones(1, 1).expand(2, 20)]),
            NUMBERS,
        ),
        "more than all": (random_rpn((20, 8)), (1000, 1000, 1.0, 0.0, 0.0)),
    }
    for n in (15, 16, 17, 63, 64, 65, 130):
        table[f"random {n}"] = (random_rpn((n, n // 3), seed=n), (12, 9, 0.4, 0.2, 1e-3))
    return table


def run(h: Head, numbers: Numbers, device: str = "cpu") -> Kept:
    return rpn_proposals(*h.to(device), *numbers)


@pytest.mark.parametrize("name", list(samples()))
def test_equals_reference(name, device):
    h, numbers = samples()[name]
    got = run(h, numbers, device)
    assert [tuple(x.shape) for x in got] == [
        (len(h.sizes), numbers[1], 4),
        *[(len(h.sizes), numbers[1])] * 2,
        (len(h.sizes),),
    ]
    for b in range(len(h.sizes)):
        assert_kept(got, b, reference.rpn_proposals(*h.image(b), *numbers))


def test_hand_worked(device):
    boxes, scores, levels, counts = (x.cpu() for x in run(*samples()["hand-worked"], device))
    # SHIFTED suppresses LEFT on its own level, not on the other level.
    assert counts.tolist() == [4]
    assert boxes[0, :5].tolist() == [SHIFTED, LEFT, RIGHT, RIGHT, [0] * 4]
    assert levels[0, :5].tolist() == [0, 1, 0, 1, 0]
    torch.testing.assert_close(scores[0, :4], torch.tensor([3.0, 2, -1, -3]).sigmoid())


def distinct(logits: Tensor) -> Tensor:
    """Logits close to the given ones, all different."""
    return logits + torch.arange(logits.numel()).reshape(logits.shape) * 2.0**-16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype, device):
    h = random_rpn((130, 33)).to(dtype)
    got = run(h, NUMBERS, device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in got] == [wide, wide, torch.int64, torch.int64]
    for b in range(2):
        assert_kept(got, b, reference.rpn_proposals(*h.image(b), *NUMBERS))


@pytest.mark.parametrize("score_thresh", [0.0, 0.4])
def test_equals_torchvision(score_thresh, device):
    detection = pytest.importorskip("torchvision.models.detection.rpn", exc_type=ImportError)
    h = random_rpn((900, 300, 60))
    h = h._replace(logits=[distinct(x) for x in h.logits])
    kept = {"training": 80, "testing": 80}
    module = detection.RegionProposalNetwork(
        None, None, 0.7, 0.3, 256, 0.5, {"training": 100, "testing": 100}, kept, 0.7, score_thresh
    ).eval()
    deltas, objectness = torch.cat(h.deltas, 1), torch.cat(h.logits, 1)
    every = module.box_coder.decode(deltas.reshape(-1, 4), [h.anchors] * 2).view(2, -1, 4)
    sizes = [tuple(size) for size in h.sizes.tolist()]
    boxes, scores = module.filter_proposals(every, objectness, sizes, [900, 300, 60])
    got = run(h, (100, 80, 0.7, score_thresh, module.min_size), device)
    for b in range(2):
        assert len(boxes[b]) > 40
        levels = got[2][b, : len(boxes[b])].cpu()
        assert_kept(got, b, (boxes[b], scores[b], levels))


@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 12), st.floats(0, 1))
def test_boxes_lie_in_the_image_and_have_sides(seed, n, k, score_thresh):
    h = random_rpn((n, 9), seed=seed)
    boxes, scores, levels, counts = run(h, (k, 30, 0.5, score_thresh, 2.0))
    for b, (height, width) in enumerate(h.sizes.tolist()):
        kept = boxes[b, : counts[b]]
        assert (kept >= 0).all()
        assert (kept <= torch.tensor([width, height, width, height])).all()
        assert (kept[:, 2:] - kept[:, :2] >= 2).all()
        assert (scores[b, : counts[b]] >= torch.tensor(score_thresh)).all()
        assert (scores[b, : counts[b]].diff() <= 0).all()
        assert int(counts[b]) == 0 or int(levels[b, : counts[b]].bincount().max()) <= k


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_result_does_not_depend_on_the_thread_count(images, num_threads):
    h = random_rpn((90_000, 40_000, 100), images=images)
    before = torch.get_num_threads()
    results = []
    try:
        for n in (1, num_threads):
            torch.set_num_threads(n)
            results.append(run(h, (400, 500, 0.7, 0.0, 1e-3)))
    finally:
        torch.set_num_threads(before)
    assert int(results[0][3].min()) > 50
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_results_have_no_gradient():
    h = random_rpn((20,))
    h.logits[0].requires_grad_()
    h.deltas[0].requires_grad_()
    assert not any(x.requires_grad for x in run(h, NUMBERS))


def test_opcheck(device):
    h = random_rpn((20, 6)).to(device)
    torch.library.opcheck(torch.ops.fastdet.rpn_proposals, (*h, *NUMBERS))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    h = random_rpn((40, 12)).to(device)

    def best(objectness: list[Tensor], deltas: list[Tensor]) -> Tensor:
        boxes, *_ = rpn_proposals(objectness, deltas, h.anchors, h.sizes, *NUMBERS)
        return boxes * 2

    compiled = torch.compile(best, fullgraph=True)
    assert compiled(h.logits, h.deltas).equal(best(h.logits, h.deltas))


def test_bad_input_is_named():
    h = random_rpn((20, 6))

    def refused(message: str, error: type[Exception] = RuntimeError, numbers=NUMBERS, **changes):
        with pytest.raises(error, match=message):
            rpn_proposals(*h._replace(**changes), *numbers)

    refused(r"iou_threshold: expected a number in \[0, 1\], got -1", ValueError, (10, 12, -1, 0, 0))
    refused("expected at least one level, got none", ValueError, logits=[])
    refused(
        r"objectness: expected floating \(B, A\) for each level, got Float \(2, 20, 1\)",
        logits=[x[..., None] for x in h.logits],
    )
    refused(r"anchors: expected floating \(A, 4\), where A counts", anchors=h.anchors[1:])
    refused(r"sizes: expected int64 \(B, 2\)", sizes=h.sizes[:1])
    refused(r"pre_nms_top_n: expected a number >= 0, got -1", numbers=(-1, 12, 0.5, 0, 0))
    refused(r"post_nms_top_n: expected a number >= 0, got -1", numbers=(10, -1, 0.5, 0, 0))
