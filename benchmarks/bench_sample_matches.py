# SPDX-License-Identifier: BSD-3-Clause
"""Sampling of 256 anchors per image. The floor reads the matches."""

import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

import fastdet
from benchmarks.case import Case
from benchmarks.conftest import Beside
from benchmarks.workloads import seeded


def bench_two_images(beside: Beside) -> None:
    n = beside.size(200_000)
    # Of a thousand anchors one is positive and fifty are ignored, as in an RPN.
    draw = torch.rand(2, n, generator=seeded(10))
    index = torch.where(draw < 0.001, 0, torch.where(draw < 0.051, -2, -1))
    labels = list(torch.where(index == -2, -1, (index >= 0).long()))
    sampler = BalancedPositiveNegativeSampler(256, 0.5)
    beside(
        Case(
            op="sample_matches",
            workload=f"2 images, 256 of {n:,}",
            sides={
                "fastdet": lambda: fastdet.sample_matches(index, 256, 0.5),
                "torchvision": lambda: sampler(labels),
            },
            floor=index.sum,
        )
    )
