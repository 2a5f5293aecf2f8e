# SPDX-License-Identifier: BSD-3-Clause
"""Pictures a second of prediction from a folder, beside an earlier state of fastdet.

    git worktree add ../before bb16eca && cp fastdet/*.so ../before/fastdet/
    python -m benchmarks.predict --before ../before --data FOLDER

Each measurement is a process of its own; the two sides take turns. FOLDER is a data set; of its
split "val" the pictures are read, searched, drawn and written, by detectors without training. The
detections of both sides are compared: with another number of threads a picture, the last digits of
float32 differ.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from benchmarks.machine import describe
from benchmarks.results import PREDICT
from fastdet.data import open_dataset
from fastdet.files import replacing
from fastdet.training.detector_module import DetectorModule

ROOT = Path(__file__).resolve().parent.parent
IN_A_PROCESS = Path(__file__).with_name("predict_in_a_process.py")
FAMILIES = ("faster_rcnn", "retinanet")
SIZES = {"min_size": 320, "max_size": 544}  # of a training on a CPU, by default
MOST_DETECTIONS = {"faster_rcnn": "box_detections_per_img", "retinanet": "detections_per_img"}


def write_checkpoint(path: Path, family: str, classes: list[str], category_ids: list[int]) -> None:
    """A detector of random weights that finds twenty objects everywhere."""
    torch.manual_seed(0)
    threshold = "box_score_thresh" if family == "faster_rcnn" else "score_thresh"
    numbers = {**SIZES, MOST_DETECTIONS[family]: 20, threshold: 0.0}
    module = DetectorModule(family, "resnet18", classes, category_ids, numbers)
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)


def measure(root: Path, checkpoint: Path, data: Path, out: Path) -> dict[str, float]:
    """Seconds and pictures of one run, with the fastdet of a checkout."""
    command = [sys.executable, IN_A_PROCESS, root, checkpoint, data, out]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{root}: {run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def difference(before: Path, after: Path) -> dict[str, float]:
    """How the detections of two runs differ, row by row.

    Returns:
        detections: of the first run; unlike: rows of another picture or class, and missing ones;
        largest_score, largest_pixels: the largest differences in the other rows.
    """
    first, second = (json.loads((out / "detections.json").read_text()) for out in (before, after))
    names = ("image_id", "category_id")
    alike = [
        (one, other)
        for one, other in zip(first, second, strict=False)
        if all(one[name] == other[name] for name in names)
    ]
    return {
        "detections": len(first),
        "unlike": max(len(first), len(second)) - len(alike),
        "largest_score": max((abs(a["score"] - b["score"]) for a, b in alike), default=0.0),
        "largest_pixels": max(
            (float(np.abs(np.subtract(a["bbox"], b["bbox"])).max()) for a, b in alike), default=0.0
        ),
    }


def of_family(family: str, sides: dict[str, Path], rounds: int, data: Path) -> dict[str, Any]:
    """Pictures a second of each side, a list over the rounds, and how the detections differ."""
    split = open_dataset(data, "val")
    measured: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "any.ckpt"
        write_checkpoint(checkpoint, family, split.classes, split.category_ids)
        for _ in range(rounds):
            for name, root in sides.items():
                took = measure(root, checkpoint, data, Path(folder) / name)
                measured[name].append(took["pictures"] / took["seconds"])
                print(family, name, round(statistics.median(measured[name]), 2), flush=True)
        found = difference(*(Path(folder) / name for name in sides))
    return {"pictures_per_second": measured, "difference": found}


def main() -> None:
    """Measures and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--before", type=Path, required=True, help="a checkout that can be imported"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--out", type=Path, default=PREDICT)
    options = parser.parse_args()
    sides = {"before": options.before.resolve(), "fastdet": ROOT}
    result: dict[str, Any] = {
        "machine": describe(),
        "data": options.data.name,
        "backbone": "resnet18",
        "sizes": SIZES,
        "families": {
            family: of_family(family, sides, options.rounds, options.data.resolve())
            for family in options.families
        },
    }
    with replacing(options.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
