# SPDX-License-Identifier: BSD-3-Clause
"""Decoding: every kind of picture becomes RGB bytes, in the orientation of the annotations."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastdet.data import images, read_image
from fastdet.data.images import image_size


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


ORIENTATIONS = range(1, 9)


def oriented(path, orientation, pixels, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


def as_array(image):
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("shape", [(4, 6, 3), (5, 5, 3)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_picture_is_read_as_it_is_displayed(tmp_path, orientation, shape, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(
        path, exif=exif, **({"lossless": True} if suffix == "webp" else {})
    )
    shown = np.array(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(as_array(read_image(path)), shown)
    np.testing.assert_array_equal(as_array(read_image(path, shown.shape[:2])), shown)
    np.testing.assert_array_equal(as_array(read_image(path, exif="ignore")), pixels)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_annotations_of_the_stored_size_get_the_stored_picture(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    path = oriented(tmp_path / "turned.png", orientation, pixels)
    np.testing.assert_array_equal(as_array(read_image(path, (4, 6))), pixels)
    with pytest.raises(ValueError, match="6x4 pixels, but the annotations state 4x6"):
        read_image(path, (6, 4), exif="ignore")


def write_png16(path, samples, significant_bits=None):
    """A 16-bit PNG (height, width, 1 or 3), by hand: Pillow writes neither RGB nor sBIT."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, channels = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if channels == 1 else 2, 0, 0, 0)
    said = chunk(b"sBIT", bytes([significant_bits] * channels)) if significant_bits else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + said
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def no_guess_yet(monkeypatch):
    monkeypatch.setattr(images, "_guesses", set())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_few_bits_in_a_16_bit_picture_are_seen(tmp_path, bits, channels, no_guess_yet):
    samples = np.linspace(0, (1 << bits) - 1, 24).astype(np.int64).reshape(4, 6, 1)
    expected = np.repeat(samples >> (bits - 8), 3, axis=2)
    path = tmp_path / "deep.png"
    write_png16(path, samples.repeat(channels, axis=2))
    with pytest.warns(UserWarning, match=rf"deep\.png: taken for {bits} bits a channel"):
        np.testing.assert_array_equal(as_array(read_image(path)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(as_array(read_image(path)), expected)  # told once
        np.testing.assert_array_equal(as_array(read_image(path, bit_depth=bits)), expected)
        dark = as_array(read_image(path, bit_depth=16))
        np.testing.assert_array_equal(dark, np.repeat(samples >> 8, 3, axis=2))


def test_the_file_says_how_many_bits_it_uses(tmp_path, no_guess_yet):
    samples = np.full((4, 6, 3), 100)
    write_png16(tmp_path / "said.png", samples, significant_bits=12)
    grey = Image.fromarray(samples[..., 0].astype(np.uint16))
    grey.save(tmp_path / "said.tif", tiffinfo={281: 4095})
    for name in ("said.png", "said.tif"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert (read_image(tmp_path / name) == 100 >> 4).all()


def test_a_bit_depth_that_does_not_hold_the_samples_is_refused(tmp_path):
    write_png16(tmp_path / "deep.png", np.full((4, 6, 1), 5000))
    with pytest.raises(ValueError, match=r"deep\.png: expected samples of 12 bits .* got 5000"):
        read_image(tmp_path / "deep.png", bit_depth=12)


@pytest.mark.parametrize(("white", "value"), [(1, 0.2), (255, 51), (65535, 13107)])
def test_floating_point_samples(tmp_path, white, value, no_guess_yet):
    samples = np.full((4, 6), value, np.float32)
    samples[0, 0] = white
    Image.fromarray(samples).save(tmp_path / "float.tif")
    with pytest.warns(UserWarning, match=f"{white} is taken for white"):
        image = read_image(tmp_path / "float.tif")
    assert image[:, 0, 0].tolist() == [255] * 3
    assert image[:, 1, 1].tolist() == [51] * 3
    samples[0, 0] = np.nan
    Image.fromarray(samples).save(tmp_path / "nan.tif")
    with pytest.raises(ValueError, match=r"nan\.tif: expected finite samples"):
        read_image(tmp_path / "nan.tif")


def test_a_picture_of_another_size_is_refused_by_its_header(tmp_path):
    path = tmp_path / "cut.png"
    Image.new("RGB", (60, 40)).save(path)
    path.write_bytes(path.read_bytes()[:60])  # the header is whole, the pixels are not
    with pytest.raises(ValueError, match="60x40 pixels, but the annotations state 7x5"):
        read_image(path, (5, 7))


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    path = tmp_path / "cut.png"
    Image.new("RGB", (60, 40)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"cut\.png: 60x40 pixels, more than max_pixels, 2399"):
        read_image(path, max_pixels=2399)
    path.write_bytes(whole)
    assert read_image(path, max_pixels=2400).shape == (3, 40, 60)


def test_the_limit_on_pixels_is_ours_and_not_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    write_png16(tmp_path / "deep.png", np.full((4, 6, 3), 1 << 15))
    assert (read_image(tmp_path / "deep.png") == 128).all()
    assert image_size(tmp_path / "deep.png") == (4, 6)
    assert Image.MAX_IMAGE_PIXELS == 10


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


def test_a_reader_of_another_package_that_is_not_whole(tmp_path, monkeypatch):
    """As after `import ultralytics`: Pillow's open asks for a package that is not installed."""
    (tmp_path / "text.png").write_bytes(b"no picture")

    def asks_for_more(path):
        raise ModuleNotFoundError("No module named 'reader'", name="reader")

    monkeypatch.setattr(Image, "open", asks_for_more)
    with pytest.raises(ValueError, match=r"text\.png: cannot be decoded: No module named"):
        read_image(tmp_path / "text.png")
