# SPDX-License-Identifier: BSD-3-Clause
"""The command `fastdet`: each subcommand is a function here, and its arguments are the options.

`fastdet info` needs only torch and numpy. `bench` and `compare` need the extra `bench`, `export`
the extras `export` and `train`, `view` the extras `train` and `view`, all others the extra `train`.
Heavy packages are imported only when a command runs, so that `--help` is fast.
"""

import logging
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastdet.predicting.format_options import (
    ConfType,
    CsvOptions,
    EnsembleMethod,
    ResultsFormat,
)
from fastdet.predicting.options import SpeedOptions, VideoOptions, ViewOptions
from fastdet.training.options import (
    DataFormat,
    Images,
    ModelName,
    NeckName,
    PictureOptions,
    RunsFormat,
    Show,
    ShowOptions,
    TrainOptions,
)
from fastdet.training.stopping import Stopped, stopping_at_sigterm

if TYPE_CHECKING:
    from fastdet.data.converting import Written
    from fastdet.deploy.calibration import Accuracy
    from fastdet.evaluation import CocoMetrics


def train(training: TrainOptions) -> None:
    """Train a detector on a data set.

    With --config runs/a/options.yaml as that training, except for the options that are given.
    """
    from fastdet.report.run_page import write_run_page
    from fastdet.training.kept_metrics import kept_metrics
    from fastdet.training.processes import is_first
    from fastdet.training.train import train as run

    run(training)
    if not is_first():
        return
    print(f"checkpoints and log: {training.out}", flush=True)
    file = training.out / "best.ckpt"
    best = kept_metrics(file)
    if best is None:
        print(f"{file} is of an older version, without its metrics: fastdet eval prints them")
        return
    metrics, epoch = best
    _print_metrics(metrics, f"{training.model}, best.ckpt, of epoch {epoch}")
    print(f"report: {write_run_page(training.out)}")


def show(training: ShowOptions) -> None:
    """Write a page of the pictures that a training sees, after augmentation.

    Takes the options of train, also --config; those that do not change the pictures are ignored.
    """
    from fastdet.report.training_pictures import show as run

    number = run(training)
    print(f"{number} training pictures: {training.out}")


def evaluate(
    data: Path,
    checkpoint: Path | None = None,
    results: Path | None = None,
    split: str = "val",
    batch_size: int = 8,
    drop_other_classes: bool = False,
    pictures: PictureOptions = PictureOptions(),
    files_anywhere: bool = False,
) -> None:
    """Print the COCO metrics of a checkpoint, or of a file of results.

    Args:
        data: Data set, as for training.
        checkpoint: A best.ckpt or last.ckpt.
        results: COCO results, such as detections.json, instead of a checkpoint.
        split: Split of the data to evaluate, by its name.
        batch_size: Number of images in a batch.
        drop_other_classes: Skip annotations of classes that the checkpoint or the results lack.
        files_anywhere: Allow file names in the annotations that point outside the image folder.
    """
    reading: dict[str, Any] = {
        "drop_other_classes": drop_other_classes,
        "pictures": pictures,
        "files_anywhere": files_anywhere,
    }
    if checkpoint is not None and results is None:
        from fastdet.training.train import evaluate as run

        metrics = run(checkpoint, data, split, batch_size, **reading)
    elif results is not None and checkpoint is None:
        from fastdet.predicting.evaluating import evaluate_results

        metrics = evaluate_results(results, data, split, **reading)
    else:
        raise ValueError(f"expected --checkpoint or --results, got {'both' if results else 'none'}")
    _print_metrics(metrics, f"{checkpoint or results} on {split}")


