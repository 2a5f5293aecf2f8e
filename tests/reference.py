# SPDX-License-Identifier: BSD-3-Clause
"""A slow and obvious version of each operator in float64, with which the kernels are compared.

Everything here takes CPU tensors of any floating type and computes on Python floats or float64
tensors. Where an operator's contract fixes the arithmetic (the IoU of NMS is rounded once in
float32), the reference is told the type to round to.
"""

import ctypes
import math

import torch
from torch import Tensor


def rounded(x: float, dtype: torch.dtype) -> float:
    """x in `dtype`, float32 or float64."""
    return x if dtype == torch.float64 else ctypes.c_float(x).value


def _area(box: list[float], dtype: torch.dtype) -> float:
    return rounded(rounded(box[2] - box[0], dtype) * rounded(box[3] - box[1], dtype), dtype)


def _intersection(a: list[float], b: list[float], dtype: torch.dtype) -> float:
    width = max(rounded(min(a[2], b[2]) - max(a[0], b[0]), dtype), 0.0)
    height = max(rounded(min(a[3], b[3]) - max(a[1], b[1]), dtype), 0.0)
    return rounded(width * height, dtype)


def iou(a: list[float], b: list[float], dtype: torch.dtype = torch.float64) -> float:
    """IoU of two xyxy boxes; each step rounded to `dtype`, float32 or float64."""
    inter = _intersection(a, b, dtype)
    union = rounded(rounded(_area(a, dtype) + _area(b, dtype), dtype) - inter, dtype)
    return rounded(inter / union, dtype) if union > 0 else 0.0


def ios(a: list[float], b: list[float], dtype: torch.dtype = torch.float64) -> float:
    """Intersection over the area of the smaller box, rounded as `iou`; 0 if an area overflows."""
    smaller, larger = sorted([_area(a, dtype), _area(b, dtype)])
    if smaller <= 0 or math.isinf(larger):
        return 0.0
    return rounded(_intersection(a, b, dtype) / smaller, dtype)


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, groups: Tensor | None = None
) -> Tensor:
    """Indices kept by greedy suppression, in the order in which they are kept."""
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    rows, values = boxes.double().tolist(), scores.double().tolist()
    ids = [0] * len(rows) if groups is None else groups.tolist()
    usable = [
        i
        for i in range(len(rows))
        if all(math.isfinite(x) for x in rows[i]) and not math.isnan(values[i])
    ]
    kept: list[int] = []
    for i in sorted(usable, key=lambda i: (-values[i], i)):
        if all(ids[i] != ids[k] or iou(rows[k], rows[i], dtype) <= iou_threshold for k in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def nmm(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    threshold: float,
    metric: str,
    transitive: bool,
) -> tuple[list[int], list[list[float]]]:
    """The kept row of each box, -1 if it is dropped; and the enclosing boxes of the groups."""
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    rows, values = boxes.double().tolist(), scores.double().tolist()
    ids = [0] * len(rows) if labels is None else labels.tolist()
    overlap, least = {"iou": iou, "ios": ios}[metric], rounded(threshold, dtype)
    index, merged = [-1] * len(rows), [list(row) for row in rows]
    targets: list[int] = []
    usable = [
        i
        for i in range(len(rows))
        if all(math.isfinite(x) for x in rows[i]) and not math.isnan(values[i])
    ]
    for i in sorted(usable, key=lambda i: (-values[i], i)):
        matches = (
            k for k in targets if ids[k] == ids[i] and overlap(rows[k], rows[i], dtype) >= least
        )
        target = next(matches, None)
        kept = i if target is None else index[target]
        index[i] = kept
        if target is None or transitive:
            targets.append(i)
        lows = [min(pair) for pair in zip(merged[kept][:2], rows[i][:2], strict=True)]
        highs = [max(pair) for pair in zip(merged[kept][2:], rows[i][2:], strict=True)]
        merged[kept] = lows + highs
    return index, merged


def weighted_boxes_fusion(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    models: Tensor,
    weights: list[float],
    iou_threshold: float,
    score_threshold: float,
    conf_type: str,
    allows_overflow: bool,
) -> tuple[list[list[float]], list[float], list[int]]:
    """Fused boxes by falling score, with their scores and labels; Solovyev et al., 2019."""
    rows = boxes.double().tolist()
    weighted = [s * weights[m] for s, m in zip(scores.double().tolist(), models, strict=True)]
    usable = [
        i
        for i in range(len(rows))
        if all(math.isfinite(x) for x in (*rows[i], weighted[i]))
        and rows[i][0] < rows[i][2]
        and rows[i][1] < rows[i][3]
        and scores[i] >= score_threshold
    ]
    groups: list[list[int]] = []

    def mean(group: list[int]) -> list[float]:
        total = sum(weighted[i] for i in group)
        if len(group) == 1 or total <= 0:
            return rows[group[0]]
        return [sum(weighted[i] * rows[i][c] for i in group) / total for c in range(4)]

    def confidence(group: list[int]) -> float:
        own, n = {int(models[i]) for i in group}, len(group)
        average = sum(weighted[i] for i in group) / n
        if conf_type == "max":
            return max(weighted[i] for i in group) / max(weights)
        of_members = sum(weights[models[i]] for i in group)
        of_own = sum(weights[m] for m in own)
        if conf_type == "box_and_model_avg":
            return average * n / of_members * of_own / sum(weights)
        if conf_type == "absent_model_aware_avg":
            return average * n / (of_members + sum(weights) - of_own)
        return average * (n if allows_overflow else min(n, len(weights))) / sum(weights)

    for i in sorted(usable, key=lambda i: (-weighted[i], i)):
        best, joined = iou_threshold, None
        for group in groups:
            overlap = iou(mean(group), rows[i]) if labels[group[0]] == labels[i] else 0.0
            if overlap > best:
                best, joined = overlap, group
        if joined is None:
            groups.append([i])
        else:
            joined.append(i)
    groups.sort(key=lambda group: (-confidence(group), group[0]))
    return (
        [mean(group) for group in groups],
        [confidence(group) for group in groups],
        [int(labels[group[0]]) for group in groups],
    )


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    method: str,
    labels: Tensor | None = None,
) -> tuple[list[int], list[float]]:
    """Indices in the order of picking, and their scores then; Bodla et al., 2017."""
    rows, left = boxes.double().tolist(), dict(enumerate(scores.double().tolist()))
    ids = [0] * len(rows) if labels is None else labels.tolist()
    for i, row in enumerate(rows):
        if not all(math.isfinite(x) for x in (*row, left[i])) or left[i] < score_threshold:
            del left[i]
    picks: list[int] = []
    pick_scores: list[float] = []
    while left:
        pick = max(left, key=lambda i: (left[i], -i))
        picks.append(pick)
        pick_scores.append(left.pop(pick))
        for i in [i for i in left if ids[i] == ids[pick]]:
            overlap = iou(rows[pick], rows[i])
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= iou_threshold:
                left[i] *= 1 - overlap
            if left[i] < score_threshold:
                del left[i]
    return picks, pick_scores


