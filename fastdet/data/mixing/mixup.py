# SPDX-License-Identifier: BSD-3-Clause
"""Mixup for detection: two pictures blended, with the objects of both.

Zhang et al. 2019, "Bag of Freebies for Training Object Detection Neural Networks".
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdet.data.mixing.items import as_item, joined, laid_into
from fastdet.data.mixing.mixed import Item


class MixUp:
    """Two items blended. The image keeps the size of the first.

    The second picture is resized to fit into the first, its aspect kept, and lies at a random place
    of a grey canvas. The losses are not weighted: both pictures should be well visible.

    Args:
        alpha: of the Beta(alpha, alpha) distribution of the first picture's weight. At 32, which
            Ultralytics uses, it is nearly always between 0.35 and 0.65; the paper has 1.5.

    Raises:
        ValueError: alpha is not positive.
    """

    items = 2

    def __init__(self, alpha: float = 32.0) -> None:
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha: expected a finite number above 0, got {alpha}")
        self.alpha = alpha

    def __call__(self, items: Sequence[Item]) -> Item:
        """The mixture of two items."""
        image, target = as_item(items[0])
        other, other_target = laid_into(items[1], image)
        weight = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        blend = weight * image.as_subclass(Tensor) + (1 - weight) * other
        if not image.is_floating_point():
            blend = blend.round().to(image.dtype)
        return as_item((blend, joined(target, other_target)))
