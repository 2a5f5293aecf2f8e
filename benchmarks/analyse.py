# SPDX-License-Identifier: BSD-3-Clause
"""The time of `fastdet analyse` for a problem of the size of val2017, made from a seed.

    python -m benchmarks.analyse

5,000 pictures, 36,000 objects of 80 classes, 500,000 detections: a COCO file and two results files
in a temporary folder, analysed by the command line in a process of its own, once one file alone and
once two side by side. There are no picture files, so the drawn ones are grey.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from benchmarks.readme_tables import ROOT, filled
from benchmarks.results import ANALYSE
from fastdet.files import replacing

IMAGES, OBJECTS, DETECTIONS, CLASSES = 5_000, 36_000, 500_000, 80
SIZE = 640


def boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """(N, 4) xywh inside a picture; the sides from 10 to 300 pixels."""
    sides = np.exp(rng.uniform(np.log(10), np.log(300), (number, 2)))
    return np.concatenate([rng.uniform(0, 1, (number, 2)) * (SIZE - sides), sides], axis=1)


def write_problem(folder: Path, images: int, objects: int, detections: int) -> list[Path]:
    """A split `val` in the folder, and two results files: half around objects, half anywhere."""
    rng = np.random.default_rng(0)
    of, labels, gt_boxes = (
        rng.integers(0, images, objects),
        rng.integers(1, CLASSES + 1, objects),
        boxes(rng, objects),
    )
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": SIZE, "height": SIZE} for i in range(images)
        ],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, CLASSES + 1)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(i % 100 == 0),
            }
            for i, (image, label, box) in enumerate(
                zip(of.tolist(), labels.tolist(), gt_boxes.tolist(), strict=True)
            )
        ],
    }
    (folder / "val.json").write_text(json.dumps(content))
    files = []
    for name in ("first", "second"):
        near = detections // 2
        source = rng.integers(0, objects, near)
        moved = gt_boxes[source] + rng.normal(0, 0.15, (near, 4)) * np.tile(gt_boxes[source, 2:], 2)
        moved[:, 2:] = np.maximum(moved[:, 2:], 2)
        said = np.where(rng.random(near) < 0.8, labels[source], rng.integers(1, CLASSES + 1, near))
        far = detections - near
        columns = (
            [*of[source].tolist(), *rng.integers(0, images, far).tolist()],
            [*said.tolist(), *rng.integers(1, CLASSES + 1, far).tolist()],
            [*moved.tolist(), *boxes(rng, far).tolist()],
            [*rng.beta(2, 2, near).tolist(), *rng.beta(1, 6, far).tolist()],
        )
        rows = [
            {"image_id": image, "category_id": label, "bbox": box, "score": score}
            for image, label, box, score in zip(*columns, strict=True)
        ]
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(rows))
    return files


def measured(arguments: list[str]) -> dict[str, float]:
    """Seconds of a run of the command line, by the clock and of all processors."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command = [sys.executable, "-m", "fastdet.cli", "analyse", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def main() -> None:
    """Measures, and writes the result file and the tables that are made of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny problem, written to --out only"
    )
    parser.add_argument("--out", type=Path, default=ANALYSE)
    options = parser.parse_args()
    shrunk = 100 if options.quick else 1
    sizes = [number // shrunk for number in (IMAGES, OBJECTS, DETECTIONS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, second = map(str, write_problem(folder, *sizes))
        usual = [first, "--data", name]
        result = {
            "machine": {**describe(), "cores": str(os.cpu_count())},
            "images": sizes[0],
            "objects": sizes[1],
            "detections": sizes[2],
            "classes": CLASSES,
            "one": measured([*usual, "--out", f"{name}/one"]),
            "two": measured([*usual, "--beside", second, "--out", f"{name}/two"]),
        }
    with replacing(options.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if options.out == ANALYSE:
        page = ROOT / "docs" / "analysis.md"
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
