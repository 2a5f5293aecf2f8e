# SPDX-License-Identifier: BSD-3-Clause
"""Pascal VOC: what real tools write, the layouts, the first pixel, and every defect of a file."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastdet.data import Annotations, open_dataset
from fastdet.data.formats import find_splits, voc
from fastdet.data.formats.voc_file import VocObject, _number, voc_box, voc_corners
from fastdet.data.segmentations import decode

# What the tools wrote for the box from (10, 20) to (30.5, 28) on a picture of 40 x 30, and two of
# them for one from (0, 0) to (5, 6); paths and addresses are replaced.
LABELIMG = """<annotation>
	<folder>pictures</folder>
	<filename>a.jpg</filename>
	<path>/home/user/pictures/a.jpg</path>
	<source>
		<database>Unknown</database>
	</source>
	<size>
		<width>40</width>
		<height>30</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
	<object>
		<name>cat</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>10</xmin>
			<ymin>20</ymin>
			<xmax>30</xmax>
			<ymax>28</ymax>
		</bndbox>
	</object>
	<object>
		<name>Жук &amp; co</name>
		<pose>Unspecified</pose>
		<truncated>1</truncated>
		<difficult>1</difficult>
		<bndbox>
			<xmin>1</xmin>
			<ymin>1</ymin>
			<xmax>5</xmax>
			<ymax>6</ymax>
		</bndbox>
	</object>
</annotation>
"""  # labelImg 1.8.6; it writes 1 where a corner is below 1

DATUMARO = """<annotation>
  <folder></folder>
  <filename>a.jpg</filename>
  <source>
    <database>Unknown</database>
    <annotation>Unknown</annotation>
    <image>Unknown</image>
  </source>
  <size>
    <width>40</width>
    <height>30</height>
    <depth>3</depth>
  </size>
  <segmented>0</segmented>
  <object>
    <name>cat</name>
    <truncated>0</truncated>
    <occluded>1</occluded>
    <difficult>0</difficult>
    <bndbox>
      <xmin>10.0</xmin>
      <ymin>20.0</ymin>
      <xmax>30.5</xmax>
      <ymax>28.0</ymax>
    </bndbox>
  </object>
  <object>
    <name>Жук &amp; co</name>
    <truncated>0</truncated>
    <occluded>0</occluded>
    <difficult>1</difficult>
    <bndbox>
      <xmin>0.0</xmin>
      <ymin>0.0</ymin>
      <xmax>5.0</xmax>
      <ymax>6.0</ymax>
    </bndbox>
    <attributes>
      <attribute>
        <name>is_crowd</name>
        <value>True</value>
      </attribute>
    </attributes>
  </object>
</annotation>
"""  # Datumaro 1.13.12, format voc_detection

LABEL_STUDIO = """<?xml version="1.0" encoding="utf-8"?>
<annotation>
<folder>images</folder>
<filename>a.jpg</filename>
<source>
<database>MyDatabase</database>
<annotation>COCO2017</annotation>
<image>flickr</image>
<flickrid>NULL</flickrid>
<annotator>user@example.com</annotator>
</source>
<owner>
<flickrid>NULL</flickrid>
<name>Label Studio</name>
</owner>
<size>
<width>40</width>
<height>30</height>
<depth>3</depth>
</size>
<segmented>0</segmented>
<object>
<name>cat</name>
<pose>Unspecified</pose>
<truncated>0</truncated>
<difficult>0</difficult>
<bndbox>
<xmin>10</xmin>
<ymin>20</ymin>
<xmax>30</xmax>
<ymax>28</ymax>
</bndbox>
</object>
</annotation>
"""  # label-studio-sdk 2.1.2, of 10.4, 20.1, 20.6 x 8.4: each is cut to an integer

SUPERVISION = """<?xml version="1.0" ?>
<annotation>
  <folder>VOC</folder>
  <filename>a.jpg</filename>
  <source>
    <database>roboflow.ai</database>
  </source>
  <size>
    <width>40</width>
    <height>30</height>
    <depth>3</depth>
  </size>
  <segmented>0</segmented>
  <object>
    <name>cat</name>
    <bndbox>
      <xmin>11</xmin>
      <ymin>21</ymin>
      <xmax>30</xmax>
      <ymax>28</ymax>
    </bndbox>
  </object>
