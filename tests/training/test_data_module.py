# SPDX-License-Identifier: BSD-3-Clause
"""Batches depend on (seed, epoch, image) and on nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastdet.data import write_shapes
from fastdet.training.data_module import DetectionDataModule

Batches = list[tuple[list[torch.Tensor], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=7, val=3, size=64)


def batches(shapes: Path, epoch: int = 0, **options: Any) -> Batches:
    loader = DetectionDataModule(shapes, batch_size=2, **options).train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def same(a: Batches, b: Batches) -> bool:
    return all(
        torch.equal(x, y) and s["image_id"] == t["image_id"] and torch.equal(s["boxes"], t["boxes"])
        for (xs, ss), (ys, ts) in zip(a, b, strict=True)
        for x, y, s, t in zip(xs, ys, ss, ts, strict=True)
    )


def test_same_for_any_number_of_workers_and_any_random_state(shapes: Path) -> None:
    torch.manual_seed(1)
    first = batches(shapes, workers=0, seed=5)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert same(first, batches(shapes, workers=1, seed=5))
    torch.set_rng_state(state)


def test_epochs_and_seeds_differ(shapes: Path) -> None:
    first = batches(shapes, seed=5)
    assert same(first, batches(shapes, seed=5))
    assert not same(first, batches(shapes, epoch=1, seed=5))
    assert not same(first, batches(shapes, seed=6))


def test_each_epoch_has_an_order_of_its_own(shapes: Path) -> None:
    orders = {
        tuple(t["image_id"] for _, targets in batches(shapes, epoch=e) for t in targets)
        for e in range(4)
    }
    assert len(orders) == 4


def test_last_smaller_batch_is_left_out_of_training_only(shapes: Path) -> None:
    data = DetectionDataModule(shapes, batch_size=2)
    assert [len(images) for images, _ in data.train_dataloader()] == [2, 2, 2]
    assert [len(images) for images, _ in data.val_dataloader()] == [2, 1]
    assert len(list(DetectionDataModule(shapes, batch_size=100).train_dataloader())) == 1


def test_validation_keeps_order_and_pixels(shapes: Path) -> None:
    data = DetectionDataModule(shapes, batch_size=3)
    ((images, targets),) = data.val_dataloader()
    assert [target["image_id"] for target in targets] == data.validation.image_ids
    assert torch.equal(images[1], data.validation[1][0])