def encode_box(box: list[float], anchor: list[float], weights: tuple[float, ...]) -> list[float]:
    """Deltas of one box; zeros where a side is not positive and finite."""
    (w, h), (aw, ah) = [(b[2] - b[0], b[3] - b[1]) for b in (box, anchor)]
    if not all(0 < side < math.inf for side in (w, h, aw, ah)):
        return [0.0] * 4
    dx = (box[0] + w / 2 - anchor[0] - aw / 2) / aw
    dy = (box[1] + h / 2 - anchor[1] - ah / 2) / ah
    deltas = (dx, dy, math.log(w / aw), math.log(h / ah))
    return [delta * weight for delta, weight in zip(deltas, weights, strict=True)]


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: tuple[float, ...]) -> Tensor:
    boxes, anchors = torch.broadcast_tensors(boxes.double(), anchors.double())
    pairs = zip(boxes.reshape(-1, 4).tolist(), anchors.reshape(-1, 4).tolist(), strict=True)
    deltas = [encode_box(box, anchor, weights) for box, anchor in pairs]
    return torch.tensor(deltas, dtype=torch.float64).reshape(boxes.shape)


def decode_boxes(
    deltas: Tensor, anchors: Tensor, weights: tuple[float, ...], sizes: Tensor | None = None
) -> Tensor:
    """The formulas of torchvision in float64, differentiable by torch."""
    d = deltas.double() / torch.tensor(weights, dtype=torch.float64)
    a = anchors.double()
    sides = a[..., 2:] - a[..., :2]
    centre = a[..., :2] + sides / 2 + d[..., :2] * sides
    half = d[..., 2:].clamp(max=math.log(1000 / 16)).exp() * sides / 2
    boxes = torch.cat([centre - half, centre + half], -1)
    if sizes is None:
        return boxes
    limits = sizes.flip(1).repeat(1, 2).double()  # (B, 4) width, height, width, height
    return boxes.clamp(min=0).minimum(limits.reshape(-1, *[1] * (boxes.dim() - 2), 4))


