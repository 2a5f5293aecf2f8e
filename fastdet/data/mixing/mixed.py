# SPDX-License-Identifier: BSD-3-Clause
"""A data set whose items are mixed with other items of the same data set.

Which items, and how, comes from torch's random numbers alone: an item that is made under its own
seed is the same in any process. Mixed data sets may be nested: copy-paste within mosaic.
Cost: that of one more item for each partner.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

Item = tuple[Any, dict[str, Any]]


class Mix(Protocol):
    """Makes one item of `items` items; the first gives the image id."""

    items: int

    def __call__(self, items: Sequence[Item]) -> Item:
        """The mixture."""
        ...


class Mixed(Dataset[Item]):
    """The items of a data set, some of them mixed with others.

    Args:
        dataset: its items are (image, target): images of 3 channels, uint8, or floating point in
            0..1; targets with boxes (xyxy in pixels), labels and, where it has them, masks. Its
            transforms apply to each item before it is mixed.
        mix: `Mosaic()`, `MixUp()`, `CopyPaste()`, or a function of your own.
        probability: how often an item is mixed; its partners are random.

    Raises:
        ValueError: probability is none.
    """

    def __init__(self, dataset: Any, mix: Mix, probability: float = 1.0) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: expected a number in [0, 1], got {probability}")
        self.dataset = dataset
        self.mix = mix
        self.probability = probability

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        item = self.dataset[index]
        if torch.rand(()) >= self.probability:
            return item
        partners = torch.randint(len(self), (self.mix.items - 1,)).tolist()
        return self.mix([item, *(self.dataset[partner] for partner in partners)])
