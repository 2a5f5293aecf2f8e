# SPDX-License-Identifier: BSD-3-Clause
"""The pictures of an analysis: the detections with what is wrong in each, beside the ground truth.

Green is found; each kind of error has a colour and words of its own.
"""

from dataclasses import asdict

import numpy as np
import torch
from PIL import Image

from fastdet.analysing.analysis import Analysis, Side
from fastdet.analysing.errors import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    DUPLICATE,
    IGNORED,
    LOCALISATION,
    MISSED,
)
from fastdet.data.segmentations import decode
from fastdet.evaluation.pictures import Colour, Shrunk, draw_boxes, shrunk_picture
from fastdet.ops.mask_rle import Rle
from fastdet.training.options import PictureOptions

SIDE = 480  # pixels of a drawing's longer side
COLOURS: dict[int, Colour] = {
    CORRECT: (60, 190, 90),
    CLASSIFICATION: (235, 110, 30),
    LOCALISATION: (250, 200, 40),
    BOTH: (170, 90, 40),
    DUPLICATE: (60, 160, 235),
    BACKGROUND: (215, 60, 190),
    MISSED: (225, 45, 45),
    IGNORED: (150, 150, 150),
}

KIND_WORDS = {
    LOCALISATION: "badly placed",
    BOTH: "class and place wrong",
    DUPLICATE: "duplicate",
    BACKGROUND: "nothing there",
}


class Drawer:
    """Draws images of an analysis; a picture is read once."""

    def __init__(self, analysis: Analysis, pictures: PictureOptions) -> None:
        self.analysis = analysis
        self.pictures = pictures
        self._kept: tuple[int, Shrunk] | None = None

    def views(self, index: int) -> dict[str, Image.Image]:
        """An image by what is on it: the detections of each side, and the ground truth."""
        sides = self.analysis.sides
        names = ["detections"] if len(sides) == 1 else ["first", "second"]
        views = {name: self._found(index, side) for name, side in zip(names, sides, strict=True)}
        return views | {"ground truth": self._truth(index)}

    def caption(self, index: int) -> str:
        """The name of an image and the number of errors on it, by kind."""
        name = self.analysis.annotations.file_names[index]
        counts = [_counts(self.analysis, side, index) for side in self.analysis.sides]
        if len(counts) == 1:
            return f"{name}: {counts[0]}"
        return f"{name}: first {counts[0]}; second {counts[1]}"

    def _found(self, index: int, side: Side) -> Image.Image:
        found, errors, names = side.found, side.errors, self.analysis.annotations.names
        shown = (found.image_index == index) & (found.scores >= side.score_threshold)
        rows = np.flatnonzero(shown)
        # What is wrong is on top, the best of it uppermost.
        rows = rows[np.lexsort((found.scores[rows], errors.kinds[rows] > CORRECT))]
        words = []
        for row in rows.tolist():
            text = f"{names[found.labels[row] - 1]} {found.scores[row]:.2f}"
            kind, about = int(errors.kinds[row]), int(errors.about[row])
            if kind == CORRECT:
                text = f"{found.scores[row]:.2f}"
            elif kind == CLASSIFICATION:
                text += f": is {names[self.analysis.annotations.labels[about] - 1]}"
            elif kind > CORRECT:
                text += f": {KIND_WORDS[kind]}"
            elif kind == IGNORED:
                text += ": in a crowd"
            words.append(text)
        masks = None if found.masks is None else [found.masks[row] for row in rows]
        return self._drawn(index, found.boxes_xywh[rows], words, errors.kinds[rows], masks)

    def _truth(self, index: int) -> Image.Image:
        annotations = self.analysis.annotations
        rows = np.flatnonzero(annotations.image_index == index)
        words, kinds = [], []
        for row in rows.tolist():
            said = [_of_object(side, row, annotations.names) for side in self.analysis.sides]
            kinds.append(max(kind for kind, _ in said))
            text = _joined([text for _, text in said])
            name = annotations.names[annotations.labels[row] - 1]
            words.append(f"{name}: {text}" if text else "")
        masks = None if annotations.masks is None else [annotations.masks[row] for row in rows]
        return self._drawn(index, annotations.boxes_xywh[rows], words, np.array(kinds), masks)

    def _drawn(
        self,
        index: int,
        boxes_xywh: np.ndarray,
        words: list[str],
        kinds: np.ndarray,
        masks: list[Rle] | None,
    ) -> Image.Image:
        shown = self._picture(index)
        small, (height, width) = shown.picture, shown.size
        scale = np.array([small.width / width, small.height / height] * 2)
        boxes = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
        limits = np.array([small.width - 1, small.height - 1] * 2)
        boxes = np.clip(boxes * scale, 0, limits)
        tints = None
        if masks is not None:
            whole = torch.from_numpy(decode(masks, height, width))[:, None]
            tints = torch.nn.functional.interpolate(whole, (small.height, small.width)) > 0
        image = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)
        colours = [COLOURS[kind] for kind in kinds.tolist()]
        return draw_boxes(
            image,
            torch.from_numpy(boxes),
            torch.arange(len(boxes)),
            words,
            masks=tints if len(boxes) else None,
            colours=colours,
        )

    def _picture(self, index: int) -> Shrunk:
        if self._kept is None or self._kept[0] != index:
            annotations = self.analysis.annotations
            folder = annotations.images
            path = None if folder is None else folder / annotations.file_names[index]
            height, width = annotations.image_sizes[index].tolist()
            reading = asdict(self.pictures)
            self._kept = index, shrunk_picture(path, (height, width), SIDE, **reading)
        return self._kept[1]


def _of_object(side: Side, row: int, names: list[str]) -> tuple[int, str]:
    """The kind of an object at the score threshold, and what is said of it; "" if it is found."""
    kind, by = int(side.objects.kinds[row]), int(side.objects.by[row])
    if kind == CLASSIFICATION:
        return kind, f"found as {names[side.found.labels[by] - 1]}"
    if kind == MISSED and (weak := int(side.matches.detections[row])) >= 0:
        return kind, f"missed, score {side.found.scores[weak]:.2f}"
    said = {IGNORED: "crowd", CORRECT: "", LOCALISATION: "badly placed", MISSED: "missed"}
    return kind, said[kind]


def _joined(texts: list[str]) -> str:
    """What is said of an object of which each side says something, "" if it finds it."""
    if len(texts) == 2 and any(texts) and not all(texts):
        return "only second" if texts[0] else "only first"
    return " / ".join(dict.fromkeys(text for text in texts if text))


def _counts(analysis: Analysis, side: Side, index: int) -> str:
    shown = side.shown() & (side.found.image_index == index)
    kinds = side.errors.kinds[shown]
    objects = (analysis.annotations.image_index == index) & ~analysis.annotations.crowd
    missed = int((objects & ~side.finds()).sum())
    words = {CLASSIFICATION: "of another class", **KIND_WORDS}
    texts = [f"{(kinds == kind).sum()} {text}" for kind, text in words.items()]
    texts = [text for text in texts if not text.startswith("0 ")]
    found = int((objects & side.finds()).sum())
    return ", ".join([f"{found} of {int(objects.sum())} found", *texts]) + (
        f", {missed} not found" if missed else ""
    )
