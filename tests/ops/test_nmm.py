# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdet.numpy
from fastdet.ops import nmm, nms
from tests import reference
from tests.ops.test_nms import hostile, random_boxes, samples

METRICS = ("iou", "ios")
RULES = pytest.mark.parametrize("transitive", [False, True], ids=["greedy", "transitive"])
SAMPLES = [name for name in samples("cpu") if not name.startswith("threshold 0")]


def brute_force(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    metric: str,
    transitive: bool,
    labels: Tensor | None = None,
) -> list[int]:
    """`reference.nmm` with NumPy in the dtype of the boxes, for more boxes."""
    order = np.argsort(-scores.numpy(), kind="stable")
    b, least = boxes.numpy()[order], boxes.numpy().dtype.type(threshold)
    ids = np.zeros(len(b), np.int64) if labels is None else labels.numpy()[order]
    with np.errstate(all="ignore"):
        areas = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
        solid = (b[:, 0] < b[:, 2]) & (b[:, 1] < b[:, 3]) & (areas > 0) & np.isfinite(areas)
        targets = np.zeros(len(b), bool)  # those that others may join
        index = np.full(len(b), -1)
        planes = np.stack([*b.T, areas])
        for begin in range(0, len(b), 64):  # 64 rows are in the cache
            x1, y1, x2, y2, area = planes[:, begin : begin + 64, None]
            w = np.maximum(np.minimum(x2, planes[2]) - np.maximum(x1, planes[0]), 0)
            h = np.maximum(np.minimum(y2, planes[3]) - np.maximum(y1, planes[1]), 0)
            inter = w * h
            base = np.minimum(areas, area) if metric == "ios" else areas + area - inter
            joins = (base > 0) & (inter / base >= least) & (ids == ids[begin : begin + 64, None])
            for i, joined in enumerate(joins, begin):
                matches = np.flatnonzero(joined & targets) if solid[i] else []
                index[i] = index[matches[0]] if len(matches) else i
                targets[i] = solid[i] and (transitive or not len(matches))
    found = np.empty(len(b), np.int64)
    found[order] = order[index]
    return found.tolist()


def enclosing(boxes: Tensor, index: Tensor) -> Tensor:
    """The merged boxes that belong to an index."""
    merged, rows = boxes.numpy().copy(), np.flatnonzero(index.cpu().numpy() >= 0)
    kept = index.cpu().numpy()[rows]
    np.minimum.at(merged[:, :2], kept, boxes.numpy()[rows, :2])
    np.maximum.at(merged[:, 2:], kept, boxes.numpy()[rows, 2:])
    return torch.from_numpy(merged)


def test_hand_worked(device):
    # From left to right; each box overlaps the next by half of itself: IoU 1 / 3, IoS 1 / 2.
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [15, 0, 25, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])

    def merge(metric: str, transitive: bool, threshold: float = 0.5) -> tuple[Tensor, Tensor]:
        out = nmm(boxes.to(device), scores.to(device), None, threshold, metric, transitive)
        return out[0].cpu(), out[1].cpu()

    index, merged = merge("ios", False)
    assert index.tolist() == [0, 0, 2, 2]
    assert merged.tolist() == [[0, 0, 15, 10], [5, 0, 15, 10], [10, 0, 25, 10], [15, 0, 25, 10]]
    index, merged = merge("ios", True)
    assert index.tolist() == [0, 0, 0, 0]
    assert merged[0].tolist() == [0, 0, 25, 10]
    assert merged[1:].equal(boxes[1:])
    index, merged = merge("iou", True)
    assert index.tolist() == [0, 1, 2, 3]
    assert merged.equal(boxes)
    assert merge("iou", False, 1 / 3)[0].tolist() == [0, 0, 2, 2]  # at least, not above


