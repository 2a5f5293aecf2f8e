# SPDX-License-Identifier: BSD-3-Clause
"""The transforms of training and of evaluation, by keyword.

A detector resizes, normalises and pads by itself. What is here decides what a picture shows.
"""

from typing import Any

from torchvision.transforms import v2

from fastdet.data.floats import ToFloat
from fastdet.data.transforms.crop import CropKeepingBoxes
from fastdet.data.transforms.large_scale_jitter import large_scale_jitter
from fastdet.data.transforms.scale_jitter import ScaleJitter
from fastdet.data.transforms.visible import clamp_and_sanitize, drop_hidden


def train_transforms(
    scale_jitter: tuple[float, float] = (0.8, 1.25),
    flip: float = 0.5,
    *,
    photometric: float = 0.0,
    crop: float = 0.0,
    lsj: tuple[float, float] | None = None,
    size: int | None = None,
) -> v2.Transform:
    """Random horizontal flip and scale jitter, and what else is asked for.

    Args:
        scale_jitter: range of the scale factor; (1, 1) for none.
        flip: the flip's probability.
        photometric: probability of each change of colour: brightness, contrast, saturation, hue,
            and the order of the channels. See torchvision's RandomPhotometricDistort.
        crop: probability of a crop that keeps an object; see `CropKeepingBoxes`.
        lsj: range of large-scale jitter's factor, in place of `scale_jitter`; see
            `large_scale_jitter`.
        size: side of the square that `lsj` gives, in pixels.

    Returns:
        A transform of (image, target): image float32 in 0..1, of the size it had, unless `crop` or
        `lsj` gives it another; boxes inside it, at least 1 px wide and high, labels and masks in
        step. Random numbers are torch's, so that `torch.manual_seed` and the seeds of a
        DataLoader's workers control them.

    Raises:
        ValueError: a range or a probability that is none, or lsj without a size.
    """
    for name, probability in (("flip", flip), ("photometric", photometric), ("crop", crop)):
        if not 0 <= probability <= 1:
            raise ValueError(f"{name}: expected a probability in [0, 1], got {probability}")
    if lsj is not None and size is None:
        raise ValueError("size: expected the side of the square that lsj gives, got None")
    steps: list[Any] = [v2.RandomPhotometricDistort(p=photometric)] if photometric else []
    steps += [v2.RandomApply([CropKeepingBoxes()], p=crop)] if crop else []
    steps.append(v2.RandomHorizontalFlip(flip))
    if lsj is not None and size is not None:
        steps.append(large_scale_jitter(lsj, size))
    else:
        steps.append(ScaleJitter(scale_jitter))
    steps.append(clamp_and_sanitize)
    if crop or lsj is not None:
        steps.append(drop_hidden)
    return v2.Compose([*steps, ToFloat()])


def eval_transforms() -> v2.Transform:
    """Image to float32 in 0..1; boxes as the dataset gives them, which are valid already."""
    return ToFloat()
