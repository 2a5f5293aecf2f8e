# SPDX-License-Identifier: BSD-3-Clause
"""The operators: torchvision's names and signatures where it has them, one file each."""

from fastdet.ops.box_coding import decode_boxes, encode_boxes
from fastdet.ops.nms import batched_nms, nms, nms_padded

__all__ = [
    "batched_nms",
    "decode_boxes",
    "encode_boxes",
    "nms",
    "nms_padded",
]
