# SPDX-License-Identifier: BSD-3-Clause
"""A detector without training, and small videos."""

from collections.abc import Sequence
from pathlib import Path

import lightning
import pytest
import torch

from fastdet.training.detector_module import DetectorModule

NUMBERS = {"fpn_channels": 8, "min_size": 64, "max_size": 64, "detections_per_img": 5}


def write_checkpoint(
    path: Path,
    model: str = "retinanet",
    classes: Sequence[str] = ("background", "any"),
    **numbers: object,
) -> DetectorModule:
    torch.manual_seed(0)
    module = DetectorModule(
        model, "resnet10t", list(classes), [7], {**NUMBERS, "score_thresh": 0.0, **numbers}
    )
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return module.eval()


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DetectorModule]:
    """A RetinaNet that finds five objects everywhere: its checkpoint, and itself."""
    path = tmp_path_factory.mktemp("detector") / "any.ckpt"
    return path, write_checkpoint(path)
