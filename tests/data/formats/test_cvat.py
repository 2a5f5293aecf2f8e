# SPDX-License-Identifier: BSD-3-Clause
"""CVAT for images 1.1: what CVAT and Datumaro write, the shapes, the splits, the defects."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdet.data import Annotations, open_dataset
from fastdet.data.formats import cvat, find_splits
from fastdet.data.formats.shapes import pixels
from fastdet.data.segmentations import decode
from tests.data.formats.test_voc import picture, put, warned

# Written by Datumaro 1.13.12, format cvat, from the shapes that its lines show.
DATUMARO = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id></id>
      <name>train</name>
      <size>2</size>
      <mode>annotation</mode>
      <overlap></overlap>
      <start_frame>0</start_frame>
      <stop_frame>2</stop_frame>
      <frame_filter></frame_filter>
      <z_order>True</z_order>
      <labels>
        <label>
          <name>cat</name>
          <attributes>
          </attributes>
        </label>
        <label>
          <name>d&lt;o&gt;g</name>
          <attributes>
          </attributes>
        </label>
      </labels>
    </task>
  </meta>
  <image id="0" name="a.jpg" width="40" height="30">
    <box label="cat" occluded="1" outside="0" keyframe="0" xtl="10.00" ytl="20.50" xbr="30.00" ybr="28.50" z_order="0">
    </box>
    <box label="d&lt;o&gt;g" occluded="0" outside="0" keyframe="0" xtl="0.00" ytl="0.00" xbr="5.25" ybr="6.00" z_order="0">
    </box>
    <polygon label="cat" occluded="0" outside="0" keyframe="0" points="1.00,1.00;11.50,1.00;11.50,9.00;1.00,9.00" z_order="0">
    </polygon>
    <mask label="d&lt;o&gt;g" occluded="0" outside="0" keyframe="0" rle="210, 4, 36, 1, 1, 2, 36, 4, 36, 4, 866" left="0" top="0" width="40" height="30" z_order="0">
    </mask>
    <box label="cat" occluded="0" outside="0" keyframe="0" xtl="15.00" ytl="13.00" xbr="25.00" ybr="17.00" rotation="30.00" z_order="0">
    </box>
    <points label="cat" occluded="0" outside="0" keyframe="0" points="3.00,4.00" z_order="0">
    </points>
    <polyline label="d&lt;o&gt;g" occluded="0" outside="0" keyframe="0" points="1.00,1.00;5.00,5.00" z_order="0">
    </polyline>
  </image>
  <image id="1" name="sub/b c.jpg" width="25" height="20">
  </image>
</annotations>"""  # noqa: E501

# The example of CVAT's own documentation of the format, with other sizes: the labels of a skeleton,
# a tag, a skeleton, and a mask in a window, as CVAT writes it.
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <project>
      <id>4</id>
      <labels>
        <label><name>car</name><type>any</type><attributes></attributes></label>
        <label><name>s1</name><type>skeleton</type><attributes></attributes></label>
        <label><name>1</name><type>points</type><attributes></attributes><parent>s1</parent></label>
        <label><name>plate</name><attributes></attributes></label>
      </labels>
      <subsets>Train
Validation</subsets>
      <owner><username>user</username><email>user@example.com</email></owner>
    </project>
  </meta>
  <image id="0" name="x/a.png" subset="Train" task_id="1" width="30" height="25">
    <mask label="car" source="manual" occluded="0" rle="3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, 12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, 7, 7, 5, 3" left="7" top="8" width="13" height="15" z_order="0">
    </mask>
    <box label="plate" source="manual" occluded="0" xtl="7.33" ytl="8.92" xbr="9.52" ybr="12.94" z_order="4">
      <attribute name="text">a &gt; b</attribute>
    </box>
    <tag label="car" source="manual">
    </tag>
    <skeleton label="s1" source="manual" z_order="0">
      <points label="1" occluded="0" source="manual" outside="0" points="4.47,4.81">
      </points>
    </skeleton>
  </image>
  <image id="1" name="b.png" subset="Validation" task_id="2" width="30" height="25">
    <ellipse label="car" source="manual" occluded="0" cx="10.00" cy="12.00" rx="4.00" ry="6.00" rotation="90.0" z_order="0">
    </ellipse>
    <box label="car" outside="1" xtl="1" ytl="1" xbr="2" ybr="2">
    </box>
  </image>
