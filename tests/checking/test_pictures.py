# SPDX-License-Identifier: BSD-3-Clause
"""Each kind of finding in pictures, and in pairs of them, is planted and found."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from fastdet.checking import pictures
from fastdet.checking.check import check_dataset
from fastdet.checking.pictures import PictureFile, look_at
from fastdet.training.options import PictureOptions
from tests.checking.planted import HEIGHT, NO_MODEL, WIDTH, DataSet, annotation, scene
from tests.data_sets import data_sets


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    return DataSet(tmp_path / "data")


QUICK = replace(NO_MODEL, decode=False)


@pytest.mark.parametrize("options", [NO_MODEL, QUICK], ids=["decoded", "quick"])
def test_pictures_that_cannot_be_used(data: DataSet, options: object) -> None:
    data.picture("001.png").unlink()
    data.picture("002.png").write_bytes(b"no picture")
    data.picture("003.png").write_bytes(data.picture("003.png").read_bytes()[:3000])
    for name in ("cut.jpg", "whole.jpg"):
        scene(70 + len(name)).save(data.picture(name), quality=90)
    data.picture("cut.jpg").write_bytes(data.picture("cut.jpg").read_bytes()[:-400])
    data.picture("012.png").write_bytes(b"")
    data.add_image(7, "cut.jpg")
    data.add_image(8, "whole.jpg")
    findings = data.check(options).findings  # type: ignore[arg-type]
    names = {(f.name, f.split): [spot.image_id for spot in f.places] for f in findings}
    expected = {
        ("picture-missing", "train"): [1],
        ("picture-unreadable", "train"): [2],
        ("picture-unreadable", "val"): [12],
        ("picture-truncated", "train"): [3, 7],
    }
    if options is QUICK:
        del expected["picture-truncated", "train"]
    assert names == expected
    unreadable = next(f for f in findings if f.name == "picture-unreadable")
    assert "cannot identify image file" in unreadable.places[0].detail
    if options is NO_MODEL:
        truncated = next(f for f in findings if f.name == "picture-truncated")
        assert "truncated" in truncated.places[1].detail


def test_sizes_turns_and_modes(data: DataSet) -> None:
    turn = Image.Exif()
    turn[0x0112] = 6
    scene(51, HEIGHT, WIDTH).save(data.picture("turned.png"), exif=turn)  # shown WIDTH x HEIGHT
    scene(52).save(data.picture("stored.png"), exif=turn)  # the stated size is that of the file
    scene(53, 80, 60).save(data.picture("small.png"))
    scene(54).convert("L").save(data.picture("grey.png"))
    deep = np.asarray(scene(55).convert("L")).astype(np.uint16) << 4
    Image.fromarray(deep).save(data.picture("deep.png"))
    for identity, name in enumerate(("turned", "stored", "small", "grey", "deep"), 21):
        data.add_image(identity, f"{name}.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = data.found()
    assert {name: [spot.image_id for spot in f.places] for name, f in found.items()} == {
        "picture-turned": [21, 22],
        "picture-size-differs": [23],
        "picture-not-rgb": [24, 25],
    }
    assert found["picture-size-differs"].places[0].detail == "80 x 60, stated 160 x 120"
    stored = data.found(replace(NO_MODEL, pictures=PictureOptions(exif="ignore")))
    assert [s.image_id for s in stored["picture-size-differs"].places] == [21, 23]


def test_files_and_the_lists_of_them(data: DataSet) -> None:
    data.add_image(21, "001.png")
    data.add_image(22, "./sub/../002.png")
    (data.folder / "images" / "sub").mkdir()
    scene(60).save(data.picture("sub/more.JPG"))
    scene(61).save(data.picture("._hidden.png"))
    data.write()
    found = {
        f.name: f
        for f in check_dataset(data.folder, replace(NO_MODEL, files_anywhere=True)).findings
    }
    assert [s.image_id for s in found["picture-listed-twice"].places] == [21, 22]
    assert found["picture-listed-twice"].places[0].detail == "also image id 1"
    assert [s.file_name for s in found["picture-not-listed"].places] == ["sub/more.JPG"]
    assert set(found) == {"picture-listed-twice", "picture-not-listed"}


def test_a_decoder_that_fails_in_any_way_is_a_finding(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **_: object) -> None:
        raise MemoryError("as much as that")

    monkeypatch.setattr(pictures, "read_image", fail)
    file = look_at(data.picture("001.png"), PictureOptions(), decode=True)
    assert file == PictureFile(
        "picture-truncated", "MemoryError: as much as that", ((120, 160), (120, 160))
    )


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b", "\ud800", "images"])
def test_a_name_that_no_file_can_have(data: DataSet, name: str) -> None:
    file = look_at(data.folder / name, PictureOptions(), decode=True)
    assert file.problem in ("picture-missing", "picture-unreadable")
    assert file.message


def test_pictures_above_the_limit_are_not_decoded(data: DataSet) -> None:
    options = replace(NO_MODEL, pictures=PictureOptions(max_pixels=WIDTH * HEIGHT - 1))
    findings = [f for f in data.check(options).findings if f.name == "picture-truncated"]
    assert sum(f.count for f in findings) == 6
    assert "more than max_pixels" in findings[0].places[0].detail


def save(image: Image.Image, data: DataSet, name: str, **options: object) -> None:
    image.save(data.picture(name), **options)  # type: ignore[arg-type]


COPIES: dict[str, tuple[str, Callable[[Image.Image, DataSet], None]]] = {
    "same bytes": ("same-bytes", lambda image, data: save(image, data, "copy.png")),
    "same pixels": (
        "same-pixels",
        lambda image, data: save(image, data, "copy.png", compress_level=1),
    ),
    "resized": (
        "near-duplicate",
        lambda image, data: save(image.resize((100, 75)), data, "copy.png"),
    ),
    "other aspect": (
        "near-duplicate",
        lambda image, data: save(image.resize((200, 90)), data, "copy.png"),
    ),
    "compressed anew": (
        "near-duplicate",
        lambda image, data: save(image, data, "copy.png", format="JPEG", quality=25),
    ),
    "brightened": (
        "near-duplicate",
        lambda image, data: save(ImageEnhance.Brightness(image).enhance(1.4), data, "copy.png"),
    ),
    "grey": ("near-duplicate", lambda image, data: save(image.convert("L"), data, "copy.png")),
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_copies_between_splits_and_inside_one(data: DataSet, copy: str, split: str) -> None:
    kind, write = COPIES[copy]
    write(Image.open(data.picture("002.png")), data)
    with Image.open(data.picture("copy.png")) as written:
        width, height = written.size
    data.add_image(31, "copy.png", split, width=width, height=height)
    found = {name: f for name, f in data.found().items() if not name.startswith("picture-not-rgb")}
    name = f"leak-{kind}" if split == "val" else f"duplicate-{kind}".replace("same-", "")
    name = "near-duplicate" if name == "duplicate-near-duplicate" else name
    assert set(found) == {name}
    (spot,) = found[name].places
    assert (spot.split, spot.image_id) == ("train", 2)
    assert [(s.split, s.image_id) for s in spot.also] == [(split, 31)]
    assert spot.detail == ("as val: copy.png" if split == "val" else "as copy.png")


def test_the_names_of_what_copies_are_called() -> None:
    """Those of the test above, written out."""
    inside = ("duplicate-bytes", "duplicate-pixels", "near-duplicate")
    between = ("leak-same-bytes", "leak-same-pixels", "leak-near-duplicate")
    assert {f"leak-{kind}" for kind, _ in COPIES.values()} == set(between)
    assert len(inside) == len(between)


def test_mirror_images_are_an_option(data: DataSet) -> None:
    mirrored = ImageOps.mirror(Image.open(data.picture("002.png")))
    mirrored.resize((320, 240)).save(data.picture("copy.png"))
    data.add_image(31, "copy.png", "val", width=320, height=240)
    assert data.found() == {}
    found = data.found(replace(NO_MODEL, flipped=True))
    assert [s.image_id for s in found["leak-near-duplicate"].places] == [2]


def test_one_file_in_two_splits(data: DataSet) -> None:
    data.add_image(31, "002.png", "val")
    found = data.found(QUICK)
    assert set(found) == {"leak-same-file"}
    (spot,) = found["leak-same-file"].places
    assert (spot.image_id, spot.detail) == (2, "as val: 002.png")


def test_one_name_in_two_folders(data: DataSet) -> None:
    for folder, seed in (("a", 81), ("b", 82)):
        (data.folder / "images" / folder).mkdir()
        scene(seed).save(data.picture(f"{folder}/0001.png"))
    data.add_image(31, "a/0001.png")
    data.add_image(32, "b/0001.png", "val")
    found = data.found()
    assert set(found) == {"leak-same-name"}
    assert found["leak-same-name"].places[0].detail == "as val: b/0001.png"
    scene(81).save(data.picture("b/0001.png"))
    assert set(data.found()) == {"leak-same-bytes"}


def test_a_copy_of_a_copy_is_leakage_too(data: DataSet) -> None:
    """b looks like a; a' in val is a: so b leaks as well."""
    first = Image.open(data.picture("002.png"))
    first.save(data.picture("a.png"), compress_level=1)
    first.resize((80, 60)).save(data.picture("b.png"))
    data.add_image(31, "a.png", "val")
    data.add_image(32, "b.png", width=80, height=60)
    found = data.found()
    assert set(found) == {"leak-same-pixels", "leak-near-duplicate", "near-duplicate"}
    (spot,) = found["leak-near-duplicate"].places
    assert {(s.split, s.image_id) for s in (spot, *spot.also)} == {
        ("train", 2),
        ("val", 31),
        ("train", 32),
    }


