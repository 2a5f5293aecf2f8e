# SPDX-License-Identifier: BSD-3-Clause
"""What every detector is: torchvision's interface outside, a computation of fixed shape inside.

A family gives three methods, `outputs`, `losses_of` and `detections_of`, and whatever else is
particular to it: `class_layers`, `anchor_cells`, `learns_masks`, `candidates_of`, `suppression`,
`parameter_groups`. Training, description and export ask a detector for these, and never which
family it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, overload

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastdet.engine.fused import forget_fused, run_fused
from fastdet.models.anchors import Cells
from fastdet.models.batch import Batch, restore
from fastdet.models.border import Border
from fastdet.models.checks import check_num_classes
from fastdet.models.deprecation import moved_to_border
from fastdet.models.running import networks_run_by
from fastdet.ops import paste_masks
from fastdet.ops.detections import Candidates, Detections

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class ParameterGroup(NamedTuple):
    """Parameters that train at one rate: `lr_factor` times the learning rate of the training."""

    parameters: list[nn.Parameter]
    lr_factor: float = 1.0


class Detector(nn.Module):
    """The base of all families.

    Args:
        border: how images are resized, normalised and padded.
        num_classes: with background, which is 0.
        loss_weights: the factor of each loss, by name; 1 for a loss without one.
        mask_threshold: of a detector that finds masks: a pixel belongs to an object if its
            probability is above this; None: `forward` returns the probabilities.

    Raises:
        TypeError: another border.
        ValueError: less than 2 classes.
    """

    min_size = moved_to_border("min_size")
    max_size = moved_to_border("max_size")
    size_divisor = moved_to_border("size_divisor")
    fixed_size = moved_to_border("fixed_size")
    image_mean = moved_to_border("image_mean")
    image_std = moved_to_border("image_std")

    def __init__(
        self,
        border: Border,
        num_classes: int,
        *,
        loss_weights: Mapping[str, float] | None = None,
        mask_threshold: float | None = 0.5,
    ) -> None:
        super().__init__()
        if not isinstance(border, Border):
            raise TypeError(f"border: expected a Border, got {type(border).__name__}")
        check_num_classes(num_classes)
        self.border = border
        self.num_classes = num_classes
        self.loss_weights = dict(loss_weights or {})
        self.mask_threshold = mask_threshold

    # ---- what a family gives ---------------------------------------------------------------------

    def outputs(self, batch: Batch) -> Any:
        """What the networks say of `batch.images`: all that the next two methods need."""
        raise NotImplementedError

    def losses_of(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses without their weights."""
        raise NotImplementedError

    def detections_of(self, outputs: Any, batch: Batch) -> Detections:
        """Detections in the pixels of `batch.images`; the ground truth is not read."""
        raise NotImplementedError

    # ---- what a detector is asked ----------------------------------------------------------------

    @property
    def learns_masks(self) -> bool:
        """Whether targets need masks, and detections have them."""
        return False

    def class_layers(self) -> dict[str, float]:
        """The layers whose outputs are counted by class: their names, and their bias at the start.

        Each is an nn.Linear or an nn.Conv2d. A part that has such a layer and an attribute
        `num_classes` gets the new number of classes, too.
        """
        return {}

    def anchor_cells(self) -> Cells | None:
        """The anchors of a location at each level; None: the detector has none.

        A detector that has some has a `backbone`, which returns the map of each of these levels.
        """
        return None

    def candidates_of(self, outputs: Any, batch: Batch) -> Candidates:
        """What the last suppression makes detections of; a family that has it has `suppression`."""
        raise NotImplementedError

    def suppression(self) -> dict[str, Any] | None:
        """Arguments of `fastdet.numpy.multiclass_nms` that make detections of `candidates_of`.

        None: the family has no candidates, since it needs a suppression before its last networks.
        """
        return None

    def parameter_groups(self) -> list[ParameterGroup]:
        """Which parameters train, and how fast: by default all that need a gradient, equally."""
        return [ParameterGroup([p for p in self.parameters() if p.requires_grad])]

    # ---- what every detector does ----------------------------------------------------------------

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
        found = restore(self.detect(batch), batch).to_list()
        for of_image, image in zip(found, images, strict=True):
            if "masks" in of_image:
                size = image.shape[-2], image.shape[-1]
                masks = paste_masks(of_image["masks"], of_image["boxes"], size, self.mask_threshold)
                of_image["masks"] = masks[:, None]
        return found

    def pad(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> Batch:
        """Images and targets as one batch for this model; see `Border.pad`."""
        return self.border.pad(
            images,
            targets,
            num_classes=self.num_classes,
            masks=self.learns_masks,
            training=self.training,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, weighted; their sum is what to minimise."""
        with networks_run_by(run_fused):
            return self._weighted(self.losses_of(self.outputs(batch), batch))

    def detect(self, batch: Batch) -> Detections:
        """Detections in the pixels of `batch.images`; the ground truth is not read."""
        with networks_run_by(run_fused):
            return self.detections_of(self.outputs(batch), batch)

    def losses_and_detections(self, batch: Batch) -> tuple[dict[str, Tensor], Detections]:
        """Both from one run of the networks: what a validation step needs."""
        with networks_run_by(run_fused):
            outputs = self.outputs(batch)
            losses = self._weighted(self.losses_of(outputs, batch))
            return losses, self.detections_of(outputs, batch)

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's; the memory that only inference needs is freed when training begins."""
        if mode:
            forget_fused(self)
        return super().train(mode)

    def _weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: loss * self.loss_weights.get(name, 1.0) for name, loss in losses.items()}


def channels_last(model: AnyModule) -> AnyModule:
    """The model, its convolutions' weights in the layout of the images that `pad` makes.

    Module.to(memory_format=...) refuses modules that were made under FakeTensorMode.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
