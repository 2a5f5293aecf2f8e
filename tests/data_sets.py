# SPDX-License-Identifier: BSD-3-Clause
"""COCO data sets to test with: the drawn sample, and real ones where the machine has them."""

from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parent / "sample"
REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


def data_sets(*names: str):
    """The sample's folder and those of the named real data sets that lie beside the checkout.

    Args:
        names: of bccd, coco_by, nuclei and trash10.
    """
    folders = [SAMPLE, *(REAL / name for name in names)]
    return [pytest.param(folder, id=folder.name) for folder in folders if folder.is_dir()]