def test_pictures_of_one_colour_are_no_near_duplicates(data: DataSet) -> None:
    faint = np.arange(WIDTH) * 4 // WIDTH  # which is all that a fogged lens leaves
    for identity, grey in ((31, 100), (32, 160)):
        pixels = np.broadcast_to((grey + faint)[None, :, None], (HEIGHT, WIDTH, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(data.picture(f"{grey}.png"))
        data.add_image(identity, f"{grey}.png")
    assert data.found() == {}


@pytest.mark.slow
@pytest.mark.parametrize("folder", data_sets("bccd", "coco_by"))
def test_near_duplicates_of_real_pictures(folder: Path) -> None:
    report = check_dataset(folder, NO_MODEL)
    assert all(file.looks for file in report.files.values())
    groups = [
        [spot.file_name, *(other.file_name for other in spot.also)]
        for finding in report.findings
        if "duplicate" in finding.name or finding.name.startswith("leak")
        for spot in finding.places
    ]
    same_slide = [["BloodImage_00037.jpg", "BloodImage_00038.jpg"]]  # at two focus positions
    assert groups == (same_slide if folder.name == "bccd" else [])


def test_missing_pictures_do_not_hide_the_rest(data: DataSet) -> None:
    shutil.rmtree(data.folder / "images")
    data.plant(annotation(901, 1, [90, 10, 0, 20]))
    findings = data.check().findings
    assert {(f.name, f.split, f.count) for f in findings} == {
        ("picture-missing", "train", 4),
        ("picture-missing", "val", 2),
        ("box-empty", "train", 1),
    }
