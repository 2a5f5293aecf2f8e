# SPDX-License-Identifier: BSD-3-Clause
"""Encoding and decoding of boxes. The floor reads two arrays and writes one."""

import torch
from torchvision.models.detection._utils import BoxCoder

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import random_boxes, seeded

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))

# Centres and sides: about 16 a box. Two exponentials or logarithms of about 10 each; the rest.
OPERATIONS = 45


def bench_decode(beside: Beside) -> None:
    n = beside.size(200_000)
    anchors = random_boxes(n, 1216, 800, 300)
    deltas = torch.randn(n, 4, generator=seeded(4)) * 0.2
    beside(
        Case(
            op="decode_boxes",
            workload=f"{n:,}",
            sides={
                "fastdet": lambda: fastdet.decode_boxes(deltas, anchors),
                "torchvision": lambda: CODER.decode_single(deltas, anchors),
            },
            floor=stream(reads=32 * n, writes=16 * n),
            operations=OPERATIONS * n,
            exact=lambda: CODER.decode_single(deltas.double(), anchors.double()),
        )
    )


def bench_encode(beside: Beside) -> None:
    n = beside.size(200_000)
    anchors = random_boxes(n, 1216, 800, 300)
    boxes = anchors.flip(0)
    beside(
        Case(
            op="encode_boxes",
            workload=f"{n:,}",
            sides={
                "fastdet": lambda: fastdet.encode_boxes(boxes, anchors),
                "torchvision": lambda: CODER.encode_single(boxes, anchors),
            },
            floor=stream(reads=32 * n, writes=16 * n),
            operations=OPERATIONS * n,
            exact=lambda: CODER.encode_single(boxes.double(), anchors.double()),
        )
    )