</annotation>
"""  # supervision 0.31.2, of 10, 20, 30, 28: VOC's pixels from 1

PASCAL = """<annotation>
	<folder>VOC2012</folder>
	<filename>a.jpg</filename>
	<source>
		<database>The VOC2007 Database</database>
		<annotation>PASCAL VOC2007</annotation>
		<image>flickr</image>
	</source>
	<size>
		<width>40</width>
		<height>30</height>
		<depth>3</depth>
	</size>
	<segmented>1</segmented>
	<object>
		<name>cat</name>
		<pose>Left</pose>
		<truncated>1</truncated>
		<difficult>0</difficult>
		<part>
			<name>head</name>
			<bndbox>
				<xmin>1</xmin>
				<ymin>2</ymin>
				<xmax>3</xmax>
				<ymax>4</ymax>
			</bndbox>
		</part>
		<bndbox>
			<xmin>11</xmin>
			<ymin>21</ymin>
			<xmax>30</xmax>
			<ymax>28</ymax>
		</bndbox>
	</object>
	<object>
		<name>dog</name>
		<difficult>1</difficult>
		<bndbox>
			<xmax>40</xmax>
			<xmin>1</xmin>
			<ymax>30</ymax>
			<ymin>1</ymin>
		</bndbox>
	</object>
</annotation>
"""  # as in VOC2012, with a part, and a box of the whole picture


SIZE = "<size><width>40</width><height>30</height></size>"


def picture(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)


def put(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def xml(*boxes: str, name: str = "cat", head: str = "") -> str:
    """A file with boxes given as "xmin ymin xmax ymax"."""
    objects = ""
    for box in boxes:
        x1, y1, x2, y2 = box.split()
        objects += (
            f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        )
    return f"<annotation>{SIZE}{head}{objects}</annotation>"


def read(folder: Path, split: str = "default", masks: bool = False, **options) -> Annotations:
    found = voc.splits(folder, **options)[split]
    assert found.format == "voc"
    return found.read(masks=masks, exif="apply", files_anywhere=False)


@contextmanager
def warned(*parts: str) -> Iterator[None]:
    """The block gives one warning for each part, with the part in it, and no other."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(parts), messages
    assert all(part in message for part, message in zip(parts, messages, strict=True)), messages


@pytest.mark.parametrize(
    ("text", "boxes", "difficult", "line"),
    [
        (LABELIMG, [[10, 20, 20, 8], [1, 1, 4, 5]], [False, True], "count from 0: labelImg"),
        (DATUMARO, [[10, 20, 20.5, 8], [0, 0, 5, 6]], [False, True], "from 0: a.xml has an xmin"),
        (LABEL_STUDIO, [[10, 20, 20, 8]], [False], "count from 0: labelImg"),
        (SUPERVISION, [[10, 20, 20, 8]], [False], "count from 1: Pascal VOC does"),
        (PASCAL, [[10, 20, 20, 8], [0, 0, 40, 30]], [False, True], None),
    ],
    ids=["labelimg", "datumaro", "label_studio", "supervision", "pascal"],
)
def test_what_real_tools_write(tmp_path, text, boxes, difficult, line) -> None:
    put(tmp_path / "Annotations" / "a.xml", text)
    picture(tmp_path / "JPEGImages" / "a.jpg")
    with warned(*([line] if line else [])):
        found = read(tmp_path)
    assert found.boxes_xywh.tolist() == boxes
    assert found.crowd.tolist() == difficult
    assert found.file_names == ["a.jpg"]
    assert found.image_sizes.tolist() == [[30, 40]]
    assert found.category_ids == list(range(1, len(boxes) + 1))
    assert found.annotation_ids.tolist() == found.category_ids
    assert found.areas.tolist() == [width * height for _, _, width, height in boxes]
    assert not found.has_ids
    assert str(found.where(0)) == "a.jpg, object 1"


def test_the_guess_can_be_replaced(tmp_path) -> None:
    put(tmp_path / "a.xml", xml("10 20 30 28"))
    with warned("pixels are taken to count from 1"):
        assert read(tmp_path).boxes_xywh.tolist() == [[9, 19, 21, 9]]
    with warned():
        assert read(tmp_path, first_pixel=0).boxes_xywh.tolist() == [[10, 20, 20, 8]]
        assert read(tmp_path, first_pixel=1).boxes_xywh.tolist() == [[9, 19, 21, 9]]


