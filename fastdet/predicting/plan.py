# SPDX-License-Identifier: BSD-3-Clause
"""What a run looks at, and the files that it writes: settled before the work begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from fastdet.files import refuse_existing
from fastdet.predicting import formats
from fastdet.predicting.format_options import CsvOptions, ResultsFormat
from fastdet.predicting.formats.csv import image_names
from fastdet.predicting.ids import Ids, match_images, read_ids
from fastdet.predicting.pictures import Picture, drawing_names
from fastdet.predicting.sources import Source
from fastdet.predicting.video_reader import Video


@dataclass(frozen=True)
class PictureTarget:
    """A picture.

    Attributes:
        drawing: the file of its annotated copy.
        record: COCO's image record; it gets the size when the picture is read.
        stated_size: the height and the width that an annotation file states.
    """

    source: Picture
    drawing: Path
    record: dict[str, Any]
    stated_size: tuple[int, int] | None


@dataclass(frozen=True)
class VideoTarget:
    """A video or stream.

    Attributes:
        drawing: the file of its annotated copy.
        frames: the folder that its frames have in the results.
    """

    source: Video
    drawing: Path
    frames: PurePath

    def frame_name(self, number: int) -> str:
        """The file name of a frame in the results."""
        return (self.frames / f"{number:06d}.jpg").as_posix()


@dataclass(frozen=True)
class Plan:
    """What is looked at, in order.

    Attributes:
        records: COCO's image records of the pictures.
        ids: those of an annotation file.
    """

    targets: list[PictureTarget | VideoTarget]
    records: list[dict[str, Any]]
    ids: Ids | None


def plan(found: Sequence[Source], out: Path, annotations: Path | None) -> Plan:
    """What is looked at, and where its drawings go.

    Raises:
        ValueError: `annotations` with a video, or see `match_images`; two sources of one name.
    """
    pictures = [source for source in found if isinstance(source, Picture)]
    videos = [source for source in found if isinstance(source, Video)]
    if annotations is not None and videos:
        raise ValueError(
            f"annotations: expected pictures, whose ids it has, got the video {videos[0].shown}"
        )
    ids = None if annotations is None else read_ids(annotations)
    matched = match_images(pictures, ids)
    sizes = map(_stated_size, matched)
    # A record with a size is that of a picture that was read.
    records = [{k: v for k, v in one.items() if k not in ("height", "width")} for one in matched]
    folders = {picture.name.parent for picture in pictures}
    of_pictures = iter(zip(drawing_names(pictures), records, sizes, strict=True))
    of_videos = iter(drawing_names(videos, ".mp4"))
    targets: list[PictureTarget | VideoTarget] = []
    for source in found:
        if isinstance(source, Picture):
            name, record, size = next(of_pictures)
            targets.append(PictureTarget(source, out / name, record, size))
        else:
            name = next(of_videos)
            frames = name.with_suffix("")
            targets.append(VideoTarget(source, out / name, name if frames in folders else frames))
    return Plan(targets, records, ids)


def check_outputs(
    planned: Plan, out: Path, format: ResultsFormat, csv: CsvOptions, overwrite: bool
) -> None:
    """Checks that the results have names of their own and overwrite nothing.

    Raises:
        FileExistsError: an output exists, unless `overwrite`, or is an input.
        ValueError: two pictures that the format cannot tell apart.
    """
    images = [formats.ResultImage(r["id"], r["file_name"]) for r in planned.records]
    videos = [target for target in planned.targets if isinstance(target, VideoTarget)]
    images += [  # the first frame stands for all
        formats.ResultImage(number, target.frame_name(0))
        for number, target in enumerate(videos, len(images) + 1)
    ]
    if format == "csv":
        image_names(images, csv)
    outputs = [target.drawing for target in planned.targets]
    for one in dict.fromkeys(("coco", format)):
        outputs += formats.paths(images, out, one)
    inputs = {target.source.path.resolve() for target in planned.targets}
    for path in outputs:
        if path.resolve() in inputs:
            raise FileExistsError(f"{path} is an input picture: give another folder for the output")
        refuse_existing(path, overwrite)


def _stated_size(record: dict[str, Any]) -> tuple[int, int] | None:
    height, width = record.get("height"), record.get("width")
    return (height, width) if height and width else None
