# SPDX-License-Identifier: BSD-3-Clause
"""The COCO reader and dataset: hand-written files, every defect a file may have, real files."""

import copy
import json
import math
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from fastdet.data import CocoDetection, collate, open_dataset, train_transforms
from fastdet.data.coco_file import read_coco_file
from tests.data_sets import data_sets

# Ids with holes, from 0 on, in no order; image 7 is empty; annotation 12 is a crowd.
CONTENT = {
    "images": [
        {"id": 5, "file_name": "b.png", "width": 40, "height": 30},
        {"id": 7, "file_name": "empty.png", "width": 20, "height": 20},
        {"id": 0, "file_name": "sub/a.png", "width": 30, "height": 50},
    ],
    "categories": [{"id": 9, "name": "nine"}, {"id": 0, "name": "zero"}, {"id": 4, "name": "four"}],
    "annotations": [
        {"id": 3, "image_id": 0, "category_id": 4, "bbox": [1, 2, 10, 20], "area": 200},
        {"id": 10, "image_id": 5, "category_id": 9, "bbox": [30.5, 20, 20, 20], "area": 400},
        {"id": 0, "image_id": 0, "category_id": 0, "bbox": [-5, 0, 10, 10], "area": 100},
        {"id": 12, "image_id": 5, "category_id": 0, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 1},
    ],
}


def content(**changes):
    return {**copy.deepcopy(CONTENT), **changes}


def annotation(**changes):
    return {"id": 100, "image_id": 5, "category_id": 9, "bbox": [1, 1, 5, 5], "area": 25, **changes}


@pytest.fixture
def write(tmp_path):
    """Writes an annotation file and its images; returns the file's path."""

    def write(content, images=True) -> Path:
        path = tmp_path / "train.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        for image in CONTENT["images"] if images else []:
            file = tmp_path / "images" / image["file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (image["width"], image["height"]), (200, 100, 50)).save(file)
        return path

    return write


def opened(path, **kwargs):
    return CocoDetection(path.parent / "images", path, **kwargs)


def test_items(write):
    dataset = opened(write(CONTENT))
    assert dataset.classes == ["background", "zero", "four", "nine"]
    assert dataset.category_ids == [0, 4, 9]
    assert dataset.image_ids == [5, 7, 0]
    assert len(dataset) == 3

    image, target = dataset[0]
    assert isinstance(image, tv_tensors.Image)
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.uint8
    assert image[:, 3, 4].tolist() == [200, 100, 50]
    assert target["image_id"] == 5
    assert target["labels"].tolist() == [3]
    assert target["boxes"].tolist() == [[30.5, 20, 40, 30]]  # clipped; the crowd is left out
    assert target["boxes"].format == tv_tensors.BoundingBoxFormat.XYXY
    assert target["boxes"].canvas_size == (30, 40)

    _, empty = dataset[1]
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].shape == (0,)
    assert empty["labels"].dtype == torch.int64

    _, last = dataset[-1]
    assert last["image_id"] == 0
    assert last["boxes"].tolist() == [[1, 2, 11, 22], [0, 0, 5, 10]]  # the file's order
    assert last["labels"].tolist() == [2, 1]
    with pytest.raises(IndexError):
        dataset.target(3)


def test_items_do_not_share_memory_with_the_dataset(write):
    dataset = opened(write(CONTENT))
    dataset.target(0)["boxes"].zero_()
    assert dataset.target(0)["boxes"].tolist() == [[30.5, 20, 40, 30]]


def test_images_without_boxes_can_be_left_out(write):
    dataset = opened(write(CONTENT), keep_empty=False)
    assert dataset.image_ids == [5, 0]
    assert dataset.target(1)["labels"].tolist() == [2, 1]
    assert dataset.image_path(1).name == "a.png"


def test_no_annotations_at_all(write):
    dataset = opened(write(content(annotations=[])))
    assert len(dataset) == 3
    assert dataset.target(2)["boxes"].shape == (0, 4)
    assert len(opened(write(content(annotations=[])), keep_empty=False)) == 0