def box_similarity(
    boxes1: Tensor, boxes2: Tensor, kind: str, area_eps: float, diagonal_eps: float, eps: float
) -> Tensor:
    """The IoU of the given kind of boxes (..., 4) that broadcast; autograd differentiates it."""

    def quotient(n: Tensor, d: Tensor, eps: float = 0.0) -> Tensor:
        positive = d > 0
        return torch.where(positive, n / torch.where(positive, d + eps, 1), 0)

    ax1, ay1, ax2, ay2 = boxes1.double().unbind(-1)
    bx1, by1, bx2, by2 = boxes2.double().unbind(-1)
    inter_width = (torch.min(ax2, bx2) - torch.max(ax1, bx1)).clamp(min=0)
    inter_height = (torch.min(ay2, by2) - torch.max(ay1, by1)).clamp(min=0)
    inter = inter_width * inter_height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - inter
    iou = quotient(inter, union, area_eps)
    if kind == "iou":
        return iou
    hull_width = (torch.max(ax2, bx2) - torch.min(ax1, bx1)).clamp(min=0)
    hull_height = (torch.max(ay2, by2) - torch.min(ay1, by1)).clamp(min=0)
    if kind == "generalized":
        hull = hull_width * hull_height
        return iou - quotient(hull - union, hull, area_eps)
    distance = ((ax1 + ax2 - bx1 - bx2) / 2) ** 2 + ((ay1 + ay2 - by1 - by2) / 2) ** 2
    near = iou - quotient(distance, hull_width**2 + hull_height**2, diagonal_eps)
    if kind == "distance":
        return near
    angles = [
        torch.where((width == 0) & (height == 0), 0, torch.atan(width / height))
        for width, height in ((ax2 - ax1, ay2 - ay1), (bx2 - bx1, by2 - by1))
    ]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    return near - quotient(v, 1 - iou + v + eps).detach() * v


def box_iou(boxes1: Tensor, boxes2: Tensor, kind: str, eps: float = 1e-7) -> Tensor:
    """IoUs of all pairs, (..., N, 4) and (..., M, 4) -> (..., N, M)."""
    return box_similarity(boxes1[..., None, :], boxes2[..., None, :, :], kind, 0.0, eps, eps)


def match_anchors(
    anchors: Tensor, gt_boxes: Tensor, high: float, low: float, low_quality: str
) -> tuple[Tensor, Tensor]:
    """Index and best IoU of each anchor of one image, from the whole matrix of IoUs."""
    dtype = torch.float64 if torch.float64 in (anchors.dtype, gt_boxes.dtype) else torch.float32
    high, low = torch.tensor([high, low], dtype=dtype).tolist()
    rows, gts = anchors.double().tolist(), gt_boxes.double().tolist()
    gts = {g: box for g, box in enumerate(gts) if all(math.isfinite(x) for x in box)}
    usable = [all(math.isfinite(x) for x in row) for row in rows]
    overlaps = {
        g: [iou(box, row, dtype) if ok else -1.0 for row, ok in zip(rows, usable, strict=True)]
        for g, box in gts.items()
    }
    highest = {g: max(row, default=-1.0) for g, row in overlaps.items()}
    index, best = [], []
    for a, ok in enumerate(usable):
        if not ok or not gts:
            index.append(-1 if ok else -2)
            best.append(0.0)
            continue
        best_gt = max(gts, key=lambda g: (overlaps[g][a], -g))
        best.append(overlaps[best_gt][a])
        label = best_gt if best[a] >= high else -2 if best[a] >= low else -1
        for g in gts:
            if overlaps[g][a] == highest[g]:
                if low_quality == "anchor_best":
                    label = best_gt
                elif low_quality == "gt_best" and overlaps[g][a] > 0:
                    label = g
        index.append(label)
    return torch.tensor(index, dtype=torch.int64), torch.tensor(best, dtype=dtype)


