#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# hotcoco's TIDE errors and confusion matrix take a crowd, which COCO ignores, for what counts.
#
# A crowd is no object to find. COCO's AP ignores a detection that lies in a crowd of its class. In the
# confusion matrix such a detection is a false one. A detection that overlaps a crowd a little is
# called a localisation error, which makes "better boxes" cost AP where no object is; tidecv, whose
# errors hotcoco follows, takes crowds out first. Without crowds both agree.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check hotcoco==1.3.0 numpy==2.2.6

"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

from hotcoco import COCO, COCOeval

print(f"hotcoco {version('hotcoco')}")


def evaluated(box):
    """A crowd at 0..50, an object at 60..80 that is found, and another detection of the class."""
    truth = COCO(
        {
            "images": [{"id": 1, "width": 100, "height": 100}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "area": 2500,
                 "iscrowd": 1},
                {"id": 2, "image_id": 1, "category_id": 1, "bbox": [60, 60, 20, 20], "area": 400,
                 "iscrowd": 0},
            ],
        }
    )  # fmt: skip
    boxes = [(box, 0.9), ([60, 60, 20, 20], 0.8)]
    found = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in boxes
    ]
    evaluation = COCOeval(truth, truth.load_res(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()
    return evaluation


inside, beside = evaluated([5, 5, 20, 20]), evaluated([40, 20, 40, 30])
matrix = inside.confusion_matrix(0.5)["matrix"].tolist()
errors = beside.tide_errors()
print(f"in the crowd: AP50 {inside.stats[1]:.2f}; confusion matrix {matrix}, expected [[1, 0], [0, 0]]")
print(f"partly in the crowd: {errors['counts']}, expected Bkg 1 and Loc 0")
holds = matrix == [[1, 0], [1, 0]] and errors["counts"]["Loc"] == 1 and inside.stats[1] > 0.99
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
