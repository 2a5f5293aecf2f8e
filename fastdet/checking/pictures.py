# SPDX-License-Identifier: BSD-3-Clause
"""Opens every picture of a data set once, and compares what it finds with the annotations.

A picture is decoded to its last pixel by the function that trainings use, in threads: decoding
needs no lock of Python. 5 ms for 640 x 480 and core, of which a fifth is for the hashes. Kept are a
few numbers and a grey copy of 32 x 32 pixels, 1.2 KB a picture.
"""

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastdet.checking.findings import Finding, Spot
from fastdet.checking.reading import CheckedSplit
from fastdet.data.images import read_image
from fastdet.data.picture_files import pictures_below
from fastdet.training.options import PictureOptions

ORIENTATION = 0x0112  # the tag of EXIF
THUMBNAIL = 32  # pixels a side


@dataclass(frozen=True, slots=True)
class Looks:
    """What is compared between pictures; all of the picture as displayed.

    Attributes:
        file, pixels: hashes of the file's bytes, and of its pixels and size.
        rows, mirrored: 64-bit dHash of the picture, and of its mirror image.
        thumbnail: (32 * 32,) uint8 grey.
    """

    file: bytes
    pixels: bytes
    rows: int
    mirrored: int
    thumbnail: np.ndarray


@dataclass(frozen=True, slots=True)
class PictureFile:
    """One file, once it was looked at.

    Attributes:
        problem: "", or the kind of finding: picture-missing, picture-unreadable, picture-truncated.
        message: of the problem.
        sizes: the (height, width) as displayed and as stored; () where the header was not read.
        orientation: by EXIF; 1 is upright.
        mode: how the pixels are stored, "RGB" for RGB with 8 bits a channel.
        looks: None where the pixels were not decoded.
    """

    problem: str = ""
    message: str = ""
    sizes: tuple[tuple[int, int], ...] = ()
    orientation: int = 1
    mode: str = "RGB"
    looks: Looks | None = None


def picture_paths(splits: Sequence[CheckedSplit]) -> list[Path]:
    """Every file that the annotations name, once, in the order of the splits."""
    return list(
        dict.fromkeys(
            path
            for split in splits
            for index in range(len(split.annotations.image_ids))
            if (path := plain_path(split, index)) is not None
        )
    )


def plain_path(split: CheckedSplit, index: int) -> Path | None:
    """The path of a picture without `..` and `.`, so that one file has one path."""
    path = split.picture(index)
    return None if path is None else Path(os.path.normpath(path))