def assign_atss(
    anchors: Tensor, level_sizes: list[int], gt_boxes: Tensor, topk: int
) -> tuple[list[int], list[float]]:
    """Index and IoU of each anchor of one image; Zhang et al., 2020."""
    dtype = torch.float64 if torch.float64 in (anchors.dtype, gt_boxes.dtype) else torch.float32
    rows, gts = anchors.double().tolist(), gt_boxes.double().tolist()
    margin = rounded(0.01, dtype)

    def centre(box: list[float]) -> list[float]:
        return [rounded(rounded(box[i] + box[i + 2], dtype) / 2, dtype) for i in (0, 1)]

    def distance(a: list[float], b: list[float]) -> float:
        squares = [rounded(rounded(p - q, dtype) ** 2, dtype) for p, q in zip(a, b, strict=True)]
        return rounded(squares[0] + squares[1], dtype)

    index, best = [-1] * len(rows), [0.0] * len(rows)
    for g, gt in enumerate(gts):
        if not all(math.isfinite(x) for x in gt) or gt[0] >= gt[2] or gt[1] >= gt[3]:
            continue
        candidates: list[int] = []
        begin = 0
        for size in level_sizes:
            distances = {
                a: distance(centre(rows[a]), centre(gt))
                for a in range(begin, begin + size)
                if all(math.isfinite(x) for x in rows[a])
            }
            usable = [a for a in distances if math.isfinite(distances[a])]
            candidates += sorted(usable, key=lambda a: (distances[a], a))[:topk]
            begin += size
        if not candidates:
            continue
        overlaps = [iou(rows[a], gt, dtype) for a in candidates]
        n = len(overlaps)
        mean = sum(overlaps) / n
        deviation = math.sqrt(sum((x - mean) ** 2 for x in overlaps) / (n - 1)) if n > 1 else 0.0
        for a, overlap in zip(candidates, overlaps, strict=True):
            x, y = centre(rows[a])
            depths = [rounded(d, dtype) for d in (x - gt[0], y - gt[1], gt[2] - x, gt[3] - y)]
            positive = overlap >= mean + deviation and overlap > 0 and min(depths) > margin
            if positive and overlap > best[a]:
                index[a], best[a] = g, overlap
    return index, best


def assign_simota(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    strides: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    center_radius: float = 2.5,
    candidate_topk: int = 10,
    cls_weight: float = 1.0,
    iou_weight: float = 3.0,
) -> tuple[list[int], list[float]]:
    """Index and IoU of each anchor of one image; Ge et al., 2021."""
    rows, centres, gts = (x.double().tolist() for x in (boxes, points, gt_boxes))
    steps, probabilities = strides.double().tolist(), scores.double().tolist()
    usable = [
        all(math.isfinite(x) for x in (*row, *centre, step)) and all(0 <= p <= 1 for p in own)
        for row, centre, step, own in zip(rows, centres, steps, probabilities, strict=True)
    ]
    taking_part = [
        g
        for g, (x1, y1, x2, y2) in enumerate(gts)
        if all(math.isfinite(x) for x in gts[g])
        and x1 < x2
        and y1 < y2
        and 0 <= gt_labels[g] < scores.size(1)
    ]

    def limited_log(p: float) -> float:
        return min(-math.log(p), 100.0) if p > 0 else 100.0

    def contains(g: int, a: int) -> bool:
        (x1, y1, x2, y2), (x, y) = gts[g], centres[a]
        return x1 < x < x2 and y1 < y < y2

    def is_near(g: int, a: int) -> bool:
        (x1, y1, x2, y2), (x, y), reach = gts[g], centres[a], center_radius * steps[a]
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        return cx - reach < x < cx + reach and cy - reach < y < cy + reach

    candidates = [
        a
        for a in range(len(rows))
        if usable[a] and any(contains(g, a) or is_near(g, a) for g in taking_part)
    ]
    overlaps = {(a, g): iou(rows[a], gts[g]) for a in candidates for g in taking_part}
    sums = {a: sum(limited_log(1 - p) for p in probabilities[a]) for a in candidates}

    def key(a: int, g: int) -> tuple[bool, float]:
        """Sorts central candidates first, then by cost."""
        p = probabilities[a][int(gt_labels[g])]
        by_class = sums[a] - limited_log(1 - p) + limited_log(p)
        cost = cls_weight * by_class - iou_weight * math.log(overlaps[a, g] + 1e-7)
        return not (contains(g, a) and is_near(g, a)), cost

    picked_by: dict[int, list[int]] = {}
    for g in taking_part:
        largest = sorted((overlaps[a, g] for a in candidates), reverse=True)[:candidate_topk]
        wanted = max(int(sum(largest)), 1)
        for a in sorted(candidates, key=lambda a: (*key(a, g), a))[:wanted]:
            picked_by.setdefault(a, []).append(g)
    index, best = [-1] * len(rows), [0.0] * len(rows)
    for a, picking in picked_by.items():
        among = picking if len(picking) == 1 else taking_part
        index[a] = min(among, key=lambda g: (*key(a, g), g))
        best[a] = overlaps[a, index[a]]
    return index, best


