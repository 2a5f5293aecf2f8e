# SPDX-License-Identifier: BSD-3-Clause
"""How much smaller objects reach the detector than in its training, and the tiles against it."""

from fastdet.training.detector_module import DetectorModule

FAR = 2.0  # times smaller than in the training


def training_scale(module: DetectorModule) -> float:
    """Pixels that the detector saw per pixel of a training picture.

    1 for a checkpoint of an older version, which does not know it.
    """
    return module.object_scale or 1.0


def auto_tile(module: DetectorModule) -> int:
    """The side of the square of a picture in which objects have the size of the training."""
    border = module.model.border
    return max(1, round(border.scale_of(1, 1) / training_scale(module)))


def shrink_warning(
    module: DetectorModule, name: str, height: int, width: int, tile: int | None
) -> str | None:
    """A line if a picture, or its tile, is shrunk far beyond the training; else None."""
    seen = height, width
    if tile is not None:
        seen = min(tile, height), min(tile, width)
    scale = module.model.border.scale_of(*seen)
    smaller = training_scale(module) / scale
    if smaller <= FAR:
        return None
    than = "full size" if module.object_scale is None else "training"
    what = "picture" if tile is None else "tile"
    return (
        f"{name}: in this {what} of {seen[1]} x {seen[0]} pixels objects reach the detector "
        f"{smaller:.1f} times smaller than in {than}, and small ones may be lost: --tile auto "
        f"detects on tiles of {auto_tile(module)} pixels"
    )
