# SPDX-License-Identifier: BSD-3-Clause
"""The NMS of Ultralytics' detectors, by `fastdet.nms`.

`non_max_suppression` takes torchvision's NMS if torchvision is among `sys.modules`, else
`TorchNMS.nms`. So `TorchNMS.nms` is replaced, and that module's `sys` by one that has no modules.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace

from torch import Tensor

from fastdet import ops
from fastdet.override import can_run
from fastdet.replacement import Replacements, module_with

TESTED = "8.4.190"


def _replace_all(replacements: Replacements) -> None:
    module = module_with(
        "fastdet.adapters.ultralytics",
        "ultralytics.utils.nms",
        TESTED,
        {"TorchNMS.nms": ["boxes", "scores", "iou_threshold"]},
    )
    replacements.replace(module.TorchNMS, "nms", _nms)
    replacements.put(module, "sys", SimpleNamespace(**{**vars(sys), "modules": {}}))


REPLACEMENTS = Replacements(_replace_all)


def _nms(theirs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        if can_run("nms", boxes, scores, iou_threshold):
            return ops.nms(boxes, scores, iou_threshold)
        if "torchvision" in sys.modules and boxes.device.type != "xpu":  # as Ultralytics decides
            return sys.modules["torchvision"].ops.nms(boxes, scores, iou_threshold)
        return theirs(boxes, scores, iou_threshold)

    return nms
