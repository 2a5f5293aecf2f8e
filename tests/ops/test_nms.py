# SPDX-License-Identifier: BSD-3-Clause
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet import _native
from fastdet.ops import batched_nms, nms, nms_padded
from tests import reference

INF, NAN = float("inf"), float("nan")


def random_boxes(
    n: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Boxes that overlap often, with many equal scores."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 100
    size = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 60
    scores = torch.randint(0, max(n // 2, 1), (n,), generator=generator).double() / 7
    return torch.cat([corner, corner + size], 1).to(dtype), scores.to(dtype)


def samples(device: str) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Name -> (boxes, scores, iou_threshold)."""

    def sample(boxes: list[list[float]], scores: list[float], threshold: float):
        return (
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4).to(device),
            torch.tensor(scores, dtype=torch.float32).to(device),
            threshold,
        )

    unit, shifted, far = [0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]
    table = {
        "hand-worked": sample([unit, shifted, far], [0.5, 0.9, 0.1], 0.5),
        "empty": sample([], [], 0.5),
        "one": sample([unit], [0.3], 0.5),
        "zero area": sample([[5, 5, 5, 5], [5, 5, 5, 5], unit], [0.9, 0.8, 0.7], 0.5),
        "inverted": sample([[10, 10, 0, 0], unit], [0.9, 0.8], 0.5),
        "tied scores": sample([unit, shifted, unit], [0.5, 0.5, 0.5], 0.5),
        "IoU exactly at the threshold": sample([[0, 0, 2, 1], [0, 0, 1, 1]], [0.9, 0.8], 0.5),
        # 3/5 rounds up in float32, to a number above the double 0.6
        "IoU rounds above the threshold": sample([[0, 0, 5, 1], [0, 0, 3, 1]], [0.9, 0.8], 0.6),
        "threshold 0": sample([unit, [10, 0, 20, 10], shifted], [0.9, 0.8, 0.7], 0.0),
        "threshold 1": sample([unit, unit], [0.9, 0.8], 1.0),
        "not finite": sample(
            [unit, [NAN, 0, 1, 1], [0, 0, INF, 1], unit, far, far],
            [0.1, 0.9, 0.9, NAN, INF, -INF],
            0.5,
        ),
        "huge": sample([[0, 0, 1e30, 1e30], [0, 0, 1e30, 1e30], unit], [0.9, 0.8, 0.7], 0.5),
    }
    boxes, scores = random_boxes(40)
    wide = torch.zeros(40, 8).to(device)
    wide[:, ::2] = boxes.to(device)
    table["non-contiguous"] = (wide[:, ::2], scores.to(device).repeat(2, 1).t()[:, 0], 0.3)
    table["expanded"] = (boxes[:1].to(device).expand(5, 4), scores[:5].to(device), 0.3)
    for n in (15, 16, 17, 63, 64, 65, 130):
        boxes, scores = random_boxes(n, seed=n)
        table[f"random {n}"] = (boxes.to(device), scores.to(device), 0.4)
    return table


SAMPLES = list(samples("cpu"))


@pytest.mark.parametrize("name", SAMPLES)
def test_nms_equals_reference(name, device):
    boxes, scores, threshold = samples(device)[name]
    expected = reference.nms(boxes.cpu(), scores.cpu(), threshold)
    assert nms(boxes, scores, threshold).cpu().tolist() == expected.tolist()


def hostile(n: int) -> dict[str, Tensor]:
    """Boxes that are hard for spatial pruning, for the test without a division, or for both."""
    generator = torch.Generator().manual_seed(n)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def around(centre: Tensor, sides: Tensor) -> Tensor:
        return torch.cat([centre - sides / 2, centre + sides / 2], 1)

    step = torch.arange(n, dtype=torch.float64)[:, None]
    line = torch.cat([10 * step, 0 * step, 10 * step + 10, 0 * step + 10], 1)
    half = torch.tensor([0, 0, 5.0, 0])  # IoU with the neighbour: 1 / 3 of the union
    spread = around(uniform(n, 2) * 8 * n**0.5, 1 + uniform(n, 2) * 40)
    giants = spread.clone()
    giants[::97] = giants[::97] * 1e-3 + torch.tensor([-50.0, -50, 1e4, 1e4])
    inverted = spread.clone()
    inverted[::3] = inverted[::3][:, [2, 3, 0, 1]]
    inverted[1::3, 2] = inverted[1::3, 0]
    boxes = {
        "spread": spread,
        "all equal": line[:1].expand(n, 4).contiguous(),
        "one spot": around(50 + uniform(n, 2), 30 + uniform(n, 2) * 20),
        "giants": giants,
        "touching line": line,
        "overlapping line": line + half,
        "one long and thin": torch.cat(
            [around(uniform(n - 1, 2) * 500, 9 + uniform(n - 1, 2)), line[:1] * 50]
        ),
        "all sizes": around(uniform(n, 2) * 1000, torch.exp(uniform(n, 2) * 25 - 10)),
        "integers": around(
            torch.floor(uniform(n, 2) * 30) * 2, 2 + torch.floor(uniform(n, 2) * 4) * 2
        ),
        "inverted and flat": inverted,
        "far away": spread + 2.0**23,
        "huge": spread * 1e30,
        "areas that overflow": spread * 1e18,
        "areas that underflow": spread * 1e-21,
        "areas of few bits": spread * 1e-22,
        "one tiny": torch.cat([spread[1:], spread[:1] * 1e-20]),
        "negative": -spread[:, [2, 3, 0, 1]],
    }
    return {name: values.float() for name, values in boxes.items()}


def brute_force(
    boxes: Tensor, scores: Tensor, iou_threshold: float, idxs: Tensor | None = None
) -> list[int]:
    """Compares each box with all kept boxes, with NumPy in the dtype of the boxes."""
    b, t = boxes.numpy(), np.asarray(iou_threshold, np.float64)
    with np.errstate(all="ignore"):
        areas = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
        ids = np.zeros(len(b), np.int64) if idxs is None else idxs.numpy()
        kept = np.empty(len(b), np.int64)
        planes, n = np.empty((4, len(b)), b.dtype), 0
        for i in np.argsort(-scores.numpy(), kind="stable"):
            k = kept[:n]
            x1, y1, x2, y2 = planes[:, :n]
            w = np.maximum(np.minimum(x2, b[i, 2]) - np.maximum(x1, b[i, 0]), 0)
            h = np.maximum(np.minimum(y2, b[i, 3]) - np.maximum(y1, b[i, 1]), 0)
            inter = w * h
            union = areas[k] + areas[i] - inter
            iou = np.where(union > 0, inter / union, 0)
            if not ((iou > t) & (ids[k] == ids[i])).any():
                kept[n], planes[:, n], n = i, b[i], n + 1
    return kept[:n].tolist()


@pytest.fixture
def narrow_vectors():
    """With narrower vectors, kept boxes are stored in grid cells earlier."""
    before = _native.cpu_isa()
    _native.set_cpu_isa("baseline")
    yield
    _native.set_cpu_isa(before)


@pytest.mark.parametrize("threshold", [0.0, 1e-7, 0.1, 0.5, 0.7, 0.95, 1.0])
@pytest.mark.parametrize("name", list(hostile(2)))
def test_hostile_boxes(name, threshold, narrow_vectors):
    boxes = hostile(1500)[name]
    scores = torch.randint(0, 700, (1500,), generator=torch.Generator().manual_seed(3)).float()
    expected = brute_force(boxes, scores, threshold)
    assert nms(boxes, scores, threshold).tolist() == expected
    wide = boxes.double()
    expected = brute_force(wide, scores.double(), threshold)
    assert nms(wide, scores.double(), threshold).tolist() == expected


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("name", ["spread", "giants", "all sizes", "one tiny"])
def test_hostile_boxes_in_groups(name, threshold, narrow_vectors):
    boxes, ids = hostile(3000)[name], torch.arange(3000) % 1000 % 5 * 2**60
    ids[::50] = torch.arange(60) - 2**63
    scores = torch.randint(0, 700, (3000,), generator=torch.Generator().manual_seed(3)).float()
    expected = brute_force(boxes, scores, threshold, ids)
    assert batched_nms(boxes, scores, ids, threshold).tolist() == expected
    for max_keep in (3, 300, 3000):
        keep, counts = nms_padded(boxes[None], scores[None], threshold, max_keep, ids[None])
        assert keep[0, : counts[0]].tolist() == expected[:max_keep]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_next_to_the_iou(dtype):
    """No rounding of a cheaper test drops a pair whose IoU is barely above the threshold."""
    random = np.random.default_rng(1)
    for _ in range(1000):
        corner, side = random.random(2) * 100, random.random((2, 2)) * 100 + 1
        first = np.concatenate([corner, corner + side[0]]).astype(dtype)
        shift = random.random(2) * side[0]
        second = np.concatenate([corner + shift, corner + shift + side[1]]).astype(dtype)
        boxes, scores = torch.tensor(np.stack([first, second])), torch.tensor([2.0, 1.0])
        w, h = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
        iou = w * h / (areas[0] + areas[1] - w * h)
        assert iou.dtype == dtype
        assert nms(boxes, scores.to(boxes.dtype), float(iou)).tolist() == [0, 1]
        below = float(np.nextafter(iou, dtype(0)))
        assert nms(boxes, scores.to(boxes.dtype), below).tolist() == [0]


@pytest.mark.parametrize("n", [191, 192, 193, 777, 5000, 20000])
def test_many_boxes(n):
    boxes, generator = hostile(n)["spread"], torch.Generator().manual_seed(n)
    scores = torch.rand(n, generator=generator) - 0.5
    expected = brute_force(boxes, scores, 0.5)
    assert nms(boxes, scores, 0.5).tolist() == expected
    best, order = scores.sort(descending=True, stable=True)  # rows that are already sorted
    assert order[nms(boxes[order], best, 0.5)].tolist() == expected
    for max_keep in (1, 10, 100, n // 2):
        keep, counts = nms_padded(boxes[None], scores[None], 0.5, max_keep)
        assert counts[0] == min(len(expected), max_keep)
        assert keep[0, : counts[0]].tolist() == expected[:max_keep]


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("name", list(hostile(2)))
def test_hostile_boxes_on_every_device(name, threshold, device):
    boxes = hostile(1030)[name]
    scores = torch.randint(0, 500, (1030,), generator=torch.Generator().manual_seed(3)).float()
    expected = brute_force(boxes, scores, threshold)
    assert nms(boxes.to(device), scores.to(device), threshold).tolist() == expected
    expected = brute_force(boxes.double(), scores.double(), threshold)
    wide = boxes.double().to(device), scores.double().to(device)
    assert nms(*wide, threshold).tolist() == expected


@pytest.mark.parametrize("n", [31, 32, 33, 1023, 1024, 1025, 4095, 4096, 4097, 8200])
def test_sizes_around_warps_and_tiles(n, device):
    boxes = torch.cat([hostile(n)["spread"], hostile(n)["one spot"]])[::2]
    scores = torch.randint(0, n, (n,), generator=torch.Generator().manual_seed(n)).float()
    expected = brute_force(boxes, scores, 0.5)
    assert nms(boxes.to(device), scores.to(device), 0.5).tolist() == expected


COUNTS = [0, 1, 1024, 2049, 4096, 4097, 4200, 10**6]


# So many images that CUDA sorts tiles of 2048 scores instead of counting ranks; most are empty.
@pytest.mark.parametrize(
    ("counts", "dtype"),
    [
        pytest.param(COUNTS, torch.float32, id="counted"),
        pytest.param(COUNTS + 9 * [0], torch.float32, id="score tiles"),
        pytest.param(COUNTS + 9 * [0], torch.float64, id="score tiles, float64"),
    ],
)
def test_counts_around_tiles(counts, dtype, device):
    n = 4200
    boxes, scores = random_boxes(n, dtype=dtype)
    boxes = boxes + torch.arange(n)[:, None] % 60 * 150
    scores[::9] = NAN
    images = boxes.expand(len(counts), n, 4).to(device), scores.expand(len(counts), n).to(device)
    keep, kept = nms_padded(*images, 0.3, 700, None, torch.tensor(counts, device=device))
    for b, count in enumerate(counts):
        usable = scores[:count].nan_to_num(-1)
        expected = [i for i in brute_force(boxes[:count], usable, 0.3) if not scores[i].isnan()]
        assert keep[b, : kept[b]].tolist() == expected[:700]
        assert (keep[b, kept[b] :] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_images_of_an_rpn(dtype, device):
    # Four images are enough for tiles of scores; the last tile of 8,741 rows has 549 of them.
    n, counts = 8741, [8741, 6145, 0, 1]
    boxes, ids = hostile(n)["spread"].to(dtype), torch.arange(n) % 5
    scores = torch.randint(0, n, (n,), generator=torch.Generator().manual_seed(n)).to(dtype)
    images = [x.expand(4, *x.shape).to(device) for x in (boxes, scores, ids)]
    keep, kept = nms_padded(
        *images[:2], 0.7, n, groups=images[2], counts=torch.tensor(counts, device=device)
    )
    for image, count in enumerate(counts):
        expected = brute_force(boxes[:count], scores[:count], 0.7, ids[:count])
        assert keep[image, : kept[image]].tolist() == expected


@pytest.mark.parametrize("n", [2**15, 2**15 + 1])
@pytest.mark.parametrize("count", [1, 1030, 4200])
@pytest.mark.parametrize("name", ["spread", "one spot", "giants"])
def test_few_of_many_rows(name, count, n, device):
    # Above 2^15 rows CUDA sorts tiles; up to there, of 2 images, tiles of scores alone. Only the
    # first rows of an image are real.
    boxes, scores = torch.zeros(2, n, 4), torch.zeros(2, n)
    boxes[:, :count] = hostile(max(count, 2))[name][:count]
    generator = torch.Generator().manual_seed(count)
    scores[:, :count] = torch.randint(0, 999, (2, count), generator=generator).float()
    scores[1, :count:7] = NAN
    rows = boxes.to(device), scores.to(device)
    keep, kept = nms_padded(*rows, 0.4, 5000, None, torch.tensor([count] * 2, device=device))
    for image in range(2):
        usable = (~scores[image, :count].isnan()).nonzero()[:, 0]
        among = brute_force(boxes[image, usable], scores[image, usable], 0.4)
        assert keep[image, : kept[image]].tolist() == usable[among].tolist()[:5000]
        assert (keep[image, kept[image] :] == -1).all()


def bucket(group: int) -> int:
    """The bucket of CUDA's bucket_of."""
    return (group * 0x9E3779B97F4A7C15) % 2**64 >> 59


GROUPS = {
    "one": [-3],
    "80 classes": range(80),
    "large and negative": [2**63 - 1, -(2**63), 0, -1, 2**62, -(2**62), 2**32, -(2**32)],
    "one bucket": [k for k in range(-900, 900) if bucket(k) == 9],
    "first and last bucket": [k for k in range(200) if bucket(k) in (0, 31)],
}


@pytest.mark.parametrize("room", [1100, 2**15, 2**15 + 1], ids=["bins", "score tiles", "tiles"])
@pytest.mark.parametrize("name", GROUPS)
def test_groups_with_boxes_in_the_same_places(name, room, device):
    n, generator = 1100, torch.Generator().manual_seed(5)
    ids = torch.tensor(GROUPS[name])[torch.randint(len(GROUPS[name]), (2, n), generator=generator)]
    boxes, groups = torch.zeros(2, room, 4), torch.zeros(2, room, dtype=torch.int64)
    scores = torch.zeros(2, room)
    boxes[0, :n], boxes[1, :n] = hostile(n)["one spot"], hostile(n)["all sizes"]
    scores[:, :n] = torch.randint(0, 500, (2, n), generator=generator)
    scores[1, :n:7] = NAN
    groups[:, :n] = ids
    rows = boxes.to(device), scores.to(device)
    counts = torch.tensor([n, n], device=device)
    keep, kept = nms_padded(*rows, 0.4, n, groups.to(device), counts)
    for image in range(2):
        usable = (~scores[image, :n].isnan()).nonzero()[:, 0]
        found = brute_force(*(t[image, usable] for t in (boxes, scores)), 0.4, ids[image, usable])
        assert keep[image, : kept[image]].tolist() == usable[found].tolist()


@pytest.mark.parametrize("toward", [1, -1])
def test_boxes_that_wait_for_many_that_wait_long(toward, device):
    # A chain: each box overlaps the next, so every second box is kept, and each decision depends on
    # the one before. The last box of the chain suppresses 400 boxes, so these do not suppress the
    # two boxes after them.
    links = 4 * torch.arange(-40, 1)
    left = torch.cat([links, torch.full((400,), 3), torch.tensor([6, 6])]) * float(toward)
    boxes = torch.stack([left, 0 * left, left + 10, 0 * left + 10], 1)
    scores = torch.arange(len(boxes)).flip(0).float()
    expected = [*range(0, 41, 2), 441]
    assert brute_force(boxes, scores, 0.4) == expected
    assert nms(boxes.to(device), scores.to(device), 0.4).tolist() == expected
    others = torch.zeros(len(boxes), dtype=torch.int64)
    others[442] = 1
    kept = batched_nms(boxes.to(device), scores.to(device), others.to(device), 0.4)
    assert kept.tolist() == [*expected, 442]


def test_scores_of_every_kind_are_in_order():
    special = [0.0, -0.0, INF, -INF, 1e-45, -1e-45, 3e38, -3e38, 1.0, -1.0]
    for dtype in (torch.float32, torch.float64):
        scores = torch.tensor(special, dtype=dtype).repeat(50)
        step = torch.arange(500, dtype=dtype)[:, None] * 2
        boxes = torch.cat([step, step, step + 1, step + 1], 1)
        for count in (10, 60, 500):
            expected = scores[:count].sort(descending=True, stable=True).indices.tolist()
            assert nms(boxes[:count], scores[:count], 0.5).tolist() == expected
        keep, _ = nms_padded(boxes[None], scores[None], 0.5, 55)
        assert keep[0].tolist() == expected[:55]


def test_hand_worked():
    boxes, scores, threshold = samples("cpu")["hand-worked"]
    assert nms(boxes, scores, threshold).tolist() == [1, 2]
    boxes, scores, threshold = samples("cpu")["not finite"]
    assert nms(boxes, scores, threshold).tolist() == [4, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_types(dtype, device):
    boxes, scores = random_boxes(65, dtype=dtype)
    expected = reference.nms(boxes, scores, 0.4)
    assert nms(boxes.to(device), scores.to(device), 0.4).cpu().tolist() == expected.tolist()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_nms_equals_torchvision(threshold, device):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    boxes, _ = random_boxes(500)
    scores = torch.randperm(500, generator=torch.Generator().manual_seed(1)).float()
    expected = torchvision.ops.nms(boxes, scores, threshold)
    assert nms(boxes.to(device), scores.to(device), threshold).cpu().equal(expected)


@pytest.mark.parametrize("name", SAMPLES)
def test_batched_nms_equals_reference(name, device):
    boxes, scores, threshold = samples(device)[name]
    idxs = torch.arange(len(boxes), device=device) % 3 * 2**62 - 2**62
    expected = reference.nms(boxes.cpu(), scores.cpu(), threshold, idxs.cpu())
    assert batched_nms(boxes, scores, idxs, threshold).cpu().tolist() == expected.tolist()


def test_batched_nms_does_not_shift_coordinates(device):
    # A shift by the largest coordinate would round these boxes onto each other.
    boxes = torch.tensor([[1e7, 0, 1e7 + 2, 2], [1e7 + 1, 0, 1e7 + 3, 2]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    for ids, kept in (([0, 10**9], [0, 1]), ([7, 7], [0, 1])):
        idxs = torch.tensor(ids, device=device)
        assert batched_nms(boxes, scores, idxs, 0.4).tolist() == kept


@pytest.mark.parametrize("max_keep", [0, 1, 5, 200])
@pytest.mark.parametrize("grouped", [False, True])
def test_nms_padded_equals_reference_image_by_image(max_keep, grouped, device):
    n, counts = 65, [65, 0, 16, 64, 1]
    pairs = [random_boxes(n, seed=s) for s in range(len(counts))]
    boxes = torch.stack([b for b, _ in pairs])
    scores = torch.stack([s for _, s in pairs])
    groups = torch.arange(n).expand(len(counts), n) % 4 if grouped else None
    keep, kept_counts = nms_padded(
        boxes.to(device),
        scores.to(device),
        0.4,
        max_keep,
        None if groups is None else groups.to(device),
        torch.tensor(counts, device=device),
    )
    for b, count in enumerate(counts):
        ids = None if groups is None else groups[b, :count]
        expected = reference.nms(boxes[b, :count], scores[b, :count], 0.4, ids)[:max_keep].tolist()
        assert kept_counts[b] == len(expected)
        assert keep[b].tolist() == expected + [-1] * (max_keep - len(expected))


def test_nms_padded_without_counts_and_without_images(device):
    boxes, scores = random_boxes(20)
    keep, counts = nms_padded(boxes[None].to(device), scores[None].to(device), 0.4, 20)
    expected = reference.nms(boxes, scores, 0.4).tolist()
    assert keep[0, : counts[0]].tolist() == expected
    keep, counts = nms_padded(boxes[None][:0].to(device), scores[None][:0].to(device), 0.4, 7)
    assert keep.shape == (0, 7)
    assert counts.shape == (0,)


def test_nms_padded_reads_nothing_beyond_the_counts(device):
    boxes, scores = random_boxes(20)
    boxes[12:], scores[12:] = NAN, INF
    keep, counts = nms_padded(
        boxes[None].to(device),
        scores[None].to(device),
        0.4,
        20,
        None,
        torch.tensor([12], device=device),
    )
    assert keep[0, : counts[0]].tolist() == reference.nms(boxes[:12], scores[:12], 0.4).tolist()


@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0, 1))
def test_kept_boxes_survive_again_and_do_not_overlap(seed, n, threshold):
    boxes, scores = random_boxes(n, seed)
    keep = nms(boxes, scores, threshold)
    assert nms(boxes[keep], scores[keep], threshold).tolist() == list(range(len(keep)))
    assert (scores[keep].diff() <= 0).all()


@given(st.integers(0, 10**6), st.integers(1, 60))
def test_permutation_permutes_the_result(seed, n):
    boxes, _ = random_boxes(n, seed)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randperm(n, generator=generator).float()
    order = torch.randperm(n, generator=generator)
    assert order[nms(boxes[order], scores[order], 0.5)].equal(nms(boxes, scores, 0.5))


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_result_does_not_depend_on_the_thread_count(num_threads):
    boxes, scores = random_boxes(300)
    batch = boxes.reshape(6, 50, 4), scores.reshape(6, 50)
    expected = nms_padded(*batch, 0.4, 50)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        got = nms_padded(*batch, 0.4, 50)
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


def test_opcheck(device):
    boxes, scores = (t.to(device) for t in random_boxes(12))
    idxs = torch.arange(12, device=device) % 2
    torch.library.opcheck(torch.ops.fastdet.nms, (boxes, scores, 0.5))
    torch.library.opcheck(torch.ops.fastdet.batched_nms, (boxes, scores, idxs, 0.5))
    padded = (boxes[None], scores[None], 0.5, 5, idxs[None], torch.tensor([9], device=device))
    torch.library.opcheck(torch.ops.fastdet.nms_padded, padded)


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def best(boxes: Tensor, scores: Tensor) -> Tensor:
        keep, counts = nms_padded(boxes, scores, 0.5, 5)
        return (
            boxes.gather(1, keep.clamp(min=0)[..., None].expand(-1, -1, 4)) * counts[:, None, None]
        )

    boxes, scores = (t[None].to(device) for t in random_boxes(30))
    compiled = torch.compile(best, fullgraph=True, dynamic=True)
    assert compiled(boxes, scores).equal(best(boxes, scores))


def test_bad_input_is_named(device):
    boxes, scores = (t.to(device) for t in random_boxes(5))
    with pytest.raises(ValueError, match=r"iou_threshold: expected a number in \[0, 1\], got 1.5"):
        nms(boxes, scores, 1.5)
    with pytest.raises(
        RuntimeError, match=r"nms: boxes: expected floating \(N, 4\), got Float \(5, 3\)"
    ):
        nms(boxes[:, :3], scores, 0.5)
    with pytest.raises(RuntimeError, match=r"boxes: expected floating \(N, 4\), got Long"):
        nms(boxes.long(), scores, 0.5)
    with pytest.raises(RuntimeError, match=r"scores: expected floating \(N,\).*got Float \(4\)"):
        nms(boxes, scores[:4], 0.5)
    with pytest.raises(RuntimeError, match=r"batched_nms: idxs: expected int64 \(N,\).*got Int "):
        batched_nms(boxes, scores, torch.zeros(5, dtype=torch.int32, device=device), 0.5)
    with pytest.raises(RuntimeError, match=r"nms_padded: boxes: expected floating \(B, N, 4\)"):
        nms_padded(boxes, scores, 0.5, 3)
    with pytest.raises(RuntimeError, match=r"max_keep: expected a number >= 0, got -1"):
        nms_padded(boxes[None], scores[None], 0.5, -1)
    with pytest.raises(RuntimeError, match=r"counts: expected int64 \(B,\).*got Long \(2\)"):
        nms_padded(
            boxes[None],
            scores[None],
            0.5,
            3,
            None,
            torch.zeros(2, dtype=torch.int64, device=device),
        )


@pytest.mark.cuda
def test_devices_must_agree():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    boxes, scores = random_boxes(5)
    with pytest.raises(RuntimeError, match=r"scores: expected the device of the first argument"):
        nms(boxes.cuda(), scores, 0.5)
