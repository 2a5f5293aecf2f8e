# SPDX-License-Identifier: BSD-3-Clause
"""The exported files that several tests read."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdet.deploy.export import export_candidates, export_detector
from fastdet.models import Detector
from tests.deploy.detectors import CLASSES, SEVERAL, SIZE, detector, find_few

OnnxFile = Callable[..., tuple[Detector, Path]]


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> OnnxFile:
    """A model by name, and its file for any number of images. Do not change them.

    `few`: it finds nothing in one of SEVERAL and less than fills the rows in the others.
    """

    @functools.cache
    def onnx_file(name: str, few: bool = False) -> tuple[Detector, Path]:
        model, path = detector(name), tmp_path_factory.mktemp(name) / "detector.onnx"
        if few:
            find_few(model, *SEVERAL)
        export_detector(model, path, SIZE, batch_size=None, classes=CLASSES)
        return model, path

    return onnx_file


@pytest.fixture(scope="session")
def candidates_file(tmp_path_factory: pytest.TempPathFactory) -> OnnxFile:
    """A model by name, and its file without suppression for two images. Do not change them."""

    @functools.cache
    def candidates_file(name: str) -> tuple[Detector, Path]:
        model, path = detector(name), tmp_path_factory.mktemp(name) / "candidates.onnx"
        export_candidates(model, path, SIZE, batch_size=2, classes=CLASSES)
        return model, path

    return candidates_file
