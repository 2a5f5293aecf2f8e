# SPDX-License-Identifier: BSD-3-Clause
"""DETR's matching beside its torch form on SciPy, and beside transformers' matcher.

The floor reads the outputs once and does the arithmetic of the costs: of a pair about 40
operations, of a class cost about 50. A workload is decoder layers x images x queries.
"""

import pytest

import fastdet
from benchmarks.alternate import Side
from benchmarks.assignment import (
    matched_by_scipy,
    matched_by_transformers,
    query_outputs,
    transformers_matcher,
)
from benchmarks.case import Case
from benchmarks.ceilings import stream
from benchmarks.conftest import Beside

OPERATIONS_OF_PAIR = 90
TARGET = 10.0


@pytest.mark.parametrize(
    ("layers", "images", "queries", "gts", "kind"),
    [
        (6, 8, 300, 30, "focal"),
        (6, 8, 300, 30, "softmax"),
        (6, 2, 900, 30, "focal"),  # DINO
        (1, 1, 300, 7, "focal"),
    ],
)
def bench_detr(beside: Beside, layers: int, images: int, queries: int, gts: int, kind: str) -> None:
    outputs = query_outputs(layers, images, beside.size(queries), gts, classes=80)
    sides: dict[str, Side] = {
        "fastdet": lambda: fastdet.match_queries(*outputs, kind=kind),
        "torch and SciPy": lambda: matched_by_scipy(outputs, kind),
    }
    if matcher := transformers_matcher(kind):
        sides["transformers"] = lambda: matched_by_transformers(matcher, outputs)
    pairs = outputs.boxes[..., 0].numel() * gts
    beside(
        Case(
            op="match_queries",
            workload=f"{layers} x {images} x {outputs.boxes.size(2)} queries, {gts} gt, {kind}",
            sides=sides,
            floor=stream(
                reads=outputs.logits.nbytes + outputs.boxes.nbytes,
                writes=8 * outputs.boxes[..., 0].numel(),
            ),
            operations=OPERATIONS_OF_PAIR * pairs,
            exact=lambda: matched_by_scipy(outputs.double(), kind),
            target=TARGET,
        )
    )