def look_at_all(
    paths: Sequence[Path],
    options: PictureOptions,
    decode: bool,
    workers: int,
    found: dict[Path, PictureFile],
    progress: Callable[[int], None],
) -> None:
    """Looks at pictures in threads.

    Args:
        paths: the files.
        options: how they are read.
        decode: whether to decode the pixels, or to read the headers alone.
        workers: number of threads.
        found: is filled as results come, so that an interruption loses nothing.
        progress: is called with the number of files so far.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow; what matters of it is among the findings
        pool = ThreadPoolExecutor(workers)
        try:
            results = pool.map(lambda path: look_at(path, options, decode), paths)
            for path, result in zip(paths, results, strict=True):
                found[path] = result
                progress(len(found))
        finally:
            pool.shutdown(cancel_futures=True)


def look_at(path: Path, options: PictureOptions, decode: bool) -> PictureFile:
    """Looks at one file. It never raises: whatever a file does to a decoder is a finding."""
    try:
        if not path.exists():
            return PictureFile("picture-missing", f"{path}: no such file")
        with Image.open(path) as image:
            stored = (image.height, image.width)
            orientation = _orientation(image)
            mode = _mode(image)
            is_tiff = image.format == "TIFF"  # whose size Pillow gives as displayed
        turned = orientation in (5, 6, 7, 8)
        displayed = stored[::-1] if turned and not is_tiff else stored
        stored = stored[::-1] if turned and is_tiff else stored
    # ultralytics 8.4.190 replaces Image.open; its own imports pi_heif for what Pillow cannot open.
    except ImportError as error:
        return PictureFile("picture-unreadable", f"cannot identify image file ({_message(error)})")
    except Exception as error:
        return PictureFile("picture-unreadable", _message(error))
    sizes = (stored,) if options.exif == "ignore" else (displayed, stored)
    problem, looks = ("", ""), None
    if decode:
        try:
            looks = _looks(path, options)
        except Exception as error:
            problem = "picture-truncated", _message(error)
    return PictureFile(*problem, sizes, orientation, mode, looks)


def picture_findings(
    splits: Sequence[CheckedSplit], found: dict[Path, PictureFile]
) -> list[Finding]:
    """What is wrong with the pictures of each split, and files that no split names."""
    findings = [finding for split in splits for finding in _of_split(split, found)]
    findings += _not_listed(splits)
    return [finding for finding in findings if finding.count]


def _of_split(split: CheckedSplit, found: dict[Path, PictureFile]) -> Iterator[Finding]:
    places: dict[str, list[Spot]] = defaultdict(list)
    indices: dict[Path, list[int]] = defaultdict(list)
    for index in range(len(split.annotations.image_ids)):
        path = plain_path(split, index)
        if path is None:
            continue
        indices[path].append(index)
        file = found.get(path)
        for name, detail in _problems(split, index, file) if file else ():
            places[name].append(split.image_spot(index, detail))
    for same in indices.values():
        for index in same[1:]:
            first = f"also image id {split.annotations.image_ids[same[0]]}"
            places["picture-listed-twice"].append(split.image_spot(index, first))
    for name, spots in places.items():
        yield Finding(name, split.name, spots)


def _problems(split: CheckedSplit, index: int, file: PictureFile) -> Iterator[tuple[str, str]]:
    if file.problem:
        yield file.problem, "" if file.problem == "picture-missing" else file.message
    stated = tuple(split.annotations.image_sizes[index].tolist())
    if file.sizes and stated not in file.sizes and stated != (0, 0):
        (height, width), *_ = file.sizes
        yield (
            "picture-size-differs",
            f"{width} x {height}, stated {stated[1]} x {stated[0]}",
        )
    if file.orientation != 1:
        yield "picture-turned", f"orientation {file.orientation}"
    if file.mode != "RGB":
        yield "picture-not-rgb", file.mode


def _not_listed(splits: Sequence[CheckedSplit]) -> Iterator[Finding]:
    listed = set(picture_paths(splits))
    folders: dict[Path, str] = {}
    for split in splits:
        if split.annotations.images is not None:
            folder = Path(os.path.normpath(split.annotations.images))
            folders[folder] = "" if folder in folders else split.name
    seen: set[Path] = set()
    for folder, split in folders.items():
        below = pictures_below(folder) if folder.is_dir() else []
        files = [path for path in below if path not in listed and path not in seen]
        seen.update(files)
        spots = [Spot(split, file_name=str(path.relative_to(folder))) for path in files]
        yield Finding("picture-not-listed", split, spots)


def _orientation(image: Image.Image) -> int:
    """By EXIF. Of a PNG only what comes before the pixels: getexif() would decode them all."""
    if image.format != "PNG":
        return int(image.getexif().get(ORIENTATION, 1))
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return int(exif.get(ORIENTATION, 1))


def _mode(image: Image.Image) -> str:
    tiles = str(getattr(image, "tile", ""))
    deep = ";16" in tiles and image.mode[0] not in "IF"  # of which Pillow shows the upper bytes
    return f"{image.mode}, 16 bits a channel" if deep else image.mode


def _looks(path: Path, options: PictureOptions) -> Looks:
    pixels = read_image(path, **asdict(options)).permute(1, 2, 0).numpy()  # (H, W, 3)
    whole = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    whole.update(repr(pixels.shape).encode())
    grey = Image.fromarray(pixels).convert("L")
    coarse = np.asarray(grey.resize((9, 8), Image.Resampling.BOX)).astype(int)
    thumbnail = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    with path.open("rb") as file:
        of_file = hashlib.blake2b(digest_size=16)
        while block := file.read(1 << 20):
            of_file.update(block)
    return Looks(
        of_file.digest(),
        whole.digest(),
        dhash(coarse),
        dhash(coarse[:, ::-1]),
        np.asarray(thumbnail).reshape(-1).copy(),
    )


def dhash(grey: np.ndarray) -> int:
    """The signs of the differences between neighbours in a row, (8, 9) -> 64 bits.

    After Krawetz 2013, "Kind of Like That".
    """
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def _message(error: Exception) -> str:
    expected = isinstance(error, OSError | ValueError)
    text = str(error) if expected else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