@pytest.mark.parametrize(
    ("corner", "first"),
    [("0", 0), ("0.0", 0), ("0.5", 0), (".25", 0), ("1", 1), ("1.0", 1), ("-1", 1), ("-0.5", 1)],
)
def test_a_corner_below_1_anywhere_means_pixels_from_0(tmp_path, corner, first) -> None:
    """Also in another split; a negative corner is outside the image either way."""
    put(tmp_path / "train" / "a.xml", xml("10 20 30 28"))
    put(tmp_path / "valid" / "b.xml", xml(f"{corner} 20 30 28"))
    with warned(f"count from {first}"):
        assert read(tmp_path, "train").boxes_xywh[0, 0] == 10 - first


def test_the_lists_of_voc(tmp_path) -> None:
    """Pictures without objects may have no XML file; lists of one class are no splits."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("2008_000002", "2008_000003", "2008_000001"):
        picture(root / "JPEGImages" / f"{name}.jpg")
    put(root / "Annotations" / "2008_000001.xml", PASCAL)
    put(root / "Annotations" / "2008_000002.xml", PASCAL.replace("dog", "bird"))
    main = root / "ImageSets" / "Main"
    put(main / "train.txt", "2008_000003\r\n2008_000001\r\n\r\n")
    put(main / "val.txt", "2008_000002\n")
    put(main / "my_val.txt", "2008_000001\n")
    put(main / "cat_train.txt", "2008_000003 -1\n2008_000001  1\n")
    put(main / "cat_val.txt", "2008_000002  0\n")
    for folder in (tmp_path, tmp_path / "VOCdevkit", root):
        assert list(find_splits(folder)) == ["train", "val", "my_val"]
    train = read(tmp_path, "train")
    assert train.file_names == ["2008_000001.jpg", "2008_000003.jpg"]
    assert train.image_ids == [1, 2]
    assert train.image_index.tolist() == [0, 0]
    assert train.image_sizes.tolist() == [[30, 40], [30, 40]]
    assert train.names == ["bird", "cat", "dog"]  # of all splits
    assert train.path == main / "train.txt"
    assert read(tmp_path, "val").labels.tolist() == [2, 1]

    picture(tmp_path / "VOC2007" / "a.jpg")
    put(tmp_path / "VOC2007" / "a.xml", PASCAL)
    with pytest.raises(ValueError, match=r"expected one data set of Pascal VOC, got .*VOC2007, .*"):
        find_splits(tmp_path)


def test_the_folders_of_datumaro_and_cvat(tmp_path) -> None:
    """A picture in a folder, a name with spaces in quotes, a picture without an XML file."""
    picture(tmp_path / "JPEGImages" / "sub" / "b c.jpg", (25, 20))
    picture(tmp_path / "JPEGImages" / "sub" / "a.png")
    put(tmp_path / "Annotations" / "sub" / "a.xml", DATUMARO.replace("a.jpg", "sub/a.png"))
    put(tmp_path / "ImageSets" / "Main" / "train.txt", 'sub/a\n"sub/b c"\n')
    put(tmp_path / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:::\ncat:::\n")
    found = read(tmp_path, "train")
    assert found.file_names == ["sub/a.png", "sub/b c.jpg"]
    assert found.image_sizes.tolist() == [[30, 40], [20, 25]]


def test_flat_folders(tmp_path) -> None:
    """Roboflow's layout, and XML files in Annotations/ with pictures in images/ in each split."""
    put(tmp_path / "train" / "a.xml", PASCAL)
    picture(tmp_path / "train" / "a.jpg")
    put(tmp_path / "valid" / "annotations" / "b.xml", PASCAL.replace("cat", "bird"))
    picture(tmp_path / "valid" / "images" / "b.png")
    (tmp_path / "other").mkdir()
    assert list(find_splits(tmp_path)) == ["train", "val"]
    valid = read(tmp_path, "val")
    assert (valid.images / valid.file_names[0]).is_file()
    assert valid.names == read(tmp_path, "train").names == ["bird", "cat", "dog"]
    dataset = open_dataset(tmp_path, "train")
    image, target = dataset[0]
    assert image.shape == (3, 30, 40)
    assert target["boxes"].tolist() == [[10, 20, 30, 28]]  # the difficult one is ignored


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size/>"])
def test_a_size_that_is_not_stated_is_read_from_the_picture(tmp_path, size) -> None:
    text = PASCAL.replace(PASCAL[PASCAL.index("<size>") : PASCAL.index("</size>") + 7], size)
    put(tmp_path / "a.xml", text)
    with pytest.raises(FileNotFoundError, match=r"a\.jpg: no such image file"):
        read(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path).image_sizes.tolist() == [[40, 30]]  # as it is displayed


