# SPDX-License-Identifier: BSD-3-Clause
"""Batches for a training: order and augmentation are a function of (seed, epoch, image).

Each item is made with its own random seed. So the batches of an epoch are the same with any number
of workers, and the same after a training stopped and resumed.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fastdet.data import (
    Classes,
    DetectionDataset,
    collate,
    eval_transforms,
    open_dataset,
    train_transforms,
)
from fastdet.training.options import PictureOptions

Key = tuple[int, int]


class EpochShuffle(Sampler[Key]):
    """Every index once an epoch, in an order that (seed, epoch) decides; yields (epoch, index)."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, with the right one after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
        for index in torch.randperm(self.length, generator=generator).tolist():
            yield self.epoch, index


class SeededItems(Dataset[Any]):
    """The items of a dataset, each made with a random seed of its own."""

    def __init__(self, dataset: DetectionDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, epoch, index)))
            return self.dataset[index]


class DetectionDataModule(lightning.LightningDataModule):
    """Training and validation batches of a data set.

    Args:
        folder: what `fastdet.data.open_dataset` opens.
        batch_size: images a batch.
        workers: loading processes; None: up to 8 if there is a GPU, else none.
        seed: of order and augmentation.
        validation_split: the split that validation reads.
        masks: targets have masks; see `read_masks`.
        classes: those of a checkpoint; None: those of the training split.
        drop_other_classes: leave out what the validation split has of classes that are not learnt.
        trains: whether there is training; without, the training split is not read.
        pictures: how pictures are read.
        files_anywhere: see `fastdet.data.open_dataset`.

    Attributes:
        training, validation: the data sets; training is None where there is none.
        classes: names by label; the same for both.

    Raises:
        ValueError: an option out of range, splits that differ in their classes, a split without
            images, or nothing to learn from.
    """

    def __init__(
        self,
        folder: Path,
        batch_size: int,
        workers: int | None = None,
        seed: int = 0,
        validation_split: str = "val",
        masks: bool = False,
        *,
        classes: Classes | None = None,
        drop_other_classes: bool = False,
        trains: bool = True,
        pictures: PictureOptions = PictureOptions(),
        files_anywhere: bool = False,
    ) -> None:
        super().__init__()
        pictures.check()
        self.folder = folder
        self.batch_size = batch_size
        on_gpu = torch.cuda.is_available()
        beside_gpu = min(8, os.cpu_count() or 1)
        self.workers = workers if workers is not None else beside_gpu if on_gpu else 0
        self.seed = seed
        self.validation_split = validation_split
        self.masks = masks
        self.trains = trains
        self.drop_other_classes = drop_other_classes
        self.reading: dict[str, Any] = {
            **asdict(pictures),
            "files_anywhere": files_anywhere,
        }
        self._open(classes)

    def read_masks(self) -> None:
        """Gives the targets masks, for a model that learns them; reads the splits again.

        The classes are known without masks, so that the model can be built first and asked.
        """
        self.masks = True
        self._open(self._classes)

    @property
    def classes(self) -> list[str]:
        """Names by label."""
        return self.validation.classes

    @property
    def category_ids(self) -> list[int]:
        """Of the labels from 1 on, in the training split if that is read."""
        return (self.training or self.validation).category_ids

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented batches; a last, smaller one is left out."""
        assert self.training is not None
        return DataLoader(
            SeededItems(self.training, self.seed),
            batch_size=self.batch_size,
            sampler=EpochShuffle(len(self.training), self.seed),
            drop_last=len(self.training) >= self.batch_size,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images in the dataset's order."""
        return DataLoader(self.validation, batch_size=self.batch_size, **self._loading())

    def _open(self, classes: Classes | None) -> None:
        self.training: DetectionDataset | None = None
        if self.trains:
            self.training = self._split("train", train_transforms(), classes)
            if not self.training.num_objects:
                what = "object with a mask" if self.masks else "object"
                raise ValueError(f"{self.training.annotation_file}: no {what} to learn from")
            source = classes.source if classes else self.training.annotation_file
            classes = Classes(self.training.classes, source)
        self._classes = classes
        if classes is not None:
            classes = replace(classes, drop_others=self.drop_other_classes)
        self.validation = self._split(self.validation_split, eval_transforms(), classes)

    def _split(self, split: str, transforms: Any, classes: Classes | None) -> DetectionDataset:
        options = {"classes": classes, **self.reading}
        dataset = open_dataset(self.folder, split, transforms, self.masks, **options)
        if not len(dataset):
            raise ValueError(f"{dataset.annotation_file}: expected images, got none")
        return dataset

    def _loading(self) -> dict[str, Any]:
        return {
            "collate_fn": collate,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
