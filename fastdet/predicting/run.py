# SPDX-License-Identifier: BSD-3-Clause
"""Runs a checkpoint on pictures, videos and streams: annotated copies and COCO results.

Work is not lost: results are written at least every half minute, and when the run is stopped. What
cannot be read is reported and skipped. Existing files are overwritten only on request; input files
never are.
"""

import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from PIL import Image
from torch import Tensor

from fastdet.data import Classes, read_image
from fastdet.evaluation import coco_results
from fastdet.evaluation.pictures import draw_boxes
from fastdet.files import replacing
from fastdet.predicting.format_options import CsvOptions, ResultsFormat
from fastdet.predicting.formats import check_classes
from fastdet.predicting.ids import Ids
from fastdet.predicting.jobs import InOrder, default_workers
from fastdet.predicting.looking import Look
from fastdet.predicting.options import SpeedOptions, VideoOptions, ViewOptions
from fastdet.predicting.plan import PictureTarget, Plan, VideoTarget, check_outputs, plan
from fastdet.predicting.recording import Record
from fastdet.predicting.shrinking import shrink_warning
from fastdet.predicting.sources import sources
from fastdet.predicting.tiles import Found
from fastdet.predicting.video_reader import VideoReader
from fastdet.predicting.video_writer import VideoWriter
from fastdet.training.detector_module import DetectorModule, device_for, load_detector
from fastdet.training.options import PictureOptions, Show

LARGEST_JPEG = 65_500  # pixels of a side that libjpeg writes


@dataclass
class Prediction:
    """The detections on pictures.

    Attributes:
        detections: COCO results.
        unreadable: for each picture, video or stream that could not be read to its end, the reason.
    """

    detections: list[dict[str, Any]] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)


def predict(
    checkpoint: Path,
    images: Sequence[Path | str],
    out: Path,
    score_threshold: float = 0.5,
    annotations: Path | None = None,
    *,
    show: Show = "detections",
    num_proposals: int = 20,
    pictures: PictureOptions = PictureOptions(),
    views: ViewOptions = ViewOptions(),
    videos: VideoOptions = VideoOptions(),
    speed: SpeedOptions = SpeedOptions(),
    format: ResultsFormat = "coco",
    csv: CsvOptions = CsvOptions(),
    overwrite: bool = False,
) -> Prediction:
    """Detect objects on pictures, videos and streams, and write the results.

    Writes OUT/<name>.jpg for each picture and OUT/<name>.mp4 for each video, with the detections or
    proposals, OUT/detections.json (COCO results) and OUT/images.json (a COCO file with the pictures
    and categories, which maps image ids to file names). A frame of a video is a picture named
    <name>/000123.jpg, by its number from 0 on, with its time in seconds, `timestamp`. What cannot
    be read is reported on stderr and has no detections.

    Args:
        checkpoint: a checkpoint of a training.
        images: files, folders, patterns, cameras and addresses; see `sources`. The pictures of a
            folder and its subfolders are processed in the order of their names.
        out: folder for the results.
        score_threshold: detections with a lower score are dropped everywhere.
        annotations: COCO file whose image ids are used. None: ids count from 1.
        show: what is drawn: detections, or proposals of the first stage of a two-stage detector.
        num_proposals: maximum number of proposals that are drawn, the best ones.
        pictures: how pictures are read.
        views: tiles, and further views of each picture.
        videos: which frames of videos and streams.
        speed: how much is computed at a time.
        format: what is written at the end beside COCO's results.
        csv: options of the format csv.
        overwrite: whether to overwrite existing files in OUT.

    Returns:
        The detections, and what could not be read.

    Raises:
        FileNotFoundError: no picture.
        FileExistsError: an output file exists, or is an input file.
        ValueError: an option out of range; `annotations` has no image for a picture, or several;
            show is "proposals" and the detector has one stage; tiles with a detector of masks;
            a name that the format cannot hold.
    """
    for group in (pictures, views, videos, speed, csv):
        group.check()
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold: expected a number in [0, 1], got {score_threshold}")
    _check_show(show, num_proposals, views)
    planned = plan(sources(images), out, annotations)
    check_outputs(planned, out, format, csv, overwrite)
    module = load_detector(checkpoint)
    if show == "proposals" and not module.model.proposes:
        raise ValueError(
            "show=proposals: expected a detector of two stages, such as faster_rcnn, got "
            f"{type(module.model).__name__}, which has one"
        )
    check_classes(module.classes[1:], format, csv)
    module = module.to(device_for(module))
    category_ids = _category_ids(module, checkpoint, planned.ids)
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(category_ids, module.classes[1:], strict=True)
    ]
    run = _Run(
        Look(module, views, score_threshold, speed.batch_size),
        Record(out, planned.records, categories, format, csv),
        category_ids,
        num_proposals if show == "proposals" else None,
    )
    workers = speed.workers or default_workers(module.device)
    try:
        with closing(_jobs(planned, pictures, videos, run)) as jobs:
            InOrder(run.look, run.take, workers).run(_chunks(jobs, speed.batch_size))
    finally:  # keep what was found so far if the user stops the run or drawing fails
        run.close()
    return run.prediction


