# SPDX-License-Identifier: BSD-3-Clause
"""Decoding one picture file to RGB bytes.

Invariant: whatever the file holds (grey, palette, alpha, CMYK, 16 bit), three channels of uint8
come out, in the orientation that the annotations refer to.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> tv_tensors.Image:
    """Decodes a picture.

    Args:
        path: a file in any format that Pillow reads.
        size: the (height, width) that the annotations state. COCO annotations refer to the pixels
            as they are stored, and torchvision and pycocotools ignore the EXIF orientation: so does
            this function. Tools that annotate the picture as it is displayed record the turned
            size; where only the turned picture has the stated size, it is turned.

    Returns:
        (3, height, width) uint8 RGB. Alpha is dropped, 16-bit grey keeps its upper 8 bits.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not decodable, or not of the stated size.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            if size is not None and (image.height, image.width) != size:
                image = ImageOps.exif_transpose(image)
            pixels = np.array(_to_rgb(image))  # (height, width, 3); a copy, as from_numpy needs
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be decoded: {error}") from error
    if size is not None and pixels.shape[:2] != size:
        raise ValueError(
            f"{path}: {pixels.shape[1]}x{pixels.shape[0]} pixels, "
            f"but the annotations state {size[1]}x{size[0]}"
        )
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
