#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Datumaro's export to COCO changes the annotation ids of the data set, and then writes ids twice.
#
# The format "coco" writes several files, of which one has stuff. In that file two annotations of one
# data set have the id 1. The export leaves these ids in the data set: exported next as "coco_instances",
# its instances_train.json has an id twice too. Exported first, the same data set has the ids 1 and 2.
# pycocotools keeps annotations by id, so that it silently loses one of two. (The annotations are given no
# ids: Datumaro is to number them.)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datumaro==1.13.12 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import datumaro
import numpy as np
from datumaro.components.annotation import Bbox, Mask
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image

print(f"datumaro {datumaro.__version__}, numpy {np.__version__}")


def data_set():
    annotations = [Bbox(3, 4, 5, 6, label=0), Mask(np.eye(30, 40, dtype=bool), label=1)]
    picture = Image.from_numpy(data=np.zeros((30, 40, 3), np.uint8))
    item = DatasetItem("a", subset="train", media=picture, annotations=annotations)
    return Dataset.from_iterable([item], categories=["cat", "dog"])


def ids(data, form, kind):
    out = Path(sys.argv[1], f"{form}_{kind}_{len(list(Path(sys.argv[1]).iterdir()))}")
    data.export(str(out), form, save_media=True)
    content = json.loads((out / "annotations" / f"{kind}_train.json").read_text())
    return [annotation["id"] for annotation in content["annotations"]]


alone = ids(data_set(), "coco_instances", "instances")
data = data_set()
stuff = ids(data, "coco", "stuff")
after = ids(data, "coco_instances", "instances")
print(f"coco_instances: annotation ids {alone}")
print(f"coco, stuff: {stuff}; then coco_instances: {after}")
holds = alone == [1, 2] and stuff == [1, 1] and after == [1, 1]
print("as described" if holds else "CHANGED: not what this script describes")
sys.exit(not holds)
PYTHON
