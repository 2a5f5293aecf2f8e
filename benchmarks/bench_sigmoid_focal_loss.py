# SPDX-License-Identifier: BSD-3-Clause
"""Focal loss, summed, forward and backward.

The floor reads the logits, and the targets, and writes the gradient.
"""

import pytest
import torch
import torchvision

import fastdet
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside
from benchmarks.workloads import gradients, seeded

# Of a logit: an exponential and a logarithm of about 10 each, a quotient, and the products.
OPERATIONS = 35


@pytest.mark.parametrize("targets", ["dense targets", "integer labels"])
def bench_sum_forward_and_backward(beside: Beside, targets: str) -> None:
    n, classes = beside.size(200_000), 80
    logits = torch.randn(n, classes, generator=seeded(7)).requires_grad_()
    labels = torch.randint(-1, classes, (n,), generator=seeded(8))
    dense = torch.nn.functional.one_hot(labels + 1, classes + 1)[:, 1:].float()
    wide = logits.detach().double().requires_grad_()
    ours = dense if targets == "dense targets" else labels
    loss = torchvision.ops.sigmoid_focal_loss
    beside(
        Case(
            op="sigmoid_focal_loss",
            workload=f"{n:,} x {classes}, {targets}, forward and backward",
            sides={
                "fastdet": gradients(
                    lambda: fastdet.sigmoid_focal_loss(logits, ours, reduction="sum"), [logits]
                ),
                "torchvision": gradients(lambda: loss(logits, dense, reduction="sum"), [logits]),
            },
            floor=stream(reads=4 * logits.numel() + ours.nbytes, writes=4 * logits.numel()),
            operations=OPERATIONS * logits.numel(),
            exact=gradients(lambda: loss(wide, dense.double(), reduction="sum"), [wide]),
            target=12.0 if targets == "dense targets" else 20.0,
        )
    )
