# SPDX-License-Identifier: BSD-3-Clause
"""Detection on tiles: the tiles and the merged boxes, also beside SAHI's."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from fastdet.cli import main
from fastdet.data import read_image
from fastdet.predicting import detect
from fastdet.predicting.formats import read_results
from fastdet.predicting.looking import Look
from fastdet.predicting.options import ViewOptions
from fastdet.predicting.tiles import Found, detect_on_tiles, in_batches, merged, tiles

SIZES = [(100, 100), (64, 64), (65, 200), (30, 20), (128, 64), (333, 257), (1, 500)]


def slow_tiles(height: int, width: int, tile: int, overlap: float) -> list[tuple[int, ...]]:
    """Every window that begins at a multiple of the step, moved back into the picture."""
    step = tile - int(tile * overlap)
    found = []
    for y in range(0, height, step):
        for x in range(0, width, step):
            top, left = max(0, min(y, height - tile)), max(0, min(x, width - tile))
            window = left, top, min(left + tile, width), min(top + tile, height)
            if window not in found:
                found.append(window)
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.9])
def test_the_tiles_cover_a_picture(size: tuple[int, int], overlap: float) -> None:
    found = tiles(*size, 64, overlap)
    assert set(found) == set(slow_tiles(*size, 64, overlap))
    covered = np.zeros(size, bool)
    for x1, y1, x2, y2 in found:
        covered[y1:y2, x1:x2] = True
        assert (x2 - x1, y2 - y1) == (min(64, size[1]), min(64, size[0]))
    assert covered.all()
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_the_tiles_are_those_of_sahi(size: tuple[int, int], overlap: float) -> None:
    slicing = pytest.importorskip("sahi.slicing", exc_type=ImportError)
    theirs = slicing.get_slice_bboxes(
        *size, 64, 64, overlap_height_ratio=overlap, overlap_width_ratio=overlap
    )
    assert [list(tile) for tile in tiles(*size, 64, overlap)] == theirs


def find_bright(images: Sequence[Tensor]) -> list[Found]:
    """A detector of bright areas on black: label by colour, score by size."""
    answers = []
    for image in images:
        rows = []
        for label, plane in enumerate(image[:2].numpy(), 1):
            areas: Any = ndimage.label(plane > 99)
            for y, x in ndimage.find_objects(areas[0]):
                area = (y.stop - y.start) * (x.stop - x.start)
                rows.append((x.start, y.start, x.stop, y.stop, label, 0.3 + area / 20000))
        table = torch.tensor(rows).reshape(-1, 6)
        order = table[:, 5].argsort(descending=True, stable=True)
        boxes, labels, scores = table[order].split([4, 1, 1], 1)
        answers.append({"boxes": boxes, "labels": labels[:, 0].long(), "scores": scores[:, 0]})
    return answers


def picture() -> Tensor:
    """Bright areas of two classes; many cross the borders of tiles of 64."""
    image = torch.zeros(3, 200, 230, dtype=torch.uint8)
    for i, (y, x) in enumerate([(5, 5), (50, 50), (60, 120), (100, 40), (110, 140), (150, 190)]):
        image[i % 2, y : y + 20 + i, x : x + 24 - i] = 200
    return image


@pytest.mark.parametrize("merge", ["nmm", "nms"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_objects_that_tiles_cut_are_found_once(merge, whole, batch_size) -> None:
    image = picture()
    options = ViewOptions(overlap=0.5, merge=merge, tile_whole=whole)
    found = detect_on_tiles(find_bright, image, 64, options, batch_size)
    expected = find_bright([image])[0]

    def rows(of: Found) -> list[tuple[list[float], int]]:
        return sorted(zip(of["boxes"].tolist(), of["labels"].tolist(), strict=True))

    assert rows(found) == rows(expected)
    assert torch.equal(found["scores"], found["scores"].sort(descending=True)[0])


def test_a_picture_of_one_tile_is_found_as_it_is() -> None:
    image = picture()
    found = detect_on_tiles(find_bright, image, 230, ViewOptions(tile_whole=True), 1)
    assert all(torch.equal(found[name], find_bright([image])[0][name]) for name in found)


def test_parts_of_a_larger_object_than_the_overlap_are_joined_or_left() -> None:
    """Of an object that no tile holds, nmm gives what overlaps; nms the best part."""
    image = torch.zeros(3, 64, 150, dtype=torch.uint8)
    image[0, 20:40, 10:140] = 255
    joined = detect_on_tiles(find_bright, image, 64, ViewOptions(overlap=0.5), 1)
    best = detect_on_tiles(find_bright, image, 64, ViewOptions(overlap=0.5, merge="nms"), 1)
    assert joined["boxes"][0].tolist() != best["boxes"][0].tolist()
    areas = [(b[:, 2:] - b[:, :2]).prod(1).max() for b in (joined["boxes"], best["boxes"])]
    assert areas[0] > areas[1]
    whole = detect_on_tiles(find_bright, image, 64, ViewOptions(overlap=0.5, tile_whole=True), 1)
    assert whole["boxes"].tolist() == [[10, 20, 140, 40]]


def slow_merge(found: Found, threshold: float) -> list[list[float]]:
    """Greedy merging in float64: each box joins the best kept box of its class that it overlaps."""
    groups: list[list[int]] = []
    boxes, labels = found["boxes"].double().numpy(), found["labels"].tolist()
    for i in found["scores"].argsort(descending=True, stable=True).tolist():
        for group in groups:
            a, b = boxes[group[0]], boxes[i]
            inter = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
            smaller = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
            if labels[group[0]] == labels[i] and inter / smaller >= threshold:
                group.append(i)
                break
        else:
            groups.append([i])
    return [[*boxes[g, :2].min(0).tolist(), *boxes[g, 2:].max(0).tolist()] for g in groups]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0])
def test_merging_is_that_of_the_definition(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=generator) * 200
    boxes = torch.cat([corner, corner + 5 + torch.rand(300, 2, generator=generator) * 40], 1)
    scores = torch.randperm(300, generator=generator) / 300
    found = {"boxes": boxes, "labels": torch.arange(300) % 3, "scores": scores}
    assert merged(found, "nmm", threshold)["boxes"].tolist() == slow_merge(found, threshold)


def test_a_sliced_prediction_is_that_of_sahi() -> None:
    pytest.importorskip("sahi", exc_type=ImportError)
    from sahi.models.base import DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction

    class Ours(DetectionModel):
        def load_model(self) -> None:
            self.model = find_bright

        def perform_inference(self, image: np.ndarray) -> None:
            tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
            self._original_predictions = self.model([tensor])[0]

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            found = self._original_predictions
            shift, full = (  # of a tile a list of one, of the whole picture bare
                value[0] if isinstance(value[0], list) else value
                for value in (shift_amount_list, full_shape_list)
            )
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(
                        bbox=box,
                        category_id=label,
                        score=score,
                        category_name="any",
                        shift_amount=shift,
                        full_shape=full,
                    )
                    for box, label, score in zip(*(x.tolist() for x in found.values()), strict=True)
                ]
            ]

    image = picture()
    for whole in (False, True):
        theirs = get_sliced_prediction(
            np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
            Ours(confidence_threshold=0.3),
            64,
            64,
            0.5,
            0.5,
            perform_standard_pred=whole,
            verbose=0,
        ).object_prediction_list
        ours = detect_on_tiles(
            find_bright, image, 64, ViewOptions(overlap=0.5, tile_whole=whole), 4
        )
        rows = zip(ours["boxes"].tolist(), ours["labels"].tolist(), strict=True)
        assert sorted(rows) == sorted((one.bbox.to_xyxy(), one.category.id) for one in theirs)
        scores = sorted(one.score.value for one in theirs)
        assert sorted(ours["scores"].tolist()) == pytest.approx(scores)


def test_batches_are_of_one_size() -> None:
    seen = []

    def detect(images: Sequence[Tensor]) -> list[Found]:
        assert len({image.shape for image in images}) == 1
        seen.append(len(images))
        return [{"boxes": image.sum()[None]} for image in images]

    images = [torch.full((3, 4, width), i) for i, width in enumerate([5, 5, 5, 6, 5, 5])]
    found = in_batches(detect, images, 2)
    assert seen == [2, 1, 1, 2]
    assert [one["boxes"].item() for one in found] == [image.sum() for image in images]


def test_tiles_in_the_command_line(detector, tmp_path: Path, refused) -> None:
    checkpoint, module = detector
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    command = f"predict --checkpoint {checkpoint} --images {tmp_path}/a.png --score-threshold 0"
    options = "--tile auto --overlap 0.1 --merge nms --merge-threshold 0.8 --tile-whole"
    main(f"{command} --out {tmp_path}/out {options}".split())
    image = read_image(tmp_path / "a.png")
    views = ViewOptions(64, 0.1, "nms", 0.8, True)
    expected = detect_on_tiles(lambda images: detect(module, images, 0.0), image, 64, views, 1)
    found = read_results(tmp_path / "out" / "detections.json")
    objects = expected["labels"] > 0  # COCO's results have no background
    np.testing.assert_allclose(found.boxes, expected["boxes"][objects], atol=1e-3)
    assert len(found.scores) > 5
    for option, message in {
        "--tile 0": "tile: expected a number of pixels from 1 on, or auto, got 0",
        "--overlap 1": "overlap: expected a number in [0, 1), got 1.0",
        "--merge-threshold 0": "merge_threshold: expected a number in (0, 1], got 0.0",
    }.items():
        assert message in refused(f"{command} --out {tmp_path}/no {option}".split())


def test_tiles_of_masks_are_refused() -> None:
    model = SimpleNamespace(learns_masks=True, suppression=lambda: None, modules=lambda: [])
    module = SimpleNamespace(model=model, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="tile: expected a detector of boxes, got SimpleNamespace"):
        Look(module, ViewOptions(tile=64), 0.5)  # type: ignore[arg-type]
    Look(module, ViewOptions(tta=("flip",)), 0.5)  # type: ignore[arg-type]
