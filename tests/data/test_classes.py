# SPDX-License-Identifier: BSD-3-Clause
"""Classes across files are matched by name."""

import json
import warnings

import pytest
from PIL import Image

from fastdet.data import Classes, CocoDetection


def write(folder, categories, file="train.json"):
    """One image with an object of each category, whose x is its category's place in the list."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (90, 30)).save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 90, "height": 30}],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": i, "bbox": [n * 10, 1, 5, 5], "area": 25}
            for n, (i, _) in enumerate(categories)
        ],
    }
    (folder / file).write_text(json.dumps(content))
    return folder / file


def opened(path, classes=None):
    return CocoDetection(path.parent / "images", path, classes=classes)


TRAIN = [(1, "cat"), (2, "dog"), (3, "bird")]


@pytest.mark.parametrize(
    ("other", "category_ids", "warned"),
    [
        ([(1, "cat"), (2, "bird"), (3, "dog")], [1, 3, 2], True),
        ([(7, "cat"), (8, "dog"), (9, "bird")], [7, 8, 9], False),
        ([(0, "bird"), (1, "cat"), (2, "dog")], [1, 2, 0], True),
        ([(3, "bird"), (1, "cat"), (2, "dog")], [1, 2, 3], False),
    ],
)
def test_the_same_names_have_the_same_labels(tmp_path, other, category_ids, warned):
    train = opened(write(tmp_path, TRAIN))
    path = write(tmp_path, other, "val.json")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        val = opened(path, Classes(train.classes, train.annotation_file))
    assert val.classes == train.classes
    assert val.category_ids == category_ids
    target = val.target(0)
    for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
        assert other[int(box[0]) // 10][1] == train.classes[label]
    lines = [str(warning.message) for warning in caught]
    assert len(lines) == warned
    for line in lines:
        assert line.startswith(f"{path}: its classes are in another order than in ")
        assert "train.json" in line


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ([(1, "cat"), (2, "dog")], r"bird is only in .*train\.json\."),
        ([*TRAIN, (4, "cow"), (5, "ant")], r"ant, cow are only in .*val\.json\."),
        ([(1, "cat"), (2, "dog"), (3, "cow")], r"cow is only in .*val.* and bird is only in .*tr"),
    ],
)
def test_other_classes_are_refused_with_both_lists_and_files(tmp_path, other, what):
    classes = Classes(["background", "cat", "dog", "bird"], tmp_path / "train.json")
    path = write(tmp_path, other, "val.json")
    with pytest.raises(ValueError, match=what) as error:
        opened(path, classes)
    for part in (str(path), ", ".join(name for _, name in other), "cat, dog, bird", "train.json"):
        assert part in str(error.value)


def test_other_classes_can_be_dropped(tmp_path):
    path = write(tmp_path, [(4, "cow"), *TRAIN])
    classes = Classes(["background", "bird", "cat"], "train.json", drop_others=True)
    dataset = opened(path, classes)
    assert dataset.category_ids == [3, 1]
    target = dataset.target(0)
    assert target["labels"].tolist() == [2, 1]
    assert target["boxes"][:, 0].tolist() == [10, 30]
    with pytest.raises(ValueError, match="horse is only in"):
        opened(path, Classes(["background", "horse"], "train.json", drop_others=True))
