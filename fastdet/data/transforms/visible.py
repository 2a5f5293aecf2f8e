# SPDX-License-Identifier: BSD-3-Clause
"""Leaves out the objects of which an augmented picture shows nothing."""

from typing import Any

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

OF_OBJECTS = ("boxes", "labels", "masks")  # what a target has one row of for each object

# Boxes cut at the frame, without those below 1 px. The cut comes first: rounding puts the side of a
# resized box at 480.00003 of 480 pixels, and SanitizeBoundingBoxes drops what reaches beyond.
clamp_and_sanitize = v2.Compose(
    [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=1.0, min_area=1.0)]
)


def drop_hidden(image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The item without the objects whose mask has no pixel: their box alone reached the frame.

    Args:
        image: as it is returned.
        target: with boxes and labels; without masks nothing changes.
    """
    if "masks" not in target:
        return image, target
    return image, chosen(target, target["masks"].flatten(1).any(1).bool())


def chosen(target: dict[str, Any], keep: Tensor) -> dict[str, Any]:
    """The target with those of its objects where `keep` (G,) is true."""
    rows = {name: target[name] for name in OF_OBJECTS if name in target}
    return {**target, **{name: wrapped_like(some, some[keep]) for name, some in rows.items()}}


def wrapped_like(before: Any, changed: Any) -> Any:
    """`changed` as a tv_tensor of the kind of `before`; most operations give plain tensors."""
    if not isinstance(before, tv_tensors.TVTensor):
        return changed
    return tv_tensors.wrap(changed, like=before)  # pyright: ignore[reportCallIssue]: it has `like`
