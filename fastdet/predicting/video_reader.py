# SPDX-License-Identifier: BSD-3-Clause
"""Frames of video files, cameras and streams, decoded by FFmpeg through PyAV.

A frame keeps its time stamp, so a variable frame rate is no special case. It is turned as the
rotation in the file says, as players show it. A damaged frame is left out and counted.
"""

import re
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor

from fastdet.predicting.options import VideoOptions

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".mts", ".m2ts", ".3gp", ".ogv", ".mjpeg"),
)
TIMEOUT = 20.0  # seconds without a packet that end a stream


@dataclass(frozen=True)
class Video:
    """A video file, a camera or a stream.

    Attributes:
        location: what FFmpeg opens: a path or an address.
        name: its path relative to the given folder, or its file name.
        camera: whether it is a device of this machine.
    """

    location: str
    name: PurePath
    camera: bool = False

    @property
    def path(self) -> Path:
        """The location as a path, for messages: without a user's password."""
        return Path(self.shown)

    @property
    def shown(self) -> str:
        """The location without a user's password."""
        return re.sub(r"//[^/@]*@", "//", self.location)


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        number: of the frame in the video, from 0 on.
        seconds: since the first frame.
        pts: the same in the video's time base.
        decoded: the frame of PyAV.
    """

    number: int
    seconds: float
    pts: int
    decoded: Any

    def image(self) -> Tensor:
        """(3, H, W) uint8 RGB, upright."""
        pixels = self.decoded.to_ndarray(format="rgb24")
        turns = round(self.decoded.rotation / 90) % 4
        pixels = np.rot90(pixels, turns).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels))


def is_address(text: str) -> bool:
    """Whether a text is an address such as rtsp://..., and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def stream_at(address: str) -> Video:
    """The stream of an address, named after its host and path: neither password nor query."""
    parts = urlsplit(address)
    path = PurePath(parts.path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        path = path.with_suffix("")
    name = re.sub(r"[^\w.-]+", "_", f"{parts.hostname or parts.scheme}{path}").strip("._")
    return Video(address, PurePath(f"{name or 'stream'}.mp4"))


def camera_at(device: Path) -> Video:
    """The camera of a device file, such as /dev/video0."""
    return Video(str(device), PurePath(f"{device.name}.mp4"), camera=True)


class VideoReader:
    """An opened video.

    Use it as a context. Of a live stream the newest frame is given; those that came in the meantime
    are passed over, so that results are of now.

    Args:
        video: what to open.
        options: which frames.

    Attributes:
        problem: after the frames, what was wrong; None if nothing was.
        rate: mean frames a second.
        time_base: seconds per unit of `Frame.pts`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be opened or decoded.
        ModuleNotFoundError: PyAV is not installed.
    """

    def __init__(self, video: Video, options: VideoOptions) -> None:
        import av.error

        self.video, self.options = video, options
        self.problem: str | None = None
        self._errors: Any = av.error.FFmpegError
        try:
            if video.camera:
                self._container = av.open(video.location, format="v4l2", timeout=TIMEOUT)
            else:
                over_tcp = {"rtsp_transport": "tcp"} if video.location.startswith("rtsp") else {}
                self._container = av.open(video.location, options=over_tcp, timeout=TIMEOUT)
        except FileNotFoundError:
            raise FileNotFoundError(f"{video.shown}: no such file or device") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{video.shown}: cannot be opened: {_reason(error)}") from None
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{video.shown}: expected a video, got a file without pictures")
        self._stream = self._container.streams.video[0]
        on_disk = not video.camera and not is_address(video.location)
        self.live = not on_disk and self._container.duration is None
        self._stream.thread_type = "SLICE" if self.live else "AUTO"  # AUTO holds frames back
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.time_base: Fraction = self._stream.time_base or Fraction(1, 90_000)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self) -> Generator[Frame, None, None]:
        """The frames that the options ask for."""
        chosen = self._chosen()
        with closing(newest(chosen) if self.live else chosen) as given:
            yield from islice(given, self.options.frames)

    def _chosen(self) -> Generator[Frame, None, None]:
        with closing(self._decoded()) as decoded:
            for frame in decoded:
                if frame.number % self.options.every == 0:
                    yield frame

    def _decoded(self) -> Generator[Frame, None, None]:
        number, packets, damaged, first, seconds = 0, 0, 0, None, 0.0
        try:
            for packet in self._container.demux(self._stream):
                packets += packet.size > 0
                try:
                    decoded = packet.decode()
                except self._errors:
                    damaged, number = damaged + 1, number + 1
                    continue
                for frame in decoded:
                    if frame.is_corrupt:
                        damaged, number = damaged + 1, number + 1
                        continue
                    pts = frame.pts
                    if pts is None:  # a raw stream has none
                        pts = (first or 0) + round(number / (self.rate * self.time_base))
                    first = pts if first is None else first
                    seconds = float((pts - first) * self.time_base)
                    yield Frame(number, seconds, pts - first, frame)
                    number += 1
        except self._errors as error:
            self.problem = f"ends after frame {number - 1}: {_reason(error)}"
            return
        if not number:
            self.problem = "no frame could be decoded"
        elif damaged:
            self.problem = f"{damaged} damaged frames were left out"
        elif packets < self._stream.frames:
            stated = self._stream.frames
            self.problem = f"ends early: {packets} of the {stated} frames that its header states"
        elif (stated := self._stated_seconds()) and seconds + 1 + 1 / self.rate < stated:
            self.problem = f"ends early: {seconds:.1f} of the {stated:.1f} s that its header states"

    def _stated_seconds(self) -> float | None:
        """The duration in the header; None where it may be that of the sound, or of no end."""
        if self._stream.duration is not None:
            return float(self._stream.duration * self.time_base)
        if self.live or self._container.duration is None or len(self._container.streams) > 1:
            return None
        return self._container.duration / 1e6


def _reason(error: Exception) -> str:
    """FFmpeg's words alone: its messages repeat the address, and so a password."""
    return str(getattr(error, "strerror", None) or error)


def newest(frames: Iterator[Frame]) -> Generator[Frame, None, None]:
    """Reads in a thread of its own; gives the newest frame at each request."""
    state: dict[str, Any] = {"frame": None, "ended": False, "error": None}
    changed = threading.Condition()
    stop = threading.Event()

    def read() -> None:
        try:
            for frame in frames:
                with changed:
                    state["frame"] = frame
                    changed.notify()
                if stop.is_set():
                    return
        except Exception as error:
            state["error"] = error
        finally:
            with changed:
                state["ended"] = True
                changed.notify()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: state["frame"] is not None or state["ended"])
                frame, state["frame"] = state["frame"], None
            if frame is None:
                if state["error"] is not None:
                    raise state["error"]
                return
            yield frame
    finally:  # the container must not be closed while it is read
        stop.set()
        reader.join(TIMEOUT + 1)
