# SPDX-License-Identifier: BSD-3-Clause
"""Each operator once more, slow and obvious, in float64: what the kernels are compared with.

Everything here takes CPU tensors of any floating type and computes on Python floats or float64
tensors. Where an operator's contract fixes the arithmetic (the IoU of NMS is rounded once in
float32), the reference is told the type to round to.
"""

import math

import torch
from torch import Tensor


def iou(a: list[float], b: list[float], dtype: torch.dtype = torch.float64) -> float:
    """IoU of two xyxy boxes; each step rounded to `dtype`."""

    def rounded(x: float) -> float:
        return torch.tensor(x, dtype=torch.float64).to(dtype).item()

    def area(box: list[float]) -> float:
        return rounded(rounded(box[2] - box[0]) * rounded(box[3] - box[1]))

    width = max(rounded(min(a[2], b[2]) - max(a[0], b[0])), 0.0)
    height = max(rounded(min(a[3], b[3]) - max(a[1], b[1])), 0.0)
    inter = rounded(width * height)
    union = rounded(rounded(area(a) + area(b)) - inter)
    return rounded(inter / union) if union > 0 else 0.0


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, groups: Tensor | None = None
) -> Tensor:
    """Indices kept by greedy suppression, in the order in which they are kept."""
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    rows, values = boxes.double().tolist(), scores.double().tolist()
    ids = [0] * len(rows) if groups is None else groups.tolist()
    usable = [
        i
        for i in range(len(rows))
        if all(math.isfinite(x) for x in rows[i]) and not math.isnan(values[i])
    ]
    kept: list[int] = []
    for i in sorted(usable, key=lambda i: (-values[i], i)):
        if all(ids[i] != ids[k] or iou(rows[k], rows[i], dtype) <= iou_threshold for k in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)
