# SPDX-License-Identifier: BSD-3-Clause
"""Leaves out the objects of which an augmented picture shows nothing."""

from typing import Any

from torch import Tensor
from torchvision import tv_tensors

OF_OBJECTS = ("boxes", "labels", "masks")  # what a target has one row of for each object


def drop_hidden(image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The item without the objects whose mask has no pixel: their box alone reached the frame.

    Args:
        image: as it is returned.
        target: with boxes and labels; without masks nothing changes.
    """
    if "masks" not in target:
        return image, target
    return image, chosen(target, target["masks"].flatten(1).any(1))


def chosen(target: dict[str, Any], keep: Tensor) -> dict[str, Any]:
    """The target with those of its objects where `keep` (G,) is true."""
    rows = {name: target[name] for name in OF_OBJECTS if name in target}
    return {**target, **{name: rows_like(some, some[keep]) for name, some in rows.items()}}


def rows_like(before: Any, rows: Any) -> Any:
    """The rows as a tv_tensor of the kind of `before`; indexing and joining give plain tensors."""
    if not isinstance(before, tv_tensors.TVTensor):
        return rows
    return tv_tensors.wrap(rows, like=before)  # pyright: ignore[reportCallIssue]: it has `like`
