# SPDX-License-Identifier: BSD-3-Clause
"""Decoding: every kind of picture becomes RGB bytes, in the orientation of the annotations."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastdet.data import read_image


def grey(value, mode):
    return Image.fromarray(np.full((4, 6), value, mode))


def palette():
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return image


def transparent_palette():
    image = palette()
    image.info["transparency"] = bytes([0, 128])
    return image


PICTURES = {
    "rgb.png": (Image.new("RGB", (6, 4), (10, 200, 30)), (10, 200, 30)),
    "grey.png": (grey(77, np.uint8), (77, 77, 77)),
    "bilevel.png": (Image.new("1", (6, 4), 1), (255, 255, 255)),
    "grey16.png": (grey(77 * 256 + 200, np.uint16), (77, 77, 77)),
    "grey16.tif": (grey(77 * 256 + 200, np.uint16), (77, 77, 77)),
    "palette.png": (palette(), (10, 200, 30)),
    "transparent.png": (transparent_palette(), (10, 200, 30)),
    "rgba.png": (Image.new("RGBA", (6, 4), (10, 200, 30, 5)), (10, 200, 30)),
    "grey_alpha.png": (Image.new("LA", (6, 4), (77, 5)), (77, 77, 77)),
    "cmyk.tif": (Image.new("CMYK", (6, 4), (245, 55, 225, 0)), (10, 200, 30)),
    "cmyk.jpg": (Image.new("CMYK", (6, 4), (245, 55, 225, 0)), (10, 200, 30)),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("error")
def test_everything_becomes_rgb(tmp_path, name):
    picture, colour = PICTURES[name]
    picture.save(tmp_path / name)
    image = read_image(tmp_path / name, (4, 6))
    assert image.shape == (3, 4, 6)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    expected = torch.tensor(colour).view(3, 1, 1).expand(3, 4, 6)
    tolerance = 3 if name.endswith("jpg") else 0
    assert (image.int() - expected).abs().max() <= tolerance


def test_exif_orientation_counts_only_where_the_annotations_say_so(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255  # the stored picture's upper left corner
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    for stored in (read_image(path), read_image(path, (4, 6))):
        assert stored.shape == (3, 4, 6)
        assert stored[0, 0, 0] == 255
    shown = read_image(path, (6, 4))
    assert shown.shape == (3, 6, 4)
    assert shown[0, 0, 3] == 255


def test_bad_files(tmp_path):
    good = tmp_path / "good.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(good)
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png: cannot be decoded"):
        read_image(cut)
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such image file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(
        ValueError, match=r"good\.png: 40x40 pixels, but the annotations state 50x40"
    ):
        read_image(good, (40, 50))