def test_boxes_keep_the_files_order_where_images_alternate(write):
    annotations = [
        annotation(id=i, image_id=[5, 0][i % 2], bbox=[0, 0, 1 + i / 10, 1]) for i in range(200)
    ]
    dataset = opened(write(content(annotations=annotations)))
    for index, parity in ((0, 0), (2, 1)):
        widths = dataset.target(index)["boxes"][:, 2]
        assert widths.tolist() == pytest.approx([1 + i / 10 for i in range(parity, 200, 2)])


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("the image is not in the file", {"image_id": 99}),
        ("the image is not in the file", {"image_id": [5]}),
        ("the category is not in the file", {"category_id": 1}),
        ("bbox is not four numbers", {"bbox": [1, 2, 3]}),
        ("bbox is not four numbers", {"bbox": [1, 2, 3, "4"]}),
        ("bbox is not four numbers", {"bbox": None}),
        ("bbox is not finite", {"bbox": [1, 2, float("nan"), 4]}),
        ("bbox is not finite", {"bbox": [1, 2, float("inf"), 4]}),
        ("iscrowd is neither 0 nor 1", {"iscrowd": "0"}),
        ("iscrowd is neither 0 nor 1", {"iscrowd": 2}),
        ("width or height is not positive", {"bbox": [1, 2, 0, 4]}),
        ("width or height is not positive", {"bbox": [1, 2, 3, -4]}),
        ("bbox is outside the image", {"bbox": [40, 2, 3, 4]}),
        ("bbox is outside the image", {"bbox": [1, -9, 3, 9]}),
        ("bbox is outside the image", {"bbox": [1, 30 - 1e-9, 3, 9]}),  # nothing left in float32
    ],
)
def test_bad_annotations_are_counted_in_one_warning(write, kind, bad):
    bad = [annotation(id=i, **bad) for i in (101, 102)]
    path = write(content(annotations=CONTENT["annotations"] + bad))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = opened(path)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert f"{path}: 2 annotations skipped: {kind}" in message
    assert f"(first: image id {bad[0]['image_id']}, annotation id 101)" in message
    assert [len(dataset.target(i)["boxes"]) for i in range(3)] == [1, 0, 2]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ("{", "not a JSON file"),
        ("[]", "is a list"),
        ({"images": None}, "no list 'images'"),
        ({"annotations": {}}, "no list 'annotations'"),
        ({"images": [{"id": 1, "file_name": "x", "width": 3}]}, "image id 1 has no 'height'"),
        ({"images": [{"file_name": "x"}]}, "image number 0 has no 'id'"),
        ({"images": [3]}, "image number 0 is not an object"),
        ({"images": [{"id": 1, "file_name": "x", "width": 0, "height": 2}]}, "image id 1: width"),
        *[
            ({"images": [{"id": 1, "file_name": "x", "width": side, "height": 2}]}, "image id 1: w")
            for side in (-1, 0.5, 1e30, math.inf, math.nan, "9", True, [9])
        ],
        *[
            ({"images": [{"id": 1, "file_name": name, "width": 9, "height": 2}]}, "image id 1: ")
            for name in (None, "", 7, "../x.png", "sub/../../x.png", "/x.png")
        ],
        ({"categories": [{"id": 4, "name": None}]}, "category id 4: expected a name, got None"),
        ({"annotations": [annotation(id=3.5)]}, "annotation id 3.5: an id must be an integer"),
        ({"images": CONTENT["images"] + CONTENT["images"][:1]}, "image id 5 occurs more than once"),
        ({"categories": [{"id": "a", "name": "x"}]}, "category id 'a': an id must be an integer"),
        ({"categories": [{"id": 4, "name": "x"}] * 2}, "category id 4 occurs more than once"),
        ({"annotations": [{"id": 8, "image_id": 5}]}, "annotation id 8 has no 'category_id'"),
        ({"annotations": [annotation(), annotation()]}, "annotation id 100 occurs more than once"),
        ({"annotations": [annotation(id=True)]}, "annotation id True: an id must be an integer"),
    ],
)
def test_broken_files_are_errors(write, changes, match):
    path = write(changes if isinstance(changes, str) else content(**changes))
    with pytest.raises(ValueError, match=match) as error:
        read_coco_file(path)
    assert str(path) in str(error.value)


def test_areas_names_and_crowds_of_the_file(write):
    twice = [{"id": 3, "name": "cell"}, {"id": 1, "name": "cell"}, {"id": 2, "name": "other"}]
    annotations = [annotation(category_id=3, iscrowd=1), annotation(id=1, category_id=2)]
    del annotations[1]["area"]
    file = read_coco_file(write(content(categories=twice, annotations=annotations)))
    assert file.names == ["cell #1", "other", "cell #3"]
    assert file.crowd.tolist() == [True, False]
    assert file.areas.tolist() == [25, 25]


