# SPDX-License-Identifier: BSD-3-Clause
"""COCO metrics: equal to pycocotools to the last bit, on generated and real data; and the rules."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fastdet.data import open_dataset
from fastdet.data.coco_file import read_coco_file
from fastdet.evaluation import CocoEvaluator, coco_results
from fastdet.evaluation.coco_metrics import STATS
from tests.data_sets import data_sets


def detections_like(dataset, seed, ties=False):
    """Detections of an imperfect detector: {image id: detections}.

    Some objects are missed, found twice, found exactly, found at a wrong place or with a wrong
    class. There are false positives, too.
    """
    rng = np.random.default_rng(seed)
    num_classes = len(dataset.category_ids)
    found = {}
    for index, image_id in enumerate(dataset.image_ids):
        target = dataset.target(index)
        height, width = target["boxes"].canvas_size
        boxes = target["boxes"].numpy()
        pick = np.flatnonzero(rng.random(len(boxes)) < 0.85)
        pick = np.concatenate([pick, pick[rng.random(len(pick)) < 0.2]])
        labels = target["labels"].numpy()[pick]
        mistaken = rng.random(len(pick)) < 0.1
        labels[mistaken] = rng.integers(1, num_classes + 1, mistaken.sum())
        sides = np.tile(boxes[pick][:, 2:] - boxes[pick][:, :2], 2)
        noise = np.where(rng.random((len(pick), 1)) < 0.3, 0, rng.normal(0, 0.1, (len(pick), 4)))
        near = np.sort((boxes[pick] + sides * noise).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        far = rng.uniform(0, [width, height], (rng.integers(0, 12), 2))
        far = np.concatenate([far, far + np.exp(rng.uniform(1, 5.5, far.shape))], 1)
        scores = np.concatenate(
            [rng.normal(0.65, 0.2, len(near)).clip(0, 1), rng.uniform(0, 0.8, len(far))]
        )
        order = rng.permutation(len(scores))
        found[image_id] = {
            "boxes": torch.tensor(np.concatenate([near, far])[order], dtype=torch.float32),
            "scores": torch.tensor((scores.round(1) if ties else scores)[order]).float(),
            "labels": torch.tensor(
                np.concatenate([labels, rng.integers(1, num_classes + 1, len(far))])[order]
            ),
        }
    return found


def pycocotools_evaluation(annotation_file, results, kind="bbox", image_ids=None):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotation_file))
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.params.imgIds = image_ids or evaluation.params.imgIds
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def evaluator_of(dataset):
    return CocoEvaluator(dataset.annotations, dataset.category_ids)


@pytest.mark.parametrize("ties", [False, True], ids=["noise", "ties"])
@pytest.mark.parametrize("folder", data_sets("bccd", "coco_by", "nuclei", "trash10"))
def test_equal_to_pycocotools_to_the_last_bit(folder, ties):
    dataset = open_dataset(folder, "val")
    found = detections_like(dataset, seed=len(folder.name), ties=ties)
    # Only the evaluator gets the images in another order than the file's, in batches.
    image_ids = [dataset.image_ids[i] for i in torch.randperm(len(dataset)).tolist()]
    evaluator = evaluator_of(dataset)
    for start in range(0, len(image_ids), 7):
        batch = image_ids[start : start + 7]
        evaluator.update(batch, [found[image_id] for image_id in batch])
    metrics, arrays = evaluator.compute(), evaluator.accumulated().eval

    results = coco_results([*found], [*found.values()], dataset.category_ids)
    expected = pycocotools_evaluation(dataset.annotation_file, results)
    assert 0.05 < expected.stats[0] < 0.9
    assert metrics.stats == dict(zip(STATS, expected.stats.tolist(), strict=True))
    for array in ("precision", "recall", "scores"):
        ours = np.asarray(arrays[array])
        assert ours.dtype == expected.eval[array].dtype
        assert np.array_equal(ours, expected.eval[array]), array
    precision = expected.eval["precision"][:, :, :, 0, 2]
    for k, row in enumerate(metrics.per_class):
        valid = precision[:, :, k][precision[:, :, k] > -1]
        valid50 = precision[0, :, k][precision[0, :, k] > -1]
        means = [np.mean(values) if values.size else -1 for values in (valid, valid50)]
        assert means == [row.AP, row.AP50]
        category = expected.cocoGt.cats[dataset.category_ids[k]]
        truth = expected.cocoGt.getAnnIds(catIds=[category["id"]], iscrowd=False)
        assert (row.name, row.n_gt) == (category["name"], len(truth))
        if row.n_gt:
            assert np.array_equal(metrics.pr_curves[row.name][1], precision[0, :, k])
            assert np.array_equal(metrics.pr_curves[row.name][0], expected.params.recThrs)
        else:
            assert row.name not in metrics.pr_curves
    assert (metrics.images, metrics.images_in_file) == (len(dataset), len(dataset))


def crowded_file(path: Path, objects: int) -> Path:
    """One image with a grid of objects."""
    boxes = [[i % 25 * 40, i // 25 * 40, 30, 30] for i in range(objects)]
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 1000, "height": 1000}],
                "categories": [{"id": 1, "name": "a"}],
                "annotations": [
                    {
                        "id": i,
                        "image_id": 1,
                        "category_id": 1,
                        "bbox": box,
                        "area": 900,
                        "iscrowd": 0,
                    }
                    for i, box in enumerate(boxes, 1)
                ],
            }
        )
    )
    return path


@pytest.mark.parametrize(("most", "precision"), [(100, 41 / 101), (250, 1.0), (300, 1.0)])
def test_max_detections_lets_more_than_100_objects_be_found(tmp_path, most, precision):
    file = crowded_file(tmp_path / "crowded.json", 250)
    boxes = torch.tensor([a["bbox"] for a in json.loads(file.read_text())["annotations"]]).float()
    boxes[:, 2:] += boxes[:, :2]
    found = {
        "boxes": boxes,
        "scores": torch.linspace(0.9, 0.1, 250),
        "labels": torch.ones(250, dtype=torch.int64),
    }
    evaluator = CocoEvaluator(file, [1], max_detections=most)
    evaluator.update([1], [found])
    stats = evaluator.compute().stats
    assert stats["AP"] == pytest.approx(precision)
    assert stats["AP50"] == pytest.approx(precision)
    assert stats[f"AR{most}"] == pytest.approx(most / 250 if most < 250 else 1)
    assert list(stats).index(f"AR{most}") == STATS.index("AR100")

    truth = COCO(str(file))
    theirs = COCOeval(truth, truth.loadRes(coco_results([1], [found], [1])), "bbox")
    theirs.params.maxDets = [1, 10, most]
    theirs.evaluate()
    theirs.accumulate()
    ours = evaluator.accumulated().eval
    assert ours is not None
    for array in ("precision", "recall", "scores"):
        assert np.array_equal(np.asarray(ours[array]), theirs.eval[array]), array


def test_max_detections_has_a_least(tmp_path):
    file = crowded_file(tmp_path / "crowded.json", 3)
    with pytest.raises(ValueError, match="max_detections: expected a number above 10, got 10"):
        CocoEvaluator(file, [1], max_detections=10)


def with_masks(dataset, found, rng):
    """Adds a mask to each detection: a shifted mask of an object of the image, or a rectangle."""
    for index, image_id in enumerate(dataset.image_ids):
        masks = dataset.target(index)["masks"].bool()
        height, width = dataset.target(index)["boxes"].canvas_size
        boxes = dataset.target(index)["boxes"]
        rows = []
        for box in found[image_id]["boxes"]:
            x1, y1, x2, y2 = box.round().int().tolist()
            mask = torch.zeros(height, width, dtype=torch.bool)
            mask[max(y1, 0) : y2, max(x1, 0) : x2] = True
            if len(masks) and rng.random() < 0.8:
                nearest = (boxes - box).abs().sum(1).argmin()
                mask = masks[nearest].roll(tuple(rng.integers(-2, 3, 2).tolist()), (0, 1))
            rows.append(mask)
        empty = torch.zeros(0, height, width, dtype=torch.bool)
        found[image_id]["masks"] = (torch.stack(rows) if rows else empty)[:, None]
    return found


@pytest.mark.parametrize("form", ["masks", "probabilities", "segmentations"])
@pytest.mark.parametrize("folder", data_sets("coco_by", "nuclei"))
def test_masks_equal_pycocotools_to_the_last_bit(folder, form):
    dataset = open_dataset(folder, "val", masks=True)
    dataset.image_ids = dataset.image_ids[:25]
    rng = np.random.default_rng(1)
    found = with_masks(dataset, detections_like(dataset, seed=1), rng)
    results = coco_results([*found], [*found.values()], dataset.category_ids)
    for of_image in found.values():
        masks = of_image.pop("masks")
        if form == "segmentations":
            fortran = np.asfortranarray(masks[:, 0].permute(1, 2, 0).numpy(), np.uint8)
            of_image[form] = coco_mask.encode(fortran)
        else:
            of_image["masks"] = masks if form == "masks" else masks * 0.4 + 0.2
    evaluator = CocoEvaluator(dataset.annotations, dataset.category_ids, masks=True)
    evaluator.update([*found], [*found.values()])
    metrics = evaluator.compute()

    without_boxes = [{k: v for k, v in result.items() if k != "bbox"} for result in results]
    expected = pycocotools_evaluation(
        dataset.annotation_file, without_boxes, "segm", dataset.image_ids
    )
    assert 0.05 < expected.stats[0] < 0.95
    assert metrics.masks is not None
    assert metrics.masks.stats == dict(zip(STATS, expected.stats.tolist(), strict=True))
    assert metrics.masks.stats != metrics.stats
    arrays = evaluator.accumulated("segm").eval
    for array in ("precision", "recall", "scores"):
        assert np.array_equal(np.asarray(arrays[array]), expected.eval[array]), array


@pytest.mark.parametrize("folder", data_sets("bccd"))
def test_ties_between_images_are_ordered_by_image_id(folder, tmp_path):
    """The order of images and annotations in the file has the same effect as in pycocotools."""
    content = json.loads((folder / "val.json").read_text())
    rng = np.random.default_rng(0)
    rng.shuffle(content["images"])
    rng.shuffle(content["annotations"])
    (tmp_path / "val.json").write_text(json.dumps(content))
    dataset = open_dataset(tmp_path, "val")
    found = detections_like(dataset, seed=1, ties=True)
    evaluator = evaluator_of(dataset)
    evaluator.update([*found], [*found.values()])
    results = coco_results([*found], [*found.values()], dataset.category_ids)
    expected = pycocotools_evaluation(dataset.annotation_file, results)
    assert [*evaluator.compute().stats.values()] == expected.stats.tolist()


@pytest.mark.parametrize("folder", data_sets("coco_by"))
def test_crowds_and_all_area_ranges_are_among_them(folder):
    """The generated data has all these cases; without them the tests above would prove less."""
    content = json.loads((folder / "val.json").read_text())
    assert sum(a["iscrowd"] for a in content["annotations"]) >= 5
    areas = np.array([a["area"] for a in content["annotations"]])
    assert np.histogram(areas, [0, 32**2, 96**2, 1e9])[0].min() > 50


@pytest.mark.parametrize("folder", data_sets("trash10", "coco_by"))
def test_ground_truth_as_detections_is_perfect(folder):
    dataset = open_dataset(folder, "val")
    assert dataset.category_ids != list(range(1, len(dataset.category_ids) + 1))
    evaluator = evaluator_of(dataset)
    for index in range(len(dataset)):
        target = dataset.target(index)
        target["scores"] = torch.ones(len(target["labels"]))
        evaluator.update([target.pop("image_id")], [target])
    metrics = evaluator.compute()
    assert metrics.stats["AP"] == pytest.approx(1, abs=1e-12)
    assert metrics.stats["AR100"] == 1
    assert {round(row.AP, 12) for row in metrics.per_class if row.n_gt} == {1}


def detection(*rows):
    """Rows of x1, y1, x2, y2, score, label."""
    rows = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return {"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()}


@pytest.fixture
def file(tmp_path):
    """Three images and three categories; "none" has no object. All ids start at 0."""
    square = {"area": 100, "iscrowd": 0}
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in (2, 0, 1)
        ],
        "categories": [{"id": 7, "name": "b"}, {"id": 0, "name": "a"}, {"id": 3, "name": "none"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0, "bbox": [0, 0, 10, 10], **square},
            {"id": 1, "image_id": 0, "category_id": 7, "bbox": [20, 0, 10, 10], **square},
            {"id": 2, "image_id": 2, "category_id": 7, "bbox": [40, 0, 10, 10], **square},
        ],
    }
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    return path


PERFECT = {
    0: detection([0, 0, 10, 10, 0.9, 1], [20, 0, 30, 10, 0.8, 3]),
    1: detection(),
    2: detection([40, 0, 50, 10, 0.7, 3]),
}


def test_a_class_without_objects_is_left_out_of_the_mean(file):
    evaluator = CocoEvaluator(file, [0, 3, 7])
    evaluator.update([*PERFECT], [*PERFECT.values()])
    metrics = evaluator.compute()
    assert [tuple(row) for row in metrics.per_class] == [
        ("a", pytest.approx(1), pytest.approx(1), 1),
        ("none", -1, -1, 0),
        ("b", pytest.approx(1), pytest.approx(1), 2),
    ]
    assert metrics.stats["AP"] == pytest.approx(1)
    assert metrics.stats["APl"] == -1
    assert set(metrics.pr_curves) == {"a", "b"}


def test_annotation_id_0_counts_here_though_not_in_pycocotools(file):
    results = coco_results([*PERFECT], [*PERFECT.values()], [0, 3, 7])
    assert pycocotools_evaluation(file, results).stats[0] == pytest.approx(0.5)
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["id"] += 1
    file.write_text(json.dumps(content))
    assert pycocotools_evaluation(file, results).stats[0] == pytest.approx(1)


def test_no_detection_at_all(file):
    evaluator = CocoEvaluator(file, [0, 3, 7])
    evaluator.update([0, 1, 2], [detection()] * 3)
    metrics = evaluator.compute()
    assert metrics.stats["AP"] == 0
    assert [row.AP for row in metrics.per_class] == [0, -1, 0]


def test_no_object_at_all(file):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "annotations": []}))
    evaluator = CocoEvaluator(file, [0, 3, 7])
    evaluator.update([0, 2], [PERFECT[0], PERFECT[2]])
    metrics = evaluator.compute()
    assert set(metrics.stats.values()) == {-1}
    assert metrics.pr_curves == {}


def test_a_part_of_the_images_is_scored_as_that_part(file):
    evaluator = CocoEvaluator(file, [0, 3, 7])
    evaluator.update([2], [PERFECT[2]])
    metrics = evaluator.compute()
    assert metrics.stats["AP"] == pytest.approx(1)
    assert [row.n_gt for row in metrics.per_class] == [0, 0, 1]
    assert (metrics.images, metrics.images_in_file) == (1, 3)
    evaluator.update([0], [detection()])
    # Class "a" has AP 0; half of the objects of "b" are found.
    assert evaluator.compute().stats["AP"] == pytest.approx(51 / 101 / 2)


def test_reset_forgets(file):
    evaluator = CocoEvaluator(file, [0, 3, 7])
    evaluator.update([0], [detection([50, 50, 60, 60, 1, 1])])
    evaluator.reset()
    with pytest.raises(ValueError, match="no image was given"):
        evaluator.compute()
    evaluator.update([*PERFECT], [*PERFECT.values()])
    assert evaluator.compute().stats["AP"] == pytest.approx(1)


def test_background_is_no_detection(file):
    evaluator = CocoEvaluator(file, [0, 3, 7])
    evaluator.update([1], [detection([0, 0, 1, 1, 1, 0])])
    without = CocoEvaluator(file, [0, 3, 7])
    without.update([1], [detection()])
    assert evaluator.compute().stats == without.compute().stats
    assert coco_results([1], [detection([0, 0, 1, 1, 1, 0])], [0, 3, 7]) == []


def test_wrong_updates(file):
    evaluator = CocoEvaluator(file, [0, 3, 7])
    with pytest.raises(ValueError, match=r"val\.json: no image with id 9"):
        evaluator.update([9], [detection()])
    evaluator.update([1], [detection()])
    with pytest.raises(ValueError, match="image id 1 was given to the evaluator twice"):
        evaluator.update([1], [detection()])
    with pytest.raises(ValueError, match="2 image ids but 1 detections"):
        evaluator.update([0, 2], [detection()])
    for label in (4, -1):
        with pytest.raises(ValueError, match=r"image id 0: labels must be 0\.\.3"):
            evaluator.update([0], [detection([0, 0, 1, 1, 1, label])])
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="image id 0: a detection's box or score is not fin"):
            evaluator.update([0], [detection([0, 0, value, 1, 1, 1])])
        with pytest.raises(ValueError, match="image id 0: a detection's box or score is not fin"):
            evaluator.update([0], [detection([0, 0, 1, 1, value, 1])])
    with pytest.raises(ValueError, match="image id 0: 1 boxes, 2 scores, 1 labels"):
        evaluator.update([0], [{**detection([0, 0, 1, 1, 1, 1]), "scores": torch.ones(2)}])
    with pytest.warns(match="3 annotations skipped: no segmentation"):
        of_masks = CocoEvaluator(file, [0, 3, 7], masks=True)
    with pytest.raises(ValueError, match="image id 0: expected detections with masks"):
        of_masks.update([0], [detection()])
    one_box_two_masks = {**detection([0, 0, 1, 1, 1, 1]), "masks": torch.zeros(2, 1, 9, 9).bool()}
    with pytest.raises(ValueError, match="image id 0: 1 boxes, 2 masks"):
        of_masks.update([0], [one_box_two_masks])
    with pytest.raises(ValueError, match=r"val\.json: no category with id 5"):
        CocoEvaluator(file, [0, 5, 7])
    with pytest.raises(ValueError, match=r"val\.json: expected annotations that were read with ma"):
        CocoEvaluator(read_coco_file(file), [0, 3, 7], masks=True)


def test_results_are_json_in_the_files_own_ids():
    results = coco_results([4, 8], [detection([1, 2, 4, 8, 0.5, 2]), detection()], [10, 30])
    assert json.loads(json.dumps(results)) == [
        {"image_id": 4, "category_id": 30, "bbox": [1, 2, 3, 6], "score": 0.5}
    ]
