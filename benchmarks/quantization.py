# SPDX-License-Identifier: BSD-3-Clause
"""Detectors in 8-bit integers: their AP in fastdet and in the runtimes, and their time.

    python -m benchmarks.quantization time
    python -m benchmarks.quantization accuracy --data data/bccd --checkpoints runs/a/best.ckpt

AP is that of the val split, and of the train split, which has more images: on it, less of a
difference between two sides is chance. fastdet, ONNX Runtime and OpenVINO get the same pixels:
pictures that are resized for the exported file. The file is that of the quantised detector. Times
are those of the detectors of `bench_from_torchvision`, with random weights, beside our bfloat16 and
beside the file that nncf makes for OpenVINO, where it is installed. What was measured before stays
in the result file.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import bench_from_torchvision, onnx_runtimes
from benchmarks.alternate import Rounds, alternate, keep_freed_memory
from benchmarks.bench_from_torchvision import MODELS
from benchmarks.machine import describe
from benchmarks.results import QUANTIZATION
from fastdet.data import Classes, open_dataset
from fastdet.deploy.calibration import calibration_data
from fastdet.deploy.export import DetectFromPixels, export_detector
from fastdet.deploy.onnx_pictures import Arrays, OnnxDetector, coco_metrics
from fastdet.engine import quantize
from fastdet.files import replacing
from fastdet.models import Detector
from fastdet.training.detector_module import load_detector

ROUNDS = Rounds(seconds=40.0, least=7, most=50)
Run = Callable[[Arrays], Arrays]


def in_torch(model: Detector) -> Run:
    """Our detector on what an exported file takes."""
    detect = DetectFromPixels(model)

    @torch.inference_mode()
    def run(feed: Arrays) -> Arrays:
        found = detect(*(torch.from_numpy(feed[name]) for name in ("images", "sizes")))
        return {name: tensor.numpy() for name, tensor in found.items()}

    return run


class Detecting(OnnxDetector):
    """An exported file's pictures, detected by another program than ONNX Runtime."""

    def __init__(self, path: Path, other: Run) -> None:
        super().__init__(path)
        self.other = other

    def run(self, feed: Arrays) -> Arrays:
        """As the file, by the other program."""
        return self.other(feed)


def accuracy(checkpoint: Path, data: Path) -> dict[str, Any]:
    """AP of a checkpoint in float32, of its quantised copy, and of that one's file."""
    module = load_detector(checkpoint)
    model = module.model.eval()
    classes = Classes(module.classes, checkpoint)
    pictures, val = calibration_data(data, classes)
    assert val is not None
    splits = {"val": val, "train": open_dataset(data, "train", classes=classes)}
    small = quantize(model, (picture / 255 for picture in pictures))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        export_detector(small, path, classes=module.classes)
        runs = {"float32": in_torch(model), "fastdet": in_torch(small)}
        runs |= {name: onnx_runtimes.opened(name, path) for name in onnx_runtimes.installed()}
        found = {
            split: {name: coco_metrics(Detecting(path, run), of) for name, run in runs.items()}
            for split, of in splits.items()
        }
    return {
        "backbone": module.hparams["backbone"],
        "min_size": model.border.min_size,
        "data": data.name,
        "images": {split: len(of) for split, of in splits.items()},
        "AP": {
            split: {name: round(100 * float(of.stats["AP"]), 2) for name, of in sides.items()}
            for split, sides in found.items()
        },
    }


@torch.no_grad()
def time_of(name: str, rounds: Rounds, height: int, width: int) -> dict[str, Any]:
    """Milliseconds of the sides of a detector of `bench_from_torchvision`, in turn.

    `ratio` is a side's time relative to that of our integers in the same round.
    """
    with tempfile.TemporaryDirectory() as folder:
        sides = bench_from_torchvision.sides_in_integers(name, height, width, Path(folder))
        for side in sides.values():
            side()
        turns = alternate(sides, rounds)
    seconds = {side: of_side.per_call() for side, of_side in turns.items()}
    return {
        "size": [height, width],
        "rounds": len(seconds["fastdet"]),
        "ms": {side: round(1e3 * statistics.median(own), 1) for side, own in seconds.items()},
        "ratio": {
            side: round(
                statistics.median(a / b for a, b in zip(own, seconds["fastdet"], strict=True)), 3
            )
            for side, own in seconds.items()
        },
    }


def main() -> None:
    """Measures, and writes the result file, in which other detectors stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("time", "accuracy"))
    parser.add_argument("--checkpoints", type=Path, nargs="+", default=[])
    parser.add_argument("--data", type=Path, help="has the checkpoints' classes")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--quick", action="store_true", help="tiny images, one round")
    options = parser.parse_args()
    keep_freed_memory()
    measured: dict[str, Any] = {}
    if options.part == "accuracy":
        for path in options.checkpoints:
            measured[load_detector(path).hparams["model"]] = accuracy(path, options.data)
    else:
        rounds, size = (Rounds(0, 1, 1), (64, 96)) if options.quick else (ROUNDS, (800, 1216))
        for name in options.models:
            measured[name] = time_of(name, rounds, *size)
    result = json.loads(QUANTIZATION.read_text()) if QUANTIZATION.exists() else {}
    before = result.get(options.part, {}).get("detectors", {})
    part = {"machine": describe(), "detectors": before | measured}
    with replacing(QUANTIZATION) as temporary:
        temporary.write_text(json.dumps(result | {options.part: part}, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
