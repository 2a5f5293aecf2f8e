# SPDX-License-Identifier: BSD-3-Clause
"""The quick decoder of JPEGs: Pillow's pixels, whatever the file, or none and Pillow's error."""

import base64
import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdet.data import jpeg, read_image
from tests.data_sets import data_sets

pytestmark = pytest.mark.skipif(jpeg._decode is None, reason="this torchvision decodes no JPEG")

SIZES = [(1, 1), (8, 8), (9, 17), (33, 2), (47, 61), (48, 64)]
WRITERS = {
    **{f"4:4:4, 4:2:2, 4:2:0: {i}": {"subsampling": i, "quality": 90} for i in range(3)},
    **{f"progressive {i}": {"subsampling": i, "progressive": True} for i in range(3)},
    "restart markers": {"restart_marker_blocks": 2},
    "restart markers, a row": {"restart_marker_rows": 1},
    "lowest quality": {"quality": 1},
    "highest quality": {"quality": 100},
    "no YCbCr": {"keep_rgb": True},
    "a profile and a comment": {"icc_profile": b"x" * 70_000, "comment": b"\xff\xd9"},
}
# Of a picture of 17 x 9, by cjpeg of libjpeg-turbo 2.1.5; Pillow and OpenCV do not write these.
BY_CJPEG = {
    "-arithmetic -progressive": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nIC"
        "IsIxwcKDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
        "MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/ygARCAAJABEDASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAh"
        "ADEAAAAdIqrYNvgq4m3jXlEWyj/8wABBAF/9oACAEBAAEFAku9iZXP7QT/zAAEEQX/2gAIAQMBAT8BFZ9vilK+"
        "8P/MAAQRBf/aAAgBAgEBPwEV+AsFlv/MAAQQBf/aAAgBAQAGPwLjJzw+/8wABBAF/9oACAEBAAE/IayTNW4+dd"
        "SiZ+6mMYD/2gAMAwEAAgADAAAAEOz4/8wABBEF/9oACAEDAQE/ELLH7v/MAAQRBf/aAAgBAgEBPxDv2+V4/8wA"
        "BBAF/9oACAEBAAE/EKKHOrImP0KFHtXhk46XB8sjNeH0ccuKsqkzZ6H/2Q=="
    ),
    "-sample 2x1,1x2,1x1": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nIC"
        "IsIxwcKDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
        "MjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/wAARCAAJABEDASEAAhIBAxEB/8QAHwAAAQUBAQEBAQEAAA"
        "AAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0Kx"
        "wRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhI"
        "WGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP0"
        "9fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAx"
        "EEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RV"
        "VldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyM"
        "nK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDuL+BIoFUDIIP+TXmetMZHJHy/Nt+n"
        "T/Gvjslw95nbkn9fifS5N+6o3iYnke6/980V9F9Xn3/r7j3j1vb1O5//2Q=="
    ),
}


def picture(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / 7 + y / 11), 128 + 100 * np.cos(x / 5), (x * 3 + y * 7) % 256]
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


