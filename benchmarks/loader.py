# SPDX-License-Identifier: BSD-3-Clause
"""Opening a large annotation file, and images a second, beside an earlier state of fastdet.

    git worktree add ../before 7c2fca2 && cp fastdet/*.so ../before/fastdet/
    python -m benchmarks.loader --before ../before --data FOLDER

Each measurement is a process of its own; the two sides take turns. FOLDER is a data set that
`open_dataset` opens, with a split "train".
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.readme_tables import filled
from benchmarks.results import FOLDER, LOADER
from fastdet.files import replacing

ROOT = Path(__file__).resolve().parent.parent
IN_A_PROCESS = Path(__file__).with_name("loader_in_a_process.py")
ANNOTATIONS = 1_000_000
FILES = {"boxes": 0, "with polygons of 12 points": 12}  # corners of each object
WORKERS = (0, 2)


def write_file(path: Path, annotations: int, corners: int) -> None:
    """A COCO file with the fields of val2017, seven objects an image."""
    rng = random.Random(0)
    images = [
        {"license": 4, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640, "id": 3 * i + 139}
        for i in range(max(1, annotations // 7))
    ]
    categories = [{"supercategory": "thing", "id": i, "name": f"class {i}"} for i in range(1, 81)]
    with path.open("w") as file:
        file.write(f'{{"info": {{}}, "images": {json.dumps(images)}, "annotations": [')
        for i in range(annotations):
            left, top = rng.uniform(0, 500), rng.uniform(0, 400)
            width, height = rng.uniform(5, 140), rng.uniform(5, 80)
            polygon = [
                round(low + rng.random() * size, 2)
                for _ in range(corners)
                for low, size in ((left, width), (top, height))
            ]
            one = {
                **({"segmentation": [polygon]} if corners else {}),
                "area": round(width * height * 0.7, 4),
                "iscrowd": 0,
                "image_id": rng.choice(images)["id"],
                "bbox": [round(x, 2) for x in (left, top, width, height)],
                "category_id": rng.randrange(1, 81),
                "id": 2 * i + 1768,
            }
            file.write((", " if i else "") + json.dumps(one))
        file.write(f'], "categories": {json.dumps(categories)}}}')


def in_turn(sides: dict[str, Path], rounds: int, *task: object) -> dict[str, dict[str, Any]]:
    """What the process of each side prints: each number a list over the rounds."""
    measured: dict[str, dict[str, Any]] = {name: {} for name in sides}
    for _ in range(rounds):
        for name, root in sides.items():
            command = [sys.executable, IN_A_PROCESS, root, *task]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            run = subprocess.run(
                [str(part) for part in command],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            if run.returncode:
                raise RuntimeError(f"{name}, {task}: {run.stderr[-2000:]}")
            for key, value in json.loads(run.stdout.splitlines()[-1]).items():
                measured[name].setdefault(key, []).append(value)
            medians = {key: statistics.median(x) for key, x in measured[name].items()}
            print(*task[:1], *task[2:], name, medians, flush=True)
    return measured


def main() -> None:
    """Measures and writes the result file and the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--before", type=Path, required=True, help="a checkout that can be imported"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--annotations", type=int, default=ANNOTATIONS)
    parser.add_argument("--out", type=Path, default=LOADER)
    options = parser.parse_args()
    sides = {"before": options.before.resolve(), "fastdet": ROOT}
    result: dict[str, Any] = {
        "machine": describe(),
        "annotations": options.annotations,
        "data": options.data.name,
        "opening": {},
        "loading": {},
    }
    for workers in WORKERS:
        measured = in_turn(sides, options.rounds, "load", options.data.resolve(), workers)
        result["loading"][str(workers)] = measured
    with tempfile.TemporaryDirectory() as folder:
        for name, corners in FILES.items():
            path = Path(folder) / "instances.json"
            write_file(path, options.annotations, corners)
            measured = in_turn(sides, max(1, options.rounds // 2), "open", path)
            result["opening"][name] = {"mib": path.stat().st_size / 2**20, **measured}
    with replacing(options.out) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    if options.out == LOADER:
        page = FOLDER / "loader.md"
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
