# SPDX-License-Identifier: BSD-3-Clause
"""Each operator in ONNX beside the operator: ties, thresholds, fewer rows than asked for, none."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from fastdet import ops
from fastdet.deploy.onnx_ops import translations

pytestmark = pytest.mark.slow

SIZES = torch.tensor([[60, 90], [64, 96]])
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Call(nn.Module):
    """A function as a module, which is what torch.export takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Any:
        return self.function(*arguments)


def by_onnx(function: Callable[..., Any], arguments: Sequence[Tensor], folder: Path) -> list[Any]:
    program = torch.export.export(Call(function), tuple(arguments))
    names = [f"input{i}" for i in range(len(arguments))]
    converted = torch.onnx.export(
        program, input_names=names, custom_translation_table=translations(), verbose=False
    )
    assert converted is not None
    converted.save(folder / "op.onnx")
    session = onnxruntime.InferenceSession(folder / "op.onnx", providers=["CPUExecutionProvider"])
    used = {value.name for value in session.get_inputs()}
    feed = {name: x.numpy() for name, x in zip(names, arguments, strict=True) if name in used}
    return list(session.run(None, feed))


def assert_equal(
    function: Callable[..., Any], arguments: Sequence[Tensor], folder: Path
) -> list[Any]:
    """Integers exactly, floating point to rounding; returns what the operator gave."""
    expected = function(*arguments)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    for found, own in zip(by_onnx(function, arguments, folder), expected, strict=True):
        if own.is_floating_point():
            np.testing.assert_allclose(found, own, rtol=1e-5, atol=2e-5)
        else:
            np.testing.assert_array_equal(found, own)
    return expected


def boxes_around(rows: int, seed: int) -> Tensor:
    """(2, rows, 4), with some of no width."""
    draw = torch.rand(2, rows, 4, generator=torch.Generator().manual_seed(seed))
    corner, sides = 70 * draw[..., :2], 4 + 40 * draw[..., 2:]
    sides[:, ::13] = 0
    return torch.cat((corner, corner + sides), dim=2)