def test_the_files_own_name_comes_before_the_name_in_it(tmp_path) -> None:
    put(tmp_path / "a.xml", xml("2 2 3 3", head="<filename>old.jpg</filename>"))
    put(tmp_path / "b.xml", xml("2 2 3 3", head="<filename>C:\\x\\renamed.png</filename>"))
    put(tmp_path / "c.xml", xml("2 2 3 3", head="<filename>c.tif</filename>"))
    put(tmp_path / "d.xml", xml("2 2 3 3", head="<filename>d.png</filename>"))
    for name in ("a.png", "old.jpg", "renamed.png", "d.jpg", "d.png"):
        picture(tmp_path / name)
    assert read(tmp_path).file_names == ["a.png", "c.tif", "d.png", "renamed.png"]


def test_our_labels_txt_gives_the_classes_their_order(tmp_path) -> None:
    put(tmp_path / "a.xml", PASCAL.replace("The VOC2007 Database", "fastdet"))
    put(tmp_path / "labels.txt", "dog\nzebra\ncat\n")
    assert read(tmp_path).names == ["dog", "zebra", "cat"]
    assert read(tmp_path).labels.tolist() == [3, 1]
    for other in ("dog\n", "dog\ncat\ndog\n"):  # not of this data
        put(tmp_path / "labels.txt", other)
        assert read(tmp_path).names == ["cat", "dog"]
    put(tmp_path / "labels.txt", "background\ndog\ncat\n")  # as other tools have it
    put(tmp_path / "a.xml", PASCAL)
    assert read(tmp_path).names == ["cat", "dog"]


def test_polygons_become_masks(tmp_path) -> None:
    corners = [(11, 6), (11, 9), (15, 9), (15, 6)]
    points = [f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(corners, 1)]
    polygon = f"<polygon>{''.join(points)}</polygon>"  # as in supervision 0.31.2
    text = xml("11 6 14 9", "2 2 3 3").replace("<bndbox>", polygon + "<bndbox>", 1)
    put(tmp_path / "a.xml", text)
    with warned("count from 1", "1 annotation skipped: no mask (first: a.jpg, object 2)"):
        found = read(tmp_path, masks=True)
    assert found.masks is not None
    mask = decode(found.masks, 30, 40)[0]
    assert mask.sum() == 12
    assert mask[5:8, 10:14].all()
    put(tmp_path / "a.xml", text.replace("<y4>6</y4>", "<y4>?</y4>"))
    assert read(tmp_path, masks=True).masks == []


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("no bndbox of four finite numbers", "<object><name>cat</name></object>"),
        ("no bndbox of four finite numbers", xml("1 2 nan 4")),
        ("no bndbox of four finite numbers", xml("1 2 1e999 4")),
        ("no bndbox of four finite numbers", xml("1 2 three 4")),
        ("no bndbox of four finite numbers", xml("1 2 12345678901234567890 4")),
        ("no name", xml("1 2 3 4", name=" ")),
    ],
)
def test_bad_objects_are_counted_in_one_warning(tmp_path, kind, bad) -> None:
    bad = bad[bad.index("<object>") : bad.rindex("</object>") + 9]
    put(tmp_path / "a.xml", PASCAL.replace("</annotation>", bad + bad + "</annotation>"))
    with warned(f"{tmp_path}: 2 annotations skipped: {kind} (first: a.xml, object 3)"):
        assert len(read(tmp_path).boxes_xywh) == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"a\.xml: not an XML file: no element found"),
        ("<annotations/>", r"a\.xml: expected the element annotation, got annotations"),
        ("<annotation><object>", r"a\.xml: not an XML file: .*line 1"),
        (
            b"<annotation><name>\xff</name></annotation>",
            r"a\.xml: not an XML file: .*invalid token",
        ),
        ("<annotation>" + "\0" * 9, "not an XML file"),
        ("<?xml version='1.0' encoding='nonsense'?><annotation/>", "unknown encoding"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>", "without entities"),
        (
            "<?xml version='1.0' encoding='utf-16'?><!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>",
            "without entities",
        ),
        (xml().replace("40", "-40"), r"expected a width and a height from 1 to .*, got '-40'"),
        (xml().replace("40", "wide"), "expected a width and a height"),
        (xml().replace("40", "40.5"), "expected a width and a height"),
        (xml().replace("40", "1e300"), "expected a width and a height"),
    ],
)
def test_a_broken_file_is_one_error(tmp_path, text, match) -> None:
    put(tmp_path / "a.xml", PASCAL)
    split = voc.splits(tmp_path)["default"]
    put(tmp_path / "a.xml", text.encode("utf-16") if "utf-16" in str(text) else text)
    with pytest.raises(ValueError, match=match) as error:
        split.read(masks=False, exif="apply", files_anywhere=False)
    assert "\n" not in str(error.value)