def test_a_small_box_in_a_large_one(device):
    boxes = torch.tensor([[10.0, 10, 12, 12], [0, 0, 500, 500], [40, 40, 41, 41]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    index, merged = nmm(boxes, scores, metric="ios", threshold=1.0)
    assert index.tolist() == [0, 0, 2]
    assert merged[0].tolist() == [0, 0, 500, 500]
    index, _ = nmm(boxes, scores, metric="ios", threshold=1.0, transitive=True)
    assert index.tolist() == [0, 0, 0]
    assert nmm(boxes, scores)[0].tolist() == [0, 1, 2]


@RULES
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", SAMPLES)
def test_equals_reference(name, metric, transitive, device):
    boxes, scores, threshold = samples(device)[name]
    for labels in (None, torch.arange(len(boxes), device=device) % 3 * 2**62 - 2**62):
        index, merged = nmm(boxes, scores, labels, threshold, metric, transitive)
        expected, expected_boxes = reference.nmm(
            boxes.cpu(),
            scores.cpu(),
            None if labels is None else labels.cpu(),
            threshold,
            metric,
            transitive,
        )
        assert index.tolist() == expected
        np.testing.assert_array_equal(merged.cpu().numpy(), np.reshape(expected_boxes, (-1, 4)))


@RULES
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", list(hostile(2)))
def test_hostile_boxes(name, metric, transitive, device):
    boxes = hostile(1030)[name]
    scores = torch.randint(0, 500, (1030,), generator=torch.Generator().manual_seed(3)).float()
    for threshold in (1e-7, 0.1, 0.5, 0.7, 1.0):
        for rows in (boxes, boxes.double()) if threshold in (0.1, 0.5) else (boxes,):
            expected = brute_force(rows, scores, threshold, metric, transitive)
            out = nmm(rows.to(device), scores.to(device), None, threshold, metric, transitive)
            assert out[0].tolist() == expected
            assert out[1].cpu().equal(enclosing(rows, out[0]))


@RULES
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["spread", "giants", "all sizes", "one tiny"])
def test_hostile_boxes_with_labels(name, metric, transitive, device):
    n = 3000
    boxes, labels = hostile(n)[name], torch.arange(n) % 1000 % 5 * 2**60
    labels[::50] = torch.arange(n // 50) - 2**63
    scores = torch.randint(0, 700, (n,), generator=torch.Generator().manual_seed(3)).float()
    expected = brute_force(boxes, scores, 0.3, metric, transitive, labels)
    moved = boxes.to(device), scores.to(device), labels.to(device)
    index, merged = nmm(*moved, 0.3, metric, transitive)
    assert index.tolist() == expected
    assert merged.cpu().equal(enclosing(boxes, index))


@RULES
@pytest.mark.parametrize("n", [511, 512, 513, 1024, 4097, 8200])
def test_sizes_around_grids_and_tiles(n, transitive, device):
    boxes = torch.cat([hostile(n)["spread"], hostile(n)["one spot"]])[::2]
    scores = torch.randint(0, n, (n,), generator=torch.Generator().manual_seed(n)).float()
    for metric in METRICS:
        expected = brute_force(boxes, scores, 0.5, metric, transitive)
        out = nmm(boxes.to(device), scores.to(device), None, 0.5, metric, transitive)
        assert out[0].tolist() == expected


@RULES
def test_more_boxes_than_cuda_counts(transitive, device):
    # Above 2^15 rows CUDA sorts tiles. Clusters of four equal boxes; most rows are not usable.
    n, usable = 2**15 + 1, 4000
    corner = torch.arange(usable // 4).repeat(4)
    low = torch.stack([corner % 50, corner // 50], 1) * 10.0
    boxes, scores = torch.full((n, 4), float("nan")), torch.rand(n)
    boxes[:usable] = torch.cat([low, low + 8], 1)
    best = scores[:usable].reshape(4, -1).argmax(0) * (usable // 4) + torch.arange(usable // 4)
    index, merged = nmm(boxes.to(device), scores.to(device), transitive=transitive)
    assert index[:usable].cpu().equal(best.repeat(4))
    assert (index[usable:] == -1).all()
    assert merged[:usable].cpu().equal(boxes[:usable])
    assert merged[usable:].isnan().all()


def test_a_long_chain(device):
    n = 300
    left = 4 * torch.arange(n).float()
    boxes = torch.stack([left, 0 * left - 3, left + 10, 0 * left + 7], 1)
    scores = torch.arange(n).flip(0).float()
    index, merged = nmm(boxes.to(device), scores.to(device), None, 0.4, "iou", True)
    assert index.tolist() == [0] * n
    assert merged[0].tolist() == [0, -3, 4 * (n - 1) + 10, 7]
    index, _ = nmm(boxes.to(device), scores.to(device), None, 0.4)
    assert index.tolist() == [i // 2 * 2 for i in range(n)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype, device):
    boxes, scores = random_boxes(65, dtype=dtype)
    for metric in METRICS:
        index, merged = nmm(boxes.to(device), scores.to(device), None, 0.4, metric)
        expected, expected_boxes = reference.nmm(boxes, scores, None, 0.4, metric, False)
        assert index.tolist() == expected
        assert merged.dtype == dtype
        assert merged.double().tolist() == expected_boxes


def test_negative_coordinates_of_both_signs(device):
    boxes = torch.tensor([[-4.0, -4, -1, -1], [-5, -3, 0.0, -0.0], [-3, -6, 3, 2]], device=device)
    scores = torch.tensor([3.0, 2.0, 1.0], device=device)
    for dtype in (torch.float32, torch.float64):
        index, merged = nmm(boxes.to(dtype), scores.to(dtype), None, 0.3, "ios", True)
        assert index.tolist() == [0, 0, 0]
        assert merged[0].tolist() == [-5, -6, 3, 2]


# ---- SAHI ---------------------------------------------------------------------------------------


def groups_of(index: Tensor) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for i, kept in enumerate(index.tolist()):
        groups.setdefault(kept, []).append(i)
    return groups


@RULES
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [0, 1, 60, 700, 2500])  # from 2000 on SAHI builds a tree
def test_groups_are_those_of_sahi(n, metric, transitive, device):
    combine = pytest.importorskip("sahi.postprocess.combine", exc_type=ImportError)
    boxes = hostile(max(n, 2))["spread"][:n] * 0.7
    # Distinct scores: of equal scores SAHI takes the box with the lower coordinates first.
    scores = torch.randperm(n, generator=torch.Generator().manual_seed(n)).float() / max(n, 1)
    labels = torch.arange(n) % 3
    rows = torch.cat([boxes, scores[:, None], labels[:, None].float()], 1).numpy()
    for threshold in (0.2, 0.5, 0.8):
        for own_labels in (None, labels):
            name = ("batched_" if own_labels is not None else "") + (
                "nmm" if transitive else "greedy_nmm"
            )
            theirs = getattr(combine, name)(rows, metric.upper(), threshold)
            index, _ = nmm(
                boxes.to(device),
                scores.to(device),
                None if own_labels is None else own_labels.to(device),
                threshold,
                metric,
                transitive,
            )
            assert groups_of(index) == {k: sorted([k, *rest]) for k, rest in theirs.items()}


def test_merged_boxes_are_those_of_sahi_where_members_overlap_the_whole(device):
    pytest.importorskip("sahi", exc_type=ImportError)
    from sahi.postprocess.combine import GreedyNMMPostprocess
    from sahi.prediction import ObjectPrediction

    # Parts of objects as neighbouring tiles cut them: each lies in the whole box.
    corner = torch.arange(12)[:, None] * 100.0 + torch.tensor([0.0, 0])
    whole = torch.cat([corner, corner + 40], 1)
    parts = torch.cat([whole, whole * 1.0], 0)
    parts[12:, 2] -= 25
    scores = torch.linspace(0.9, 0.3, 24)[torch.arange(24).flip(0)]
    predictions = [
        ObjectPrediction(bbox=box, category_id=0, score=score, category_name="a")
        for box, score in zip(parts.tolist(), scores.tolist(), strict=True)
    ]
    theirs = GreedyNMMPostprocess(0.5, "IOS", class_agnostic=True)(predictions)
    index, merged = nmm(parts.to(device), scores.to(device), metric="ios")
    kept = (index.cpu() == torch.arange(24)).nonzero()[:, 0]
    expected = sorted(prediction.bbox.to_xyxy() for prediction in theirs)
    assert sorted(merged.cpu()[kept].tolist()) == expected
    assert len(kept) == 12


# ---- laws ---------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0.01, 1))
def test_greedy_nmm_keeps_what_nms_keeps(seed, n, threshold):
    boxes, scores = random_boxes(n, seed)
    index, _ = nmm(boxes, scores, None, threshold)
    kept = nms(boxes, scores, float(np.nextafter(np.float32(threshold), np.float32(0))))
    assert set(index.tolist()) == set(kept.tolist())
    assert index[index].equal(index)


@given(st.integers(0, 10**6), st.integers(1, 60), st.booleans(), st.sampled_from(METRICS))
def test_a_permutation_permutes_the_result(seed, n, transitive, metric):
    boxes, _ = random_boxes(n, seed)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randperm(n, generator=generator).float()
    order = torch.randperm(n, generator=generator)
    index, merged = nmm(boxes, scores, None, 0.4, metric, transitive)
    of_permuted, boxes_of_permuted = nmm(boxes[order], scores[order], None, 0.4, metric, transitive)
    assert order[of_permuted].equal(index[order])
    assert boxes_of_permuted.equal(merged[order])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_numpy_has_the_same_bits(dtype):
    boxes, scores = random_boxes(300, dtype=torch.float64)
    arrays = boxes.numpy().astype(dtype), scores.numpy().astype(dtype)
    tensors = [torch.from_numpy(array) for array in arrays]
    labels = np.arange(300, dtype=np.int32) % 3
    for transitive in (False, True):
        for metric in METRICS:
            ours = fastdet.numpy.nmm(*arrays, labels, 0.4, metric, transitive)
            theirs = nmm(*tensors, torch.from_numpy(labels).long(), 0.4, metric, transitive)
            assert ours[0].tolist() == theirs[0].tolist()
            assert ours[1].dtype == arrays[0].dtype
            assert np.array_equal(ours[1], theirs[1].numpy())


def test_numpy_takes_no_labels_and_no_boxes():
    index, merged = fastdet.numpy.nmm(np.zeros((0, 4), "f4"), np.zeros(0, "f4"))
    assert (index.shape, merged.shape) == ((0,), (0, 4))


def test_opcheck(device):
    boxes, scores = (t.to(device) for t in random_boxes(12))
    labels = torch.arange(12, device=device) % 2
    for own_labels in (None, labels):
        arguments = (boxes, scores, own_labels, 0.5, "ios", False)
        torch.library.opcheck(torch.ops.fastdet.nmm, arguments)


def test_compiles_without_a_graph_break():
    boxes, scores = random_boxes(40)
    compiled = torch.compile(nmm, fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(boxes, scores), nmm(boxes, scores), strict=True):
        assert ours.equal(theirs)


def test_bad_input_gets_one_clear_line(device):
    boxes, scores = (t.to(device) for t in random_boxes(3))
    for threshold in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"^threshold: expected a number in \(0, 1\], got"):
            nmm(boxes, scores, None, threshold)
        with pytest.raises(ValueError, match=r"^threshold: expected a number in \(0, 1\], got"):
            fastdet.numpy.nmm(boxes.cpu().numpy(), scores.cpu().numpy(), None, threshold)
    with pytest.raises(ValueError, match=r"^metric: expected one of \('iou', 'ios'\), got 'giou'"):
        nmm(boxes, scores, metric="giou")
    with pytest.raises(RuntimeError, match=r"nmm: labels: expected int64 \(N,\) with the N of"):
        nmm(boxes, scores, scores)
    with pytest.raises(RuntimeError, match=r"nmm: scores: expected floating \(N,\)"):
        nmm(boxes, scores[:2])
    with pytest.raises(RuntimeError, match="nmm: metric: expected iou or ios, got 'giou'"):
        torch.ops.fastdet.nmm(boxes, scores, None, 0.5, "giou", False)
