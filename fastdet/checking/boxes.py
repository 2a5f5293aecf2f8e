# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the boxes of a split: outside, flipped, empty, repeated, tiny, in another convention.

Vectorised over the annotations: 10^5 boxes take a fraction of a second. Crowd regions, which are no
objects, take no part in the checks of repeated and tiny boxes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastdet.checking.findings import Finding
from fastdet.checking.reading import CheckedSplit

OUTSIDE = 0.5  # pixels beyond the border that rounding explains
NEAR_IOU = 0.95
COMPARED = 1000  # boxes that begin right after another
ENOUGH = 10  # boxes that must agree before a convention is suspected
AT_BORDER, IN_PICTURES = 5, 3  # boxes at a border that must agree, in how many pictures


@dataclass(frozen=True)
class BoxKinds:
    """(A,) bool for each annotation; a box is in one of the first three at most."""

    empty: np.ndarray
    flipped: np.ndarray
    outside: np.ndarray
    partly_outside: np.ndarray


@np.errstate(over="ignore", invalid="ignore")  # boxes of absurd size
def box_findings(split: CheckedSplit) -> list[Finding]:
    """What is wrong with the boxes of a split."""
    kinds = box_kinds(split.corners, split.limits)
    sized = np.all(split.limits > 0, axis=1)  # pictures of unknown size cut nothing
    findings = [
        _finding(split, "box-empty", kinds.empty),
        _finding(split, "box-flipped", kinds.flipped),
        _finding(split, "box-outside", kinds.outside & sized),
        _finding(split, "box-partly-outside", kinds.partly_outside & sized),
    ]
    good = ~(kinds.empty | kinds.flipped | kinds.outside) & ~split.annotations.crowd
    suspicions = list(_conventions(split, sized))
    findings += suspicions
    if not any(finding.name == "boxes-normalised" for finding in suspicions):
        shorter = split.annotations.boxes_xywh[:, 2:].min(axis=1, initial=np.inf)
        findings += [
            _finding(split, "box-below-1-pixel", good & (shorter < 1)),
            _finding(split, "box-below-2-pixels", good & (shorter >= 1) & (shorter < 2)),
            _finding(split, "box-of-whole-picture", good & _covers(split) & sized),
        ]
    findings += _repeats(split, good)
    return [finding for finding in findings if finding.count]


def box_kinds(corners: np.ndarray, limits: np.ndarray) -> BoxKinds:
    """Which boxes a data set leaves out or cuts.

    Args:
        corners: (A, 4) xyxy as written.
        limits: (A, 2) width and height of the images.
    """
    side = corners[:, 2:] - corners[:, :2]
    flipped = np.any(side < 0, axis=1)
    empty = ~flipped & np.any(side == 0, axis=1)
    bounds = np.concatenate([limits, limits], axis=1)
    clipped = corners.clip(0, bounds).astype(np.float32)  # as the data set cuts them
    outside = ~(flipped | empty) & (clipped[:, 2:] <= clipped[:, :2]).any(1)
    beyond = (corners[:, :2] < -OUTSIDE).any(1) | (corners[:, 2:] > limits + OUTSIDE).any(1)
    return BoxKinds(empty, flipped, outside, beyond & ~(flipped | empty | outside))


