# SPDX-License-Identifier: BSD-3-Clause
"""Encodes masks as COCO's compressed run lengths (RLE)."""

from typing import TypedDict

import torch
from torch import Tensor

from fastdet import _native

from . import library
from .paste_masks import check_threshold


class Rle(TypedDict):
    """A mask in the format of pycocotools.

    Attributes:
        size: height and width.
        counts: alternating lengths of runs of zeros and ones, column by column, encoded as text.
    """

    size: list[int]
    counts: bytes


def paste_masks_rle(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[Rle]:
    """The RLE of each mask that `paste_masks` returns, byte for byte as pycocotools encodes it.

    The pasted masks are never in memory: runs are computed directly from each mask. The cost of a
    mask is the number of image columns that it covers times its own number of rows, h. CUDA masks
    are processed on the GPU. The host waits twice, first for the number of runs and then for the
    runs, and encodes the text.

    Args:
        masks: (N, h, w) probabilities, of any floating type.
        boxes: (N, 4) xyxy in pixels.
        size: (height, width) of the image.
        threshold: >= 0; a pixel is foreground if its probability is above this.

    Returns:
        One dict for each mask: "size", [height, width], and "counts", bytes.

    Raises:
        ValueError: threshold below 0.
        RuntimeError: wrong shape, dtype or device.
    """
    check_threshold(threshold)
    height, width = size
    edges, offsets = torch.ops.fastdet.pasted_mask_edges(
        masks.detach(), boxes.detach(), height, width, threshold
    )
    return _rles(edges, offsets, height, width)


def encode_masks(masks: Tensor) -> list[Rle]:
    """The RLE of each mask, byte for byte that of `pycocotools.mask.encode`.

    Args:
        masks: (N, H, W) bool.

    Returns:
        One dict for each mask: "size", [H, W], and "counts", bytes.

    Raises:
        RuntimeError: wrong shape or dtype.
    """
    edges, offsets = torch.ops.fastdet.mask_edges(masks)
    return _rles(edges, offsets, *masks.shape[1:])


def _rles(edges: Tensor, offsets: Tensor, height: int, width: int) -> list[Rle]:
    """The RLEs from the edges: the pixels, counted column by column, at which a mask changes.

    Mask n has the edges [offsets[n], offsets[n + 1]).
    """
    counts = _native.rle_counts(edges.cpu().numpy(), offsets.cpu().numpy(), height * width)
    return [{"size": [height, width], "counts": text} for text in counts]


def _fake_edges(masks: Tensor) -> tuple[Tensor, Tensor]:
    num_edges = torch.library.get_ctx().new_dynamic_size()
    edges = masks.new_empty((num_edges,), dtype=torch.int64)
    return edges, masks.new_empty((masks.size(0) + 1,), dtype=torch.int64)


@library.register_fake("fastdet::pasted_mask_edges")
def _(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float
) -> tuple[Tensor, Tensor]:
    return _fake_edges(masks)


@library.register_fake("fastdet::mask_edges")
def _(masks: Tensor) -> tuple[Tensor, Tensor]:
    return _fake_edges(masks)