@dataclass(frozen=True)
class _Job:
    """A picture or frame to look at.

    Attributes:
        path: of the file, for messages.
        record: COCO's image record.
        load: gives the picture, (3, H, W) uint8.
        drawing: file for the drawing; None of a frame.
        video: what the drawing of a frame is appended to, and its time stamp there.
    """

    path: Path
    record: dict[str, Any]
    load: Callable[[], Tensor]
    drawing: Path | None = None
    video: tuple[VideoWriter, int] | None = None


@dataclass
class _Answer:
    """What became of a job: an error, or the size of the picture and COCO's results."""

    job: _Job
    error: str | None = None
    size: tuple[int, int] = (0, 0)
    results: list[dict[str, Any]] = field(default_factory=list)
    drawn: Image.Image | None = None


class _Run:
    """The work on a few jobs, which several threads do at a time, and the taking of its results.

    Args:
        look: finds objects.
        record: what was found.
        category_ids: of the labels from 1 on.
        num_proposals: how many are drawn; None: detections are.
    """

    def __init__(
        self, look: Look, record: Record, category_ids: list[int], num_proposals: int | None
    ) -> None:
        self.record = record
        self.prediction = Prediction(record.detections)
        self._look, self._category_ids, self._num_proposals = look, category_ids, num_proposals
        self._video: VideoWriter | None = None
        self._warned = False

    def look(self, jobs: Sequence[_Job]) -> list[_Answer]:
        """Reads, searches and draws pictures; called in several threads."""
        answers, images = [], []
        for job in jobs:
            try:
                image = job.load()
                images.append(image)
                answers.append(_Answer(job, size=(image.shape[-2], image.shape[-1])))
            except (FileNotFoundError, ValueError) as error:
                answers.append(_Answer(job, error=str(error)))
        read = [answer for answer in answers if answer.error is None]
        for answer, image, found in zip(read, images, self._look(images), strict=True):
            answer.results = coco_results([answer.job.record["id"]], [found], self._category_ids)
            drawn = self._drawn(image, found)
            if answer.job.drawing is None:
                answer.drawn = drawn
            else:
                if max(drawn.size) > LARGEST_JPEG:
                    drawn.thumbnail((LARGEST_JPEG, LARGEST_JPEG))
                with replacing(answer.job.drawing) as temporary:
                    drawn.save(temporary, quality=92)
        return answers

    def take(self, answers: Sequence[_Answer]) -> None:
        """Records answers, in order."""
        for answer in answers:
            job = answer.job
            if answer.error is not None:
                self.leave_out(job.path, answer.error)
                continue
            job.record["height"], job.record["width"] = answer.size
            self._warn_if_small(job.record["file_name"], *answer.size)
            if job.video is not None:
                self.record.images.append(job.record)
                self._append(answer.drawn, *job.video)
            self.record.add(answer.results)

    def leave_out(self, path: Path, error: str) -> None:
        """Says and notes what could not be read."""
        self.prediction.unreadable[path] = error
        print(f"fastdet: left out: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends all files."""
        try:
            if self._video is not None:
                self._video.close()
        finally:
            self.record.close()

    def _drawn(self, image: Tensor, found: Found) -> Image.Image:
        classes = self._look.module.classes
        if self._num_proposals is not None:
            found, classes = self._look.propose(image, self._num_proposals), None
        return draw_boxes(
            image, found["boxes"], found["labels"], classes, found["scores"], found.get("masks")
        )

    def _append(self, drawn: Image.Image | None, video: VideoWriter, pts: int) -> None:
        if self._video is not video:
            if self._video is not None:
                self._video.close()
            self._video = video
        assert drawn is not None
        video.add(drawn, pts)

    def _warn_if_small(self, name: str, height: int, width: int) -> None:
        if self._warned:
            return
        look = self._look
        message = shrink_warning(look.module, name, height, width, look.tile)
        if message is not None:
            self._warned = True
            warnings.warn(message, stacklevel=2)


def _jobs(
    planned: Plan, pictures: PictureOptions, videos: VideoOptions, run: _Run
) -> Generator[_Job, None, None]:
    """The pictures and the frames, in order."""
    next_id = len(planned.records) + 1
    for target in planned.targets:
        if isinstance(target, PictureTarget):
            path = target.source.path
            load = partial(read_image, path, target.stated_size, **asdict(pictures))
            yield _Job(path, target.record, load, target.drawing)
            continue
        with closing(_frames(target, videos, next_id, run)) as frames:
            for job in frames:
                yield job
                next_id += 1


def _frames(
    target: VideoTarget, videos: VideoOptions, first_id: int, run: _Run
) -> Generator[_Job, None, None]:
    source = target.source
    try:
        reader = VideoReader(source, videos)
    except (FileNotFoundError, ValueError) as error:
        run.leave_out(source.path, str(error))
        return
    with reader, closing(reader.frames()) as frames:
        writer = VideoWriter(target.drawing, reader.rate, reader.time_base)
        for image_id, frame in enumerate(frames, first_id):
            record = {
                "id": image_id,
                "file_name": target.frame_name(frame.number),
                "timestamp": round(frame.seconds, 6),
            }
            yield _Job(source.path, record, frame.image, video=(writer, frame.pts))
    if reader.problem is not None:
        run.leave_out(source.path, f"{source.shown}: {reader.problem}")


def _chunks(jobs: Iterator[_Job], size: int) -> Iterator[list[_Job]]:
    while chunk := list(islice(jobs, size)):
        yield chunk


def _check_show(show: str, num_proposals: int, views: ViewOptions) -> None:
    if show not in get_args(Show):
        raise ValueError(f"show: expected {' or '.join(get_args(Show))}, got {show}")
    if num_proposals < 1:
        raise ValueError(f"num_proposals: expected a number from 1 on, got {num_proposals}")
    if show == "proposals" and not views.plain:
        raise ValueError("show=proposals: expected neither tile nor tta: it draws whole pictures")


def _category_ids(module: DetectorModule, checkpoint: Path, ids: Ids | None) -> list[int]:
    """The category id of each label, from 1 on: from the annotation file, by class name."""
    if ids is None or not ids.categories:
        return module.category_ids
    names = ["background", *(str(category["name"]) for category in ids.categories)]
    labels = Classes(module.classes, checkpoint, drop_others=True).labels_of(names, ids.file)
    id_of = dict(zip(labels[1:].tolist(), (c["id"] for c in ids.categories), strict=True))
    return [id_of[label] for label in range(1, len(module.classes))]