</annotations>
"""  # noqa: E501


def read(path: Path, split: str = "default", masks: bool = False, anywhere: bool = False):
    found = cvat.splits(path)[split]
    assert found.format == "cvat"
    return found.read(masks=masks, exif="apply", files_anywhere=anywhere)


def image(*shapes: str, size: str = 'width="40" height="30"', name: str = "a.jpg") -> str:
    """A file without a list of labels."""
    return (
        f'<annotations><image id="0" name="{name}" {size}>{"".join(shapes)}</image></annotations>'
    )


def box(corners: str, **attributes: str) -> str:
    x1, y1, x2, y2 = corners.split()
    more = "".join(f' {name}="{value}"' for name, value in {"label": "cat", **attributes}.items())
    return f'<box xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"{more}/>'


def only_box(tmp_path: Path, shape: str) -> list[float]:
    put(tmp_path / "annotations.xml", image(shape))
    (found,) = read(tmp_path).boxes_xywh.tolist()
    return found


def test_what_datumaro_writes(tmp_path) -> None:
    put(tmp_path / "train.xml", DATUMARO)
    picture(tmp_path / "images" / "a.jpg")
    with warned(
        "1 annotation kept with the upright box around a turned one (first: a.jpg, object 5)",
        "1 annotation skipped: points is no box (first: a.jpg, object 6)",
        "1 annotation skipped: polyline is no box (first: a.jpg, object 7)",
    ):
        found = read(tmp_path, "train")
    assert found.names == ["cat", "d<o>g"]
    assert found.file_names == ["a.jpg", "sub/b c.jpg"]
    assert found.images == tmp_path / "images"
    assert found.image_sizes.tolist() == [[30, 40], [20, 25]]
    assert found.labels.tolist() == [1, 2, 1, 2, 1]
    assert found.boxes_xywh[:4].tolist() == [
        [10, 20.5, 20, 8],
        [0, 0, 5.25, 6],
        [1, 1, 10.5, 8],
        [10, 5, 4, 4],
    ]
    width = 10 * math.cos(math.radians(30)) + 4 * 0.5
    height = 10 * 0.5 + 4 * math.cos(math.radians(30))
    turned = [20 - width / 2, 15 - height / 2, width, height]
    assert found.boxes_xywh[4] == pytest.approx(turned, abs=1e-12)
    assert not found.crowd.any()
    assert not found.has_ids

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with_masks = read(tmp_path, "train", masks=True)
    assert with_masks.masks is not None
    polygon, mask = decode(with_masks.masks, 30, 40)
    assert polygon.sum() == 88  # 11 x 8: pycocotools fills the half column, too
    expected = np.zeros((30, 40), np.uint8)
    expected[5:9, 10:14] = 1
    expected[6, 11] = 0
    assert np.array_equal(mask, expected)


def test_what_cvat_writes(tmp_path) -> None:
    """Subsets are splits, and the points of a skeleton are no classes."""
    put(tmp_path / "annotations.xml", CVAT)
    picture(tmp_path / "images" / "Train" / "x" / "a.png", (30, 25))
    picture(tmp_path / "images" / "Validation" / "b.png", (30, 25))
    assert list(find_splits(tmp_path)) == ["train", "val"]
    with warned("1 annotation skipped: skeleton is no box (first: x/a.png, object 4)"):
        train = read(tmp_path, "train")
    assert train.names == ["car", "s1", "plate"]
    assert train.boxes_xywh.tolist() == [[7, 8, 13, 15], [7.33, 8.92, 9.52 - 7.33, 12.94 - 8.92]]
    assert train.labels.tolist() == [1, 3]
    mask = decode(read(tmp_path, "train", masks=True).masks or [], 25, 30)[0]
    rows = ["".join(map(str, row)) for row in mask[8:11, 7:20]]
    assert rows == ["0001111100000", "0011111110000", "0111111111000"]
    with warned():
        validation = read(tmp_path, "val")
    assert validation.boxes_xywh == pytest.approx(np.array([[4, 8, 12, 8]]))
    assert validation.names == train.names
    dataset = open_dataset(tmp_path, "val", masks=True)
    _, target = dataset[0]
    assert abs(float(target["masks"].sum()) - math.pi * 24) < 4


def test_a_mask_is_counted_row_by_row(tmp_path) -> None:
    """The window of 3 x 2 from (5, 4) on: 0 1 1 / 1 0 0; what lies outside the image is cut off."""
    for left, top, box_, inside in (
        (5, 4, [5, 4, 3, 2], {(4, 6), (4, 7), (5, 5)}),
        (-1, -1, [0, 0, 0, 0], set()),
        (38, 29, [39, 29, 1, 1], {(29, 39)}),
        (0, 28, [0, 28, 3, 2], {(28, 1), (28, 2), (29, 0)}),
    ):
        mask = f'<mask label="cat" rle="1, 3, 2" left="{left}" top="{top}" width="3" height="2"/>'
        put(tmp_path / "annotations.xml", image(mask))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = read(tmp_path, masks=True)
        assert len(caught) == (0 if inside else 1)
        if inside:
            assert found.boxes_xywh.tolist() == [box_]
            (decoded,) = decode(found.masks or [], 30, 40)
            assert {(int(y), int(x)) for y, x in np.argwhere(decoded)} == inside


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_windows_become_the_same_pixels(data) -> None:
    height, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    bits = data.draw(st.lists(st.booleans(), min_size=h * w, max_size=h * w))
    window = np.array(bits).reshape(h, w)
    expected = np.zeros((height, width), np.uint8)
    expected[top : top + h, left : left + w] = window
    if window.any():
        shape = pixels(window, left, top, (height, width), True)
        assert shape.mask is not None
        assert np.array_equal(decode([shape.mask], height, width)[0], expected)


def test_a_turned_box(tmp_path) -> None:
    assert only_box(tmp_path, box("10 10 20 14", rotation="0.00")) == [10, 10, 10, 4]
    quarter = only_box(tmp_path, box("10 10 20 14", rotation="90"))
    assert quarter == pytest.approx([13, 7, 4, 10])
    assert only_box(tmp_path, box("10 10 20 14", rotation="-30")) == pytest.approx(
        only_box(tmp_path, box("10 10 20 14", rotation="330"))
    )


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("box is broken", box("1 2 nan 4")),
        ("box is broken", box("1 2 x 4")),
        ("box is broken", '<box label="cat" xtl="1"/>'),
        ("box is broken", box("1 2 3 4", rotation="much")),
        ("polygon is broken", '<polygon label="cat" points="1,2;3,4"/>'),
        ("polygon is broken", '<polygon label="cat" points="1,2;3,4;5"/>'),
        ("polygon is broken", '<polygon label="cat" points="" rotation="x"/>'),
        ("mask is broken", '<mask label="cat" rle="1,2" left="0" top="0" width="2" height="2"/>'),
        ("mask is broken", '<mask label="cat" rle="4" left="0" top="0" width="2" height="2"/>'),
        ("mask is broken", '<mask label="cat" rle="" left="0" top="0" width="0" height="0"/>'),
        ("mask is broken", '<mask label="cat" rle="5,-1" left="0" top="0" width="2" height="2"/>'),
        (
            "mask is broken",
            f'<mask label="cat" rle="{9**30}" left="0" top="0" width="2" height="2"/>',
        ),
        (
            "mask is broken",
            f'<mask label="cat" rle="0,{9**12}" left="0" top="0" width="{9**6}" height="{9**6}"/>',
        ),
        ("cuboid is no box", '<cuboid label="cat" xtl1="1"/>'),
        ("its label is not in the file's list", '<box xtl="1" ytl="2" xbr="3" ybr="4"/>'),
    ],
)
def test_bad_shapes_are_counted_in_one_warning(tmp_path, kind, shape) -> None:
    put(tmp_path / "annotations.xml", image(shape, box("1 2 3 4"), shape))
    with warned(f"2 annotations skipped: {kind} (first: a.jpg, object 1)"):
        assert read(tmp_path).boxes_xywh.tolist() == [[1, 2, 2, 2]]


def test_a_label_that_the_file_does_not_list(tmp_path) -> None:
    put(tmp_path / "train.xml", DATUMARO.replace('box label="cat"', 'box label="bird"'))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read(tmp_path, "train").names == ["cat", "d<o>g"]
    assert "2 annotations skipped: its label is not in the file's list" in str(caught[0].message)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<annotations><image", "not an XML file: .*line 1"),
        ("<annotations><!-- \xff", "not an XML file"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", "without entities of its own"),
        ("<annotations><track id='0' label='cat'/></annotations>", "tracks of a video: export"),
        (image(name=""), "image id '0' has no name"),
        (image(name="../a.jpg"), r"the file name '../a\.jpg' leads out of the image folder"),
        (image(name="/a.jpg"), r"the file name '/a\.jpg' leads out of the image folder"),
        (image(size='width="0" height="30"'), "no such image file"),
        (image(size='width="-1" height="30"'), "expected a width and a height from 1"),
    ],
)
def test_a_broken_file_is_one_error(tmp_path, text, match) -> None:
    path = put(tmp_path / "annotations.xml", text.encode("latin-1"))
    with pytest.raises((FileNotFoundError, ValueError), match=match) as error:
        read(tmp_path)
    assert str(path) in str(error.value) or "a.jpg" in str(error.value)
    assert "\n" not in str(error.value)


def test_where_the_pictures_are(tmp_path) -> None:
    """images/{subset}, images, {subset}, beside the file; CVAT's own folder where none is there."""
    path = put(tmp_path / "annotations.xml", image().replace("<image", '<image subset="Test"'))
    folders = [tmp_path, tmp_path / "Test", tmp_path / "images", tmp_path / "images" / "Test"]
    assert read(path, "test").images == tmp_path
    for folder in folders:
        picture(folder / "a.jpg")
        assert read(path, "test").images == folder
    Image.new("RGB", (40, 30)).save(tmp_path / "up.jpg")
    put(path, image(name="../up.jpg"))
    assert read(path, anywhere=True).file_names == ["../up.jpg"]


