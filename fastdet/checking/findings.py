# SPDX-License-Identifier: BSD-3-Clause
"""What the check of a data set may find: every kind with its name, severity, meaning and advice.

The names are stable: scripts read them in check.json. An error stops a training, makes its result
wrong or loses objects; a warning is probably a mistake; a note is worth knowing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
Box = tuple[float, float, float, float]


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        severity: how bad it is.
        meaning: what is wrong, as a sentence.
        advice: what to do about it, as a sentence.
    """

    severity: Severity
    meaning: str
    advice: str


KINDS: dict[str, Kind] = {
    # ---- the annotation files --------------------------------------------------------------------
    "annotations-unreadable": Kind(
        "error",
        "The annotations of a split cannot be read, so nothing else of it was checked.",
        "Correct what the message names.",
    ),
    "ids-repeated": Kind(
        "error",
        "Several images, categories or annotations have the same id.",
        "Give each an id of its own; annotation ids may be numbered anew.",
    ),
    "unknown-image": Kind(
        "error",
        "The image of an annotation is not in the file, so the annotation is left out.",
        "Add the image, or remove the annotation (--fix removes it).",
    ),
    "unknown-category": Kind(
        "error",
        "An annotation has no category, or one that is not in the file, and is left out.",
        "Add the category, or remove the annotation (--fix removes it).",
    ),
    "box-not-finite": Kind(
        "error",
        "A box has a value that is NaN or infinite, so the annotation is left out.",
        "Draw the box again, or remove it (--fix removes it).",
    ),
    "box-unreadable": Kind(
        "error",
        "A box is not four numbers, so the annotation is left out.",
        "Write it as [x, y, width, height] in pixels, or remove it (--fix removes it).",
    ),
    "annotation-left-out": Kind(
        "warning",
        "The reader left out annotations that it cannot use.",
        "See the message; correct or remove them (--fix removes them).",
    ),
    "annotation-changed": Kind(
        "warning",
        "The reader kept annotations, but not everything of them.",
        "See the message; correct them in the source.",
    ),
    "reader-message": Kind(
        "note",
        "The reader of the annotations said something.",
        "See the message.",
    ),
    # ---- pictures --------------------------------------------------------------------------------
    "picture-missing": Kind(
        "error",
        "A picture that the annotations name does not exist.",
        "Add the file or correct its name; --fix drops such pictures, unless all are missing.",
    ),
    "picture-unreadable": Kind(
        "error",
        "A file cannot be opened as a picture.",
        "Replace the file; --fix drops the picture.",
    ),
    "picture-truncated": Kind(
        "error",
        "A picture opens, but its pixels cannot be decoded to the end.",
        "Copy the file again from its source; --fix drops the picture.",
    ),
    "picture-size-differs": Kind(
        "error",
        "A picture has another size than its annotations state.",
        "If the picture was resized, its boxes are wrong: restore it. If only the stated size is "
        "wrong, --fix corrects it.",
    ),
    "picture-turned": Kind(
        "note",
        "EXIF turns a picture for display, and fastdet reads it as displayed.",
        "Check on the picture sheet that the boxes fit; --exif ignore takes it as stored.",
    ),
    "picture-not-rgb": Kind(
        "note",
        "A picture is not stored as RGB with 8 bits a channel, and is converted when it is read.",
        "Nothing, as a rule. For more than 8 bits, state --bit-depth.",
    ),
    "picture-listed-twice": Kind(
        "warning",
        "One file is listed as several images of a split.",
        "Merge the images, or each is trained on with only a part of its objects.",
    ),
    "picture-not-listed": Kind(
        "note",
        "A picture in the folder is named by no annotation file.",
        "Annotate it or list it as an image without objects, if it belongs to the data.",
    ),
    "split-without-pictures": Kind(
        "error",
        "A split has no picture, which a training refuses.",
        "Check that the right file is there.",
    ),
    "nothing-to-learn": Kind(
        "error",
        "The training split has no object, which a training refuses.",
        "Check that the right file is there.",
    ),
    "split-without-objects": Kind(
        "warning",
        "A split has no object, so nothing can be measured with it.",
        "Check that the right file is there.",
    ),
    # ---- boxes -----------------------------------------------------------------------------------
    "box-outside": Kind(
        "error",
        "A box lies wholly outside its picture and is left out.",
        "Remove it (--fix removes it), or check the size of the picture.",
    ),
    "box-partly-outside": Kind(
        "warning",
        "A box reaches beyond its picture and is cut there when it is read.",
        "Nothing for single boxes (--fix cuts them); for many, check sizes and the box format.",
    ),
    "box-flipped": Kind(
        "error",
        "A box has a negative width or height and is left out.",
        "Exchange its corners (--fix does it).",
    ),
    "box-empty": Kind(
        "error",
        "A box has no width or no height and is left out.",
        "Remove it (--fix removes it).",
    ),
    "box-repeated": Kind(
        "warning",
        "An annotation repeats another: same image, category and box.",
        "Remove all but one (--fix removes them).",
    ),
    "box-of-two-categories": Kind(
        "warning",
        "The same box has several categories.",
        "Keep the right one, unless an object may have several.",
    ),
    "box-nearly-repeated": Kind(
        "warning",
        "Two boxes of one category overlap with an IoU above 0.95.",
        "Keep one, if both mark the same object.",
    ),
    "box-of-whole-picture": Kind(
        "note",
        "A box covers its whole picture.",
        "Check that it marks an object, and not the picture as such.",
    ),
    "box-below-1-pixel": Kind(
        "warning",
        "A box is less than 1 pixel wide or high.",
        "Remove it, unless the values have another unit.",
    ),
    "box-below-2-pixels": Kind(
        "note",
        "A box is less than 2 pixels wide or high.",
        "Check that it marks an object.",
    ),
    "boxes-normalised": Kind(
        "error",
        "The boxes look like fractions of the picture (0 to 1), not like pixels.",
        "Multiply them by the width and height of the picture.",
    ),
    "boxes-as-corners": Kind(
        "error",
        "The boxes look like [x1, y1, x2, y2] written as [x, y, width, height].",
        "Subtract x1 and y1 from the last two values.",
    ),
    "boxes-from-1": Kind(
        "warning",
        "Boxes begin at pixel 1 at the border and never at 0: the coordinates count from 1.",
        "If the source counts pixels from 1, as Pascal VOC does, subtract 1 from x and y; add 1 to "
        "width and height too, if they are differences of first and last pixels.",
    ),
    "boxes-end-inclusive": Kind(
        "note",
        "Boxes at the border end one pixel before it: the ends may be meant inclusively.",
        "Add 1 to widths and heights, if the source gives the last pixel of an object.",
    ),
    "segmentation-missing": Kind(
        "note",
        "Some annotations have no segmentation, though others have one.",
        "Nothing for detection; a training with masks leaves them out.",
    ),
    "segmentation-unreadable": Kind(
        "warning",
        "A segmentation is no mask of its image; a training with masks leaves it out.",
        "Correct or remove the segmentation.",
    ),
    "segmentation-empty": Kind(
        "warning",
        "A segmentation covers no pixel; a training with masks leaves it out.",
        "Draw it again, or remove it.",
    ),
    "segmentation-off-box": Kind(
        "warning",
        "The box around a segmentation is not the annotation's box.",
        "Find out which is right, and compute the other from it.",
    ),
    "area-differs": Kind(
        "warning",
        "The area is neither that of the segmentation nor that of the box.",
        "Correct it: the evaluation sorts objects into small, medium and large by it.",
    ),
    # ---- categories ------------------------------------------------------------------------------
    "category-unused": Kind(
        "note",
        "A category has no object in any split; crowds are none.",
        "Remove it, or nothing is learned for one of the model's outputs.",
    ),
    "category-not-trained": Kind(
        "warning",
        "A category has objects in another split, but none in the training split.",
        "Split the data anew, so that each category can be learned.",
    ),
    "category-in-one-split": Kind(
        "error",
        "A category is listed in one split and not in another, which a training refuses.",
        "Give all splits the same list of categories.",
    ),
    "category-names-alike": Kind(
        "warning",
        "Names of categories differ only in case, spaces, hyphens or underscores.",
        "Merge them, if they mean the same.",
    ),
    "category-name-repeated": Kind(
        "warning",
        "Several categories of a file have the same name; the reader adds their ids to tell them "
        "apart.",
        "Merge them, or give them different names.",
    ),
    "category-rare": Kind(
        "note",
        "A category has fewer than 10 objects in the training split.",
        "Add examples, or expect a low AP for it.",
    ),
    # ---- between pictures ------------------------------------------------------------------------
    "leak-same-file": Kind(
        "error",
        "The same file is in several splits, so the evaluation sees what was trained on.",
        "Keep it in one split.",
    ),
    "leak-same-bytes": Kind(
        "error",
        "Copies of one file are in several splits, so the evaluation sees what was trained on.",
        "Keep one of them.",
    ),
    "leak-same-pixels": Kind(
        "error",
        "Pictures of several splits have the same pixels, so the evaluation sees what was trained "
        "on.",
        "Keep one of them.",
    ),
    "leak-near-duplicate": Kind(
        "warning",
        "Pictures of several splits look the same: resized, compressed anew or brightened copies, "
        "or frames of one scene.",
        "Look at them; keep a group of such pictures in one split.",
    ),
    "leak-same-name": Kind(
        "note",
        "Pictures of several splits have the same file name, in different folders.",
        "Nothing, if each split counts its files by itself; copies are other findings.",
    ),
    "duplicate-bytes": Kind(
        "warning",
        "Copies of one file are in a split.",
        "Keep one, with all of its objects.",
    ),
    "duplicate-pixels": Kind(
        "warning",
        "Pictures of a split have the same pixels.",
        "Keep one, with all of its objects.",
    ),
    "near-duplicate": Kind(
        "note",
        "Pictures of a split look the same.",
        "Look at them: many copies of one scene weigh more than others in a training.",
    ),
    # ---- the model -------------------------------------------------------------------------------
    "anchors-miss-objects": Kind(
        "warning",
        "Less than 90 % of the objects have an anchor with an IoU of 0.5 at the training's size.",
        "Train with a larger min_size, or with anchor_sizes that fit the objects.",
    ),
    "points-miss-objects": Kind(
        "warning",
        "Less than 90 % of the objects have a location of the finest level inside them at the "
        "training's size.",
        "Train with a larger min_size.",
    ),
}


