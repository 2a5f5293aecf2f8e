# SPDX-License-Identifier: BSD-3-Clause
"""Decoding a JPEG with torchvision's libjpeg-turbo, in half of Pillow's time.

Pillow reads the header and decides what the file is. A picture that both decode has the same pixels
(tested over subsamplings, colour spaces, progressive, arithmetic and damaged files). Pillow decodes
the rest: four channels, and what torchvision refuses, so that Pillow says what is wrong with it.
"""

import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile

_RGB = 3  # torchvision.io.ImageReadMode.RGB


def _operator() -> Callable[..., Any] | None:
    """torchvision's decoder, where this torchvision has one that agrees with this Pillow.

    torchvision.io is deprecated since 0.29; its operator does not warn as its functions do.
    """
    try:
        import torchvision.io  # noqa: F401  # registers the operator
    except ImportError:
        return None
    decode = getattr(torch.ops.image, "decode_jpeg", None)
    return decode if decode is not None and _agrees(decode) else None


def _agrees(decode: Callable[..., Any]) -> bool:
    """Whether both were built with libraries that decode alike.

    libjpeg, for one, enlarges colours in another way than libjpeg-turbo.
    """
    noise = np.random.default_rng(0).integers(0, 256, (19, 35, 3), np.uint8)
    for subsampling in range(3):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", subsampling=subsampling)
        pixels = decode(
            torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8), _RGB, False
        )
        with Image.open(file) as image:
            if not np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image)):
                return False
    return True


_decode = _operator()


def decode_jpeg(image: ImageFile.ImageFile) -> np.ndarray | None:
    """The pixels of an opened picture.

    Args:
        image: whose header is read, and no pixel yet.

    Returns:
        (height, width, 3) uint8 RGB as stored; None where it is for Pillow to decode.
    """
    # MPO: a JPEG with further pictures behind the first.
    if _decode is None or image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    data = _content(image)
    if data is None:
        return None
    try:
        pixels = _decode(torch.frombuffer(data, dtype=torch.uint8), _RGB, False)
    except RuntimeError:
        return None
    pixels = pixels.permute(1, 2, 0).numpy()
    return pixels if pixels.shape[:2] == (image.height, image.width) else None


def _content(image: ImageFile.ImageFile) -> bytearray | None:
    """The file's bytes; None where they are many more than a picture of its size needs."""
    file: Any = image.fp
    size = file.seek(0, os.SEEK_END)
    if size > 4 * image.height * image.width + 2**24:
        return None
    file.seek(0)
    return bytearray(file.read())
