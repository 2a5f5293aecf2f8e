# SPDX-License-Identifier: BSD-3-Clause
"""A checkpoint of a detector in 8-bit integers for fastdet's own layers on a CPU.

It has the weights in float32, as the training wrote them, and beside them the calibration: plain
data, the ranges of the maps. `load_detector` makes the integers of both. For a file that ONNX
Runtime quantises see `int8.py`.
"""

from pathlib import Path

import torch

from fastdet.data import Classes
from fastdet.deploy.calibration import Accuracy, calibration_data
from fastdet.engine import calibrate, quantized_by
from fastdet.files import replacing
from fastdet.training.checkpoint import read_checkpoint
from fastdet.training.detector_module import CALIBRATION, load_detector
from fastdet.training.train import evaluate

# All else, such as the state of the optimiser, is for going on with the training.
KEPT = (
    "state_dict",
    "hyper_parameters",
    "hparams_name",
    "pytorch-lightning_version",
    "epoch",
    "global_step",
    "object_scale",
)


def quantize_checkpoint(checkpoint: Path, target: Path, data: Path) -> Accuracy | None:
    """Writes a checkpoint with the calibration of `fastdet.engine.calibrate` in it.

    Args:
        checkpoint: a file that a training wrote.
        target: the new file; it is replaced whole.
        data: a data set, or a folder of pictures; see `calibration_data`.

    Returns:
        The accuracy on the val split; None: there is none.

    Raises:
        ValueError: not a checkpoint, or a quantised one; target is the checkpoint; a detector that
            cannot be quantised; other classes in the data.
        FileNotFoundError: no checkpoint; no data; no picture.
    """
    content = read_checkpoint(checkpoint)
    if CALIBRATION in content:
        raise ValueError(f"{checkpoint}: expected a checkpoint of a training, got a quantised one")
    if target.resolve() == checkpoint.resolve():
        raise ValueError(f"{target}: expected another file than the checkpoint")
    if not data.exists():
        raise FileNotFoundError(f"data: {data} is no folder or file")
    module = load_detector(checkpoint)
    pictures, val = calibration_data(data, Classes(module.classes, checkpoint))
    calibration = calibrate(module.model, (picture / 255 for picture in pictures))
    quantized_by(module.model, calibration)  # what cannot be quantised is not written
    with replacing(target) as temporary:
        kept = {name: content[name] for name in KEPT if name in content}
        torch.save({**kept, CALIBRATION: calibration}, temporary)
    if val is None:
        return None
    before, after = (float(evaluate(each, data).stats["AP"]) for each in (checkpoint, target))
    return Accuracy(before, after, len(val))
