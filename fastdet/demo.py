# SPDX-License-Identifier: BSD-3-Clause
"""The package shows itself: two detectors trained on the sample data, and a report.

About four minutes on two CPU cores; no network. The trainings are short, so their numbers say
that everything works together, not how good a detector can get.
"""

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastdet import __version__
from fastdet.charts import Line
from fastdet.data import CocoDetection, open_dataset, write_shapes
from fastdet.evaluation import CocoMetrics, class_table, stats_table
from fastdet.evaluation.pictures import draw_boxes
from fastdet.files import replacing
from fastdet.prediction import detect
from fastdet.report import Comparison, OpRow, TrainedModel, write_report
from fastdet.training.detector_module import load_detector
from fastdet.training.metrics_log import read_metrics
from fastdet.training.options import TrainOptions
from fastdet.training.train import evaluate, train

TITLES = {"faster_rcnn": "Faster R-CNN", "retinanet": "RetinaNet"}

PICTURES = 6


def demo(out: Path) -> Path:
    """Write the sample data, train, evaluate, and report.

    Writes OUT/shapes (data), OUT/<model> (checkpoints, log, pictures) and OUT/report.html.
    What an earlier demo left of the models is replaced.

    Returns:
        The report's path.
    """
    start = time.perf_counter()
    print(f"fastdet {__version__} demo: sample data in {out / 'shapes'}")
    data = write_shapes(out / "shapes")
    models = [_train_and_show(name, data, out / name) for name in TITLES]
    report = out / "report.html"
    write_report(
        report,
        "fastdet demo",
        "Two detectors trained from scratch on drawn shapes, on this machine, with fastdet's own "
        "operators beneath.",
        models,
        measure_ops(),
    )
    print(f"report: {report} ({time.perf_counter() - start:.0f} s in all)")
    return report


def recipe(model: str, data: Path, out: Path) -> TrainOptions:
    """How the demo trains a model."""
    options = TrainOptions(
        data=data,
        out=out,
        model=model,
        backbone="resnet18",
        epochs=20,
        batch_size=8,
        lr=1e-3,
        min_size=128,
        max_size=128,
        fpn_channels=64,
        validate_every=5,
    )
    return replace(options, lr=1e-3) if model == "retinanet" else options


def measure_ops() -> Sequence[OpRow] | None:
    """Rows of the op table beside torchvision; None without the source tree's benchmarks."""
    file = Path(__file__).resolve().parent.parent / "benchmarks" / "op_table.py"
    spec = importlib.util.spec_from_file_location("op_table", file) if file.exists() else None
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.op_table()


def _train_and_show(name: str, data: Path, out: Path) -> TrainedModel:
    for earlier in ("last.ckpt", "best.ckpt", "metrics.csv"):
        (out / earlier).unlink(missing_ok=True)
    options = recipe(name, data, out)
    print(f"\n{TITLES[name]}: {options.epochs} epochs from scratch", flush=True)
    start = time.perf_counter()
    train(options)
    seconds = time.perf_counter() - start
    metrics = evaluate(out / "best.ckpt", data)
    Console().print(
        stats_table(metrics, TITLES[name]), class_table(metrics, f"{TITLES[name]}, by class")
    )
    return describe(name, options, metrics, seconds, compare(options, PICTURES))


def describe(
    name: str,
    options: TrainOptions,
    metrics: CocoMetrics,
    seconds: float,
    pictures: Sequence[Comparison],
) -> TrainedModel:
    """A finished training as the report shows it, its curves read from metrics.csv."""
    rows = read_metrics(options.out / "metrics.csv")
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "val/AP" in row]
    loss_names = [key for key in steps[0] if key.startswith("loss_")]
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
            for key in ["loss", *loss_names]
        ],
        validation=[
            Line(key, epochs, [row[f"val/{key}"] for row in validations])
            for key in ("AP50", "AP", "AP75")
        ],
        metrics=metrics,
        pictures=pictures,
    )


def compare(options: TrainOptions, count: int) -> list[Comparison]:
    """The first validation images with what the best checkpoint finds, beside the truth.

    The pictures of what is found are also written to OUT/pictures.
    """
    module = load_detector(options.out / "best.ckpt")
    dataset: CocoDetection = open_dataset(options.data, "val")
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
