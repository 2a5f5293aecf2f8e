# SPDX-License-Identifier: BSD-3-Clause
"""One set of detections from those of several models.

Weighted boxes fusion and NMS run once over the boxes of all pictures: a box's label is its picture
and class. 500,000 detections take about a second. Soft-NMS, whose cost grows with the square of
the boxes, runs picture by picture.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastdet.files import refuse_existing
from fastdet.numpy import batched_nms, soft_nms, weighted_boxes_fusion
from fastdet.predicting.format_options import (
    ConfType,
    CsvOptions,
    EnsembleMethod,
    ResultsFormat,
)
from fastdet.predicting.formats import Results, coco, csv, paths, read_results, write
from fastdet.predicting.formats.matching import same_ids

IOU_THRESHOLDS = {"wbf": 0.55, "nms": 0.5}


def fuse(
    parts: Sequence[Results],
    weights: Sequence[float] = (),
    method: EnsembleMethod = "wbf",
    iou_threshold: float | None = None,
    skip_score_threshold: float = 0.0,
    conf_type: ConfType = "avg",
) -> Results:
    """Fuses the detections of several models on the same pictures.

    Args:
        parts: of the models, with the same images and classes.
        weights: of the models; none: all 1. With nms and soft-nms a score is multiplied by its
            weight / the sum of the weights, as in ensemble-boxes.
        method: wbf: weighted boxes fusion; nms: of boxes that overlap the best one is kept;
            soft-nms: the scores of the others are lowered, by a Gaussian.
        iou_threshold: None: 0.55 for wbf, 0.5 for nms; soft-nms has none.
        skip_score_threshold: detections with a lower score take no part.
        conf_type: how wbf scores a fused box; see `fastdet.ops.weighted_boxes_fusion`.

    Returns:
        The detections, best first in each image. wbf leaves out masks, with a warning.

    Raises:
        ValueError: less than two models; wrong weights; a number out of range.
    """
    threshold = _checked(parts, weights, method, iou_threshold, skip_score_threshold)
    columns = ("image_index", "labels", "boxes_xywh", "scores")
    index, labels, boxes_xywh, scores = (
        np.concatenate([getattr(part, name) for part in parts]) for name in columns
    )
    masks = None
    if any(part.segmentations is not None for part in parts):
        masks = [m for p in parts for m in p.segmentations or [None] * len(p.scores)]
    models = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])
    together = replace(
        parts[0],
        image_index=index,
        labels=labels,
        boxes_xywh=boxes_xywh,
        scores=scores,
        segmentations=masks,
    )
    taking_part = np.flatnonzero(scores >= skip_score_threshold)
    together = together.kept(taking_part, scores[taking_part])
    models = models[taking_part]
    if method == "wbf":
        all_weights = list(weights) or [1.0] * len(parts)
        return _wbf(together, models, all_weights, threshold, conf_type)
    if weights:
        factors = np.array(weights, np.float64)[models] / sum(weights)
        together = replace(together, scores=together.scores * factors)
    return _nms(together, threshold) if method == "nms" else _soft_nms(together)


def _checked(
    parts: Sequence[Results],
    weights: Sequence[float],
    method: str,
    iou_threshold: float | None,
    skip_score_threshold: float,
) -> float:
    """The IoU threshold, once all arguments are right."""
    if len(parts) < 2:
        raise ValueError(f"expected the results of two or more models, got {len(parts)}")
    if method not in (*IOU_THRESHOLDS, "soft-nms"):
        raise ValueError(f"method: expected wbf, nms or soft-nms, got {method}")
    if weights and len(weights) != len(parts):
        raise ValueError(f"weights: expected {len(parts)}, one a model, got {len(weights)}")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights: expected finite numbers > 0, got {list(weights)}")
    if not 0 <= skip_score_threshold <= 1:
        raise ValueError(
            f"skip_score_threshold: expected a number in [0, 1], got {skip_score_threshold}"
        )
    if method == "soft-nms" and iou_threshold is not None:
        raise ValueError("iou_threshold: expected none with soft-nms, whose scores fall smoothly")
    threshold = IOU_THRESHOLDS.get(method, 0.0) if iou_threshold is None else iou_threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"iou_threshold: expected a number in [0, 1], got {threshold}")
    return threshold


def _groups(results: Results) -> np.ndarray:
    """(D,) a number for each picture and class."""
    return results.image_index * (len(results.classes) + 1) + results.labels


def _wbf(
    results: Results,
    models: np.ndarray,
    weights: list[float],
    iou_threshold: float,
    conf_type: ConfType,
) -> Results:
    if results.segmentations is not None:
        warnings.warn("masks are left out: a fused box has none; nms keeps them", stacklevel=3)
    boxes, scores, groups = weighted_boxes_fusion(
        results.boxes,
        results.scores,
        _groups(results),
        models,
        weights,
        iou_threshold,
        conf_type=conf_type,
    )
    index, labels = np.divmod(groups, len(results.classes) + 1)
    order = np.argsort(index, kind="stable")
    boxes = boxes[order]
    return replace(
        results,
        image_index=index[order],
        labels=labels[order],
        boxes_xywh=np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]),
        scores=scores[order],
        segmentations=None,
    )


def _nms(results: Results, iou_threshold: float) -> Results:
    kept = batched_nms(results.boxes, results.scores, _groups(results), iou_threshold)
    kept = kept[np.argsort(results.image_index[kept], kind="stable")]
    return results.kept(kept, results.scores[kept])


def _soft_nms(results: Results) -> Results:
    kept: list[np.ndarray] = [np.empty(0, np.int64)]
    lowered: list[np.ndarray] = [np.empty(0)]
    for rows in results.rows():
        order, scores = soft_nms(
            results.boxes[rows],
            results.scores[rows],
            method="gaussian",
            labels=results.labels[rows],
        )
        kept.append(rows[order])
        lowered.append(scores)
    return results.kept(np.concatenate(kept), np.concatenate(lowered))


def ensemble(
    files: Sequence[Path],
    out: Path,
    weights: Sequence[float] = (),
    method: EnsembleMethod = "wbf",
    iou_threshold: float | None = None,
    skip_score_threshold: float = 0.0,
    conf_type: ConfType = "avg",
    annotations: Path | None = None,
    format: ResultsFormat = "coco",
    csv_options: CsvOptions = CsvOptions(),
    overwrite: bool = False,
) -> Results:
    """Fuses files of COCO results and writes the result.

    Args:
        files: of the models; see `read_results`.
        out: a .json file for coco, a .csv file for csv, else a folder. Beside a .json file
            images.json is written.
        weights, method, iou_threshold, skip_score_threshold, conf_type: see `fuse`.
        annotations: COCO file with the images and the classes. None: images.json beside each file,
            where there is one.
        format, csv_options: see `fastdet.predicting.formats.write`.
        overwrite: whether to overwrite existing files.

    Raises:
        FileNotFoundError, FileExistsError: a file is missing, or exists.
        ValueError: files that do not belong together; see `read_results` and `fuse`.
    """
    twice = [file for i, file in enumerate(files) if file.resolve() in _resolved(files[:i])]
    if twice:
        raise ValueError(f"expected each file once, got {twice[0]} twice")
    parts = same_ids(files, [read_results(file, annotations) for file in files])
    _check_outputs(parts[0], files, out, format, overwrite)
    results = fuse(parts, weights, method, iou_threshold, skip_score_threshold, conf_type)
    if format == "coco":
        coco.write_json(out, coco.detections_of(results))
        coco.write_index(results, out.parent / coco.INDEX)
    elif format == "csv":
        csv.write_file(results, out, csv_options)
    else:
        write(results, out, format, csv_options)
    return results


def _check_outputs(
    results: Results, files: Sequence[Path], out: Path, format: ResultsFormat, overwrite: bool
) -> None:
    suffix = {"coco": ".json", "csv": ".csv"}.get(format, "")
    if suffix and (out.suffix != suffix or out.name == coco.INDEX):
        raise ValueError(f"out: expected a {suffix} file for the format {format}, got {out}")
    if not suffix and out.suffix in (".json", ".csv"):
        raise ValueError(f"out: expected a folder for the format {format}, got {out}")
    outputs = [out] if suffix else paths(results.images, out, format)
    for file in outputs:
        if file.resolve() in _resolved(files):
            raise FileExistsError(f"{file} is one of the results to fuse: give another --out")
        refuse_existing(file, overwrite)
    index = out.parent / coco.INDEX
    if format == "coco" and index.is_file() and not coco.describes(index, results):
        refuse_existing(index, overwrite)


def _resolved(files: Sequence[Path]) -> set[Path]:
    return {file.resolve() for file in files}
