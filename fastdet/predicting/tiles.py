# SPDX-License-Identifier: BSD-3-Clause
"""Detection on overlapping tiles of a large picture, so that it need not be shrunk.

The tiles are those of SAHI's `get_slice_bboxes`: all of one size, the last ones moved back to end
at the picture's border. An object that tiles cut is found in parts. A part lies for the most in the
whole object, so they are merged by intersection over the smaller box.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from fastdet.ops import nmm
from fastdet.predicting.options import Merge, ViewOptions

Found = dict[str, Tensor]
Detect = Callable[[Sequence[Tensor]], list[Found]]  # uint8 images (3, H, W) to their detections
Tile = tuple[int, int, int, int]  # x1, y1, x2, y2


def tiles(height: int, width: int, tile: int, overlap: float) -> list[Tile]:
    """The tiles of a picture, row by row.

    Args:
        height, width: of the picture.
        tile: side of a tile in pixels; a smaller picture has a smaller one.
        overlap: of neighbours, as a fraction of the side, in [0, 1).
    """
    step = tile - int(overlap * tile)
    return [
        (x, y, min(x + tile, width), min(y + tile, height))
        for y in _starts(height, tile, step)
        for x in _starts(width, tile, step)
    ]


def _starts(length: int, tile: int, step: int) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, step), last]


def detect_on_tiles(
    detect: Detect, image: Tensor, side: int, options: ViewOptions, batch_size: int
) -> Found:
    """Detections on an image (3, H, W), in its pixels, best first.

    Args:
        detect: finds boxes, labels and scores on images.
        image: the whole picture.
        side: of the tiles, in pixels.
        options: overlap, merge, merge_threshold and tile_whole.
        batch_size: tiles that `detect` takes at a time.
    """
    places = tiles(image.shape[1], image.shape[2], side, options.overlap)
    parts = [image[:, y1:y2, x1:x2] for x1, y1, x2, y2 in places]
    found = in_batches(detect, parts, batch_size)
    if len(places) == 1:
        return found[0]
    for (x, y, *_), of_tile in zip(places, found, strict=True):
        of_tile["boxes"] = of_tile["boxes"] + torch.tensor([x, y, x, y])
    if options.tile_whole:
        found += detect([image])
    every = {name: torch.cat([of_tile[name] for of_tile in found]) for name in found[0]}
    return merged(every, options.merge, options.merge_threshold)


def in_batches(detect: Detect, images: Sequence[Tensor], batch_size: int) -> list[Found]:
    """Detections of each image; at most `batch_size` successive images of one size at a time."""
    found: list[Found] = []
    for _, alike in groupby(images, key=lambda image: image.shape):
        same = list(alike)
        for start in range(0, len(same), batch_size):
            found += detect(same[start : start + batch_size])
    return found


def merged(found: Found, merge: Merge, threshold: float) -> Found:
    """One detection for each object, best first.

    Args:
        found: boxes (N, 4), labels (N,), scores (N,).
        merge: nmm: a box that encloses the parts, with the score of the best; nms: the best part.
        threshold: overlap of parts of an object: intersection over the smaller box.
    """
    target, enclosing = nmm(found["boxes"], found["scores"], found["labels"], threshold, "ios")
    kept = (target == torch.arange(len(target))).nonzero()[:, 0]
    kept = kept[found["scores"][kept].argsort(descending=True, stable=True)]
    if merge == "nmm":
        found = {**found, "boxes": enclosing}
    return {name: value[kept] for name, value in found.items()}