def analyse(
    detections: Path,
    /,
    data: Path,
    split: str = "val",
    beside: Path | None = None,
    out: Path = Path("analysis"),
    iou_type: Literal["bbox", "segm"] = "bbox",
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
    score_threshold: float | None = None,
    max_detections: int = 100,
    bins: int = 10,
    resamplings: int = 500,
    weakest: int = 5,
    drawn: int = 12,
    batch_size: int = 4,
    workers: int = 0,
    drop_other_classes: bool = False,
    pictures: PictureOptions = PictureOptions(),
    files_anywhere: bool = False,
    overwrite: bool = False,
) -> None:
    """Say what went wrong, on which pictures: errors by kind and class, confusions, thresholds.

    Args:
        detections: A best.ckpt or last.ckpt, or a COCO results file such as detections.json.
        data: Data set, as for training.
        split: Split of the data, by its name.
        beside: A second checkpoint or results file, to compare with the first.
        out: Folder for analysis.json, analysis.html, and the detections of a checkpoint.
        iou_type: Compare boxes, or masks.
        iou_threshold: IoU from which on an object is found: one of 0.5, 0.55, ... 0.95.
        background_iou: IoU with any object up to which a detection is background.
        score_threshold: Score from which on a detection counts in the confusion matrix, on
            pictures, and in the comparison; unset: the one with the best F1 of all classes.
        max_detections: Maximum number of detections of a class in an image, the best ones.
        bins: Ranges of scores for the calibration.
        resamplings: Of the pictures, to tell a difference of two from chance.
        weakest: Number of classes with a sentence and pictures, those with the lowest AP.
        drawn: Maximum number of pictures in a section of the page.
        batch_size: Number of images in a batch of a checkpoint.
        workers: Processes that decode pictures for a checkpoint.
        drop_other_classes: Skip annotations of classes that a checkpoint or the results lack.
        files_anywhere: Allow file names in the annotations that point outside the image folder.
        overwrite: Overwrite existing files in the folder.
    """
    from fastdet.analysing.analysis import AnalysisOptions
    from fastdet.analysing.command import run
    from fastdet.analysing.reading import Reading

    options = AnalysisOptions(
        iou_type,
        iou_threshold,
        background_iou,
        score_threshold,
        max_detections,
        bins,
        resamplings,
    )
    run(
        detections,
        data,
        out,
        options,
        Reading(batch_size, workers, drop_other_classes, pictures),
        split=split,
        beside=beside,
        weakest=weakest,
        drawn=drawn,
        files_anywhere=files_anywhere,
        overwrite=overwrite,
    )


def predict(
    checkpoint: Path,
    images: tuple[str, ...],
    out: Path,
    score_threshold: float = 0.5,
    annotations: Path | None = None,
    show: Show = "detections",
    num_proposals: int = 20,
    views: ViewOptions = ViewOptions(),
    videos: VideoOptions = VideoOptions(),
    speed: SpeedOptions = SpeedOptions(),
    format: ResultsFormat = "coco",
    csv: CsvOptions = CsvOptions(),
    pictures: PictureOptions = PictureOptions(),
    overwrite: bool = False,
) -> None:
    """Detect objects on pictures and videos: write annotated copies and detections.json (COCO).

    Args:
        checkpoint: A best.ckpt or last.ckpt.
        images: Pictures, videos, folders of them, quoted patterns such as "in/*.jpg", addresses of
            streams such as rtsp://camera/stream, and cameras: /dev/video0, or 0.
        out: Folder for the results.
        score_threshold: Minimum score of a detection.
        annotations: COCO file whose image ids are used; unset: image ids count from 1.
        show: Draw detections, or what the first stage of a two-stage detector proposed.
        num_proposals: With --show proposals, how many of the best proposals are drawn.
        format: Write this too: PredictionString rows (csv), text files (yolo) or XML (voc).
        overwrite: Overwrite existing files in the folder.
    """
    from fastdet.predicting import predict as run

    file = out / "detections.json"
    try:
        found = run(
            checkpoint,
            images,
            out,
            score_threshold,
            annotations,
            show=show,
            num_proposals=num_proposals,
            pictures=pictures,
            views=views,
            videos=videos,
            speed=speed,
            format=format,
            csv=csv,
            overwrite=overwrite,
        )
    except (KeyboardInterrupt, Stopped) as error:
        number = signal.SIGTERM if isinstance(error, Stopped) else signal.SIGINT
        kept = f"; what was found until then: {file}" if file.exists() else ""
        raise Stopped(number, f"stopped{kept}") from None
    print(f"{len(found.detections)} detections: {file}")
    if found.unreadable:
        print(f"fastdet: {len(found.unreadable)} pictures could not be read", file=sys.stderr)
        sys.exit(1)


