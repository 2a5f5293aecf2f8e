# SPDX-License-Identifier: BSD-3-Clause
"""Copying or linking the pictures of a data set; their bytes stay as they are."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from fastdet.data.writers.plan import SplitPlan

Images = Literal["copy", "link", "none"]


def check_images(images: str) -> None:
    """Raises ValueError for another word."""
    if images not in get_args(Images):
        raise ValueError(f"images: expected {', '.join(get_args(Images))}, got {images!r}")


def place_images(plans: Sequence[SplitPlan], folder: Path, images: Images) -> None:
    """Puts the pictures of all splits at their places below `folder`.

    Raises:
        FileNotFoundError: pictures are missing; found out before the first one is copied.
    """
    if images == "none":
        return
    # A picture may be in two splits.
    pairs = {new: old for plan in plans for old, new in plan.sources()}
    missing = [old for old in pairs.values() if not old.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]}: no such image file ({len(missing)} of {len(pairs)} are missing; "
            "images 'none' writes the annotations alone)"
        )
    for parent in {(folder / new).parent for new in pairs}:
        parent.mkdir(parents=True, exist_ok=True)
    put = shutil.copyfile if images == "copy" else _link
    for new, old in pairs.items():
        put(old, folder / new)


def _link(old: Path, new: Path) -> None:
    old = old.resolve()
    try:
        os.link(old, new)
    except OSError:  # another file system, or one without hard links
        new.symlink_to(old)