def content(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels_of(data: bytes):
    """The quick decoder's pixels and Pillow's."""
    with Image.open(io.BytesIO(data)) as image:
        quick = jpeg.decode_jpeg(image)
        return quick, np.array(image.convert("RGB"))


def assert_quick_and_equal(data: bytes) -> None:
    quick, pillows = pixels_of(data)
    assert quick is not None
    np.testing.assert_array_equal(quick, pillows)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pillows_pixels(mode, writer, size):
    if mode == "L" and writer == "no YCbCr":
        pytest.skip("for colour only")
    assert_quick_and_equal(content(picture(*size).convert(mode), **WRITERS[writer]))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("factor", ["411", "440", "422"])
@pytest.mark.parametrize("progressive", [0, 1])
def test_pillows_pixels_of_opencvs_files(progressive, factor, size):
    cv2 = pytest.importorskip("cv2")
    sampling = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{factor}")
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    options += [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    written, data = cv2.imencode(".jpg", np.array(picture(*size)), options)
    assert written
    assert_quick_and_equal(data.tobytes())


@pytest.mark.parametrize("arguments", BY_CJPEG)
def test_pillows_pixels_of_rare_files(arguments):
    assert_quick_and_equal(base64.b64decode(BY_CJPEG[arguments]))


@pytest.mark.parametrize("transform", [None, 0, 1, 2])
def test_what_adobes_marker_says_of_three_channels(transform):
    data = content(picture(9, 17), keep_rgb=True)
    at = data.index(b"Adobe")
    if transform is None:
        data = data[: at - 4] + data[at + 12 :]
    else:
        data = data[: at + 11] + bytes([transform]) + data[at + 12 :]
    assert_quick_and_equal(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "mpo"])
def test_turned_pictures(tmp_path, monkeypatch, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    form = {"jpg": "JPEG", "mpo": "MPO"}[suffix]
    further = {} if suffix == "jpg" else {"save_all": True, "append_images": [picture(9, 17)]}
    path = tmp_path / f"turned.{suffix}"
    path.write_bytes(content(picture(17, 9), form, exif=exif, **further))
    assert_quick_and_equal(path.read_bytes())
    upright, stored = read_image(path), read_image(path, exif="ignore")
    monkeypatch.setattr(jpeg, "_decode", None)
    assert upright.equal(read_image(path))
    assert stored.equal(read_image(path, exif="ignore"))
    assert (upright.shape == stored.shape) == (orientation < 5)


def ycck() -> bytes:
    data = content(picture(9, 17).convert("CMYK"))
    at = data.index(b"Adobe")
    return data[: at + 11] + b"\2" + data[at + 12 :]


@pytest.mark.parametrize(
    "data",
    [
        content(picture(9, 17).convert("CMYK")),
        ycck(),
        content(picture(9, 17), "PNG"),
        content(picture(9, 17)) + bytes(2**24),
        content(picture(48, 64))[:-300],
    ],
    ids=["CMYK", "YCCK", "PNG", "16 MiB behind the picture", "truncated"],
)
def test_what_is_left_to_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        assert jpeg.decode_jpeg(image) is None


def outcome(path: Path):
    """Pixels, or what is wrong."""
    try:
        return read_image(path).numpy().tobytes()
    except ValueError as error:
        return str(error)


def damaged(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(2, len(data))
    return rng.choice(
        [
            data[:at],
            data[:at] + b"\xff\xd9",
            data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
            data[:at] + bytes(20) + data[at + 20 :],
            data[:at] + data[at + rng.randrange(1, 20) :],
            data[:at] + rng.randbytes(3) + data[at:],
        ]
    )


def test_damaged_files_are_what_they_are_to_pillow(tmp_path, monkeypatch):
    rng, path = random.Random(0), tmp_path / "damaged.jpg"
    wholes = [
        content(picture(47, 61).convert(mode), **WRITERS[writer])
        for mode in ("RGB", "L")
        for writer in ("4:4:4, 4:2:2, 4:2:0: 2", "progressive 1", "restart markers")
    ]
    decode, errors = jpeg._decode, 0
    for _ in range(300):
        path.write_bytes(damaged(rng.choice(wholes), rng))
        monkeypatch.setattr(jpeg, "_decode", decode)
        quick = outcome(path)
        monkeypatch.setattr(jpeg, "_decode", None)
        assert quick == outcome(path)
        errors += isinstance(quick, str)
    assert 50 < errors < 250


@pytest.mark.parametrize("folder", data_sets("bccd", "coco_by"))
def test_pictures_of_whole_data_sets(folder, monkeypatch):
    files = sorted((folder / "images").rglob("*.jpg"))[:40]
    quick = [read_image(file) for file in files]
    for file in files:
        with Image.open(file) as image:
            assert jpeg.decode_jpeg(image) is not None
    monkeypatch.setattr(jpeg, "_decode", None)
    for file, pixels in zip(files, quick, strict=True):
        assert pixels.equal(read_image(file)), file


def test_a_torchvision_without_decoders(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    picture(9, 17).save(path)
    quick = read_image(path)
    monkeypatch.setitem(sys.modules, "torchvision.io", None)  # its import fails
    assert jpeg._operator() is None
    monkeypatch.setattr(jpeg, "_decode", jpeg._operator())
    assert quick.equal(read_image(path))


def test_a_library_that_decodes_otherwise_is_not_used(monkeypatch):
    decode = jpeg._decode
    assert jpeg._agrees(decode)
    assert not jpeg._agrees(lambda data, mode, exif: decode(data, mode, exif) ^ 1)
