# SPDX-License-Identifier: BSD-3-Clause
"""A training that starts from the weights of another one, with other classes if need be."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from fastdet.models.detector import Detector
from fastdet.training.checkpoint import read_checkpoint

ENOUGH = 0.9  # of the tensors


def start_from(model: Detector, checkpoint: Path, classes: Sequence[str]) -> str:
    """Loads the weights of a checkpoint into a detector, in place.

    The layers of the classes are loaded where the classes are the same, in the same order; else
    they stay random. So does what has another shape, such as the anchors' layers with another
    number of anchors.

    Args:
        model: a detector of the checkpoint's family.
        checkpoint: a best.ckpt or last.ckpt.
        classes: of the model, by label.

    Returns:
        A line that says what was loaded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint; less than 90 % of the tensors besides the classes' fit.
    """
    content = read_checkpoint(checkpoint)
    theirs, ours = content["state_dict"], model.state_dict()
    theirs = {name.removeprefix("model."): value for name, value in theirs.items()}
    same_classes = list(content["hyper_parameters"]["classes"]) == list(classes)
    of_classes = set() if same_classes else _tensors_of(model, model.class_layers())
    wanted = set(ours) - of_classes
    fits = {n for n in wanted if n in theirs and theirs[n].shape == ours[n].shape}
    if len(fits) < ENOUGH * len(wanted):
        made_with = content["hyper_parameters"]
        first = sorted(wanted - fits)[0]
        raise ValueError(
            f"{checkpoint}: a {made_with['model']} with {made_with['backbone']}; expected a "
            f"checkpoint of the same detector, of which 90 % of the tensors fit; {len(fits)} of "
            f"{len(wanted)} do (first that does not: {first})"
        )
    model.load_state_dict({name: theirs[name] for name in fits}, strict=False)
    line = f"{checkpoint}: {len(fits)} of {len(wanted)} tensors loaded"
    if of_classes:
        line += f"; {len(of_classes)} of the layers of the classes start anew: other classes"
    return line


def _tensors_of(model: nn.Module, layers: dict[str, float]) -> set[str]:
    return {name for name in model.state_dict() if name.rpartition(".")[0] in layers}
