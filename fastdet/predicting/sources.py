# SPDX-License-Identifier: BSD-3-Clause
"""What a user may give to detect on: files, folders, patterns, cameras, addresses of streams."""

import glob
from collections.abc import Sequence
from pathlib import Path, PurePath

from fastdet.data.picture_files import SUFFIXES, files_below, is_picture
from fastdet.predicting.pictures import Picture
from fastdet.predicting.video_reader import (
    VIDEO_SUFFIXES,
    Video,
    camera_at,
    is_address,
    stream_at,
)

Source = Picture | Video


def sources(given: Sequence[Path | str]) -> list[Source]:
    """The pictures, videos and streams that are meant, each argument's in the order of their names.

    Args:
        given: picture and video files; folders, with what lies below them; patterns such as
            "photos/*/*.jpg", with ** for folders of any depth; addresses such as
            rtsp://camera/stream; /dev/video0, or its number alone, for a camera.

    Raises:
        FileNotFoundError: a path does not exist, or there is no picture and no video.
    """
    found: list[Source] = []
    for one in given:
        text, path = str(one), Path(one)
        if is_address(text):
            found.append(stream_at(text))
        elif path.is_dir():
            found += _below(path, path)
        elif path.is_char_device():
            found.append(camera_at(path))
        elif path.exists():
            found.append(_file(path, PurePath(path.name)))
        elif text.isdecimal():
            found.append(camera_at(Path(f"/dev/video{int(text)}")))
        elif glob.has_magic(text):
            found += _matches(text)
        else:
            raise FileNotFoundError(f"{path} does not exist")
    if not found:
        places = ", ".join(map(str, given))
        raise FileNotFoundError(f"no picture ({' '.join(SUFFIXES)}) and no video in {places}")
    return found


def is_video(name: str) -> bool:
    """Whether a file name is that of a video."""
    return name.lower().endswith(VIDEO_SUFFIXES)


def _matches(pattern: str) -> list[Source]:
    """What a pattern matches, with names relative to the folder before its first wildcard."""
    parts = Path(pattern).parts
    plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:plain])
    found: list[Source] = []
    matching = glob.glob(pattern, recursive=True)  # noqa: PTH207  # that of Path gives hidden files
    for path in sorted(map(Path, matching)):
        if path.is_dir():
            found += _below(path, root)
        elif is_picture(path.name) or is_video(path.name):
            found.append(_file(path, path.relative_to(root)))
    if not found:
        raise FileNotFoundError(f"no picture and no video matches {pattern}")
    return list(dict.fromkeys(found))  # ** gives folders and what lies in them


def _below(folder: Path, root: Path) -> list[Source]:
    files = sorted(files_below(folder, lambda name: is_picture(name) or is_video(name)))
    return [_file(file, file.relative_to(root)) for file in files]


def _file(path: Path, name: PurePath) -> Source:
    if is_video(path.name):
        return Video(str(path), name)
    return Picture(path, name)
