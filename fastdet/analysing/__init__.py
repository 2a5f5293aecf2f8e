# SPDX-License-Identifier: BSD-3-Clause
"""What went wrong, on which pictures: the analysis of detections on a split."""

from fastdet.analysing.analysis import (
    Analysis,
    AnalysisOptions,
    Beside,
    Side,
    analyse_side,
    compare,
)
from fastdet.analysing.detections import Found, read_found

__all__ = [
    "Analysis",
    "AnalysisOptions",
    "Beside",
    "Found",
    "Side",
    "analyse_side",
    "compare",
    "read_found",
]
