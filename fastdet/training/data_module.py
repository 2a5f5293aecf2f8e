# SPDX-License-Identifier: BSD-3-Clause
"""Batches for a training: order and augmentation are a function of (seed, epoch, image).

Each item is made with its own random seed. So the batches of an epoch are the same with any number
of workers, and the same after a training stopped and resumed.
"""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fastdet.data import (
    Classes,
    CopyPaste,
    DetectionDataset,
    Mixed,
    MixUp,
    Mosaic,
    collate,
    eval_transforms,
    open_dataset,
    train_transforms,
)
from fastdet.training.options import AugmentOptions, PictureOptions

Key = tuple[int, int]

# The options of augmentation that transforms of one's own replace.
OF_ONE_PICTURE = ("flip", "scale_jitter", "photometric", "crop", "lsj")


class EpochShuffle(Sampler[Key]):
    """Every index once an epoch, in an order that (seed, epoch) decides; yields (epoch, index).

    Several processes take turns: the first of P has the 1st, the (P + 1)th and so on. So a step of
    all has the images that one process with the batch size of all would have. Each has the same
    number; if they do not divide evenly, the last images of the order wait for another epoch.
    """

    def __init__(self, length: int, seed: int, process: int = 0, processes: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.process = process
        self.processes = processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, with the right one after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, self.length // self.processes)

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)))
        order = torch.randperm(self.length, generator=generator).tolist()
        for turn in range(len(self)):
            yield self.epoch, order[(turn * self.processes + self.process) % self.length]


class SeededItems(Dataset[Any]):
    """The items of a dataset, each made with a random seed of its own.

    Args:
        dataset: whatever random numbers it draws are torch's, also where it mixes its items.
        seed: of the training.
        last: a data set of the same length, which the items come from in the last epochs.
        last_from: the first of these epochs, from 0.
    """

    def __init__(
        self,
        dataset: Any,
        seed: int,
        last: Any = None,
        last_from: float = math.inf,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.last = last
        self.last_from = last_from

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, epoch, index)))
            if self.last is not None and epoch >= self.last_from:
                return self.last[index]
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
        augmentation: what changes the training pictures.
        transforms: of a training picture and its target, in place of flip to lsj of `augmentation`:
            of torchvision.transforms.v2, or `fastdet.data.from_albumentations`. It gives floating
            point images in 0..1.
        size: side of the squares of lsj and mosaic, in pixels.
        epochs: of the training, for close_mosaic; None: each epoch has mosaic and mixup.

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
        augmentation: AugmentOptions = AugmentOptions(),
        transforms: Callable[[Any, Any], Any] | None = None,
        size: int = 800,
        epochs: int | None = None,
    ) -> None:
        super().__init__()
        pictures.check()
        augmentation.check()
        self.augmentation = augmentation
        self.transforms = transforms
        self.size = size
        self.epochs = epochs
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
        sampler = EpochShuffle(len(self.training), self.seed, *self._process())
        return DataLoader(
            self._items(),
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images in the dataset's order; of several processes, each has a part.

        No image is in two parts, so the parts may have different lengths.

        Raises:
            ValueError: more processes than images.
        """
        process, processes = self._process()
        if processes > len(self.validation):
            raise ValueError(
                f"{self.validation.annotation_file}: expected an image for each of {processes} "
                f"processes, got {len(self.validation)}"
            )
        own = range(process, len(self.validation), processes)
        return DataLoader(
            self.validation, batch_size=self.batch_size, sampler=own, **self._loading()
        )

    def _process(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of the data."""
        return {"augmentation": asdict(self.augmentation)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns where a resumed training goes on with another augmentation than it began with."""
        before, now = state_dict["augmentation"], asdict(self.augmentation)
        for name, value in now.items():
            if name in before and before[name] != value:
                warnings.warn(
                    f"{name}: the checkpoint was trained with {before[name]}, the training goes on "
                    f"with {value}",
                    stacklevel=2,
                )

    def _items(self) -> SeededItems:
        """The training items, augmented as the options say."""
        assert self.training is not None
        options = self.augmentation
        alone: Dataset[Any] = self.training
        if options.copy_paste:
            alone = Mixed(alone, CopyPaste(), options.copy_paste)
        mixed = alone
        if options.mosaic:
            mixed = Mixed(mixed, Mosaic(self.size), options.mosaic)
        if options.mixup:
            mixed = Mixed(mixed, MixUp(), options.mixup)
        last_from = math.inf if self.epochs is None else options.mixed_epochs(self.epochs)
        return SeededItems(mixed, self.seed, alone, last_from)

    def _train_transforms(self) -> Any:
        if self.transforms is not None:
            return self.transforms
        options = {name: getattr(self.augmentation, name) for name in OF_ONE_PICTURE}
        return train_transforms(**options, size=self.size)

    def _open(self, classes: Classes | None) -> None:
        self.training: DetectionDataset | None = None
        if self.trains:
            masks = self.masks or self.augmentation.copy_paste > 0
            self.training = self._split("train", self._train_transforms(), classes, masks)
            if not self.training.num_objects:
                if masks and not self.masks:
                    raise ValueError(
                        "copy_paste: expected objects with masks, got none in "
                        f"{self.training.annotation_file}"
                    )
                what = "object with a mask" if self.masks else "object"
                raise ValueError(f"{self.training.annotation_file}: no {what} to learn from")
            source = classes.source if classes else self.training.annotation_file
            classes = Classes(self.training.classes, source)
        self._classes = classes
        if classes is not None:
            classes = replace(classes, drop_others=self.drop_other_classes)
        self.validation = self._split(self.validation_split, eval_transforms(), classes, self.masks)

    def _split(
        self, split: str, transforms: Any, classes: Classes | None, masks: bool
    ) -> DetectionDataset:
        options = {"classes": classes, **self.reading}
        dataset = open_dataset(self.folder, split, transforms, masks, **options)
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
