# SPDX-License-Identifier: BSD-3-Clause
"""The annotated copy of a video: an MP4 with the time stamps of the frames, without sound."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CODEC = "libx264"
OPTIONS = {"crf": "20", "preset": "veryfast"}


class VideoWriter:
    """Writes pictures as the frames of a video, which appears whole when it is closed.

    Args:
        path: of the MP4 file.
        rate: mean frames a second.
        time_base: seconds per unit of the time stamps.
    """

    def __init__(self, path: Path, rate: Fraction, time_base: Fraction) -> None:
        self.path, self.rate, self.time_base = path, rate, time_base
        self._temporary = path.with_name(f".{os.getpid()}-{path.name}")
        self._container: Any = None  # opened by the first frame, which has the size
        self._stream: Any = None
        self._last = -1

    def add(self, picture: Image.Image, pts: int) -> None:
        """Appends a frame; its time stamp is made larger than that of the frame before.

        All frames get the size of the first one, rounded up to even numbers.
        """
        import av

        container = self._container or self._opened(picture.width, picture.height)
        self._last = max(pts, self._last + 1)
        frame = av.VideoFrame.from_ndarray(
            np.asarray(_in_size(picture, self._stream.width, self._stream.height)), format="rgb24"
        )
        frame.pts, frame.time_base = self._last, self.time_base
        container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Ends the file; without a frame there is none."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
            container.close()
            self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _opened(self, width: int, height: int) -> Any:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._temporary), "w", format="mp4")
        self._stream = self._container.add_stream(CODEC, rate=self.rate, options=dict(OPTIONS))
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = self.time_base
        return self._container


def _in_size(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture of another size resized; one row or column that is missing is repeated."""
    missing = width - picture.width, height - picture.height
    if missing == (0, 0):
        return picture
    if set(missing) <= {0, 1}:
        padded = np.pad(np.asarray(picture), ((0, missing[1]), (0, missing[0]), (0, 0)), "edge")
        return Image.fromarray(padded)
    return picture.resize((width, height))