def assign_task_aligned(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    gt_labels: Tensor,
    gt_boxes: Tensor,
    topk: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    min_side: float = 0.0,
) -> tuple[list[int], list[float]]:
    """Index and metric of each anchor of one image; Feng et al., 2021."""
    rows, centres = boxes.double().tolist(), points.double().tolist()
    overlaps = box_iou(gt_boxes, boxes, "complete").clamp(min=0).nan_to_num(0).tolist()
    num_classes = scores.size(1)

    def widened(low: float, high: float) -> tuple[float, float]:
        centre = (low + high) / 2
        short = high - low < min_side
        return (centre - min_side / 2, centre + min_side / 2) if short else (low, high)

    inside: dict[int, list[int]] = {}  # the candidates of each gt that takes part
    for g, (x1, y1, x2, y2) in enumerate(gt_boxes.double().tolist()):
        if not all(math.isfinite(x) for x in (x1, y1, x2, y2)) or x1 >= x2 or y1 >= y2:
            continue
        if not 0 <= gt_labels[g] < num_classes:
            continue
        (x1, x2), (y1, y2) = widened(x1, x2), widened(y1, y2)
        inside[g] = [
            a
            for a, (x, y) in enumerate(centres)
            if x1 < x < x2 and y1 < y < y2 and all(math.isfinite(c) for c in rows[a])
        ]

    def alignment(a: int, g: int) -> float:
        score = float(scores[a, gt_labels[g]])
        return score**alpha * overlaps[g][a] ** beta if 0 <= score < math.inf else 0.0

    picked_by: dict[int, list[int]] = {}
    for g, anchors in inside.items():
        aligned = [a for a in anchors if alignment(a, g) > 0]
        for a in sorted(aligned, key=lambda a: (-alignment(a, g), a))[:topk]:
            picked_by.setdefault(a, []).append(g)
    index, metric = [-1] * len(rows), [0.0] * len(rows)
    for a, gts in picked_by.items():
        if len(gts) > 1:
            gts = [g for g, anchors in inside.items() if a in anchors]
        index[a] = max(gts, key=lambda g: (overlaps[g][a], -g))
    for g in inside:
        own = [a for a in range(len(rows)) if index[a] == g]
        most_aligned = max((alignment(a, g) for a in own), default=0.0)
        most_overlap = max((overlaps[g][a] for a in own), default=0.0)
        for a in own:
            metric[a] = alignment(a, g) * most_overlap / (most_aligned + 1e-9)
    return index, metric


