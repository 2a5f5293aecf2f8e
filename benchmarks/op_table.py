# SPDX-License-Identifier: BSD-3-Clause
"""Every operator beside torchvision's, in one run: the table of `make bench` and of the demo.

Both sides run in turn on the same inputs, and the ratio is that of their medians: a slow moment of
the machine slows both. Inputs are made once from a fixed seed.

    python -m benchmarks.op_table [--out FILE]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops.poolers import MultiScaleRoIAlign as TorchvisionMultiScaleRoIAlign

import fastdet
from benchmarks import machine

SECONDS_PER_ROW = 1.5
MAX_ROUNDS = 20
MIN_ROUNDS = 3


class Case(NamedTuple):
    """An operator on a workload, as both sides run it."""

    op: str
    workload: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]


class Row(NamedTuple):
    """Median milliseconds of both sides, and the quartiles of the ratio over the rounds."""

    op: str
    workload: str
    fastdet_ms: float
    torchvision_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


def random_boxes(n: int, width: float, height: float, largest: float, seed: int = 0) -> Tensor:
    """(n, 4) xyxy with sides up to `largest`, at least 1 px."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * torch.tensor([width, height])
    side = 1 + torch.rand(n, 2, generator=generator) * (largest - 1)
    return torch.cat([corner, corner + side], 1)


def both_ways(forward: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    """Forward and backward, with fresh gradients."""

    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        forward().sum().backward()

    return run


def nms_cases() -> Iterator[Case]:
    for n in (1000, 5000, 20000):
        boxes = random_boxes(n, 1000, 1000, 100)
        scores = torch.rand(n, generator=torch.Generator().manual_seed(1))
        yield Case(
            "nms",
            f"{n:,} boxes",
            lambda b=boxes, s=scores: fastdet.nms(b, s, 0.5),
            lambda b=boxes, s=scores: torchvision.ops.nms(b, s, 0.5),
        )
    ids = torch.randint(0, 80, (20000,), generator=torch.Generator().manual_seed(2))
    yield Case(
        "batched_nms",
        "20,000 boxes, 80 classes",
        lambda: fastdet.batched_nms(boxes, scores, ids, 0.5),
        lambda: torchvision.ops.batched_nms(boxes, scores, ids, 0.5),
    )


def box_cases() -> Iterator[Case]:
    anchors = random_boxes(200_000, 1216, 800, 300)
    for num_gt in (30, 100):
        gt = random_boxes(num_gt, 1216, 800, 300, seed=3)
        matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
        counts = torch.tensor([num_gt])
        yield Case(
            "match_anchors",
            f"200,000 anchors, {num_gt} gt",
            lambda g=gt, c=counts: fastdet.match_anchors(anchors, g[None], c, 0.7, 0.3),
            lambda g=gt, m=matcher: m(torchvision.ops.box_iou(g, anchors)),
        )
    yield Case(
        "box_iou",
        "100 x 200,000",
        lambda: fastdet.box_iou(gt, anchors),
        lambda: torchvision.ops.box_iou(gt, anchors),
    )
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    deltas = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(4)) * 0.2
    yield Case(
        "decode_boxes",
        "200,000",
        lambda: fastdet.decode_boxes(deltas, anchors),
        lambda: coder.decode_single(deltas, anchors),
    )
    yield Case(
        "encode_boxes",
        "200,000",
        lambda: fastdet.encode_boxes(anchors.flip(0), anchors),
        lambda: coder.encode_single(anchors.flip(0), anchors),
    )
    boxes1 = random_boxes(100_000, 100, 100, 300, seed=5).requires_grad_()
    boxes2 = random_boxes(100_000, 100, 100, 300, seed=6)
    yield Case(
        "generalized_box_iou_loss",
        "100,000, forward and backward",
        both_ways(lambda: fastdet.generalized_box_iou_loss(boxes1, boxes2), [boxes1]),
        both_ways(lambda: torchvision.ops.generalized_box_iou_loss(boxes1, boxes2), [boxes1]),
    )


