# SPDX-License-Identifier: BSD-3-Clause
"""The COCO metrics of a file of results: of an ensemble, or of any tool that writes COCO results.

Pictures and classes are found in the data set by name if images.json lies beside the results, as
ids may differ there; see `on_split`.
"""

from pathlib import Path

import numpy as np

from fastdet.data.opening import read_split
from fastdet.evaluation.coco_metrics import CocoEvaluator, CocoMetrics
from fastdet.predicting.formats.coco import read_results
from fastdet.predicting.on_split import on_split
from fastdet.training.options import PictureOptions


def evaluate_results(
    file: Path,
    data: Path,
    split: str = "val",
    *,
    drop_other_classes: bool = False,
    pictures: PictureOptions = PictureOptions(),
    files_anywhere: bool = False,
) -> CocoMetrics:
    """COCO metrics of a file of results on a split of a data set.

    The images of the split that images.json has are evaluated; without that file, all images of the
    split. Masks are evaluated too if every detection has one.

    Args:
        file: see `read_results`.
        data, split: see `fastdet.data.open_dataset`.
        drop_other_classes: leave out what the split has of classes that the results lack.
        pictures: how the sizes of pictures are read that the annotations do not state.
        files_anywhere: see `fastdet.data.open_dataset`.

    Raises:
        FileNotFoundError: no such file or split.
        ValueError: not COCO results; results of other data; see `on_split`.
    """
    results = read_results(file)
    masks = bool(results.segmentations) and all(results.segmentations or [])
    truth = read_split(data, split, masks, exif=pictures.exif, files_anywhere=files_anywhere)
    here = on_split(file, results, truth, drop_other_classes)
    category_ids = [i for i, known in zip(truth.category_ids, here.known, strict=True) if known]
    labels = np.append(0, np.cumsum(here.known))[here.results.labels]  # of category_ids
    evaluator = CocoEvaluator(truth, category_ids, masks, exif=pictures.exif)
    evaluator.update_all(
        here.results.image_index,
        labels,
        here.results.boxes_xywh,
        here.results.scores,
        here.masks() if masks else None,
        looked_at=here.looked_at,
    )
    return evaluator.compute()
