# SPDX-License-Identifier: BSD-3-Clause
"""Batches of worker processes equal those without; images become float32 as by torchvision."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from fastdet.data import (
    ScaleJitter,
    batching,
    collate,
    eval_transforms,
    floats,
    open_dataset,
    train_transforms,
    write_shapes,
)
from fastdet.data.floats import ToFloat, bytes_of
from fastdet.data.transforms import CANVAS_COLOUR, on_canvas


def image_of(height: int, width: int, channels_last: bool = True) -> tv_tensors.Image:
    """Noise, with the samples of a pixel together or in three planes."""
    rng = np.random.default_rng(height * width)
    pixels = torch.from_numpy(rng.integers(0, 256, (height, width, 3), np.uint8)).permute(2, 0, 1)
    return tv_tensors.Image(pixels if channels_last else pixels.contiguous())


class Items(torch.utils.data.Dataset[Any]):
    """Of every kind: made of bytes, changed since, floats, bytes, one channel, float64."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        made = ToFloat()(image_of(20 + index, 30))
        if index == 1:
            made.numpy()[0, 3, 4] += 1 / 255
        if index == 2:
            made[:, 5] = 0.5
        image = {3: tv_tensors.Image(torch.rand(3, 9, 9)), 4: image_of(7, 8)}.get(index, made)
        image = {5: ToFloat()(tv_tensors.Image(image_of(9, 9)[:1])), 6: made.double()}.get(
            index, image
        )
        target = {
            "boxes": torch.rand(index, 4),
            "labels": torch.arange(index),
            "masks": torch.ones(index, 90, 90, dtype=torch.uint8),
            "image_id": index,
            "array": np.arange(index),
            "bfloat16": torch.ones(2, dtype=torch.bfloat16),
            "text": "x",
        }
        return image, target


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one, other)
        assert one.is_contiguous()
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_of_workers_are_those_without(batch_size):
    torch.manual_seed(0)
    alone = [
        collate([Items()[i] for i in range(n, n + batch_size)]) for n in range(0, 7, batch_size)
    ]
    torch.manual_seed(0)
    loader = DataLoader(Items(), batch_size, num_workers=1, collate_fn=collate)
    batches = list(loader)
    for (images, targets), (same, same_targets) in zip(batches, alone, strict=True):
        for i in range(len(images)):
            if targets[i]["image_id"] == 3:  # random, and workers have another seed
                same[i] = images[i]
            same_targets[i]["boxes"] = targets[i]["boxes"]
        assert_same((images, targets), (same, same_targets))
        images[0].zero_()  # each is its own
        targets[0]["labels"].zero_()


@pytest.mark.parametrize("at", [0, 2**18 - 1, 2**18, -1])
def test_an_image_that_was_written_to_is_sent_as_floats(monkeypatch, at):
    monkeypatch.setattr(floats, "get_worker_info", lambda: 0)
    image = ToFloat()(image_of(300, 400))
    assert torch.equal(bytes_of(image), image_of(300, 400))
    image.numpy().reshape(-1)[at] += 1e-3
    assert bytes_of(image) is None


def test_a_worker_sends_bytes(monkeypatch):
    for module in (batching, floats):
        monkeypatch.setattr(module, "get_worker_info", lambda: 0)
    items = [(ToFloat()(image_of(100, 100)), {"boxes": torch.rand(3, 4)}) for _ in range(4)]
    packed = collate(items)
    _, (joined, shapes, _) = packed.__reduce__()
    assert (joined.dtype, joined.nbytes) == (torch.uint8, 4 * 3 * 100 * 100)
    assert shapes == [(3, 100, 100)] * 4
    images, targets = pickle.loads(pickle.dumps(packed))
    assert_same(images, packed[0])
    assert_same(targets, packed[1])
    items[0][0].add_(0)
    assert bytes_of(items[0][0]) is not None
    items[0][0].add_(1e-3)
    assert bytes_of(items[0][0]) is None
    assert bytes_of(items[1][0].clone()) is None


@pytest.mark.parametrize("channels_last", [True, False])
def test_floats_are_torchvisions(channels_last):
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
    for image in (tv_tensors.Image(every), image_of(9, 17, channels_last)):
        got = ToFloat()(image)
        assert torch.equal(got, v2.ToDtype(torch.float32, scale=True)(image))
        assert type(got) is tv_tensors.Image
        assert got.is_contiguous()
    boxes = tv_tensors.BoundingBoxes(torch.ones(1, 4), format="XYXY", canvas_size=(9, 9))
    assert ToFloat()(boxes) is boxes
    already = tv_tensors.Image(torch.rand(3, 4, 4))
    assert torch.equal(ToFloat()(already), already)


@pytest.mark.parametrize("size", [(1, 1), (9, 17), (64, 63), (100, 131)], ids=str)
def test_a_canvas_is_torchvisions_pad(size):
    image = image_of(*size)
    got = on_canvas(image, 3, 5, size[0] + 10, size[1] + 5)
    assert torch.equal(got, functional.pad(image, [5, 3, 0, 7], fill=CANVAS_COLOUR))


@pytest.mark.parametrize("size", [(16, 16), (37, 53), (100, 131), (240, 320)], ids=str)
def test_the_layout_of_an_image_changes_no_pixel(size):
    transform = v2.Compose([v2.RandomHorizontalFlip(0.5), ScaleJitter((0.3, 3.0)), ToFloat()])
    for seed in range(30):
        got = []
        for channels_last in (True, False):
            torch.manual_seed(seed)
            got.append(transform(image_of(*size, channels_last)))
        assert torch.equal(*got)


def test_a_data_set_with_masks(tmp_path):
    folder = write_shapes(tmp_path / "shapes", train=5, val=1)
    for transforms in (train_transforms((1, 1), flip=0), eval_transforms(), None):
        dataset = open_dataset(folder, "train", transforms=transforms, masks=True)
        options = {"batch_size": 2, "collate_fn": collate}
        workers = {"num_workers": 2}
        assert_same(
            list(DataLoader(dataset, **options, **workers)), list(DataLoader(dataset, **options))
        )
