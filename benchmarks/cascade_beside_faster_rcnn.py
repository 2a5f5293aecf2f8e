# SPDX-License-Identifier: BSD-3-Clause
"""Trains Cascade R-CNN and Faster R-CNN side by side and compares AP at each IoU threshold.

Both get the same backbone, data, augmentation, batches, optimiser, schedule and number of steps,
and take their steps in turn. The result file keeps the runs of other seeds that it has; so seeds
may be trained one after another, or some of them again.

    python -m benchmarks.cascade_beside_faster_rcnn --data DATA --out benchmarks/results/NAME.json
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks import machine
from benchmarks.train_beside_torchvision import Side, batches
from fastdet.data import collate, eval_transforms, open_dataset
from fastdet.evaluation import CocoEvaluator
from fastdet.files import replacing
from fastdet.models import MODELS

FAMILIES = ("cascade_rcnn", "faster_rcnn")


@torch.no_grad()
def ap_by_iou(side: Side, loader: DataLoader) -> dict[str, float]:
    """AP at each of COCO's IoU thresholds, "0.50" to "0.95", on the validation split."""
    side.model.eval()
    dataset: Any = loader.dataset
    evaluator = CocoEvaluator(dataset.annotations, dataset.category_ids)
    for images, targets in loader:
        found = side.model([image.to(side.device) for image in images])
        detections = [{k: v.cpu() for k, v in one.items()} for one in found]
        evaluator.update([target["image_id"] for target in targets], detections)
    evaluation = evaluator.accumulated()
    assert evaluation.eval is not None
    # (IoU thresholds, recall thresholds, classes), for all areas and max_detections
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    return {
        f"{iou:.2f}": float(np.mean(of_iou[of_iou > -1])) if (of_iou > -1).any() else -1.0
        for iou, of_iou in zip(evaluation.params.iou_thrs, precision, strict=True)
    }


def train_both(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One seed's run of both families: evaluated half-way and at the end."""
    val = open_dataset(options.data, "val", eval_transforms())
    loader = DataLoader(val, batch_size=options.batch_size, collate_fn=collate)
    numbers = {
        "box_batch_size_per_image": options.box_samples,
        "representation_size": options.representation_size,
    }
    sides = {
        family: Side(partial(MODELS[family], **numbers), options, len(val.classes), options.steps)
        for family in FAMILIES
    }
    run: dict[str, Any] = {family: {"AP_by_step": {}} for family in FAMILIES}
    for done, (images, targets) in enumerate(batches(options, options.steps), start=1):
        losses = {family: side.step(images, targets) for family, side in sides.items()}
        if done % options.log_every == 0:
            shown = ", ".join(f"{family} {loss:.3f}" for family, loss in losses.items())
            print(f"seed {options.seed} step {done}/{options.steps}: loss {shown}", flush=True)
        if done in (options.steps // 2, options.steps):
            for family, side in sides.items():
                by_iou = ap_by_iou(side, loader)
                ap = statistics.mean(by_iou.values())
                run[family]["AP_by_step"][str(done)] = ap
                run[family] |= {
                    "AP": ap,
                    "AP_by_iou": by_iou,
                    "seconds_per_step": statistics.median(side.seconds),
                }
                by_iou_text = " ".join(f"{iou} {value:.3f}" for iou, value in by_iou.items())
                print(f"  {family}: AP {ap:.3f}, by IoU: {by_iou_text}", flush=True)
            yield run


def runs_in(out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that the result file has so far.

    Raises:
        ValueError: the file has runs with other settings.
    """
    if not out.exists():
        return []
    result = json.loads(out.read_text())
    if result["settings"] != settings:
        raise ValueError(f"{out}: expected the settings {settings}, got {result['settings']}")
    return result["runs"]


def keep(out: Path, settings: dict[str, Any], seed: int, run: dict[str, Any]) -> None:
    """Adds a run to the result file, or replaces that of its seed."""
    others = [one for one in runs_in(out, settings) if one["seed"] != seed]
    runs = sorted([*others, {"seed": seed, **run}], key=lambda one: one["seed"])
    with replacing(out) as temporary:
        written = {"machine": machine.describe(), "settings": settings, "runs": runs}
        temporary.write_text(json.dumps(written, indent=2) + "\n")


def main() -> None:
    """Trains both families with each seed; writes the result file after each evaluation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="a COCO-format folder")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=320, help="longer side of the images")
    parser.add_argument("--min-size", type=int, help="shorter side, else 3/4 of the longer")
    parser.add_argument("--fpn-channels", type=int, default=64)
    parser.add_argument("--box-samples", type=int, default=128, help="of an image and stage")
    parser.add_argument("--representation-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=292)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    left_out = ("data", "out", "seeds", "workers", "device", "log_every")
    settings = {k: v for k, v in vars(options).items() if k not in left_out}
    settings["data"] = options.data.resolve().name
    runs_in(options.out, settings)  # before the work begins
    options.model = "faster_rcnn"  # both families learn from boxes alone
    for seed in options.seeds:
        options.seed = seed
        for run in train_both(options):
            keep(options.out, settings, seed, run)


if __name__ == "__main__":
    main()
