# SPDX-License-Identifier: BSD-3-Clause
"""The demo: trains two detectors on generated sample data and writes a report.

It takes about four minutes on two CPU cores and needs no network. The trainings are short: the
numbers show that all parts work together. They do not show how good a detector can become.
"""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastdet import __version__
from fastdet.bench import run_suites
from fastdet.data import DetectionDataset, open_dataset, write_shapes
from fastdet.evaluation import CocoMetrics, class_table, stats_table
from fastdet.evaluation.pictures import draw_boxes
from fastdet.files import replacing
from fastdet.predicting import detect
from fastdet.report.charts import Line
from fastdet.report.page import Comparison, OpRow, TrainedModel, write_report
from fastdet.training.detector_module import load_detector
from fastdet.training.metrics_log import read_metrics
from fastdet.training.options import ModelName, TrainOptions
from fastdet.training.train import evaluate, train

TITLES: dict[ModelName, str] = {"faster_rcnn": "Faster R-CNN", "retinanet": "RetinaNet"}

TRAIN_IMAGES, VAL_IMAGES, IMAGE_SIZE = 1000, 100, 128

# Objects are 8 to 64 px, and the trainings are short. So anchors are two to four times smaller than
# for COCO, there are fewer proposals, and RetinaNet gets a larger weight for classification, which
# it learns more slowly than boxes.
MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {
        "anchor_sizes": [8, 16, 32, 64, 128],
        "rpn_pre_nms_top_n_train": 300,
        "rpn_post_nms_top_n_train": 200,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_test": 100,
        "rpn_batch_size_per_image": 64,
        "box_batch_size_per_image": 64,
        "representation_size": 256,
    },
    "retinanet": {"anchor_sizes": [16, 32, 64, 128, 256], "classification_weight": 5.0},
}

# Operators of these detectors beside torchvision's, in half a minute. `fastdet bench` measures all.
OPERATOR_SUITES = (
    "benchmarks/bench_box_coding.py",
    "benchmarks/bench_match_anchors.py",
    "benchmarks/bench_nms.py::bench_batched",
    "benchmarks/bench_nms.py::bench_padded",
    "benchmarks/bench_nms.py::bench_scene",
    "benchmarks/bench_retinanet_detections.py",
    "benchmarks/bench_roi_align.py::bench_multiscale_forward",
    "benchmarks/bench_roi_detections.py",
    "benchmarks/bench_rpn_proposals.py",
    "benchmarks/bench_sample_matches.py",
)

PICTURES = 6


def demo(out: Path) -> Path:
    """Write the sample data, train and evaluate the models, write the report.

    Writes OUT/shapes (data), OUT/<model> (checkpoints, log, pictures) and OUT/report.html. The
    files of an earlier demo are replaced.

    Returns:
        The path of the report.

    Raises:
        FileExistsError: OUT holds files of these names, but not the data of a demo.
    """
    start = time.perf_counter()
    if not (out / "shapes").exists():
        for name in (*TITLES, "report.html", "benchmarks.json"):
            if (out / name).exists():
                raise FileExistsError(f"{out / name} is not of a demo: give another --out")
    print(f"fastdet {__version__} demo: sample data in {out / 'shapes'}")
    data = write_shapes(out / "shapes", train=TRAIN_IMAGES, val=VAL_IMAGES, size=IMAGE_SIZE)
    models = [_train_and_show(name, data, out / name) for name in TITLES]
    report = out / "report.html"
    write_report(
        report,
        "fastdet demo",
        "Two detectors trained from scratch on drawn shapes, on this machine, with fastdet's own "
        "operators beneath.",
        models,
        measure_ops(out),
    )
    print(f"report: {report} ({time.perf_counter() - start:.0f} s in all)")
    return report