def sample_keys(seed: int, num_anchors: int) -> list[int]:
    """The random keys, of 24 bits, of the anchors of an image with a seed of 64 bits."""

    def mixed(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    low, high = seed % 2**32, seed // 2**32 % 2**32
    return [mixed(mixed(anchor ^ low) ^ high) >> 8 for anchor in range(num_anchors)]


def sample_matches(
    index: Tensor, seed: int, num: int, positive_fraction: float
) -> tuple[list[int], int]:
    """Anchors drawn from one image, padded with zeros, and how many are no padding."""
    matches = index.tolist()
    keys = sample_keys(seed, len(matches))
    order = sorted(range(len(matches)), key=lambda a: (keys[a], a))
    positives = [a for a in order if matches[a] >= 0][: int(num * positive_fraction)]
    negatives = [a for a in order if matches[a] == -1][: num - len(positives)]
    drawn = positives + negatives
    return drawn + [0] * (num - len(drawn)), len(drawn)


def box_iou_loss(boxes1: Tensor, boxes2: Tensor, kind: str, eps: float = 1e-7) -> Tensor:
    """Losses of boxes row by row, (..., 4) twice -> (...); torchvision's use of eps."""
    overlap_eps = 1e-7 if kind == "complete" else eps
    return 1 - box_similarity(boxes1, boxes2, kind, overlap_eps, overlap_eps, eps)


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Sample by sample; differentiable in `input`."""
    features = input.double()
    size = input.shape[2:]

    def taps(low: float, high: float, bins: int, axis: int) -> list[list[tuple[int, float]]]:
        """(index, weight) of each sample of each bin; a bin's weights are divided by its count."""
        start = low * spatial_scale - (0.5 if aligned else 0.0)
        extent = (high - low) * spatial_scale
        step = (extent if aligned else max(extent, 1.0)) / bins
        count = sampling_ratio if sampling_ratio > 0 else math.ceil(step)
        of_bins = []
        for p in range(bins):
            pairs = []
            for i in range(count):
                x = start + p * step + (i + 0.5) * step / count
                if -1 <= x <= size[axis]:
                    x = min(max(x, 0.0), size[axis] - 1.0)
                    below = math.floor(x)
                    pairs.append((below, (1 - x + below) / count))
                    pairs.append((min(below + 1, size[axis] - 1), (x - below) / count))
            of_bins.append(pairs)
        return of_bins

    zero = features[:, :, :0].sum((0, 2, 3))  # (C,), a function of the features
    pooled = []
    for image, x1, y1, x2, y2 in rois.double().tolist():
        usable = all(map(math.isfinite, (image, x1, y1, x2, y2))) and 0 <= image < len(input)
        rows = taps(y1, y2, output_size[0], 0) if usable else [[]] * output_size[0]
        columns = taps(x1, x2, output_size[1], 1) if usable else [[]] * output_size[1]
        samples = [
            (p * output_size[1] + q, y, x, v * w)
            for p, r in enumerate(rows)
            for q, c in enumerate(columns)
            for y, v in r
            for x, w in c
        ]
        bins = zero[:, None].repeat(1, output_size[0] * output_size[1])
        if samples:
            of_bin, y, x = torch.tensor([sample[:3] for sample in samples]).unbind(1)
            weights = torch.tensor([sample[3] for sample in samples], dtype=torch.float64)
            bins = bins.index_add(1, of_bin, features[int(image), :, y, x] * weights)
        pooled.append(bins.reshape(-1, *output_size))
    return torch.stack(pooled) if pooled else features.new_zeros(0, len(zero), *output_size)


def pyramid_level(box: list[float], scales: list[float], scale: int = 224, level: int = 4) -> int:
    """Index into `scales` by eq. 1 of the FPN paper."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    if not area > 0:
        return 0
    wanted = math.floor(level + math.log2(math.sqrt(area) / scale) + 1e-6)
    first, last = (round(-math.log2(s)) for s in (scales[0], scales[-1]))
    return min(max(wanted, first), last) - first


def multiscale_roi_align(
    features: list[Tensor],
    boxes: Tensor,
    counts: Tensor,
    output_size: tuple[int, int],
    scales: list[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Tensor:
    """Box by box, each from its level."""
    rows = []
    for b in range(boxes.size(0)):
        for k, box in enumerate(boxes[b].double().tolist()):
            image = b if k < int(counts[b]) else -1
            level = pyramid_level(box, scales)
            roi = torch.tensor([[image, *box]], dtype=torch.float64)
            arguments = output_size, scales[level], sampling_ratio, aligned
            rows.append(roi_align(features[level], roi, *arguments))
    return torch.cat(rows).reshape(*boxes.shape[:2], -1, *output_size)


def ms_deform_attn(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """By grid_sample, level by level; differentiable in all tensors."""
    images, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    levels = value.double().split([height * width for height, width in shapes], 1)
    grid = (2 * locations.double() - 1).transpose(1, 2)  # (B, H, Q, L, P, 2)
    samples = [
        torch.nn.functional.grid_sample(
            level.permute(0, 2, 3, 1).reshape(images * heads, channels, *shape),
            grid[:, :, :, i].reshape(images * heads, queries, points, 2),
            align_corners=False,
        )
        for i, (level, shape) in enumerate(zip(levels, shapes, strict=True))
    ]  # each (B * H, D, Q, P)
    of_heads = weights.double().transpose(1, 2)
    of_heads = of_heads.reshape(images * heads, 1, queries, len(shapes) * points)
    total = (torch.cat(samples, 3) * of_heads).sum(3)  # (B * H, D, Q)
    return total.reshape(images, heads * channels, queries).transpose(1, 2)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """By the samples of all taps; differentiable in all tensors. A bad offset contributes 0."""
    outputs, group_channels, *kernel = weight.shape
    images, channels, *size = input.shape
    taps, places = kernel[0] * kernel[1], offset.shape[2:]
    shifts = offset.double().unflatten(1, (-1, taps, 2))  # (B, D, taps, 2, out_h, out_w)
    positions = []
    for axis in range(2):
        own = torch.arange(kernel[axis], dtype=torch.float64) * dilation[axis] - padding[axis]
        of_taps = (own[:, None] if axis == 0 else own).expand(*kernel).reshape(taps, 1, 1)
        steps = torch.arange(places[axis], dtype=torch.float64) * stride[axis]
        positions.append(of_taps + (steps[:, None] if axis == 0 else steps) + shifts[:, :, :, axis])
    y, x = positions  # (B, D, taps, out_h, out_w)
    groups = offset.size(1) // (2 * taps)
    of_groups = input.double().reshape(images, groups, channels // groups, size[0] * size[1])
    samples = torch.zeros(1, dtype=torch.float64)
    inside = y.isfinite() & x.isfinite()
    for down in range(2):
        for right in range(2):
            row, column = y.detach().floor() + down, x.detach().floor() + right
            usable = inside & (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
            index = torch.where(usable, row * size[1] + column, 0).long().flatten(2)
            pixels = of_groups.gather(3, index[:, :, None].expand(-1, -1, channels // groups, -1))
            share_y = y - row + 1 if down else 1 - (y - row)
            share_x = x - column + 1 if right else 1 - (x - column)
            share = torch.where(usable, share_y * share_x, 0).flatten(2)
            read = torch.where(usable.flatten(2)[:, :, None], pixels, 0)
            samples = samples + share[:, :, None] * read
    if mask is not None:
        samples = samples * mask.double().reshape(images, groups, 1, taps * places[0] * places[1])
    columns = samples.reshape(images, channels // group_channels, group_channels, taps, *places)
    of_taps = weight.double().reshape(channels // group_channels, -1, group_channels, taps)
    found = torch.einsum("bgctyx,goct->bgoyx", columns, of_taps).reshape(images, outputs, *places)
    return found if bias is None else found + bias.double()[:, None, None]


def _sigmoid(x: float, dtype: torch.dtype) -> float:
    return torch.tensor(x, dtype=torch.float64).sigmoid().to(dtype).item()


def _level_candidates(
    logits: Tensor, deltas: Tensor, anchors: Tensor, size: Tensor, k: int, threshold: float
) -> list[tuple[int, float, list[float]]]:
    """(class, logit, box) of a level's k best logits of probability >= threshold, in order."""
    num_classes = logits.size(1)
    values = logits.double().flatten().tolist()
    good = [i for i, x in enumerate(values) if x > -math.inf and _passes(x, logits, threshold)]
    rows = []
    for i in sorted(sorted(good, key=lambda i: (-values[i], i))[:k]):
        anchor = i // num_classes
        box = decode_boxes(deltas[None, anchor], anchors[None, anchor], (1,) * 4, size[None])[0]
        rows.append((i % num_classes, values[i], box.tolist()))
    return rows


def _passes(x: float, logits: Tensor, threshold: float) -> bool:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return _sigmoid(x, dtype) >= threshold


def _keep_best(
    rows: list[tuple[int, float, list[float]]],
    iou_threshold: float,
    max_keep: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """boxes (K, 4), scores (K,), labels (K,) of an image's (label, logit, box)."""
    labels = torch.tensor([row[0] for row in rows], dtype=torch.int64)
    logits = torch.tensor([row[1] for row in rows], dtype=dtype)
    boxes = torch.tensor([row[2] for row in rows], dtype=torch.float64).reshape(-1, 4).to(dtype)
    keep = nms(boxes, logits, iou_threshold, labels)[:max_keep]
    return boxes[keep], logits[keep].double().sigmoid().to(dtype), labels[keep]


def rpn_proposals(
    objectness: list[Tensor],
    deltas: list[Tensor],
    anchors: Tensor,
    size: Tensor,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float,
    score_threshold: float = 0.0,
    min_size: float = 1e-3,
) -> tuple[Tensor, Tensor, Tensor]:
    """boxes, scores and levels of one image: objectness (A_l,), deltas (A_l, 4) for each level."""
    dtype = torch.float64 if objectness[0].dtype == torch.float64 else torch.float32
    least = torch.tensor([score_threshold, min_size], dtype=torch.float64).to(dtype).tolist()
    rows = []
    own = anchors.split([len(x) for x in objectness])
    for level, (x, d, a) in enumerate(zip(objectness, deltas, own, strict=True)):
        for _, logit, box in _level_candidates(x[:, None], d, a, size, pre_nms_top_n, least[0]):
            x1, y1, x2, y2 = box
            if x2 - x1 >= least[1] and y2 - y1 >= least[1]:
                rows.append((level, logit, box))
    return _keep_best(rows, iou_threshold, post_nms_top_n, dtype)


def retinanet_detections(
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: Tensor,
    size: Tensor,
    score_threshold: float,
    topk_candidates: int,
    iou_threshold: float,
    detections_per_img: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """boxes, scores and labels of one image: logits (A_l, C), deltas (A_l, 4) for each level."""
    dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    threshold = torch.tensor(score_threshold, dtype=torch.float64).to(dtype)
    least = torch.nextafter(threshold, threshold.new_tensor(math.inf)).item()
    rows = []
    own = anchors.split([len(x) for x in logits])
    for x, d, a in zip(logits, deltas, own, strict=True):
        rows += _level_candidates(x, d, a, size, topk_candidates, least)
    return _keep_best(rows, iou_threshold, detections_per_img, dtype)


def roi_detections(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    size: Tensor,
    weights: tuple[float, ...],
    score_threshold: float,
    iou_threshold: float,
    detections_per_img: int,
    min_size: float = 1e-2,
) -> tuple[Tensor, Tensor, Tensor]:
    """boxes, scores and labels of one image: logits (K, C), deltas (K, C, 4), proposals (K, 4)."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    limits = torch.tensor([score_threshold, min_size], dtype=torch.float64).to(dtype).tolist()
    scores = logits.double().softmax(1).to(dtype)
    boxes, ranks, labels = [], [], []
    for k in range(len(logits)):
        for c in range(1, logits.size(1)):
            box = decode_boxes(deltas[None, k, c], proposals[None, k], weights, size[None])[0]
            sides = box[2:] - box[:2]
            if scores[k, c] > limits[0] and (sides >= limits[1]).all():
                boxes.append(box.to(dtype))
                ranks.append(scores[k, c])
                labels.append(c)
    if not boxes:
        return torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=dtype), torch.zeros(0).long()
    boxes, ranks, labels = torch.stack(boxes), torch.stack(ranks), torch.tensor(labels)
    keep = nms(boxes, ranks, iou_threshold, labels)[:detections_per_img]
    return boxes[keep], ranks[keep], labels[keep]


def sigmoid_focal_loss(inputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Losses of all logits; autograd differentiates it while s^gamma is smooth."""
    x, t, ignored = inputs.double(), targets.double(), torch.zeros(inputs.shape, dtype=torch.bool)
    if targets.dtype == torch.int64:
        labels = targets[..., None].expand_as(x)
        ignored = labels == -2
        t = (labels == torch.arange(x.size(-1))).double()
        t[(labels < -2) | (labels >= x.size(-1))] = math.nan
    ce = -t * torch.nn.functional.logsigmoid(x) - (1 - t) * torch.nn.functional.logsigmoid(-x)
    s = x.sigmoid() * (1 - t) + (-x).sigmoid() * t
    weight = alpha * t + (1 - alpha) * (1 - t) if alpha >= 0 else 1.0
    return torch.where(ignored, 0, weight * s**gamma * ce)


def crop_masks(masks: Tensor, boxes: Tensor, match: Tensor, output_size: tuple[int, int]) -> Tensor:
    """RoIAlign of each box's mask on its own."""
    crops = torch.zeros(*match.shape, *output_size, dtype=torch.float64)
    for image, row in (match.ge(0) & match.lt(masks.shape[1])).nonzero().tolist():
        roi = torch.cat([torch.zeros(1, dtype=torch.float64), boxes[image, row].double()])
        mask = masks[image, match[image, row]][None, None]
        crops[image, row] = roi_align(mask, roi[None], output_size)[0, 0]
    return crops


def mask_rcnn_loss(
    logits: Tensor, labels: Tensor, masks: Tensor, boxes: Tensor, match: Tensor
) -> Tensor:
    """Pixel by pixel over the matched rows; differentiable in logits."""
    targets = crop_masks(masks, boxes, match, (logits.shape[3], logits.shape[4]))
    rows = (match.ge(0) & match.lt(masks.shape[1])).nonzero().tolist()
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(
            logits[b, k, labels[b, k]].double(), targets[b, k]
        )
        for b, k in rows
    ]
    return sum(losses, logits.double().sum() * 0) / max(len(rows), 1)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixel by pixel; boxes are grown and cut to whole pixels in their own precision."""
    height, width = size
    pasted = torch.zeros(len(masks), height, width, dtype=torch.float64)
    growth = (masks.shape[2] + 2) / masks.shape[2]
    bordered = torch.nn.functional.pad(masks.double(), (1, 1, 1, 1))
    half, center = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * growth, (boxes[:, 2:] + boxes[:, :2]) * 0.5
    ranges = torch.cat([center - half, center + half], 1)

    def taps(low: int, high: int, source: int, size: int) -> dict[int, list[tuple[int, float]]]:
        """Visible pixel -> the two pixels of the bordered mask that it lies between, by weight."""
        found = {}
        for p in range(max(low, 0), min(high + 1, size)):
            position = max((p - low + 0.5) * source / (high - low + 1) - 0.5, 0.0)
            index = min(math.floor(position), source - 1)
            fraction = position - index
            found[p] = [(index, 1 - fraction), (min(index + 1, source - 1), fraction)]
        return found

    for n, box in enumerate(ranges.double().tolist()):
        if not all(abs(x) < 2**30 for x in box):
            continue
        left, top, right, bottom = map(int, box)
        rows = taps(top, bottom, bordered.shape[1], height)
        columns = taps(left, right, bordered.shape[2], width)
        for y, r in rows.items():
            for x, c in columns.items():
                pasted[n, y, x] = sum(bordered[n, i, j] * (v * w) for i, v in r for j, w in c)
    return pasted
