# SPDX-License-Identifier: BSD-3-Clause
"""A training starts from a checkpoint of another one, of the same classes or of others."""

from pathlib import Path

import pytest
import torch

from fastdet.models import MODELS
from fastdet.training.detector_module import DetectorModule
from fastdet.training.starting_weights import start_from

SMALL = {"min_size": 64, "max_size": 64, "fpn_channels": 8, "representation_size": 8}
CLASSES = ["background", "cat", "dog"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    module = DetectorModule("faster_rcnn", "test_resnet", CLASSES, [1, 2], SMALL)
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(content, path)
    return path


def started(checkpoint: Path, classes: list[str], family: str = "faster_rcnn", **changes):
    torch.manual_seed(2)
    numbers = SMALL if family == "faster_rcnn" else {"fpn_channels": 8}
    model = MODELS[family]("test_resnet", len(classes), **(numbers | changes))
    random = {name: value.clone() for name, value in model.state_dict().items()}
    line = start_from(model, checkpoint, classes)
    theirs = torch.load(checkpoint, weights_only=True)["state_dict"]
    loaded = {
        name
        for name, value in model.state_dict().items()
        if value.shape == theirs[f"model.{name}"].shape
        and torch.equal(value, theirs[f"model.{name}"])
    }
    same = {n for n, value in model.state_dict().items() if torch.equal(value, random[n])}
    return line, loaded, same - loaded, set(random)


def test_all_tensors_of_the_same_classes(checkpoint: Path) -> None:
    line, loaded, _, names = started(checkpoint, CLASSES)
    assert loaded == names
    assert line.endswith(f"best.ckpt: {len(names)} of {len(names)} tensors loaded")


@pytest.mark.parametrize(
    "classes", [["background", "dog", "cat"], ["background", "cat"], ["background", *"abcd"]]
)
def test_the_layers_of_other_classes_start_anew(checkpoint: Path, classes: list[str]) -> None:
    line, loaded, random, names = started(checkpoint, classes)
    anew = {
        f"roi_heads.box_predictor.{layer}.{kind}"
        for layer in ("cls_score", "bbox_pred")
        for kind in ("weight", "bias")
    }
    assert names - loaded == anew - loaded
    assert {f"roi_heads.box_predictor.{x}.weight" for x in ("cls_score", "bbox_pred")} <= random
    assert line.endswith("; 4 of the layers of the classes start anew: other classes")


def test_what_does_not_fit_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"best\.ckpt: a faster_rcnn with test_resnet; expected"):
        started(checkpoint, CLASSES, fpn_channels=16)
    with pytest.raises(ValueError, match=r"a faster_rcnn with test_resnet; expected a checkpoint"):
        started(checkpoint, CLASSES, "retinanet")
    (tmp_path / "x.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"x\.ckpt: not a checkpoint of fastdet"):
        started(tmp_path / "x.ckpt", CLASSES)
