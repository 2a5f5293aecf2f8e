# SPDX-License-Identifier: BSD-3-Clause
"""A checkpoint stands alone, wherever its backbone came from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from fastdet.data import write_shapes
from fastdet.training.checkpoint import plain_backbone
from fastdet.training.detector_module import DetectorModule, load_detector
from fastdet.training.options import TrainOptions
from fastdet.training.train import evaluate, train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A timm model on disk, whose weights no seed gives again."""
    torch.manual_seed(1)
    model = timm.create_model("resnet10t", num_classes=5)
    for parameter in model.parameters():
        parameter.data.mul_(1.25)
    save_for_hf(model, str(tmp_path / "backbone"), safe_serialization=True)
    return tmp_path / "backbone"


@pytest.mark.slow
def test_a_backbone_from_a_folder_is_in_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        data=write_shapes(tmp_path / "shapes", train=8, val=4, size=64),
        out=tmp_path / "run",
        model="retinanet",
        backbone=f"local-dir:{folder}",
        pretrained=True,
        epochs=1,
        batch_size=4,
        min_size=64,
        max_size=64,
        fpn_channels=16,
    )
    train(options)
    stem = timm.create_model(options.backbone, pretrained=True).state_dict()["conv1.0.weight"]
    resumed = train(replace(options, epochs=2, resume=True))
    shutil.rmtree(folder)

    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert content["hyper_parameters"]["backbone"] == "resnet10t"
    assert str(folder) not in repr(content["hyper_parameters"])
    loaded = load_detector(tmp_path / "run" / "last.ckpt")
    weights = loaded.model.backbone.body.state_dict()
    assert torch.equal(weights["conv1.0.weight"], stem)  # frozen, as of any pretrained backbone
    found = evaluate(tmp_path / "run" / "last.ckpt", options.data)
    assert resumed.metrics is not None
    assert found.stats == pytest.approx(resumed.metrics.stats)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"expected a folder with timm's config\.json, got .*FileNotFoundError"),
        ("{", r"expected a folder with timm's config\.json"),
        ("[]", r"expected a folder with timm's config\.json"),
        ({"model_args": {}}, r"config\.json, got .*KeyError\('architecture'\)"),
        ({"architecture": "hf-hub:a/b"}, r"config\.json: expected a timm name, got 'hf-hub:a/b'"),
        (
            {"architecture": "resnet18", "model_args": {"num_classes": 2, "output_stride": 8}},
            r"expected a model that its name describes, got the arguments output_stride besides",
        ),
    ],
)
def test_folders_that_no_name_describes(tmp_path: Path, config: object, message: str) -> None:
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        plain_backbone(f"local-dir:{tmp_path}")


def test_a_name_or_a_folder_but_no_address() -> None:
    assert plain_backbone("resnet18.a1_in1k") == "resnet18.a1_in1k"
    with pytest.raises(ValueError, match=r"expected a timm name or local-dir:FOLDER, got 'hf-hub:"):
        DetectorModule("retinanet", "hf-hub:timm/resnet18.a1_in1k", ["background", "any"], [1])
