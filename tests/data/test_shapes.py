# SPDX-License-Identifier: BSD-3-Clause
"""The sample data set: the same bytes for a seed, sane annotations, boxes that fit the pixels."""

import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import masks_to_boxes

from fastdet.data import open_dataset, shapes, write_shapes

LAST_PIXEL = torch.tensor([0.0, 0, 1, 1])  # torchvision's boxes of masks end before it


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shapes(
        tmp_path_factory.mktemp("data") / "shapes", train=60, val=20, size=96, seed=3
    )


def test_a_seed_decides_every_byte(folder, tmp_path):
    again = write_shapes(tmp_path / "again", train=60, val=20, size=96, seed=3)
    assert digest(again) == digest(folder)
    assert len(digest(folder)) == 82
    other = digest(write_shapes(tmp_path / "other", train=2, val=1, size=96, seed=4))
    assert not set(other.values()) & set(digest(folder).values())
    more = digest(write_shapes(tmp_path / "more", train=3, val=1, size=96, seed=3))
    assert {n: h for n, h in more.items() if n.endswith("png")}.items() <= digest(folder).items()


def test_images_of_both_splits_differ(folder):
    pictures = [h for name, h in digest(folder).items() if name.endswith("png")]
    assert len(set(pictures)) == 80


@pytest.mark.filterwarnings("error")
def test_annotations(folder):
    content = json.loads((folder / "train.json").read_text())
    assert [a["id"] for a in content["annotations"]] == [*range(1, 1 + len(content["annotations"]))]
    assert [i["id"] for i in content["images"]] == [*range(1, 61)]
    assert {a["category_id"] for a in content["annotations"]} == {1, 2, 3, 4, 5, 6}
    sides = np.array([a["bbox"][2:] for a in content["annotations"]])
    assert sides.max() <= 96 / 2 + 2
    assert (sides.max(1) < 14).any()
    assert (sides.max(1) > 35).any()
    for a in content["annotations"]:
        x, y, width, height = a["bbox"]
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= 96
        assert shapes.MIN_VISIBLE_PIXELS <= a["area"] <= width * height
    dataset = open_dataset(folder, "val", masks=True)
    assert dataset.classes == ["background", *shapes.SHAPES]
    for image, target in dataset:
        assert image.shape == (3, 96, 96)
        assert torch.equal(masks_to_boxes(target["masks"]) + LAST_PIXEL, target["boxes"])
        assert target["masks"].sum(0).max() == 1  # of pixels that two objects share, one has each


class Quiet:
    """A random generator that adds no noise to a picture."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def normal(self, mean, deviation, shape=()):
        return np.full(shape, mean)

    def __getattr__(self, name):
        return getattr(self.rng, name)


def test_boxes_are_tight_around_the_visible_part(monkeypatch):
    """Objects painted in their own flat grey, with hard edges, are found again in the picture."""
    stamp, numbers = shapes._stamp, itertools.count()
    monkeypatch.setattr(shapes, "_stamp", lambda *a: (stamp(*a) >= 0.5).astype(float))
    monkeypatch.setattr(shapes, "_paint", lambda *a: np.full(3, next(numbers) / 255))
    monkeypatch.setattr(shapes, "_background", lambda rng, size: np.zeros((size, size, 3)))
    checked = hidden = 0
    for seed in range(40):
        numbers = itertools.count(1)
        picture, objects = shapes.draw_scene(Quiet(seed), 96)
        found = []
        for number in range(1, next(numbers)):
            ys, xs = np.nonzero(picture[..., 0] == number)
            if len(xs):
                corner = [xs.min(), ys.min()]
                found.append(([*corner, xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()], len(xs)))
        annotated = [(box, int(visible.sum())) for _, box, visible in objects]
        assert all(pair in found for pair in annotated)
        hidden += len(found) - len(annotated)
        checked += len(annotated)
    assert checked > 120
    assert 0 < hidden < 0.1 * checked


def test_covered_objects_lose_their_boxes_and_partly_covered_ones_shrink(monkeypatch):
    stamps = iter([(0, 20), (4, 20), (40, 20), (50, 20)])  # (corner, side) of full squares

    def stamp(rng, draw, diameter):
        nonlocal corner
        corner, side = next(stamps)
        return np.ones((side, side))

    class FourObjects(Quiet):
        def integers(self, *args):
            return 4 if args == shapes.OBJECTS else self.rng.integers(*args)

    def place(rng, solid, owner):
        return slice(corner, corner + len(solid)), slice(corner, corner + len(solid))

    corner = 0
    monkeypatch.setattr(shapes, "_stamp", stamp)
    monkeypatch.setattr(shapes, "_place", place)
    monkeypatch.setattr(shapes, "MIN_VISIBLE_FRACTION", 0.5)
    _, objects = shapes.draw_scene(FourObjects(0), 100)
    # 20² squares: 16² of the first one and 10² of the third are covered; 0.36 of the first is left.
    assert [(box, visible.sum()) for _, box, visible in objects] == [
        ([4, 4, 20, 20], 400),
        ([40, 40, 20, 20], 300),
        ([50, 50, 20, 20], 400),
    ]


def test_kinds_have_a_hue_but_not_always():
    rng = np.random.default_rng(0)
    reds = sum(
        colour[0] > max(colour[1], colour[2])
        for colour in (shapes._paint(rng, 0, np.ones((9, 9)))[4, 4] for _ in range(200))
    )
    assert 130 < reds < 200


def test_a_finished_folder_is_kept_and_another_is_not_overwritten(folder, tmp_path):
    before = (folder / "val.json").stat().st_mtime_ns
    assert write_shapes(folder, train=60, val=20, size=96, seed=3) == folder
    assert (folder / "val.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="does not hold the data set"):
        write_shapes(folder, train=61, val=20, size=96, seed=3)
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError):
        write_shapes(tmp_path / "mine", train=1, val=1)


def test_nothing_appears_when_writing_fails(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_shapes(tmp_path / "shapes", train=1, val=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": 31}, {"seed": -1}])
def test_senseless_numbers(tmp_path, wrong):
    with pytest.raises(ValueError, match="write_shapes needs"):
        write_shapes(tmp_path / "shapes", **wrong)
