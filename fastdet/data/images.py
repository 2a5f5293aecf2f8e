# SPDX-License-Identifier: BSD-3-Clause
"""Decoding one picture file to RGB bytes.

Invariant: whatever the file holds (grey, palette, alpha, CMYK, 10 to 32 bits a channel), three
channels of uint8 come out, in the orientation that the annotations refer to.
"""

import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFile
from torchvision import tv_tensors

from fastdet.data.jpeg import decode_jpeg

Exif = Literal["apply", "ignore"]

_ORIENTATION, _MAX_SAMPLE_VALUE = 0x0112, 281  # tags of EXIF and of TIFF
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # of (height, width, 3), by orientation
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # that cameras and scanners have
MAX_PIXELS = 178_956_970  # 0.5 GB of RGB; Pillow's own limit

_opening = threading.Lock()
_guesses: set[str] = set()  # that this process has warned of


def read_image(
    path: str | Path,
    size: tuple[int, int] | None = None,
    *,
    exif: Exif = "apply",
    bit_depth: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tv_tensors.Image:
    """Decodes a picture.

    Args:
        path: a file in any format that Pillow reads.
        size: the (height, width) that the annotations state.
        exif: "apply" turns the picture as its EXIF orientation says, as viewers and browsers show
            it; but where only the stored picture has the stated size, it stays as stored. "ignore"
            always takes the picture as stored, as torchvision and pycocotools do.
        bit_depth: bits that the samples of pictures with more than 8 bits a channel use: 12 for the
            12 bits of a camera in a 16-bit PNG. None: as the file says (the sBIT chunk of PNG,
            MaxSampleValue of TIFF), else the fewest of 8, 10, 12, 14, 16, ... that hold the largest
            sample, with a warning where that is a guess.
        max_pixels: height * width of the largest picture that is decoded. A small file may hold
            a picture that fills the memory.

    Returns:
        (3, height, width) uint8 RGB. Alpha is dropped; of more bits than 8, the upper ones stay.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not decodable, not of the stated size, more than `max_pixels`, samples that do
            not fit the bit depth.
    """
    pixels = read_pixels(path, size, exif=exif, bit_depth=bit_depth, max_pixels=max_pixels)
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))