def recipe(model: ModelName, data: Path, out: Path) -> TrainOptions:
    """The training options of the demo for a model."""
    return TrainOptions(
        data=data,
        out=out,
        model=model,
        backbone="resnet10t",
        epochs=2 if model == "faster_rcnn" else 7,
        validate_every=1 if model == "faster_rcnn" else 2,
        batch_size=4,
        lr=1e-3,
        min_size=IMAGE_SIZE,
        max_size=IMAGE_SIZE,
        fpn_channels=64,
    )


def measure_ops(out: Path) -> Sequence[OpRow] | None:
    """Measures and prints the operators beside torchvision; None if they cannot be measured."""
    result = out.resolve() / "benchmarks.json"
    try:
        run_suites("--brief", "--out", str(result), suites=OPERATOR_SUITES)
    except (FileNotFoundError, ModuleNotFoundError, subprocess.CalledProcessError):
        return None
    rows = []
    for row in json.loads(result.read_text(encoding="utf-8"))["rows"]:
        ours, theirs = (row["sides"].get(name) for name in ("fastdet", "torchvision"))
        if theirs:
            rows.append((row["op"], row["workload"], ours["ms"], theirs["ms"], theirs["ratio"][1]))
    return rows


def _train_and_show(name: ModelName, data: Path, out: Path) -> TrainedModel:
    for earlier in ("last.ckpt", "best.ckpt", "metrics.csv"):
        (out / earlier).unlink(missing_ok=True)
    options = recipe(name, data, out)
    print(f"\n{TITLES[name]}: {options.epochs} epochs from scratch", flush=True)
    start = time.perf_counter()
    train(options, MODEL_OPTIONS[name])
    seconds = time.perf_counter() - start
    metrics = evaluate(out / "best.ckpt", data)
    Console().print(
        stats_table(metrics, TITLES[name]), class_table(metrics, f"{TITLES[name]}, by class")
    )
    return describe(name, options, metrics, seconds, compare(options, PICTURES))


def describe(
    name: ModelName,
    options: TrainOptions,
    metrics: CocoMetrics,
    seconds: float,
    pictures: Sequence[Comparison],
) -> TrainedModel:
    """The report's data of a finished training; the curves are read from metrics.csv."""
    rows = read_metrics(options.out / "metrics.csv")
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "val/AP" in row]
    parts = [key for key in steps[0] if key not in ("step", "epoch", "lr", "loss")]
    epochs = [row["epoch"] + 1 for row in validations]
    return TrainedModel(
        name=TITLES[name],
        facts={
            "backbone": f"{options.backbone}, from scratch",
            "training": f"{options.epochs} epochs, batches of {options.batch_size}",
            "optimiser": f"AdamW, peak learning rate {options.lr:g}",
            "time": f"{seconds:.0f} s, {seconds / len(steps):.2f} s a step with validation",
        },
        losses=[
            Line(key, [row["step"] for row in steps], [row[key] for row in steps])
            for key in ["loss", *parts]
        ],
        validation=[
            Line(key, epochs, [row[f"val/{key}"] for row in validations])
            for key in ("AP50", "AP", "AP75")
        ],
        metrics=metrics,
        pictures=pictures,
    )


def compare(options: TrainOptions, count: int) -> list[Comparison]:
    """The first validation images: detections of the best checkpoint beside the ground truth.

    The pictures with detections are also written to OUT/pictures.
    """
    module = load_detector(options.out / "best.ckpt")
    dataset: DetectionDataset = open_dataset(options.data, "val")
    comparisons = []
    for index in range(min(count, len(dataset))):
        image, target = dataset[index]
        found = detect(module, [image], 0.5)[0]
        path = dataset.image_path(index)
        picture = draw_boxes(
            image, found["boxes"], found["labels"], module.classes, found["scores"]
        )
        truth = draw_boxes(image, target["boxes"], target["labels"], module.classes)
        with replacing(options.out / "pictures" / f"{path.stem}.jpg") as temporary:
            picture.save(temporary, quality=92)
        comparisons.append(Comparison(path.name, picture, truth))
    return comparisons
