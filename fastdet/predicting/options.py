# SPDX-License-Identifier: BSD-3-Clause
"""The options of `fastdet predict`. Importing this is quick, as the command line needs."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Merge = Literal["nmm", "nms"]


@dataclass(frozen=True)
class ViewOptions:
    """What the detector sees of a picture: tiles of it, its mirror image, other scales."""

    tile: int | Literal["auto"] | None = None
    """Detect on square tiles of this side in pixels; auto: the side at which objects have the size
    that they had in the training."""
    overlap: float = 0.2
    """Overlap of neighbouring tiles, as a fraction of their side: objects up to this size are whole
    in one of them."""
    merge: Merge = "nmm"
    """Where detections of several tiles overlap, join their boxes (nmm) or keep the best (nms)."""
    merge_threshold: float = 0.5
    """Overlap from which they are of one object: intersection over the smaller box."""
    tile_whole: bool = False
    """With --tile, detect on the whole picture too, for objects larger than a tile."""
    tta: tuple[str, ...] = ()
    """Detect on further views of a picture as well and keep the best of what overlaps: flip (mirror
    image) and scales, such as flip 0.8 1.2."""

    @property
    def flip(self) -> bool:
        """Whether mirror images are looked at."""
        return "flip" in self.tta

    @property
    def scales(self) -> list[float]:
        """Of the views: 1, then the others as given."""
        given = [float(word) for word in self.tta if word != "flip"]
        return list(dict.fromkeys([1.0, *given]))

    @property
    def plain(self) -> bool:
        """Whether the detector sees each picture as it is, once."""
        return self.tile is None and not self.flip and self.scales == [1.0]

    def check(self) -> None:
        """Raises ValueError with the name of an option that is out of range."""
        tile = self.tile
        if tile not in (None, "auto") and (not isinstance(tile, int) or tile < 1):
            raise ValueError(f"tile: expected a number of pixels from 1 on, or auto, got {tile}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap: expected a number in [0, 1), got {self.overlap}")
        if self.merge not in get_args(Merge):
            raise ValueError(f"merge: expected {' or '.join(get_args(Merge))}, got {self.merge}")
        if not 0 < self.merge_threshold <= 1:
            raise ValueError(
                f"merge_threshold: expected a number in (0, 1], got {self.merge_threshold}"
            )
        for word in self.tta:
            if word != "flip" and not _is_scale(word):
                raise ValueError(f"tta: expected flip and scales such as 0.8, got {word}")


@dataclass(frozen=True)
class VideoOptions:
    """Which frames of videos and streams are looked at."""

    frames: int | None = None
    """Frames of each video or stream that are looked at; unset: all."""
    every: int = 1
    """Of a video or stream, look at every N-th frame."""

    def check(self) -> None:
        """Raises ValueError with the name of an option that is out of range."""
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames: expected a number from 1 on, got {self.frames}")
        if self.every < 1:
            raise ValueError(f"every: expected a number from 1 on, got {self.every}")


@dataclass(frozen=True)
class SpeedOptions:
    """How much is computed at a time."""

    batch_size: int = 1
    """Pictures that the detector takes at a time, where successive ones have one size; tiles too.
    Another number changes the last digits of the results."""
    workers: int | None = None
    """Pictures that are decoded, searched and drawn side by side; unset: one for each thread of
    torch, up to 8."""

    def check(self) -> None:
        """Raises ValueError with the name of an option that is out of range."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected a number from 1 on, got {self.batch_size}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: expected a number from 1 on, got {self.workers}")


def _is_scale(word: str) -> bool:
    try:
        return 0 < float(word) < math.inf
    except ValueError:
        return False