def focal_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(200_000, 80, generator=generator).requires_grad_()
    labels = torch.randint(-1, 80, (200_000,), generator=generator)
    dense = torch.nn.functional.one_hot(labels + 1, 81)[:, 1:].float()
    theirs = both_ways(lambda: torchvision.ops.sigmoid_focal_loss(logits, dense), [logits])
    for name, targets in (("dense targets", dense), ("integer labels", labels)):
        yield Case(
            "sigmoid_focal_loss",
            f"200,000 x 80, {name}, forward and backward",
            both_ways(lambda t=targets: fastdet.sigmoid_focal_loss(logits, t), [logits]),
            theirs,
        )


def roi_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(8)
    boxes = random_boxes(1024, 900, 700, 400, seed=9)
    rois = torch.cat([torch.arange(1024)[:, None] % 2, boxes], 1)
    nchw = torch.randn(2, 256, 200, 256, generator=generator)
    layouts = {"NCHW": nchw, "channels_last": nchw.to(memory_format=torch.channels_last)}
    for layout, features in layouts.items():
        yield Case(
            "roi_align",
            f"1,024 RoIs, 256 x 7 x 7, {layout}",
            lambda x=features: fastdet.roi_align(x, rois, 7, 0.25, 2),
            lambda x=features: torchvision.ops.roi_align(x, rois, 7, 0.25, 2),
        )
    for layout, features in layouts.items():
        leaf = features.detach().clone().requires_grad_()
        yield Case(
            "roi_align",
            f"the same, forward and backward, {layout}",
            both_ways(lambda x=leaf: fastdet.roi_align(x, rois, 7, 0.25, 2), [leaf]),
            both_ways(lambda x=leaf: torchvision.ops.roi_align(x, rois, 7, 0.25, 2), [leaf]),
        )
    pyramid = [nchw[:, :, ::s, ::s].contiguous() for s in (1, 2, 4, 8)]
    pooler = TorchvisionMultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    by_image = [boxes[:512], boxes[512:]]
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    for layout in layouts:
        last = layout == "channels_last"
        form = torch.channels_last if last else torch.contiguous_format
        levels = [x.contiguous(memory_format=form) for x in pyramid]
        named = {str(i): x for i, x in enumerate(levels)}
        yield Case(
            "multiscale_roi_align",
            f"4 levels, 1,024 RoIs, {layout}",
            lambda f=levels: fastdet.multiscale_roi_align(
                f, torch.stack(by_image), None, 7, scales
            ),
            lambda f=named: pooler(f, by_image, [(800, 1024)] * 2),
        )


def cases() -> Iterator[Case]:
    """All rows, made one after another so that only one workload is in memory."""
    for group in (nms_cases, box_cases, focal_cases, roi_cases):
        yield from group()


def seconds(run: Callable[[], Any]) -> float:
    """One timed call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(case: Case) -> Row:
    """Both sides in turn: MIN_ROUNDS at least, then until the row's time is used up."""
    for warm_up in (case.ours, case.theirs):
        warm_up()
    ours: list[float] = []
    theirs: list[float] = []
    while len(ours) < MIN_ROUNDS or (
        sum(ours) + sum(theirs) < SECONDS_PER_ROW and len(ours) < MAX_ROUNDS
    ):
        ours.append(seconds(case.ours))
        theirs.append(seconds(case.theirs))
    low, _, high = statistics.quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)
    ms_ours, ms_theirs = 1e3 * statistics.median(ours), 1e3 * statistics.median(theirs)
    return Row(case.op, case.workload, ms_ours, ms_theirs, ms_theirs / ms_ours, low, high)


def measure_all() -> Iterator[Row]:
    """The table, row by row."""
    for case in cases():
        yield measure(case)


def show(rows: list[Row]) -> None:
    """Prints the rows as a table."""
    table = Table("op", "workload", title=f"{torch.get_num_threads()} threads, medians")
    for column in ("fastdet ms", "torchvision ms", "ratio", "quartiles"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.op,
            row.workload,
            f"{row.fastdet_ms:.3g}",
            f"{row.torchvision_ms:.3g}",
            f"{row.ratio:.1f}x",
            f"{row.ratio_low:.1f} - {row.ratio_high:.1f}",
        )
    Console().print(table)


def main() -> None:
    """Measures, prints, and writes a result file where one is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = list(measure_all())
    show(rows)
    if options.out:
        result = {"machine": machine.describe(), "rows": [row._asdict() for row in rows]}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