def read_pixels(
    path: str | Path,
    size: tuple[int, int] | None = None,
    *,
    exif: Exif = "apply",
    bit_depth: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """As `read_image`, (height, width, 3): as decoders give it, without a copy to three planes."""
    path = Path(path)
    with _opened(path) as image:
        # By the header, before a pixel is decoded.
        if image.height * image.width > max_pixels:
            raise ValueError(
                f"{path}: {image.width}x{image.height} pixels, more than max_pixels, {max_pixels}"
            )
        stored = image.height, image.width
        if size is not None and size not in (stored, stored[::-1]):
            _refuse_size(path, stored, size)
        # Pillow turns a TIFF while it decodes, and then knows the orientation no more.
        is_tiff = image.format == "TIFF"
        orientation = image.getexif().get(_ORIENTATION, 1) if is_tiff else 1
        pixels = decode_jpeg(image)  # (height, width, 3)
        if pixels is None:
            pixels = _rgb(path, image, bit_depth)
        if not is_tiff:
            orientation = image.getexif().get(_ORIENTATION, 1)
        elif orientation in _TURNS:
            pixels = _TURNS[{6: 8, 8: 6}.get(orientation, orientation)](pixels)
    if exif == "apply" and orientation in _TURNS:
        turned = _TURNS[orientation](pixels)
        if size is None or turned.shape[:2] == size:
            pixels = turned
    if size is not None and pixels.shape[:2] != size:
        _refuse_size(path, pixels.shape[:2], size)
    return np.ascontiguousarray(pixels)


def image_size(path: str | Path, exif: Exif = "apply") -> tuple[int, int]:
    """The (height, width) that `read_image` gives the picture; only its header is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture.
    """
    with _opened(Path(path)) as image:
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        # Of a TIFF Pillow gives the size that is displayed.
        if turned and (image.format == "TIFF") == (exif == "ignore"):
            return image.width, image.height
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The picture, of any size, with its header read.

    Errors of Pillow, in the block too, name the file.
    """
    try:
        with _opening:  # Pillow's limit is a variable of the module
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    # ImportError: ultralytics 8.4.190 replaces Image.open; its own imports pi_heif for a file that
    # Pillow does not know.
    except (ImportError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be decoded: {error}") from error


def _refuse_size(path: Path, found: tuple[int, int], stated: tuple[int, int]) -> None:
    raise ValueError(
        f"{path}: {found[1]}x{found[0]} pixels, but the annotations state {stated[1]}x{stated[0]}"
    )


def _rgb(path: Path, image: Image.Image, bit_depth: int | None) -> np.ndarray:
    """(height, width, 3) uint8."""
    samples = _deep_samples(path, image)
    if samples is not None:
        samples = _to_bytes(path, image, samples, bit_depth)
        grey = samples.shape[2] < 3
        return np.repeat(samples[..., :1], 3, axis=2) if grey else samples[..., :3]
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _deep_samples(path: Path, image: Image.Image) -> np.ndarray | None:
    """(height, width, 1 to 4) of a picture with more than 8 bits a channel; None of any other."""
    if image.mode[0] in "IF":
        return np.asarray(image)[..., None]
    if ";16" not in _raw_mode(image):
        return None
    # Of several channels Pillow gives the upper bytes; in the other byte order, the lower ones.
    with _opened(path) as swapped:
        swapped.tile = [_in_the_other_byte_order(tile) for tile in swapped.tile]
        swapped.load()
        lower = np.asarray(swapped)
    image.load()
    return np.asarray(image).astype(np.int64) << 8 | lower


def _in_the_other_byte_order(tile: Any) -> Any:
    decoder, box, offset, arguments = tile
    foreign = "B" if sys.byteorder == "little" else "L"
    mode, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
    mode = mode[:-1] + {"B": "L", "L": "B", "N": foreign}[mode[-1]]
    return type(tile)(decoder, box, offset, (mode, *rest) if rest else mode)


def _raw_mode(image: Image.Image) -> str:
    """How the samples lie in the file, as Pillow names it: "RGB;16B"."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _to_bytes(
    path: Path, image: Image.Image, samples: np.ndarray, bit_depth: int | None
) -> np.ndarray:
    """Samples of any type as uint8."""
    if samples.dtype.kind == "f":
        return _floats_to_bytes(path, samples)
    samples = samples.astype(np.int64).clip(min=0)
    largest = int(samples.max(initial=0))
    stated = bit_depth or _stated_depth(path, image)
    depth = stated or next(bits for bits in _DEPTHS if largest < 1 << bits)
    if not stated and depth < 16:
        _warn(
            f"{path}: taken for {depth} bits a channel by its largest value, {largest}; "
            "bit_depth= says it exactly",
            f"{depth} bits",
        )
    if largest >= 1 << depth:
        raise ValueError(f"{path}: expected samples of {depth} bits (bit_depth), got {largest}")
    samples = samples >> (depth - 8) if depth >= 8 else samples * 255 // ((1 << depth) - 1)
    return samples.astype(np.uint8)


def _floats_to_bytes(path: Path, samples: np.ndarray) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: expected finite samples, got NaN or infinity")
    largest = float(samples.max(initial=0))
    white = next((white for white in (1, 255, 65535) if largest <= white), largest)
    _warn(f"{path}: of its floating-point samples {white:g} is taken for white", f"white {white}")
    return (samples.clip(min=0) * (255 / white)).round().astype(np.uint8)


def _stated_depth(path: Path, image: Image.Image) -> int | None:
    """The bits that the file itself says its samples use."""
    if image.format == "PNG":
        bits = _png_chunk(path, b"sBIT")
        return max(bits) if bits else None
    white = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE)
    white = white[0] if isinstance(white, tuple) else white
    return int(white).bit_length() if white else None


def _png_chunk(path: Path, name: bytes) -> bytes:
    """The content of a chunk that comes before the pixels; nothing where there is none."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            (length,) = struct.unpack(">I", head[:4])
            if head[4:] == name:
                return file.read(length)
            file.seek(length + 4, 1)
    return b""


def _warn(message: str, kind: str | None = None) -> None:
    """A UserWarning, once in a process for each kind: a data set has thousands of one kind."""
    if (kind or message) not in _guesses:
        _guesses.add(kind or message)
        warnings.warn(message, stacklevel=4)