def head(classes: int, rows: Sequence[int] = (90, 40, 7)) -> tuple[list[Tensor], ...]:
    """Logits, of which many are equal, deltas and anchors of three levels."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, n, classes, generator=generator) for n in rows]
    logits = [(6 * level).round() / 4 for level in logits]
    deltas = [0.4 * torch.randn(2, n, 4, generator=generator) for n in rows]
    return logits, deltas, [boxes_around(sum(rows), 3)[0]]


@pytest.mark.parametrize("top", [(20, 30, 0.7, 0.0), (1000, 300, 0.5, 0.5), (50, 300, 0.5, 1.0)])
def test_rpn_proposals(top: tuple[int, int, float, float], tmp_path: Path) -> None:
    logits, deltas, anchors = head(1)
    arguments = [level[..., 0] for level in logits] + deltas + anchors + [SIZES]
    found = assert_equal(
        lambda *x: ops.rpn_proposals(x[:3], x[3:6], x[6], x[7], *top), arguments, tmp_path
    )
    assert (found[3].min() > 5) == (top[3] < 1)


@pytest.mark.parametrize("top", [(0.3, 40, 0.5, 60), (0.0, 1000, 0.6, 2000), (0.999, 40, 0.5, 60)])
def test_retinanet_detections(top: tuple[float, int, float, int], tmp_path: Path) -> None:
    logits, deltas, anchors = head(5)
    found = assert_equal(
        lambda *x: ops.retinanet_detections(x[:3], x[3:6], x[6], x[7], *top),
        [*logits, *deltas, *anchors, SIZES],
        tmp_path,
    )
    assert (found[3].min() > 5) == (top[0] < 0.9)


@pytest.mark.parametrize("top", [(0.05, 0.5, 20), (0.3, 0.3, 1000), (1.0, 0.5, 20)])
@pytest.mark.parametrize("with_counts", [True, False])
def test_roi_detections(top: tuple[float, float, int], with_counts: bool, tmp_path: Path) -> None:
    (logits, *_), (deltas, *_), _ = head(4)
    arguments = [logits, deltas[:, :, None].repeat(1, 1, 4, 1), boxes_around(90, 4), SIZES]
    counts = torch.tensor([80, 0])
    found = assert_equal(
        lambda logits, deltas, boxes, sizes, counts=None: ops.roi_detections(
            logits, deltas, boxes, counts, sizes, WEIGHTS, *top
        ),
        [*arguments, counts] if with_counts else arguments,
        tmp_path,
    )
    assert (found[3][0] > 5) == (top[0] < 1)
    assert (found[3][1] > 5) == (top[0] < 1 and not with_counts)


@pytest.mark.parametrize("clipped", [True, False])
def test_decode_boxes(clipped: bool, tmp_path: Path) -> None:
    anchors = boxes_around(90, 4)[0]
    deltas = 3 * torch.randn(2, 90, 4, generator=torch.Generator().manual_seed(7))
    decoded = assert_equal(
        lambda deltas, anchors, sizes=None: ops.decode_boxes(deltas, anchors, WEIGHTS, sizes),
        [deltas, anchors, *([SIZES] if clipped else [])],
        tmp_path,
    )[0]
    assert (decoded.min() >= 0) == clipped


@pytest.mark.parametrize("max_keep", [20, 200])
@pytest.mark.parametrize("whole", [True, False])
def test_nms_padded(max_keep: int, whole: bool, tmp_path: Path) -> None:
    boxes = boxes_around(60, 5)
    scores = torch.rand(2, 60, generator=torch.Generator().manual_seed(6)).mul(20).round() / 20
    groups = torch.arange(120).view(2, 60) % 7
    rest = [] if whole else [groups, torch.tensor([50, 1])]
    keep, counts = assert_equal(
        lambda boxes, scores, *rest: ops.nms_padded(boxes, scores, 0.6, max_keep, *rest),
        [boxes, scores, *rest],
        tmp_path,
    )
    assert counts[0] > 5
    assert keep.shape == (2, max_keep)


def test_iou_at_the_threshold(tmp_path: Path) -> None:
    """3 / 5 in float32 is above 0.6, as the operator has it."""
    boxes = torch.tensor([[[0.0, 0, 4, 1], [1, 0, 5, 1], [10, 0, 14, 1]]])
    scores = torch.tensor([[0.9, 0.8, 0.7]])
    for threshold, kept in ((0.6, 2), (0.61, 3)):
        _, counts = assert_equal(
            lambda boxes, scores, iou=threshold: ops.nms_padded(boxes, scores, iou, 3),
            [boxes, scores],
            tmp_path,
        )
        assert int(counts) == kept


@pytest.mark.parametrize("softmax", [False, True])
def test_ms_deform_attn(softmax: bool, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 12), (4, 6), (1, 3)]
    value = torch.randn(2, 123, 3, 5, generator=generator)
    locations = torch.rand(2, 7, 3, 3, 4, 2, generator=generator) * 1.4 - 0.2
    weights = torch.randn(2, 7, 3, 3, 4, generator=generator)
    attended = assert_equal(
        lambda value, locations, weights: ops.ms_deform_attn(
            value, shapes, locations, weights, softmax
        ),
        [value, locations, weights],
        tmp_path,
    )[0]
    assert attended.shape == (2, 7, 15)
    assert attended.any()


# Each value of an option beside each of another.
@pytest.mark.parametrize(
    ("mask", "bias", "groups"),
    [
        (False, False, (1, 1)),
        (False, True, (2, 3)),
        (True, False, (2, 3)),
        (True, True, (1, 1)),
    ],
)
def test_deform_conv2d(mask: bool, bias: bool, groups: tuple[int, int], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    points = 6 * groups[1]
    input = torch.randn(2, 6, 9, 8, generator=generator)
    offset = 2 * torch.randn(2, 2 * points, 4, 6, generator=generator)
    weight = torch.randn(4, 6 // groups[0], 3, 2, generator=generator) / 6
    shift = torch.randn(4, generator=generator) if bias else None
    factors = torch.rand(2, points, 4, 6, generator=generator) if mask else None
    steps = (2, 1), (1, 0), (2, 2)
    convolved = assert_equal(
        lambda *x: ops.deform_conv2d(x[0], x[1], weight, shift, *steps, x[2] if mask else None),
        [input, offset, *([factors] if factors is not None else [])],
        tmp_path,
    )[0]
    assert convolved.shape == (2, 4, 4, 6)


@pytest.mark.parametrize("sampling", [(2, False), (0, True)])
def test_multiscale_roi_align(sampling: tuple[int, bool], tmp_path: Path) -> None:
    features = [torch.randn(2, 3, 64 // stride, 96 // stride) for stride in (4, 8, 16)]
    boxes = torch.cat((boxes_around(20, 7), boxes_around(4, 8) * 0.2), dim=1)
    boxes[0, 5] = torch.tensor([0.0, 0, 56, 56])  # at the border of two levels
    pooled = assert_equal(
        lambda *x: ops.multiscale_roi_align(
            x[:3], x[3], x[4], (3, 2), (1 / 4, 1 / 8, 1 / 16), sampling[0], 56, 3, sampling[1]
        ),
        [*features, boxes, torch.tensor([24, 9])],
        tmp_path,
    )[0]
    assert pooled[1, 8].any()
    assert not pooled[1, 9:].any()