def test_a_file_and_several_files(tmp_path) -> None:
    put(tmp_path / "train.xml", DATUMARO)
    put(tmp_path / "Val.xml", image(box("1 2 3 4")))
    put(tmp_path / "other.xml", "<html/>")
    assert list(cvat.splits(tmp_path)) == ["train", "val"]
    assert list(cvat.splits(tmp_path / "train.xml")) == ["train"]
    assert cvat.splits(tmp_path / "other.xml") == cvat.splits(tmp_path / "nowhere") == {}
    put(tmp_path / "more.xml", image().replace("<image", '<image subset="Train"'))
    with pytest.raises(ValueError, match=r"more\.xml and .*train\.xml: both are the split 'train'"):
        find_splits(tmp_path)


def test_one_subset_in_two_spellings_is_an_error(tmp_path) -> None:
    images = "".join(f"<image id='{n}' name='a.png' subset='{n}' />" for n in ("Train", "train"))
    path = put(tmp_path / "a.xml", f"<annotations>{images}</annotations>")
    with pytest.raises(ValueError, match=r"a\.xml: two of its names both are the split 'train'"):
        cvat.splits(path)


def test_an_empty_file(tmp_path) -> None:
    put(tmp_path / "annotations.xml", "<annotations><version>1.1</version></annotations>")
    found: Annotations = read(tmp_path)
    assert found.image_ids == []
    assert found.boxes_xywh.shape == (0, 4)
