# SPDX-License-Identifier: BSD-3-Clause
"""Puts fastdet's operators where other packages have a suppression of their own.

`sahi`, `supervision` and `ultralytics` are overrides like `fastdet.override_torchvision`: call one,
or use it in a `with` statement. While one is active it holds for the whole process and in all
threads. Call and undo it while no other thread runs the package. Overrides may be nested and undone
in any order; the package's own code returns after the last undo. A handle that nobody keeps is
never undone. `to_supervision` replaces nothing: it hands a detector's output to supervision.

Importing this module imports neither torch nor any of the packages.
"""

from fastdet.replacement import Override

from . import sahi_postprocess, supervision_boxes
from .supervision_detections import to_supervision as to_supervision


def sahi() -> Override:
    """Puts `fastdet.numpy.nmm` under the post-processing of SAHI.

    It decides which boxes are kept and which join them in NMS, NMM and GREEDYNMM, with IOU or IOS,
    class by class or not, and with each of SAHI's backends. This also reaches functions that are
    already imported. SAHI still merges the boxes, scores, classes and masks of a group, in its own
    way. What is left to SAHI: LSNMS, which is compiled already; thresholds outside (0, 1]; boxes
    that are not finite; and in NMM long chains in which each box takes only the next one.

    Results are the same as those of SAHI's NumPy backend, with ties in SAHI's order. Where they
    differ:

    - Boxes are compared in the type of the array, float32 in SAHI. SAHI's Numba backend compares
      in float64 or float32, depending on the number of boxes. So an overlap that differs from the
      threshold by less than float32's rounding may be decided otherwise.
    - In NMM, SAHI merges neither of two boxes with equal scores into the other, unless they are
      equal too. Here the first of them takes the other, as in GREEDYNMM.

    Returns:
        A handle with `undo()`. It is also a context manager: `with fastdet.adapters.sahi(): ...`.

    Raises:
        ImportError: SAHI is not installed.
        RuntimeError: SAHI is of a version whose functions are others.
    """
    return sahi_postprocess.REPLACEMENTS.override()


def supervision() -> Override:
    """Puts `fastdet.numpy.nmm` under supervision's suppression and merging of boxes.

    This reaches `box_non_max_suppression` and `box_non_max_merge`, and so `Detections.with_nms`,
    `Detections.with_nmm`, `KeyPoints.with_nms` and `InferenceSlicer`, with IOU or IOS, class by
    class or not. What is left to supervision: masks, oriented boxes, Soft-NMS, numbers that are not
    finite, merging with threshold 0, and the merging of the boxes of a group. A module outside
    supervision that has imported `box_non_max_suppression` by name keeps what it got then:
    supervision's before the call, fastdet's while it is active.

    Results are the same, also at the threshold, where supervision rounds overlaps to float32. So of
    integer boxes with an IoU of exactly 0.6 one is dropped at threshold 0.6, but not at 0.7. The
    order of equal scores is that of NumPy's argsort, which is not defined.

    Returns:
        A handle with `undo()`. It is also a context manager:
        `with fastdet.adapters.supervision(): ...`.

    Raises:
        ImportError: supervision is not installed.
        RuntimeError: supervision is of a version whose functions are others.
    """
    return supervision_boxes.REPLACEMENTS.override()


def ultralytics() -> Override:
    """Puts `fastdet.nms` under the NMS of Ultralytics' detectors.

    `non_max_suppression`, which predict and val call, takes torchvision's NMS if something has
    imported torchvision, else Ultralytics' own, `TorchNMS.nms`. Both are replaced for Ultralytics;
    other users of torchvision are not reached. What is left to Ultralytics: oriented boxes,
    `TorchNMS.fast_nms`, exports, and arguments that fastdet's NMS does not take.

    Results are the same as with torchvision. Where `TorchNMS` alone differs:

    - It keeps a box whose IoU is the threshold rounded up to float32, as for an IoU of exactly 0.6.
      torchvision drops that box, and so does this.
    - It compares float16 boxes in float16, where areas above 65,504 overflow: it drops large boxes
      that overlap little. Here half types are compared in float32.
    - In it the order of equal scores is not defined. Here it is that of the input.
    - A box with a NaN score or a coordinate that is not finite is dropped.

    Ultralytics separates classes by a shift of 7,680 pixels each, in float32, which rounds boxes of
    high classes to 1/16 pixel; that stays. It stops after a time limit, 2 seconds and 0.05 for each
    image, and leaves the remaining images without boxes; that happens less often.

    Returns:
        A handle with `undo()`. It is also a context manager:
        `with fastdet.adapters.ultralytics(): ...`.

    Raises:
        ImportError: Ultralytics is not installed.
        RuntimeError: Ultralytics is of a version whose functions are others.
    """
    from . import ultralytics_nms  # imports torch

    return ultralytics_nms.REPLACEMENTS.override()
