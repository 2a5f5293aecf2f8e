# SPDX-License-Identifier: BSD-3-Clause
"""Augmentation in a training: seeded by (seed, epoch, image), exact after a resume, as asked."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from fastdet.cli import main
from fastdet.data import ScaleJitter, open_dataset, write_shapes
from fastdet.models import RetinaNet
from fastdet.models.border import Border
from fastdet.training.data_module import DetectionDataModule
from fastdet.training.detector_module import NonFiniteLossError, load_detector
from fastdet.training.multi_scale import batch_border
from fastdet.training.options import AugmentOptions, ShowOptions, TrainOptions
from fastdet.training.train import train

ALL = AugmentOptions(
    flip=0.3,
    photometric=0.5,
    crop=0.3,
    lsj=(0.5, 2),
    copy_paste=0.6,
    mosaic=0.6,
    mixup=0.4,
    close_mosaic=1,
    multi_scale=(32, 64),
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=7, val=2, size=64)


def items(
    shapes: Path, epoch: int = 0, **options: Any
) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    loader = DetectionDataModule(
        shapes, batch_size=2, seed=5, size=64, **options
    ).train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [item for images, targets in loader for item in zip(images, targets, strict=True)]


def check_same(a: Any, b: Any) -> None:
    for (image, target), (again, same) in zip(a, b, strict=True):
        assert torch.equal(image, again)
        assert target.keys() == same.keys()
        assert target["image_id"] == same["image_id"]
        for key in target.keys() - {"image_id"}:
            assert torch.equal(target[key], same[key]), key


def different(a: Any, b: Any) -> bool:
    return any(
        image.shape != other.shape or not torch.equal(image, other)
        for (image, _), (other, _) in zip(a, b, strict=True)
    )


def test_without_options_the_batches_are_those_of_before(shapes: Path) -> None:
    recipe = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            ScaleJitter((0.8, 1.25)),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(min_size=1.0, min_area=1.0),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    dataset = open_dataset(shapes, "train", recipe)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(hash((5, 1)))).tolist()
    expected = []
    for index in order[:6]:
        torch.manual_seed(hash((5, 1, index)))
        expected.append(dataset[index])
    found = items(shapes, epoch=1)
    check_same(found, expected)
    # As version 0.1.0 made them, before there were options.
    assert [target["image_id"] for _, target in found] == [3, 2, 5, 4, 7, 6]
    second = [[16.0, 39.385, 45.538, 64.0], [19.692, 16.0, 44.308, 45.538]]
    torch.testing.assert_close(found[1][1]["boxes"], torch.tensor(second), rtol=0, atol=1e-3)


def test_items_are_the_same_for_any_number_of_workers_and_any_random_state(shapes: Path) -> None:
    torch.manual_seed(1)
    first = items(shapes, workers=0, augmentation=ALL, masks=True)
    state = torch.get_rng_state()
    check_same(first, items(shapes, workers=2, augmentation=ALL, masks=True))
    torch.set_rng_state(state)
    other = items(shapes, epoch=1, augmentation=ALL, masks=True)
    assert {t["image_id"] for _, t in first} & {t["image_id"] for _, t in other}
    assert different(first, other)


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 0.0},
        {"scale_jitter": (1.0, 1.0)},
        {"scale_jitter": (0.3, 0.4)},
        {"photometric": 1.0},
        {"crop": 1.0},
        {"lsj": (0.1, 2.0)},
        {"copy_paste": 1.0},
        {"mosaic": 1.0},
        {"mixup": 1.0},
    ],
    ids=lambda change: "-".join(change),
)
def test_each_option_reaches_the_items(shapes: Path, change: dict[str, Any]) -> None:
    plain = items(shapes)
    changed = items(shapes, augmentation=AugmentOptions(**change))
    assert different(plain, changed)
    if change.keys() <= {"lsj", "mosaic"}:
        assert {image.shape for image, _ in changed} == {(3, 64, 64)}


def test_the_last_epochs_have_no_mosaic_and_no_mixup(shapes: Path) -> None:
    alone = AugmentOptions(copy_paste=0.5)
    mixed = replace(alone, mosaic=1.0, mixup=0.5)
    # Of 20 epochs; a tenth is 2.
    for close, epoch, closed in (
        (None, 17, False),
        (None, 18, True),
        (1, 18, False),
        (1, 19, True),
        (0, 19, False),
        (50, 0, True),
    ):
        augmentation = replace(mixed, close_mosaic=close)
        found = items(shapes, epoch, augmentation=augmentation, epochs=20)
        plain = items(shapes, epoch, augmentation=alone)
        if closed:
            check_same(found, plain)
        else:
            assert different(found, plain)
    found = items(shapes, 10**6, augmentation=mixed)  # no number of epochs: never closed
    assert any(len(t["labels"]) > 8 for _, t in found)


def test_transforms_of_ones_own(shapes: Path) -> None:
    own = v2.Compose([v2.RandomVerticalFlip(1.0), v2.ToDtype(torch.float32, scale=True)])
    found = items(shapes, transforms=own)
    dataset = open_dataset(shapes, "train")
    for image, target in found:
        before, same = dataset[dataset.image_ids.index(target["image_id"])]
        assert torch.equal((image * 255).round().flip(1), before.float())
        y = 64 - same["boxes"][:, [3, 1]]
        torch.testing.assert_close(target["boxes"][:, [1, 3]], y.as_subclass(torch.Tensor))


def test_copy_paste_reads_masks_for_training_alone(shapes: Path, tmp_path: Path) -> None:
    data = DetectionDataModule(shapes, 2, augmentation=AugmentOptions(copy_paste=0.5))
    assert data.training is not None
    assert "masks" in data.training.target(0)
    assert "masks" not in data.validation.target(0)
    shutil.copytree(shapes, tmp_path / "data")
    file = tmp_path / "data" / "train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    file.write_text(json.dumps(content))
    with (
        pytest.warns(UserWarning, match="skipped: no segmentation"),
        pytest.raises(
            ValueError, match=r"copy_paste: expected objects with masks, got none in .*train\.json"
        ),
    ):
        DetectionDataModule(tmp_path / "data", 2, augmentation=AugmentOptions(copy_paste=0.5))


def test_the_size_of_a_batch_is_a_function_of_seed_epoch_and_batch() -> None:
    border = Border(min_size=100, max_size=333, size_divisor=32)
    state = torch.get_rng_state()
    made = {
        (seed, epoch, batch): batch_border(border, (64, 200), seed, epoch, batch)
        for seed in (0, 1)
        for epoch in range(5)
        for batch in range(30)
    }
    assert torch.equal(torch.get_rng_state(), state)
    sizes = [one.min_size for one in made.values()]
    assert set(sizes) == {64, 96, 128, 160, 192}
    assert min(sizes.count(size) for size in set(sizes)) > 30  # of 300, 60 expected
    assert {one.max_size for one in made.values()} == {333}
    assert batch_border(border, (64, 200), 1, 4, 29) == made[1, 4, 29]
    epochs = [[made[0, epoch, batch].min_size for batch in range(30)] for epoch in range(5)]
    assert len({tuple(sizes) for sizes in epochs}) == 5
    assert {batch_border(border, (70, 70), 0, 0, batch).min_size for batch in range(5)} == {70}
    fixed = replace(border, fixed_size=(64, 64))
    with pytest.raises(ValueError, match=r"multi_scale: the model has the fixed size \(64, 64\)"):
        batch_border(fixed, (64, 200), 0, 0, 0)


def options(shapes: Path, out: Path, **changes: Any) -> TrainOptions:
    small: dict[str, Any] = {"min_size": 64, "max_size": 96, "fpn_channels": 8, "batch_size": 3}
    return TrainOptions(
        shapes, out, "retinanet", "test_resnet", epochs=3, seed=3, **{**small, **changes}
    )


@pytest.mark.slow
def test_a_stopped_training_resumes_with_the_same_pictures(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    honest = RetinaNet.losses

    def noted(self: RetinaNet, batch: Any) -> dict[str, torch.Tensor]:
        seen.append(tuple(batch.images.shape))
        losses = honest(self, batch)
        poisoned = {name: loss * math.nan for name, loss in losses.items()}
        return poisoned if len(seen) == poison_at else losses

    monkeypatch.setattr(RetinaNet, "losses", noted)
    poison_at = 0
    whole = options(shapes, tmp_path / "whole", augmentation=ALL)
    train(whole)
    sizes = {shape[2:] for shape in seen if shape[0] == 3}
    assert {(32, 32), (64, 64)} <= sizes, "batches of several scales"
    seen.clear()
    poison_at = 5  # in the last epoch, the one without mosaic
    broken = replace(whole, out=tmp_path / "broken")
    with pytest.raises(NonFiniteLossError):
        train(broken)
    poison_at = 0
    train(replace(broken, resume=True, workers=2))
    ours, theirs = (
        torch.load(folder.out / "last.ckpt", weights_only=True) for folder in (broken, whole)
    )
    assert ours["global_step"] == theirs["global_step"] == 6
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    # Validation and the exported model keep min_size.
    assert load_detector(whole.out / "last.ckpt").model.border.min_size == 64

    changed = replace(broken, resume=True, epochs=4, augmentation=replace(ALL, mosaic=0.0))
    with pytest.warns(
        UserWarning, match=r"^mosaic: the checkpoint was trained with 0.6, .* with 0.0"
    ):
        train(changed)


@pytest.mark.slow
def test_transforms_of_a_training(shapes: Path, tmp_path: Path) -> None:
    called = []

    def own(image: Any, target: Any) -> Any:
        called.append(target["image_id"])
        return v2.functional.to_dtype(image, torch.float32, scale=True), target

    train(replace(options(shapes, tmp_path), epochs=1), transforms=own)
    assert len(called) == 6


GOOD = (
    "--flip 0.4 --scale-jitter 0.7 1.5 --photometric 0.5 --crop 0.3 --copy-paste 0.5 --mosaic 0.5"
)
GOOD += " --mixup 0.2 --close-mosaic 1 --multi-scale 32 64"
SMALL = "--model retinanet --backbone test_resnet --min-size 64 --max-size 96 --batch-size 3"


@pytest.mark.slow
def test_the_command_line_trains_with_every_option(shapes: Path, tmp_path: Path) -> None:
    command = f"train --data {shapes} --out {tmp_path} {SMALL} --fpn-channels 8 --epochs 1 "
    main((command + GOOD + " --lsj 0.5 2").split())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["DetectionDataModule"]["augmentation"] == {
        "flip": 0.4,
        "scale_jitter": (0.7, 1.5),
        "photometric": 0.5,
        "crop": 0.3,
        "lsj": (0.5, 2.0),
        "copy_paste": 0.5,
        "mosaic": 0.5,
        "mixup": 0.2,
        "close_mosaic": 1,
        "multi_scale": (32, 64),
    }


FACTORS = "expected LOW HIGH with 0 < LOW <= HIGH <= 10"
SIZES = "expected LOW HIGH in pixels with 1 <= LOW <= HIGH"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--flip 1.5", "flip: expected a probability in [0, 1], got 1.5"),
        ("--mosaic nan", "mosaic: expected a probability in [0, 1], got nan"),
        ("--mixup -0.1", "mixup: expected a probability in [0, 1], got -0.1"),
        ("--copy-paste 2", "copy_paste: expected a probability in [0, 1], got 2.0"),
        ("--photometric 9", "photometric: expected a probability in [0, 1], got 9.0"),
        ("--crop 9", "crop: expected a probability in [0, 1], got 9.0"),
        ("--scale-jitter 2 1", f"scale_jitter: {FACTORS}, got 2.0 1.0"),
        ("--lsj 0 1", f"lsj: {FACTORS}, got 0.0 1.0"),
        ("--lsj 1 1e9", f"lsj: {FACTORS}, got 1.0 1000000000.0"),
        ("--close-mosaic -1", "close_mosaic: expected 0 or more epochs, got -1"),
        ("--multi-scale 64 32", f"multi_scale: {SIZES}, got 64 32"),
        ("--multi-scale 64 128", "multi_scale: expected at most max_size, 96, got 128"),
    ],
)
@pytest.mark.parametrize("command", ["train", "show"])
def test_values_out_of_range(
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    given: str,
    said: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(f"{command} --data {shapes} --out {tmp_path / 'out'} {SMALL} {given}".split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"fastdet: {said}\n"
    assert not (tmp_path / "out").exists()


Run = Callable[..., str]


@pytest.fixture
def show(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def show(options: str, name: str = "page.html") -> str:
        main(f"show --data {shapes} --out {tmp_path / name} {SMALL} {options}".split())
        assert f"{tmp_path / name}" in capsys.readouterr().out
        return (tmp_path / name).read_text()

    return show


def test_a_page_shows_the_pictures_of_the_training(
    show: Run, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdet.report import training_pictures

    drawn = []
    honest = training_pictures.draw_boxes

    def noted(image: Any, boxes: Any, labels: Any, classes: Any, **more: Any) -> Any:
        drawn.append((image, boxes, more["masks"]))
        return honest(image, boxes, labels, classes, **more)

    monkeypatch.setattr(training_pictures, "draw_boxes", noted)
    page = show(f"{GOOD} --images 5 --epoch 2 --epochs 4 --seed 5")
    assert page.count('<figure><img alt="image id') == 5
    assert "The first 5 pictures of epoch 2 of 4, seed 5" in page
    assert not re.search(r"<(script|link)|https?:", page)
    assert "<dt>mosaic</dt><dd>0.5</dd>" in page
    assert "<dt>multi scale</dt><dd>32 to 64</dd>" in page
    # What is shown is what is trained.
    augmentation = AugmentOptions(
        0.4, (0.7, 1.5), 0.5, 0.3, None, 0.5, 0.5, 0.2, 1, multi_scale=(32, 64)
    )
    loader = DetectionDataModule(
        shapes, 3, 0, 5, size=64, epochs=4, augmentation=augmentation
    ).train_dataloader()
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    trained = [item for images, targets in loader for item in zip(images, targets, strict=True)]
    for (image, boxes, _), (same, target) in zip(drawn, trained[:5], strict=True):
        assert torch.equal(image, same)
        assert torch.equal(boxes, target["boxes"])


def test_a_page_has_masks_where_the_model_learns_them(show: Run) -> None:
    drawn = show("--model mask_rcnn --images 2 --flip 0 --scale-jitter 1 1", "masks.html")
    boxes = show("--images 2 --flip 0 --scale-jitter 1 1", "boxes.html")
    assert "<dd>mask_rcnn</dd>" in drawn
    pictures = [re.findall(r'src="([^"]*)"', page) for page in (drawn, boxes)]
    assert len(pictures[0]) == len(pictures[1]) == 2
    assert pictures[0] != pictures[1]


def test_a_page_is_not_overwritten(
    show: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        show("--images 1")
    assert stop.value.code == 2
    assert "page.html exists: give --overwrite" in capsys.readouterr().err
    assert (tmp_path / "page.html").read_text() == "mine"
    assert "<title>What the model sees of shapes</title>" in show("--images 1 --overwrite")
    for given, said in (
        ("--images 0", "images: expected a number from 1 on, got 0"),
        ("--epoch 13", "epoch: expected an epoch of the training, 1 to 12, got 13"),
    ):
        with pytest.raises(SystemExit):
            show(f"{given} --overwrite")
        assert capsys.readouterr().err == f"fastdet: {said}\n"


def test_show_has_the_options_of_train() -> None:
    from dataclasses import fields

    of_train = {field.name for field in fields(TrainOptions)}
    assert {field.name for field in fields(ShowOptions)} - of_train == {
        "images",
        "epoch",
        "overwrite",
    }
