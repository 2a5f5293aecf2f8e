# SPDX-License-Identifier: BSD-3-Clause
"""COCO's segmentations, whatever their form, as compressed run lengths (RLE).

A file gives polygons, run lengths as a list of counts, or compressed ones. They are read once and
kept compressed: about 100 bytes an object in place of its pixels or its corners.
Cost: 10 us an object to read, a pass over the image's pixels to decode.
Invariant: every Rle decodes to a mask of its image's size. Masks equal pycocotools' (tested), but
input that pycocotools accepts without a check is checked here first.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hotcoco import mask as hotcoco_mask  # pyright: ignore[reportMissingModuleSource]

from fastdet.ops.mask_rle import Rle

coco_mask: Any = hotcoco_mask  # its stubs type an RLE as a plain dict

FARTHEST = 1e5  # pixels: decoding walks the outline, so a huge polygon would take forever


def read_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """The `segmentation` of an annotation as compressed run lengths.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...], or an object with size and counts.
        height, width: of the image.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if not segmentation:
        raise ValueError("no segmentation")
    if isinstance(segmentation, list):
        if not all(map(_is_polygon, segmentation)):
            raise ValueError("segmentation is not lists of three or more finite points")
        rles = coco_mask.frPyObjects(segmentation, height, width)
        return rles[0] if len(rles) == 1 else coco_mask.merge(rles)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError("segmentation is neither polygons nor RLE")
    if segmentation["size"] != [height, width]:
        raise ValueError("the RLE's size is not the image's")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _counts(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("the RLE's counts are not whole numbers from 0 on")
    if sum(counts) != height * width:
        raise ValueError("the RLE's counts do not fill the image")
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def without_bad_polygons(segmentation: Any) -> Any:
    """The segmentation, less the polygons that are none, if any other is one.

    pycocotools gives a fragment of fewer than three points no pixel, and the others theirs.
    """
    if isinstance(segmentation, list) and len(segmentation) > 1:
        polygons = [points for points in segmentation if _is_polygon(points)]
        if 0 < len(polygons) < len(segmentation):
            return polygons
    return segmentation


def decode(rles: Sequence[Rle], height: int, width: int) -> np.ndarray:
    """(N, height, width) uint8 of 0 and 1."""
    if not rles:
        return np.zeros((0, height, width), np.uint8)
    return np.ascontiguousarray(coco_mask.decode(list(rles)).transpose(2, 0, 1))


def areas(rles: Sequence[Rle]) -> np.ndarray:
    """(N,) int64: how many pixels each mask has."""
    return np.asarray(coco_mask.area(list(rles)), np.int64)


def as_json(rle: Rle) -> dict[str, Any]:
    """With text for bytes, as COCO's files have it."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _is_polygon(points: Any) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and {*map(type, points)} <= {int, float, bool}
        and all(-FARTHEST <= x <= FARTHEST for x in points)  # which NaN is not
    )


def _counts(text: str) -> list[int]:
    """The counts of a compressed RLE: five bits a character, the lowest first.

    From the fourth on, each is the difference from the one two before. Follows pycocotools'
    rleFrString.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError("the RLE's counts are no text that RLE is made of")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number; its upper bit is the sign
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the RLE's counts end within a number")
    return counts
