# SPDX-License-Identifier: BSD-3-Clause
"""The check of a data set: what is wrong with its annotations and pictures, and its repair."""

from fastdet.checking.check import CheckOptions, Report, check_dataset
from fastdet.checking.findings import KINDS, Finding, Spot
from fastdet.checking.repair import write_repaired

__all__ = [
    "KINDS",
    "CheckOptions",
    "Finding",
    "Report",
    "Spot",
    "check_dataset",
    "write_repaired",
]
