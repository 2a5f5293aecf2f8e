# SPDX-License-Identifier: BSD-3-Clause
"""The slow and obvious definitions of matches, kinds of errors and what they cost."""

import math

import numpy as np

from fastdet.analysing.detections import Found
from fastdet.data.annotations import Annotations


def iou(one, other, crowd: bool = False) -> float:
    """Of two boxes xywh; with a crowd the part of the first that lies in it."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right = min(one[0] + one[2], other[0] + other[2])
    bottom = min(one[1] + one[3], other[1] + other[3])
    shared = max(0.0, right - left) * max(0.0, bottom - top)
    area = one[2] * one[3]
    whole = area if crowd else area + other[2] * other[3] - shared
    return shared / whole if whole > 0 else 0.0


def best_first(found: Found) -> list[int]:
    return sorted(range(len(found)), key=lambda row: (-found.scores[row], row))


def matches_of(
    annotations: Annotations, found: Found, threshold: float
) -> tuple[dict[int, int], set[int]]:
    """Detection -> object, and the ignored detections, as pycocotools finds them."""
    found_by: dict[int, int] = {}
    ignored = set()
    for row in best_first(found):
        best, best_iou = None, threshold
        for object_, image in enumerate(annotations.image_index):
            same = image == found.image_index[row]
            if not same or annotations.labels[object_] != found.labels[row]:
                continue
            if annotations.crowd[object_] or object_ in found_by.values():
                continue
            overlap = iou(found.boxes_xywh[row], annotations.boxes_xywh[object_])
            if overlap >= best_iou:
                best, best_iou = object_, overlap
        if best is not None:
            found_by[row] = best
            continue
        for object_ in np.flatnonzero(annotations.crowd):
            same = annotations.image_index[object_] == found.image_index[row]
            same = same and annotations.labels[object_] == found.labels[row]
            region = annotations.boxes_xywh[object_]
            if same and iou(found.boxes_xywh[row], region, crowd=True) >= threshold:
                ignored.add(row)
    return found_by, ignored


def kinds_of(
    annotations: Annotations, found: Found, threshold: float, background: float
) -> tuple[dict[int, tuple[str, int]], set[int]]:
    """The kind of each wrong detection and the object it is about; the missed objects."""
    found_by, ignored = matches_of(annotations, found, threshold)
    kinds: dict[int, tuple[str, int]] = {}
    for row in range(len(found)):
        if row in found_by or row in ignored:
            continue
        overlaps = {
            object_: iou(found.boxes_xywh[row], annotations.boxes_xywh[object_])
            for object_ in range(len(annotations.labels))
            if annotations.image_index[object_] == found.image_index[row]
            and not annotations.crowd[object_]
        }
        label = found.labels[row]
        own = {o: v for o, v in overlaps.items() if annotations.labels[o] == label}
        other = {o: v for o, v in overlaps.items() if annotations.labels[o] != label}
        if own and background <= max(own.values()) < threshold:
            kinds[row] = "localisation", max(own, key=own.__getitem__)
        elif other and max(other.values()) >= threshold:
            kinds[row] = "classification", max(other, key=other.__getitem__)
        elif own and max(own.values()) >= threshold:
            kinds[row] = "duplicate", max(own, key=own.__getitem__)
        elif not overlaps or max(overlaps.values()) <= background:
            kinds[row] = "background", -1
        else:
            kinds[row] = "both", -1
    explained = {o for kind, o in kinds.values() if kind in ("classification", "localisation")}
    explained |= set(found_by.values())
    missed = {
        o for o in range(len(annotations.labels)) if o not in explained and not annotations.crowd[o]
    }
    return kinds, missed


def ap(correct: list[bool], count: int) -> float:
    """COCO's AP of one class; `correct` best score first."""
    if count == 0:
        return math.nan
    points = []
    for number in range(1, len(correct) + 1):
        hits = sum(correct[:number])
        points.append((hits / count, hits / number))
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        total += max((p for r, p in points if r >= recall), default=0.0)
    return total / 101


def cost(annotations: Annotations, found: Found, kind: str | None) -> np.ndarray:
    """(C,) AP with the errors of a kind corrected, at IoU 0.5 and background 0.1."""
    found_by, ignored = matches_of(annotations, found, 0.5)
    kinds, missed = kinds_of(annotations, found, 0.5, 0.1)
    taken = set(found_by.values())
    best: dict[int, int] = {}
    for row in best_first(found):
        what, about = kinds.get(row, ("", -1))
        if what in ("classification", "localisation") and about not in taken:
            best.setdefault(about, row)
    result = []
    for label in range(1, len(annotations.names) + 1):
        correct = []
        for row in best_first(found):
            if row in ignored:
                continue
            what, about = kinds.get(row, ("correct", -1))
            if what != "correct" and what == kind:
                fixes = what in ("classification", "localisation") and best.get(about) == row
                if fixes and annotations.labels[about] == label:
                    correct.append(True)
            elif found.labels[row] == label:
                correct.append(what == "correct")
        objects = set(np.flatnonzero((annotations.labels == label) & ~annotations.crowd).tolist())
        if kind == "missed" and objects and objects <= missed:
            result.append(1.0)
            continue
        result.append(ap(correct, len(objects - missed if kind == "missed" else objects)))
    return np.array(result)