def ensemble(
    files: tuple[Path, ...],
    /,
    out: Path,
    weights: tuple[float, ...] = (),
    method: EnsembleMethod = "wbf",
    iou_threshold: float | None = None,
    skip_score_threshold: float = 0.0,
    conf_type: ConfType = "avg",
    annotations: Path | None = None,
    format: ResultsFormat = "coco",
    csv_options: CsvOptions = CsvOptions(),
    overwrite: bool = False,
) -> None:
    """Fuse the detections of several models: files of COCO results on the same pictures.

    Args:
        files: COCO results, such as detections.json; images.json beside each says what its ids
            mean.
        out: A .json file, with --format csv a .csv file, with yolo and voc a folder.
        weights: Of the models, one each; unset: all 1.
        method: Weighted boxes fusion, NMS (the best of boxes that overlap is kept), or soft-nms
            (the scores of the others are lowered).
        iou_threshold: Boxes with a higher IoU are of one object; unset: 0.55 for wbf, 0.5 for nms.
        skip_score_threshold: Detections with a lower score take no part.
        conf_type: With wbf, the score of a fused box: with avg it falls where models find nothing.
        annotations: COCO file with images and categories, instead of images.json.
        format: Format of the result.
        overwrite: Overwrite existing files.
    """
    from fastdet.predicting.ensemble import ensemble as run

    results = run(
        files,
        out,
        weights,
        method,
        iou_threshold,
        skip_score_threshold,
        conf_type,
        annotations,
        format,
        csv_options,
        overwrite,
    )
    pictures = len(results.images)
    print(f"{len(results.scores)} detections on {pictures} pictures of {len(files)} models: {out}")


