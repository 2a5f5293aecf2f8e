# SPDX-License-Identifier: BSD-3-Clause
"""A detector's output as `supervision.Detections`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from supervision import Detections  # pyright: ignore[reportMissingImports]
    from torch import Tensor


def to_supervision(
    detections: "Mapping[str, Tensor]",
    classes: Sequence[str] | None = None,
    first_label: Literal[0, 1] = 1,
) -> "Detections":
    """The detections of one image as `supervision.Detections`.

    Args:
        detections: of one image, as `model(images)` and `fastdet.predicting.detect` give them:
            boxes (D, 4) xyxy in pixels, scores (D,), labels (D,), perhaps masks (D, 1, H, W), bool
            or probabilities.
        classes: the names by label, "background" first, as `module.classes` and `dataset.classes`
            have them; they become `data["class_name"]`.
        first_label: the class id of label 1. With 1, class ids are the labels, as supervision keeps
            those of other packages. With 0 they count without background, as in
            `supervision.DetectionDataset`.

    Returns:
        The detections, in their order; the masks are above 0.5.

    Raises:
        ImportError: supervision is not installed.
        ValueError: a label without a name; another first_label.
    """
    try:
        from supervision import Detections  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('to_supervision needs supervision: pip install "supervision"') from error
    if first_label not in (0, 1):
        raise ValueError(f"first_label: expected 0 or 1, got {first_label}")
    found = {name: _array(value) for name, value in detections.items()}
    labels = found["labels"].astype(int)
    data: dict[str, Any] = {}
    if classes is not None:
        if len(labels) and labels.max() >= len(classes):
            raise ValueError(
                f"classes: expected a name for label {labels.max()}, got {len(classes)} names with "
                "background"
            )
        data["class_name"] = np.array([classes[label] for label in labels], dtype=str)
    masks = found.get("masks")
    if masks is not None:
        masks = masks.reshape(len(labels), *masks.shape[-2:]) > 0.5
    return Detections(
        xyxy=found["boxes"].reshape(-1, 4),
        mask=masks,
        confidence=found["scores"],
        class_id=labels + first_label - 1,
        data=data,
    )


def _array(value: "Tensor") -> np.ndarray:
    """A tensor as an array; NumPy has no bfloat16."""
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()