@dataclass(frozen=True, slots=True)
class Spot:
    """One place of a finding.

    Attributes:
        split: its name.
        image_id, file_name, annotation_id: as far as they are known.
        detail: what is special about this place.
        box: xyxy in pixels as recorded, for the drawing.
        index: of the image in the split's annotations, for the drawing.
        also: the other pictures of a group that are the same.
    """

    split: str
    image_id: object = None
    file_name: str | None = None
    annotation_id: object = None
    detail: str = ""
    box: Box | None = None
    index: int | None = None
    also: "tuple[Spot, ...]" = ()

    def __str__(self) -> str:
        annotation = "" if self.annotation_id is None else f"annotation id {self.annotation_id}"
        image = "" if self.image_id is None else f"image id {self.image_id}"
        words = (self.file_name, image, annotation, self.detail)
        return ", ".join(word for word in words if word)


@dataclass(frozen=True)
class Finding:
    """Everything of one kind in one split.

    Attributes:
        name: a key of `KINDS`.
        split: its name; empty for a finding over several splits.
        places: every place, in the order of the source.
        detail: what the kind's sentence leaves open.
        count: how many there are; the number of places, unless the source counted more.
    """

    name: str
    split: str
    places: Sequence[Spot] = field(default_factory=tuple)
    detail: str = ""
    count: int = -1

    def __post_init__(self) -> None:
        if self.count < 0:
            object.__setattr__(self, "count", len(self.places))

    @property
    def severity(self) -> Severity:
        """Of its kind."""
        return KINDS[self.name].severity


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; of each the most frequent first."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -f.count, f.name, f.split))