def runs(
    folders: tuple[Path, ...],
    /,
    sort: str | None = None,
    filter: tuple[str, ...] = (),
    base: Path | None = None,
    format: RunsFormat = "table",
    plot: tuple[str, ...] = (),
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Print the table of trainings: options that differ, best epoch, metrics, time, memory.

    Args:
        folders: Folders of trainings, or folders that contain such folders.
        sort: Metric such as AP50, best first, or an option; unset: in the order of the folders.
        filter: Show only runs with option=value or option!=value; several conditions are allowed.
        base: Folder of a run; the metrics of the others are shown as differences to it.
        format: Format of the table; html is a page with the curves of all runs.
        plot: Metrics over the epochs of all runs, such as val/AP, for an .html file.
        out: File for the table; unset: the terminal.
        overwrite: Overwrite an existing file.
    """
    from fastdet.report.runs import write_runs

    write_runs(folders, sort, filter, base, format, plot, out, overwrite)


def export(
    checkpoint: Path,
    out: Path,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = 1,
    raw: bool = False,
    int8: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Export a checkpoint's detector to a file that runs without its code: .pt2 or ONNX.

    Args:
        checkpoint: A best.ckpt or last.ckpt, or one of quantize: then an .onnx file alone.
        out: File whose name ends in .pt2 or .onnx.
        image_size: Height and width that it takes; unset: the min_size and max_size of the
            training, rounded up to multiples of size_divisor.
        batch_size: Images that it takes at a time; None: any number.
        raw: Leave out the suppression: the file gives the boxes and scores of all candidates, and
            fastdet.numpy finishes. For the families of one stage.
        int8: Compute convolutions in 8-bit integers, quantised by ONNX Runtime, in an .onnx file:
            a folder of pictures to calibrate with, or a data set as for training. With a val split
            in it, AP before and after is printed.
        overwrite: Overwrite an existing file.
    """
    from fastdet.deploy.export import export_candidates, export_detector
    from fastdet.deploy.image_size import training_size
    from fastdet.engine import is_quantized
    from fastdet.files import refuse_existing
    from fastdet.training.detector_module import load_detector

    refuse_existing(out, overwrite)
    module = load_detector(checkpoint)
    if int8 is not None and is_quantized(module.model):
        raise ValueError(f"int8: {checkpoint} is quantised already; export it without --int8")
    height, width = size = image_size or training_size(module.model.border)
    export = export_candidates if raw else export_detector
    write = partial(
        export, module.model, image_size=size, batch_size=batch_size, classes=module.classes
    )
    accuracy = None
    if int8 is None:
        write(out)
    else:
        from fastdet.deploy.int8 import export_int8

        accuracy = export_int8(write, out, int8)
    name = type(module.model).__name__
    print(f"{name} of {len(module.classes)} classes, images of {height} x {width}: {out}")
    _print_accuracy(accuracy)


def quantize(checkpoint: Path, data: Path, out: Path, overwrite: bool = False) -> None:
    """Make a checkpoint whose convolutions run in 8-bit integers on a CPU.

    eval, predict, analyse and export take it as any checkpoint. For a file of ONNX Runtime's own
    quantisation see export --int8.

    Args:
        checkpoint: A best.ckpt or last.ckpt.
        data: Pictures to calibrate with: a data set as for training, or a folder. With a val split
            in it, AP before and after is printed.
        out: File for the new checkpoint.
        overwrite: Overwrite an existing file.
    """
    from fastdet.deploy.quantized_checkpoint import quantize_checkpoint
    from fastdet.files import refuse_existing

    refuse_existing(out, overwrite)
    accuracy = quantize_checkpoint(checkpoint, out, data)
    print(f"{checkpoint} in 8-bit integers: {out}")
    _print_accuracy(accuracy)


def convert(
    data: Path,
    out: Path,
    /,
    format: DataFormat = "coco",
    images: Images = "copy",
    masks: bool = False,
    voc_first_pixel: Literal[0, 1] | None = None,
) -> None:
    """Write a data set, with all its splits, in another format.

    Args:
        data: Data folder, in any format that fastdet reads.
        out: Folder that does not exist yet or is empty.
        format: Format to write.
        images: Copy the pictures, link to them, or write the annotations alone.
        masks: Keep the masks, in COCO and YOLO; objects without one are left out.
        voc_first_pixel: What pixels count from in data of Pascal VOC; unset: from the files.
    """
    from fastdet.data.converting import convert as run

    _print_written(run(data, out, format, images, masks, voc_first_pixel), out)


def split(
    data: Path,
    out: Path,
    /,
    fractions: tuple[float, ...] = (0.8, 0.1, 0.1),
    seed: int = 0,
    split: str | None = None,
    images: Images = "link",
    masks: bool = False,
) -> None:
    """Divide a data set by chance into train, val and test, written in COCO format.

    Args:
        data: Data folder with one split, in any format that fastdet reads.
        out: Folder that does not exist yet or is empty.
        fractions: Of the images in train and val, or in train, val and test; they add up to 1.
        seed: Another seed, another division.
        split: Split to divide, where the data has several.
        images: Copy the pictures, link to them, or write the annotations alone.
        masks: Keep the masks; objects without one are left out.
    """
    from fastdet.data.converting import divide

    _print_written(divide(data, out, fractions, seed, split, images, masks), out)


def demo(out: Path = Path("demo")) -> None:
    """Train two small detectors on drawn shapes and write a report (about four minutes on a CPU).

    Args:
        out: Folder for data, checkpoints and report.html.
    """
    from fastdet.report.demo import demo as run

    run(out)


def describe(
    model: ModelName = "faster_rcnn",
    backbone: str = "resnet50",
    num_classes: int = 91,
    neck: NeckName | None = None,
    fpn_channels: int | None = None,
    image_size: tuple[int, int] | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Print the parameters, FLOPs and anchors of a detector.

    Args:
        model: Family of the detector.
        backbone: Name of a timm backbone.
        num_classes: With background.
        neck: Neck between backbone and heads; unset: the model's own.
        fpn_channels: Width of the neck; unset: the model's own, 256.
        image_size: Height and width of the padded image, in pixels; unset: 800 1216, or of a
            checkpoint the min_size and max_size of its training.
        checkpoint: A best.ckpt or last.ckpt, instead of model to fpn_channels; one of quantize is
            described as it was trained.
    """
    from fastdet.models import MODELS, describe

    if checkpoint is not None:
        from fastdet.deploy.image_size import training_size
        from fastdet.training.detector_module import load_trained

        detector = load_trained(checkpoint).model
        image_size = image_size or training_size(detector.border)
    else:
        options = {"neck": neck, "fpn_channels": fpn_channels}
        given = {name: value for name, value in options.items() if value is not None}
        detector = MODELS[model](backbone, num_classes, **given)
    print(describe(detector, image_size or (800, 1216)))


def bench(
    out: Path | None = None,
    only: str = "",
    brief: bool = False,
    quick: bool = False,
    overwrite: bool = False,
) -> None:
    """Measure every operator beside torchvision; needs a checkout of the source.

    Args:
        out: File for the result.
        only: Measure only matching benchmarks, as in pytest -k: "nms and not batched".
        brief: All threads only, fewer rounds, no series of sizes (two minutes).
        quick: Run each workload once, with tiny inputs, to check that everything works.
        overwrite: Overwrite an existing file.
    """
    from fastdet.bench import run_suites
    from fastdet.files import refuse_existing

    if out:
        refuse_existing(out, overwrite)
    arguments = ["-k", only] if only else []
    arguments += [f"--{name}" for name, wanted in (("brief", brief), ("quick", quick)) if wanted]
    run_suites(*arguments, *(["--out", str(out.resolve())] if out else []))


def compare(before: Path, after: Path) -> None:
    """Print two result files of `fastdet bench` side by side.

    Args:
        before: The earlier result file.
        after: The later result file.
    """
    from fastdet.bench import run_module

    run_module("benchmarks.compare", str(before.resolve()), str(after.resolve()))


def check(
    data: Path,
    /,
    out: Path | None = None,
    fix: Path | None = None,
    quick: bool = False,
    strict: bool = False,
    flipped: bool = False,
    model: ModelName | None = "faster_rcnn",
    min_size: int = 800,
    max_size: int = 1333,
    drawn: int = 12,
    workers: int | None = None,
    pictures: PictureOptions = PictureOptions(),
    files_anywhere: bool = False,
    overwrite: bool = False,
) -> None:
    """Check a data set: annotations, pictures, duplicates between the splits, and anchors.

    The exit code is 1 if there is an error among the findings, else 0.

    Args:
        data: Data set, as for training.
        out: Folder for check.json, with every place, and check.html, with pictures.
        fix: New folder for a repaired copy in COCO format; the pictures are linked.
        quick: Read the headers of pictures only: no truncated pictures, no duplicates.
        strict: Exit with 1 for warnings too.
        flipped: Find mirror images among near-duplicates too.
        model: Family whose anchors are compared with the objects; None: none.
        min_size: Shorter side of the images in the training, in pixels.
        max_size: Limit of the longer side.
        drawn: Maximum number of pictures of each finding in check.html.
        workers: Threads that decode pictures; unset: one for each core, up to 8.
        files_anywhere: Allow file names in the annotations that point outside the image folder.
        overwrite: Overwrite check.json and check.html.
    """
    from fastdet.checking.check import CheckOptions
    from fastdet.checking.command import run

    options = CheckOptions(
        not quick, flipped, model, min_size, max_size, pictures, files_anywhere, workers
    )
    sys.exit(run(data, options, out=out, fix=fix, strict=strict, drawn=drawn, overwrite=overwrite))


def view(
    data: Path,
    /,
    detections: tuple[Path, ...] = (),
    split: str = "val",
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
    address: str = "127.0.0.1",
    port: int | None = None,
    open: bool = True,
    pictures: PictureOptions = PictureOptions(),
    files_anywhere: bool = False,
) -> None:
    """Show a data set, and detections on it, in the browser; Ctrl-C ends it.

    Args:
        data: Data set, as for training.
        detections: A COCO results file, such as the detections.json of predict; give the option
            again for each further file.
        split: Split of the data, by its name.
        iou_threshold: IoU from which on a detection finds an object.
        background_iou: IoU with any object up to which a detection is background.
        address: Address of this machine that answers; 0.0.0.0 answers other machines, too.
        port: Port of the page; unset: the first free one from 8501 on.
        open: Open the page in the browser.
        files_anywhere: Allow file names in the annotations that point outside the image folder.
    """
    from fastdet.viewing.command import run

    run(
        data,
        detections,
        split,
        iou_threshold=iou_threshold,
        background_iou=background_iou,
        address=address,
        port=port,
        open_browser=open,
        pictures=pictures,
        files_anywhere=files_anywhere,
    )


def info() -> None:
    """Print versions, the CPU instruction set in use, and the state of the CUDA ops."""
    from fastdet.ops.library import info as rows

    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        for name, text in rows().items():
            print(f"{name}: {text}")
        return
    table = Table(show_header=False, box=None)
    for name, text in rows().items():
        table.add_row(f"[bold]{name}[/bold]", text)
    Console().print(table)


COMMANDS = {
    "train": train,
    "show": show,
    "eval": evaluate,
    "analyse": analyse,
    "predict": predict,
    "ensemble": ensemble,
    "export": export,
    "quantize": quantize,
    "describe": describe,
    "runs": runs,
    "check": check,
    "view": view,
    "bench": bench,
    "compare": compare,
    "convert": convert,
    "split": split,
    "demo": demo,
    "info": info,
}
EXTRAS = {  # all others: train
    "bench": "bench",
    "compare": "bench",
    "export": "export,train",
    "view": "train,view",
}
EXTRA_OF_PACKAGE = {"av": "video"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line `arguments`; None: the arguments of the process.

    An error is printed as one line on stderr, and so is a warning. The exit code is 2 if other
    arguments or files can solve it, else 1. With `--debug` the traceback is shown instead.
    """
    is_ours = arguments is None  # the process
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    detects = arguments[:1] in (["predict"], ["eval"])
    if is_ours and detects and not {"-h", "--help"} & set(arguments):
        from fastdet.memory import keep_freed_memory

        keep_freed_memory()
    try:
        if arguments == ["info"]:  # needs no package of the extra `train`
            info()
            return
        _quiet()
        with stopping_at_sigterm(), _short_warnings(not debug):
            _run(_with_options_of_file(arguments))
    except Exception as error:
        if debug:
            raise
        _stop(error, arguments)
    except (KeyboardInterrupt, Stopped) as error:
        if debug:
            raise
        stop = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        print(f"fastdet: {stop}", file=sys.stderr)
        sys.exit(stop.code)


def _with_options_of_file(arguments: list[str]) -> list[str]:
    """The arguments of `train --config FILE ...` with the options of the file among them.

    `show` has the same, except that its `--out` is another.
    """
    if not arguments or arguments[0] not in ("train", "show"):
        return arguments
    given = [word for one in arguments[1:] for word in _split_at_equals(one)]
    if "--config" not in given:
        return arguments
    from fastdet.training.options_file import as_arguments, next_to, read_options

    at = given.index("--config")
    if at + 1 == len(given):
        raise ValueError("--config: expected a file of options, such as runs/a/options.yaml")
    file = Path(given[at + 1])
    given = given[:at] + given[at + 2 :]
    options = read_options(file)
    names = {argument.partition("=")[0] for argument in given}
    if arguments[0] == "show":
        options.pop("out", None)
    elif not names & {"--out", "--resume"} and options.get("out"):
        out = Path(str(options["out"]))
        if out.exists():
            options["out"] = str(next_to(out))
            print(f"{out} exists: this training goes to {options['out']}", flush=True)
    return [arguments[0], *as_arguments(options, given), *given]


def _split_at_equals(argument: str) -> list[str]:
    name, equals, value = argument.partition("=")
    return [name, value] if equals and name == "--config" else [argument]


def _run(arguments: Sequence[str]) -> None:
    import tyro

    # view DATA --detections A.json --detections B.json
    repeated = tyro.conf.configure(tyro.conf.UseAppendAction)(view)
    tyro.extras.subcommand_cli_from_dict(
        {**COMMANDS, "view": repeated},
        prog="fastdet",
        description="Object detection on its own C++/CUDA kernels. --debug shows tracebacks.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _stop(error: Exception, arguments: Sequence[str]) -> None:
    """Ends the process with one line that describes the error."""
    if isinstance(error, subprocess.CalledProcessError):  # the subprocess has printed its error
        sys.exit(error.returncode)
    message, code = " ".join(str(error).split()), 2
    if isinstance(error, ModuleNotFoundError) and _package(error) != "fastdet":
        extra = EXTRA_OF_PACKAGE.get(_package(error)) or EXTRAS.get(arguments[0], "train")
        message += f'. This command needs more packages: pip install "fastdet[{extra}]"'
    elif isinstance(error, FloatingPointError):
        code = 1
    elif not isinstance(error, OSError | ValueError):
        message = f"{type(error).__name__}: {message} (--debug shows where)"
        code = 1
    print(f"fastdet: {message}", file=sys.stderr)
    sys.exit(code)


def _package(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def _print_metrics(metrics: "CocoMetrics", title: str) -> None:
    from rich.console import Console

    from fastdet.evaluation import class_table, stats_table

    Console().print(stats_table(metrics, title), class_table(metrics, f"{title}, by class"))
    if metrics.masks is not None:
        _print_metrics(metrics.masks, f"{title}, masks")


def _print_accuracy(accuracy: "Accuracy | None") -> None:
    if accuracy is not None:
        print(
            f"AP of {accuracy.images} images of val: {accuracy.before:.3f} before and "
            f"{accuracy.after:.3f} after the quantisation"
        )


def _print_written(written: "Written", out: Path) -> None:
    for name, (images, objects) in written.counts.items():
        print(f"{name}: {images} images, {objects} objects")
    for note in written.notes:
        print(note)
    print(out)


@contextmanager
def _short_warnings(wanted: bool) -> Iterator[None]:
    """Prints fastdet's own warnings as one line, without their place in the source."""
    as_before = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], filename: str, *place) -> str:
        if Path(filename).is_relative_to(Path(__file__).parent):
            return f"fastdet: warning: {' '.join(str(message).split())}\n"
        return as_before(message, category, filename, *place)

    warnings.formatwarning = formatted if wanted else as_before
    try:
        yield
    finally:
        warnings.formatwarning = as_before


def _quiet() -> None:
    """Hides Lightning's messages about itself. Warnings about data and training stay."""
    logging.disable(logging.INFO)
    for known in (
        "does not have many workers",
        "exists and is not empty",
        "treespec, LeafSpec",
        "sync_dist=True",  # every process computes the metrics of all
    ):
        warnings.filterwarnings("ignore", message=f".*{known}.*")


if __name__ == "__main__":
    main()
