# SPDX-License-Identifier: BSD-3-Clause
"""Assignment and query matching on a GPU, beside SciPy, to which the costs must first be copied."""

from collections.abc import Callable, Iterator

import fastdet
from benchmarks.assignment import (
    QueryOutputs,
    assigned_by_scipy,
    costs_of,
    matched_by_scipy,
    query_outputs,
)
from benchmarks.gpu.case import GpuCase, forward
from benchmarks.gpu.device import Device

Cases = Iterator[GpuCase]


def linear_assignment(device: Device) -> Cases:
    for problems, rows, columns, target_ms in (
        (48, 300, 30, None),
        (16, 300, 300, 2.0),
        (1, 2000, 2000, None),
    ):
        cost = costs_of(problems, device.size(rows), device.size(columns))
        yield GpuCase(
            op="linear_assignment",
            workload=f"{problems} x {cost.size(1):,} x {cost.size(2):,}",
            inputs=(cost,),
            sides={
                "fastdet": forward(fastdet.linear_assignment),
                "SciPy": forward(assigned_by_scipy),
            },
            bytes=cost.nbytes,
            exact=lambda cost: assigned_by_scipy(cost.double()),
            target_ms=target_ms,
        )


def match_queries(device: Device) -> Cases:
    outputs = query_outputs(6, 8, device.size(300), 30, classes=80)
    for kind in ("focal", "softmax"):
        yield GpuCase(
            op="match_queries",
            workload=f"6 x 8 x {outputs.boxes.size(2)} queries, 30 gt, {kind}",
            inputs=tuple(outputs),
            sides={
                "fastdet": forward(lambda *t, k=kind: fastdet.match_queries(*t, kind=k)),
                "torch and SciPy": forward(
                    lambda *t, k=kind: matched_by_scipy(QueryOutputs(*t), k)
                ),
            },
            bytes=outputs.logits.nbytes + outputs.boxes.nbytes,
            exact=lambda *t, k=kind: matched_by_scipy(QueryOutputs(*t).double(), k),
            target_ms=0.2,
        )


SUITES: tuple[Callable[[Device], Cases], ...] = (linear_assignment, match_queries)
