# SPDX-License-Identifier: BSD-3-Clause
"""The base class of all detectors: torchvision's interface, computations of fixed shape.

A family implements three methods, `outputs`, `losses_of` and `detections_of`. It overrides
`class_layers`, `anchor_cells`, `learns_masks`, `proposes`, `proposals_of`, `candidates_of`,
`suppression` and `parameter_groups` where it differs from the default. Training, prediction,
description and export use only these methods and work with any family.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, overload

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastdet.engine.fused import (
    computes_images_apart,
    fast_linear,
    forget_fused,
    refuse_training,
    run_fused,
    run_pooled,
)
from fastdet.engine.side_by_side import side_by_side
from fastdet.memory import cache_blocks_in_backward, cached_blocks
from fastdet.models.anchors import Cells
from fastdet.models.batch import Batch, image_of, restore, with_rows
from fastdet.models.border import Border
from fastdet.models.checks import check_num_classes
from fastdet.models.deprecation import moved_to_border
from fastdet.models.running import networks_run_by
from fastdet.ops import paste_masks
from fastdet.ops.detections import Candidates, Detections, joined

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class ParameterGroup(NamedTuple):
    """Parameters with the same learning rate: `lr_factor` times that of the training."""

    parameters: list[nn.Parameter]
    lr_factor: float = 1.0


class Detector(nn.Module):
    """The base of all families.

    Args:
        border: how images are resized, normalised and padded.
        num_classes: number of classes with background, which is class 0.
        loss_weights: the factor of each loss, by name; 1 for a loss that is not named.
        mask_threshold: only for detectors with masks: a pixel belongs to an object if its
            probability is above this. None: `forward` returns the probabilities.

    Raises:
        TypeError: border is not a Border.
        ValueError: num_classes is below 2.
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

    # ---- a family implements these ---------------------------------------------------------------

    def outputs(self, batch: Batch) -> Any:
        """Runs the networks on `batch.images`; returns all that the next two methods need."""
        raise NotImplementedError

    def losses_of(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, not yet multiplied by loss_weights."""
        raise NotImplementedError

    def detections_of(self, outputs: Any, batch: Batch) -> Detections:
        """Detections in the pixels of `batch.images`; the ground truth is not read."""
        raise NotImplementedError

    # ---- a family may override these -------------------------------------------------------------

    @property
    def learns_masks(self) -> bool:
        """Whether targets need masks and detections have masks."""
        return False

    def class_layers(self) -> dict[str, float]:
        """The layers whose number of outputs depends on the classes: name -> initial bias.

        Each is an nn.Linear, an nn.Conv2d or an nn.Embedding, which has no bias. `replace_classes`
        replaces their weights. It also sets the attribute `num_classes` of the modules that contain
        them.
        """
        return {}

    def anchor_cells(self) -> Cells | None:
        """The anchors of a location at each level; None if the detector has no anchors.

        A detector with anchors has a `backbone` that returns one map for each of these levels.
        """
        return None

    @property
    def proposes(self) -> bool:
        """Whether there is a first stage that proposes boxes; such a family has `proposals_of`."""
        return False

    def proposals_of(self, outputs: Any, batch: Batch) -> Detections:
        """The boxes that the first stage proposes, in the pixels of `batch.images`, best first.

        The scores are the probabilities of an object; the labels are the levels of the pyramid.
        """
        raise NotImplementedError(f"{type(self).__name__} has one stage and proposes nothing")

    def candidates_of(self, outputs: Any, batch: Batch) -> Candidates:
        """What the last suppression makes detections of; a family that has it has `suppression`."""
        raise NotImplementedError

    def suppression(self) -> dict[str, Any] | None:
        """Arguments of `fastdet.numpy.multiclass_nms` that make detections of `candidates_of`.

        None: the family has no candidates, since it needs a suppression before its last networks.
        """
        return None

    def parameter_groups(self) -> list[ParameterGroup]:
        """Parameters to train, with their rates. Default: one group of all that require grad."""
        return [ParameterGroup([p for p in self.parameters() if p.requires_grad])]

    # ---- the same for all families ---------------------------------------------------------------

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
            images: tensors (C, H, W), or (1, H, W) for grey, floating point in [0, 1]. C is the
                number of means of the border, by default 3 (RGB). Sizes may differ.
            targets: for each image boxes (G, 4) xyxy in its pixels and labels (G,) int64 in
                1 .. num_classes - 1; for a model with masks also masks (G, H, W), bool or uint8.
                Required in training mode, not used in eval mode.

        Returns:
            Named losses; or for each image boxes (K, 4) in its pixels, labels (K,) and scores (K,),
            highest score first, and for a model with masks also masks (K, 1, H, W).

        Raises:
            TypeError: wrong type; the message names the image and what was expected.
            ValueError: wrong shape or value; the message names the image and what was expected.
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
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
        *,
        border: Border | None = None,
    ) -> Batch:
        """Images and targets as one batch for this model, or with another border; `Border.pad`."""
        return (border or self.border).pad(
            images,
            targets,
            num_classes=self.num_classes,
            masks=self.learns_masks,
            training=self.training,
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, multiplied by loss_weights. Training minimises their sum."""
        batch = with_rows(batch)
        with _running(batch):
            return self._weighted(self.losses_of(self.outputs(batch), batch))

    def detect(self, batch: Batch) -> Detections:
        """Detections in the pixels of `batch.images`; the ground truth is not read.

        In eval mode on the CPU each image is computed by itself, several side by side: see
        `fastdet.engine.side_by_side`.
        """
        (found,) = self._found(batch, self.detections_of)
        return found

    def propose(self, batch: Batch) -> Detections:
        """What the first stage proposes, if there is one; see `proposals_of`."""
        (found,) = self._found(batch, self.proposals_of)
        return found

    def proposals_and_detections(self, batch: Batch) -> tuple[Detections, Detections]:
        """What both stages of a two-stage detector find, from one run of the networks."""
        proposals, detections = self._found(batch, self.proposals_of, self.detections_of)
        return proposals, detections

    def losses_and_detections(self, batch: Batch) -> tuple[dict[str, Tensor], Detections]:
        """Losses and detections from one run of the networks, for a validation step."""
        batch = with_rows(batch)
        with _running(batch):
            outputs = self.outputs(batch)
            losses = self._weighted(self.losses_of(outputs, batch))
            return losses, self.detections_of(outputs, batch)

    def train(self, mode: bool = True) -> Self:
        """nn.Module.train; training mode also frees the fused forms, which only eval mode uses.

        Raises:
            ValueError: training mode, of a quantised detector.
        """
        if mode:
            refuse_training(self)
            forget_fused(self)
        return super().train(mode)

    def _found(
        self, batch: Batch, *methods: Callable[[Any, Batch], Detections]
    ) -> list[Detections]:
        """What each of the methods makes of the outputs, from one run of the networks."""

        def find(some: Batch) -> list[Detections]:
            with _running(some):
                outputs = self.outputs(some)
                return [method(outputs, some) for method in methods]

        # The number is read last: an export would fix it.
        if not computes_images_apart(self, batch.images) or len(batch.images) < 2:
            return find(batch)
        found = side_by_side(lambda i: find(image_of(batch, i)), len(batch.images))
        return [joined(of_images) for of_images in zip(*found, strict=True)]

    def _weighted(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        weighted = {n: loss * self.loss_weights.get(n, 1.0) for n, loss in losses.items()}
        for loss in weighted.values():
            cache_blocks_in_backward(loss)
        return weighted


def _running(batch: Batch) -> contextlib.AbstractContextManager[None]:
    """The context in which a detector computes from a batch."""
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _fast(batch.images)


@contextlib.contextmanager
def _fast(images: Tensor) -> Iterator[None]:
    with networks_run_by(run_fused, run_pooled), fast_linear(images), cached_blocks(images.device):
        yield


def channels_last(model: AnyModule) -> AnyModule:
    """Converts the weights of the model's convolutions to channels_last, the layout of a batch.

    Module.to(memory_format=...) fails for modules that were built under FakeTensorMode.
    """
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model
