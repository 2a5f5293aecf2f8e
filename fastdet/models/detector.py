# SPDX-License-Identifier: BSD-3-Clause
"""What every detector is: torchvision's interface outside, a fixed-shape core inside.

A family gives `losses`, `detect` and `losses_and_detections` on a Batch; the border is the same.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar, overload

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastdet.engine.fused import forget_fused
from fastdet.models.batch import Batch, Detections, image_sizes, pad, restore

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Detector(nn.Module):
    """The border around a fixed-shape core.

    Args:
        num_classes: with background, which is 0.
        min_size: see `pad`; of several, each image draws one in training, else the last one holds.
        max_size, size_divisor, fixed_size, image_mean, image_std: see `pad`.
        loss_weights: the factor of each loss, by name.

    Attributes:
        learns_masks: whether targets need masks.

    Raises:
        ValueError: less than 2 classes, or a size_divisor below 1.
    """

    learns_masks = False

    def __init__(
        self,
        num_classes: int,
        *,
        min_size: int | Sequence[int],
        max_size: int,
        size_divisor: int,
        fixed_size: tuple[int, int] | None,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        loss_weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"num_classes: expected background and at least one, got {num_classes}"
            )
        if size_divisor < 1:
            raise ValueError(f"size_divisor: expected a number above 0, got {size_divisor}")
        self.num_classes = num_classes
        self.min_size = min_size
        self.max_size = max_size
        self.size_divisor = size_divisor
        self.fixed_size = fixed_size
        self.image_mean = image_mean
        self.image_std = image_std
        self.loss_weights = dict(loss_weights)

    @overload
    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]: ...
    @overload
    def forward(
        self, images: Sequence[Tensor], targets: None = None
    ) -> list[dict[str, Tensor]]: ...
    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections otherwise.

        Args:
            images: tensors (3, H, W), or (1, H, W) for grey, floating point in [0, 1], each of its
                own size.
            targets: for each image boxes (G, 4) xyxy in its pixels and labels (G,) int64 in
                1 .. num_classes - 1, and masks (G, H, W) bool or uint8 where the model learns them.
                Needed in training, unused otherwise.

        Returns:
            Named losses; or for each image boxes (K, 4) in its pixels, labels (K,) and scores (K,),
            highest score first, and masks (K, 1, H, W) where the model finds them.

        Raises:
            TypeError, ValueError: naming the image and what was expected.
        """
        if self.training:
            if targets is None:
                raise ValueError("targets: expected one for each image in training mode, got None")
            return self.losses(self.pad(images, targets))
        batch = self.pad(images)
        found = restore(self.detect(batch), batch.sizes, image_sizes(images))
        return self.answers(found, images)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's; what inference alone needs is freed when training begins."""
        if mode:
            forget_fused(self)
        return super().train(mode)

    def pad(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> Batch:
        """Images and targets as this model's core takes them; see `fastdet.models.batch.pad`."""
        min_size = self.min_size
        return pad(
            images,
            targets,
            num_classes=self.num_classes,
            min_size=min_size if self.training or isinstance(min_size, int) else min_size[-1],
            max_size=self.max_size,
            size_divisor=self.size_divisor,
            fixed_size=self.fixed_size,
            image_mean=self.image_mean,
            image_std=self.image_std,
            masks=self.learns_masks,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, weighted; their sum is what to minimise."""
        raise NotImplementedError

    def detect(self, batch: Batch) -> Detections:
        """Detections in the padded batch's pixels; the ground truth is not read."""
        raise NotImplementedError

    def losses_and_detections(self, batch: Batch) -> tuple[dict[str, Tensor], Detections]:
        """Both from one run of the backbone: what a validation step needs."""
        raise NotImplementedError

    def answers(self, found: Detections, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What `model(images)` returns, of detections in the pixels of the images."""
        return found.to_list()

    def _weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}


def channels_last(model: AnyModule) -> AnyModule:
    """The model, its convolutions' weights in the layout of the images that `pad` makes.

    Module.to(memory_format=...) refuses modules that were made under FakeTensorMode.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