def repeated_rows(columns: np.ndarray) -> np.ndarray:
    """(N,) int64: the first row that equals each row of (N, K)."""
    if not len(columns):
        return np.zeros(0, np.int64)
    _, first, inverse = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def near_pairs(
    groups: np.ndarray, corners: np.ndarray, threshold: float = NEAR_IOU
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of boxes of one group whose IoU is above a threshold.

    Cost: a sort, then one comparison with each box that begins at most 5 % of a width later, up to
    the next COMPARED boxes: a file may have any number of boxes at one place.

    Args:
        groups: (N,) int64; boxes of different groups are no pair.
        corners: (N, 4) xyxy with positive sides.
        threshold: of the IoU, from 0.5 on.

    Returns:
        The positions of the boxes of each pair, and its IoU; three (P,).
    """
    order = np.lexsort((corners[:, 0], groups))
    groups, sorted_corners = groups[order], corners[order]
    width = sorted_corners[:, 2] - sorted_corners[:, 0]
    rows, found = np.arange(len(order)), []
    step = 1
    while step <= COMPARED and len(rows := rows[rows + step < len(order)]):
        later = rows + step
        # The overlap is above threshold * width, so the later box begins within the rest of it.
        begins = sorted_corners[later, 0] - sorted_corners[rows, 0]
        near = (groups[later] == groups[rows]) & (begins <= (1 - threshold) * width[rows])
        rows = rows[near]
        iou = _iou(sorted_corners[rows], sorted_corners[rows + step])
        hit = iou > threshold
        found.append((order[rows[hit]], order[rows[hit] + step], iou[hit]))
        step += 1
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    first, second, iou = (np.concatenate(part) for part in zip(*found, strict=True))
    return np.minimum(first, second), np.maximum(first, second), iou


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) of the boxes of equal rows."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    common = sides.clip(min=0).prod(axis=1)
    return common / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - common)


def _finding(
    split: CheckedSplit, name: str, wrong: np.ndarray, details: Sequence[str] | None = None
) -> Finding:
    rows = np.flatnonzero(wrong).tolist()
    details = details or [_written(split, row) for row in rows]
    places = [split.spot(row, detail) for row, detail in zip(rows, details, strict=True)]
    return Finding(name, split.name, places)


def _written(split: CheckedSplit, row: int) -> str:
    """The box as the source has it, and the size of the picture."""
    values = ", ".join(f"{value:g}" for value in split.annotations.boxes_xywh[row])
    width, height = split.limits[row]
    return f"[{values}] in {width} x {height}"


def _covers(split: CheckedSplit) -> np.ndarray:
    """(A,) bool: boxes that are at most 1 % of the side away from every border."""
    away = np.concatenate([split.corners[:, :2], split.limits - split.corners[:, 2:]], axis=1)
    return np.all(away <= 0.01 * np.concatenate([split.limits, split.limits], axis=1), axis=1)


def _repeats(split: CheckedSplit, good: np.ndarray) -> Iterator[Finding]:
    of = split.annotations
    rows = np.flatnonzero(good)
    boxes = np.column_stack([of.image_index[rows], of.boxes_xywh[rows]])
    first_of_class = rows[repeated_rows(np.column_stack([boxes, of.labels[rows]]))]
    same = first_of_class != rows
    details = [f"as {_short(split, first)}" for first in first_of_class[same].tolist()]
    yield _finding(split, "box-repeated", _mask(good, rows[same]), details)

    first_box = rows[repeated_rows(boxes)]
    other = ~same & (first_box != rows) & (of.labels[first_box] != of.labels[rows])
    details = [
        f"{of.names[of.labels[row] - 1]}; {_short(split, first)} is "
        f"{of.names[of.labels[first] - 1]}"
        for row, first in zip(rows[other].tolist(), first_box[other].tolist(), strict=True)
    ]
    yield _finding(split, "box-of-two-categories", _mask(good, rows[other]), details)

    single = rows[~same]
    groups = of.image_index[single] * (len(of.names) + 1) + of.labels[single]
    first, second, iou = near_pairs(groups, split.corners[single])
    order = np.lexsort((first, second))
    later, index = np.unique(second[order], return_index=True)
    chosen = order[index]
    details = [
        f"IoU {iou[pair]:.3f} with {_short(split, int(single[first[pair]]))}"
        for pair in chosen.tolist()
    ]
    yield _finding(split, "box-nearly-repeated", _mask(good, single[later]), details)


def _short(split: CheckedSplit, row: int) -> str:
    of = split.annotations
    if of.has_ids:
        return f"annotation id {of.annotation_ids[row]}"
    return f"object {of.object_numbers[row]}"


def _mask(like: np.ndarray, rows: np.ndarray) -> np.ndarray:
    mask = np.zeros_like(like, bool)
    mask[rows] = True
    return mask


def _conventions(split: CheckedSplit, sized: np.ndarray) -> Iterator[Finding]:
    """Suspicions that come from many boxes together."""
    rows = np.flatnonzero(sized)
    written, limits = split.annotations.boxes_xywh[rows], split.limits[rows]
    corners = split.corners[rows]
    if len(rows) >= ENOUGH:
        fractions = (corners <= 1.5).all(1) & (limits > 2).all(1)
        if fractions.mean() > 0.95:
            yield _suspicion(split, "boxes-normalised", rows[fractions])
            return
        ordered = (written[:, 2:] > written[:, :2]).all(1) & (written[:, 2:] <= limits + 1).all(1)
        beyond = (corners[:, 2:] > limits + OUTSIDE).any(1)
        if ordered.mean() >= 0.98 and beyond.mean() >= 0.2:
            detail = f"{beyond.mean():.0%} of the boxes reach beyond their pictures"
            yield _suspicion(split, "boxes-as-corners", rows[beyond], detail)
            return
    yield from _shifts(split, rows, corners[:, :2], limits - corners[:, 2:])


def _shifts(
    split: CheckedSplit, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> Iterator[Finding]:
    """Suspicions from the distances (N, 2) of the boxes from the borders, in x and y."""
    from_1, inclusive = np.zeros_like(starts, bool), np.zeros_like(starts, bool)
    images = split.annotations.image_index[rows]
    for axis in (0, 1):
        start, end = starts[:, axis], ends[:, axis]
        at_start, at_end = _piles_up(start, 1, images), _piles_up(end, -1, images)
        if at_start or (at_end and not (start < 1).any()):
            from_1[:, axis] = (start == 1) | (end == -1)
        elif _piles_up(end, 1, images) and (start == 0).any():
            inclusive[:, axis] = end == 1
    at_1, beyond = ((starts == 1) & from_1).sum(0), ((ends == -1) & from_1).sum(0)
    if from_1.any():
        detail = f"{at_1[0]} boxes begin at x = 1, {at_1[1]} at y = 1, none before"
        detail += f"; {beyond.sum()} end 1 pixel beyond the picture" if beyond.any() else ""
        yield _suspicion(split, "boxes-from-1", rows[from_1.any(1)], detail)
    elif inclusive.any():
        yield _suspicion(split, "boxes-end-inclusive", rows[inclusive.any(1)])


def _piles_up(distances: np.ndarray, place: int, images: np.ndarray) -> bool:
    """Whether the boxes at a border are all at one distance: many there, none nearer, few next."""
    at_place = distances == place
    if len(np.unique(images[at_place])) < IN_PICTURES:
        return False
    there = int(at_place.sum())
    farther = int(((distances >= place + 1) & (distances < place + 2)).sum())
    return there >= max(AT_BORDER, 3 * farther + 1) and not (distances < place).any()


def _suspicion(split: CheckedSplit, name: str, rows: np.ndarray, detail: str = "") -> Finding:
    places = [split.spot(row, _written(split, row)) for row in rows.tolist()]
    return Finding(name, split.name, places, detail)