def test_repeated_annotations_are_counted_in_one_warning(write):
    again = [annotation(id=i) for i in range(100, 105)]
    others = [annotation(id=1, bbox=[1, 1, 5, 6]), annotation(id=2, image_id=0)]
    with pytest.warns(UserWarning, match="4 annotations kept that repeat another") as caught:
        dataset = opened(write(content(annotations=[*others, *again])))
    assert len(caught) == 1
    assert "(first: image id 5, annotation id 101)" in str(caught[0].message)
    assert len(dataset.target(0)["boxes"]) == 6


def test_a_class_of_crowds_alone_is_noted(write):
    crowd = [annotation(id=1, iscrowd=1), annotation(id=2, category_id=4)]
    with pytest.warns(UserWarning, match=r"of nine there are crowds \(iscrowd\) alone"):
        opened(write(content(annotations=crowd)))


@pytest.mark.parametrize(("area", "warned"), [(None, 0), ("", 1), ([25], 1), (-1, 1), (True, 1)])
def test_an_area_that_is_no_number_is_that_of_the_box(write, area, warned):
    path = write(content(annotations=[annotation(area=area, bbox=[1, 1, 5, 4])]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_coco_file(path).areas.tolist() == [20]
    assert len(caught) == warned
    for warning in caught:
        assert "1 annotation kept with width * height as the area" in str(warning.message)
        assert "(first: image id 5, annotation id 100)" in str(warning.message)


def test_ids_may_be_written_as_integral_floats(write):
    floats = annotation(id=100.0, image_id=5.0, category_id=9.0)
    images = [{**image, "id": float(image["id"])} for image in CONTENT["images"]]
    categories = [{**category, "id": float(category["id"])} for category in CONTENT["categories"]]
    path = write(content(images=images, categories=categories, annotations=[floats]))
    file = read_coco_file(path)
    assert file.image_ids == [5, 7, 0]
    assert file.category_ids == [0, 4, 9]
    assert all(type(i) is int for i in file.image_ids + file.category_ids)
    assert file.labels.tolist() == [3]


@pytest.mark.parametrize("crowd", [0, 1, False, True, 0.0, 1.0, None])
def test_crowds(write, crowd):
    path = write(content(annotations=[annotation(iscrowd=crowd)]))
    assert read_coco_file(path).crowd.tolist() == [bool(crowd)]


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_size_of_null_is_read_from_the_picture(write, tmp_path, orientation, suffix):
    images = [{"id": 5, "file_name": f"b.{suffix}", "width": None, "height": None}]
    path = write(content(images=images, annotations=[annotation(segmentation=[TRIANGLE])]))
    turn = Image.Exif()
    turn[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / f"b.{suffix}", exif=turn)
    for exif in ("apply", "ignore"):
        upright = orientation in (1, 3) or exif == "ignore"
        image, target = opened(path, masks=True, exif=exif)[0]
        assert image.shape == ((3, 30, 40) if upright else (3, 40, 30))
        assert target["masks"].shape == (1, *image.shape[1:])
    assert read_coco_file(path).image_sizes.tolist() == [[0, 0]]  # nobody said where it lies
    with pytest.raises(ValueError, match="image id 5: width and height must be positive"):
        read_coco_file(path, masks=True)


def test_files_outside_the_image_folder_are_read_where_that_is_allowed(write, tmp_path):
    images = [{"id": 5, "file_name": "../outside.png", "width": 40, "height": 30}]
    path = write(content(images=images, annotations=[]))
    Image.new("RGB", (40, 30)).save(tmp_path / "outside.png")
    assert opened(path, files_anywhere=True)[0][0].shape == (3, 30, 40)
    with pytest.raises(ValueError, match=r"image id 5: file_name '\.\./outside\.png' leads out"):
        opened(path)


def test_options_reach_the_pictures(write, tmp_path):
    path = write(CONTENT)
    pixels = np.full((30, 40), 1000, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "images" / "b.png")
    assert (opened(path, bit_depth=12)[0][0] == 1000 >> 4).all()
    with pytest.raises(ValueError, match=r"more than max_pixels, 100 \(image id"):
        opened(path, max_pixels=100)[0]
    assert (open_dataset(tmp_path, "train", bit_depth=16)[0][0] == 1000 >> 8).all()


def test_bad_images_are_errors_that_name_the_image_id(write, tmp_path):
    dataset = opened(write(CONTENT))
    (tmp_path / "images/b.png").write_bytes(b"no picture")
    (tmp_path / "images/empty.png").unlink()
    Image.new("RGB", (31, 50)).save(tmp_path / "images/sub/a.png")
    with pytest.raises(ValueError, match=r"b\.png: cannot be decoded.*\(image id 5\)"):
        dataset[0]
    with pytest.raises(FileNotFoundError, match=r"empty\.png: no such image.*\(image id 7\)"):
        dataset[1]
    with pytest.raises(ValueError, match=r"a\.png: 31x50 pixels.*30x50 \(image id 0\)"):
        dataset[2]


def test_open_dataset_knows_two_layouts(write, tmp_path):
    path = write(CONTENT)
    assert open_dataset(tmp_path, "train")[0][1]["image_id"] == 5
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    path.rename(coco / "annotations" / "instances_val2017.json")
    (tmp_path / "images").rename(coco / "val2017")
    assert open_dataset(coco, "val")[0][1]["image_id"] == 5
    with pytest.raises(FileNotFoundError, match="no split 'train'"):
        open_dataset(coco, "train")


def test_collate_gives_lists_of_plain_tensors(write):
    dataset = opened(write(CONTENT))
    images, targets = collate([dataset[0], dataset[2]])
    assert [tuple(image.shape) for image in images] == [(3, 30, 40), (3, 50, 30)]
    assert [target["image_id"] for target in targets] == [5, 0]
    assert {type(image) for image in images} == {torch.Tensor}
    assert {type(target["boxes"]) for target in targets} == {torch.Tensor}


@pytest.mark.slow
def test_worker_processes_see_the_same_items(write):
    dataset = opened(write(CONTENT), transforms=train_transforms((1, 1), flip=0))
    alone = [collate([dataset[i]]) for i in range(3)]
    for context in ("fork", "spawn"):
        loader = DataLoader(
            dataset, num_workers=1, collate_fn=collate, multiprocessing_context=context
        )
        for (images, targets), (same_images, same_targets) in zip(alone, loader, strict=True):
            assert torch.equal(images[0], same_images[0])
            assert torch.equal(targets[0]["boxes"], same_targets[0]["boxes"])
    assert len(pickle.dumps(dataset)) < 10_000


@pytest.mark.parametrize("folder", data_sets("bccd", "coco_by", "nuclei", "trash10"))
def test_whole_data_sets(folder):
    dataset = open_dataset(folder, "val")
    content = json.loads((folder / "val.json").read_text())
    by_id = {a["image_id"]: [] for a in content["annotations"]}
    for a in content["annotations"]:
        if not a["iscrowd"]:
            by_id[a["image_id"]].append(a)
    assert dataset.image_ids == [image["id"] for image in content["images"]]
    for index, image in enumerate(content["images"]):
        target = dataset.target(index)
        expected = by_id.get(image["id"], [])
        ids = [dataset.category_ids[label - 1] for label in target["labels"]]
        assert ids == [a["category_id"] for a in expected]
        xywh = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
        xyxy = np.column_stack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
        np.testing.assert_allclose(target["boxes"].numpy(), xyxy, atol=0.51, rtol=1e-6)
        limits = [image["width"], image["height"]] * 2
        assert (target["boxes"] >= 0).all()
        assert (target["boxes"] <= torch.tensor(limits)).all()
    if dataset.images.is_dir():
        image, _ = dataset[len(dataset) // 2]
        assert image.shape[0] == 3


# ---- masks ---------------------------------------------------------------------------------------

TRIANGLE = [2.0, 3, 30, 5, 10, 25]


def bits(mask: np.ndarray) -> list[int]:
    """The counts of a mask (height, width), column by column, zeros first."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return np.diff(ends, prepend=0).tolist()


@pytest.fixture
def coco_of(write):
    """pycocotools' reading of the same annotations."""

    def coco_of(annotations):
        return COCO(str(write(content(annotations=annotations))))

    return coco_of


def test_masks_of_every_form_are_pycocotools(coco_of, write):
    rng = np.random.default_rng(0)
    noise, square = (rng.random((30, 40)) < 0.4).astype(int), np.zeros((30, 40), int)
    square[3:9, 5:20] = 1
    compressed = coco_mask.encode(np.asfortranarray(noise, np.uint8))
    forms = [
        [TRIANGLE],
        [TRIANGLE, [30, 20, 39.5, 20.25, 45, 40, 30, 29]],  # of two parts, one beyond the image
        {"size": [30, 40], "counts": bits(noise)},
        {"size": [30, 40], "counts": compressed["counts"].decode()},
        {"size": [30, 40], "counts": [0, *bits(square)]},  # an empty run: zeros become ones
    ]  # fmt: skip
    annotations = [annotation(id=i, segmentation=form) for i, form in enumerate(forms)]
    dataset = opened(write(content(annotations=annotations)), masks=True)
    _, target = dataset[0]
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert target["masks"].dtype == torch.uint8
    coco = coco_of(annotations)
    for mask, one in zip(target["masks"], annotations, strict=True):
        assert np.array_equal(mask.numpy(), coco.annToMask(coco.anns[one["id"]])), one
    assert torch.equal(target["masks"][2], torch.from_numpy(noise).byte())
    assert dataset.target(1)["masks"].shape == (0, 20, 20)
    assert "masks" not in opened(write(content(annotations=annotations))).target(0)


@pytest.mark.parametrize(
    ("kind", "segmentation"),
    [
        ("no segmentation", None),
        ("no segmentation", []),
        ("segmentation is neither polygons nor RLE", "polygon"),
        ("segmentation is neither polygons nor RLE", {"counts": "a"}),
        ("segmentation is not lists of three or more finite points", TRIANGLE),
        ("segmentation is not lists of three or more finite points", [[1, 2, 3, 4]]),
        ("segmentation is not lists of three or more finite points", [[*TRIANGLE, 1]]),
        ("segmentation is not lists of three or more finite points", [[*TRIANGLE, 1, "2"]]),
        ("segmentation is not lists of three or more finite points", [[*TRIANGLE, 1, math.nan]]),
        ("segmentation is not lists of three or more finite points", [[*TRIANGLE, 1, 1e9]]),
        ("the RLE's size is not the image's", {"size": [40, 30], "counts": [1200]}),
        ("the RLE's counts are not whole numbers", {"size": [30, 40], "counts": [1201, -1]}),
        ("the RLE's counts are not whole numbers", {"size": [30, 40], "counts": [1200.0]}),
        ("the RLE's counts are not whole numbers", {"size": [30, 40], "counts": None}),
        ("the RLE's counts do not fill the image", {"size": [30, 40], "counts": [600, 601]}),
        ("the RLE's counts do not fill the image", {"size": [30, 40], "counts": "`1"}),
        ("the RLE's counts are no text that RLE is made of", {"size": [30, 40], "counts": "~"}),
        ("the RLE's counts end within a number", {"size": [30, 40], "counts": "`"}),
        ("the mask has no pixel", {"size": [30, 40], "counts": [1200]}),
    ],
)
def test_bad_masks_are_counted_in_one_warning(write, kind, segmentation):
    good = annotation(id=1, segmentation=[TRIANGLE])
    bad = [annotation(id=i, segmentation=segmentation) for i in (101, 102)]
    path = write(content(annotations=[good, *bad]))
    with pytest.warns(UserWarning, match="2 annotations skipped: " + kind) as caught:
        dataset = opened(path, masks=True)
    assert len(caught) == 1
    assert "(first: image id 5, annotation id 101)" in str(caught[0].message)
    assert len(dataset.target(0)["masks"]) == 1
    assert len(opened(path).target(0)["boxes"]) == 3  # who wants no masks is not warned


@pytest.mark.parametrize("fragment", [[5, 5], [1, 2, 3, 4]])
def test_a_bad_polygon_beside_good_ones_is_left_out_alone(coco_of, write, fragment):
    square = [5, 5, 25, 5, 25, 20, 5, 20]
    annotations = [
        annotation(id=i, bbox=[5, 5, 20, 14 + i], segmentation=[square, fragment]) for i in (1, 2)
    ]
    with pytest.warns(UserWarning, match="2 annotations kept without a polygon") as caught:
        target = opened(write(content(annotations=annotations)), masks=True).target(0)
    assert len(caught) == 1
    coco = coco_of([annotation(id=1, segmentation=[square, fragment])])
    assert np.array_equal(target["masks"][0].numpy(), coco.annToMask(coco.anns[1]))
    assert len(target["boxes"]) == 2


@pytest.mark.parametrize("folder", data_sets("coco_by", "nuclei"))
def test_masks_of_whole_data_sets_are_pycocotools_with_their_boxes(folder):
    """Polygons and run lengths; where a file has crowds, they stay out."""
    dataset = open_dataset(folder, "val", masks=True)
    coco = COCO(str(dataset.annotation_file))
    checked = 0
    for index, image_id in enumerate(dataset.image_ids[:20]):
        target = dataset.target(index)
        expected = coco.loadAnns(coco.getAnnIds(image_id, iscrowd=False))
        assert len(target["masks"]) == len(target["boxes"]) == len(expected)
        for mask, one in zip(target["masks"], expected, strict=True):
            assert np.array_equal(mask.numpy(), coco.annToMask(one))
            checked += 1
    assert checked > 100