def test_encodings_and_namespaces(tmp_path) -> None:
    for encoding, name in (
        ("gb2312", "猫"),
        ("utf-16", "猫"),
        ("latin-1", "chat é"),
        ("utf-8", "猫"),
    ):
        head = f"<?xml version='1.0' encoding='{encoding}'?>\n<!-- <a> -->"
        put(tmp_path / "a.xml", (head + xml("1 2 3 4", name=name)).encode(encoding))
        assert read(tmp_path).names == [name]
    text = xml("1 2 3 4").replace("<annotation>", '<annotation xmlns="http://example.com/voc">')
    put(tmp_path / "a.xml", text)
    assert read(tmp_path).names == ["cat"]


def test_lists_do_not_lead_out_of_the_folder(tmp_path) -> None:
    root = tmp_path / "data"
    put(root / "Annotations" / "a.xml", PASCAL)
    put(root / "ImageSets" / "Main" / "train.txt", "../../a\n")
    with pytest.raises(ValueError, match=r"train\.txt: the file name '../../a' leads out"):
        read(root, "train")
    put(root / "ImageSets" / "Main" / "train.txt", "a\0b\n")
    with pytest.raises(ValueError, match=r"train\.txt: expected a file name, got 'a\\x00b'"):
        read(root, "train")
    put(root / "ImageSets" / "Main" / "train.txt", b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"train\.txt: expected text in UTF-8"):
        find_splits(root)["train"].read(masks=False, exif="apply", files_anywhere=False)
    put(root / "ImageSets" / "Main" / "train.txt", "missing\n")
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg: no such image file"):
        read(root, "train")


def test_other_xml_is_no_voc(tmp_path) -> None:
    put(tmp_path / "a.xml", "<html><annotation/></html>")
    put(tmp_path / "Annotations" / "b.xml", "")
    (tmp_path / "c.xml").mkdir()
    assert voc.splits(tmp_path) == {}
    assert voc.splits(tmp_path / "nowhere") == {}
    put(tmp_path / "d.xml", PASCAL)
    put(
        tmp_path / "deep.xml",
        f"<annotation>{SIZE}" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>",
    )
    (tmp_path / "a.xml").unlink()
    assert len(read(tmp_path, first_pixel=1).boxes_xywh) == 2


NUMBERS = st.floats(-1e4, 1e4).filter(lambda number: number == 0 or abs(number) > 1e-20)


@settings(max_examples=300, deadline=None)
@given(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS))
@example((0.1, 0.2, 0.3, 0.7))
@example((-0.0, 1e-17, 1e4, 5e-20))
def test_written_boxes_are_read_back_to_the_bit(xywh) -> None:
    corners = voc_corners(xywh)
    assert not any("e" in corner.lower() for corner in corners)
    numbers = tuple(_number(corner) for corner in corners)
    assert voc_box(VocObject("cat", False, numbers, []), 1) == xywh


def test_whole_numbers_are_written_as_such() -> None:
    assert voc_corners((10.0, 20.0, 20.5, 8.0)) == ("11", "21", "30.5", "28")


def test_1000_files_take_less_than_seconds(tmp_path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.xml").write_text(PASCAL)
    start = time.process_time()
    found = read(tmp_path)
    assert time.process_time() - start < 2  # 0.1 on an idle machine
    assert np.array_equal(found.image_index, np.repeat(np.arange(1000), 2))
