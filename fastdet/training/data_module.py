# SPDX-License-Identifier: BSD-3-Clause
"""Batches for a training: order and augmentation are a function of (seed, epoch, image).

Each item is made with its own random seed. So the batches of an epoch are the same with any number
of workers, and the same after a training stopped and resumed.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from fastdet.data import CocoDetection, collate, eval_transforms, open_dataset, train_transforms

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

    def __init__(self, dataset: CocoDetection, seed: int) -> None:
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
    """Training and validation batches of a COCO-format folder.

    Args:
        folder: what `fastdet.data.open_dataset` opens.
        batch_size: images a batch.
        workers: loading processes; None: up to 8 if there is a GPU, else none.
        seed: of order and augmentation.
        validation_split: the split that validation reads.
        masks: targets have masks; see `read_masks`.
    """

    def __init__(
        self,
        folder: Path,
        batch_size: int,
        workers: int | None = None,
        seed: int = 0,
        validation_split: str = "val",
        masks: bool = False,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.batch_size = batch_size
        on_gpu = torch.cuda.is_available()
        beside_gpu = min(8, os.cpu_count() or 1)
        self.workers = workers if workers is not None else beside_gpu if on_gpu else 0
        self.seed = seed
        self.validation_split = validation_split
        self.masks = masks
        self.validation = self._open_validation()

    def read_masks(self) -> None:
        """Gives the targets masks, for a model that learns them; reads the validation split again.

        The classes are known without masks, so that the model can be built first and asked.
        """
        self.masks = True
        self.validation = self._open_validation()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented batches; a last, smaller one is left out."""
        dataset = open_dataset(self.folder, "train", train_transforms(), self.masks)
        return DataLoader(
            SeededItems(dataset, self.seed),
            batch_size=self.batch_size,
            sampler=EpochShuffle(len(dataset), self.seed),
            drop_last=len(dataset) >= self.batch_size,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images in the dataset's order."""
        return DataLoader(self.validation, batch_size=self.batch_size, **self._loading())

    def _open_validation(self) -> CocoDetection:
        return open_dataset(self.folder, self.validation_split, eval_transforms(), self.masks)

    def _loading(self) -> dict[str, Any]:
        return {
            "collate_fn": collate,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
