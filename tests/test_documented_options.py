# SPDX-License-Identifier: BSD-3-Clause
"""Options that the documentation names and no other test gives: each does what it says."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from fastdet.cli import main
from fastdet.data import open_dataset, write_shapes
from fastdet.models import MODELS
from fastdet.training.detector_module import load_detector
from fastdet.training.options import Precision, TrainOptions
from fastdet.training.train import train

SMALL: dict[str, Any] = {"min_size": 64, "max_size": 64, "fpn_channels": 8}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=4, val=2, size=64)


@pytest.mark.parametrize("family", MODELS)
def test_the_backbone_of_a_builder(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def without_download(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    def frozen(**options: Any) -> set[str]:
        with torch.device("meta"):  # without values
            model = MODELS[family]("resnet18", num_classes=3, **SMALL, **options)
        body = model.backbone.body
        return {name for name, p in body.named_parameters() if not p.requires_grad}

    monkeypatch.setattr(timm, "create_model", without_download)
    assert not frozen()
    assert asked == [False]
    first_layers = frozen(pretrained_backbone=True)  # the stem and the first stage
    assert asked == [False, True]
    assert {"conv1.weight", "layer1.0.conv1.weight"} <= first_layers
    assert "layer2.0.conv1.weight" not in first_layers
    more = frozen(pretrained_backbone=True, trainable_backbone_layers=1)
    assert "layer3.0.conv1.weight" in more
    assert "layer4.0.conv1.weight" not in more
    norms = frozen(pretrained_backbone=True, trainable_backbone_layers=5, batch_norm="train")
    assert not norms


def test_pretrained_reaches_the_backbone(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        raise RuntimeError(f"{name} {pretrained}")

    monkeypatch.setattr(timm, "create_model", refuse)
    train = f"train --data {shapes} --out {tmp_path} --backbone resnet18 --pretrained --debug"
    with pytest.raises(RuntimeError, match="resnet18 True"):
        main(train.split())


@pytest.mark.slow
def test_the_neck_of_a_training(shapes: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        shapes, tmp_path, "retinanet", "test_resnet", epochs=1, batch_size=4, neck="pafpn", **SMALL
    )
    assert "backbone.fpn.down_blocks.0.weight" in train(options).model.state_dict()
    assert (
        "backbone.fpn.down_blocks.0.weight"
        in load_detector(tmp_path / "last.ckpt").model.state_dict()
    )
    with pytest.raises(ValueError, match=r"neck: .*last\.ckpt was trained with pafpn, got bifpn"):
        train(replace(options, neck="bifpn", resume=True, epochs=2))


@pytest.mark.slow
def test_a_training_from_a_file_of_weights(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pth"
    torch.manual_seed(7)
    network = timm.create_model("test_resnet")
    torch.save(network.state_dict(), weights)
    run = tmp_path / "run"
    train = (
        f"train --data {shapes} --out {run} --model retinanet --backbone test_resnet --epochs 1 "
        f"--min-size 64 --max-size 64 --fpn-channels 8 --batch-norm group "
        f"--backbone-weights {weights}"
    )
    main(train.split())
    line = "weights.pth: 75 of 75 tensors of the backbone loaded, 0 not in the file, 0 of other"
    assert line in capsys.readouterr().out
    listed = (run / "backbone_weights.txt").read_text().splitlines()
    assert listed[0].startswith(line)
    assert "loaded conv1.0.weight" in listed
    assert str(tmp_path) not in (run / "backbone_weights.txt").read_text()
    content = torch.load(run / "last.ckpt", weights_only=True)
    assert str(tmp_path) not in str(content["hyper_parameters"])
    assert content["hyper_parameters"]["model_options"]["batch_norm"] == "group"
    weights.unlink()  # a checkpoint does not need it, nor does a resumed training

    def learns() -> set[str]:
        model = load_detector(run / "last.ckpt").model
        first = model.get_submodule("backbone.body.conv1.0").weight
        assert torch.equal(first, network.state_dict()["conv1.0.weight"])  # frozen, as loaded
        assert any(isinstance(m, nn.GroupNorm) for m in model.modules())
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    before = learns()
    without_file = train.replace(f" --backbone-weights {weights}", "").replace(
        "--batch-norm group", ""
    )
    main(without_file.replace("--epochs 1", "--epochs 2 --resume").split())
    assert learns() == before
    with pytest.raises(ValueError, match="backbone_weights: expected no file together with pret"):
        main([*train.replace("run", "other").split(), "--pretrained", "--debug"])


@pytest.mark.slow
def test_a_resumed_training_is_of_the_same_numbers(shapes: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        shapes, tmp_path, "retinanet", "test_resnet", epochs=1, batch_size=4, **SMALL
    )
    train(options)
    again = replace(options, resume=True, epochs=2)
    with pytest.raises(ValueError, match=r"max_size: .*last\.ckpt was trained with 64, got 96"):
        train(replace(again, max_size=96))
    with pytest.raises(ValueError, match=r"batch_norm: .* was trained with train, got eval"):
        train(replace(again, batch_norm="eval"))
    train(replace(again, neck="fpn"))  # which it had by default
    # A checkpoint of an older version: pretrained, without the numbers that follow from it.
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["pretrained_backbone"] = True
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"was trained with frozen, got train"):
        train(replace(again, batch_norm="train", epochs=3))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_training_in_mixed_precision_with_further_options_of_the_builder(
    shapes: Path, tmp_path: Path, precision: Precision
) -> None:
    options = TrainOptions(
        shapes,
        tmp_path,
        model="retinanet",
        backbone="test_resnet",
        epochs=1,
        batch_size=2,
        precision=precision,
        # On a map of one pixel, torch has no right gradient of a strided bfloat16 convolution.
        min_size=128,
        max_size=128,
        fpn_channels=8,
    )
    anchor_sizes = (4, 8, 16, 32, 64)
    module = train(options, model_options={"anchor_sizes": anchor_sizes})
    # Lightning replaces float16 on a CPU by bfloat16, with a warning.
    on_gpu = torch.cuda.is_available()
    assert module.trainer.precision == (precision if on_gpu else "bf16-mixed")
    assert module.hparams["model_options"]["anchor_sizes"] == anchor_sizes
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_options_of_eval_and_predict(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    content = json.loads((data / "val.json").read_text())
    for image in content["images"]:
        image["id"] += 500
    for annotation in content["annotations"]:
        annotation["image_id"] += 500
    (data / "test.json").write_text(json.dumps(content))
    assert open_dataset(data, "test").image_ids == [image["id"] for image in content["images"]]

    run = tmp_path / "run"
    options = TrainOptions(data, run, "fcos", "test_resnet", epochs=1, batch_size=4, **SMALL)
    train(options)
    capsys.readouterr()
    main(f"eval --checkpoint {run}/last.ckpt --data {data} --split test --batch-size 1".split())
    assert "on test" in capsys.readouterr().out

    main(
        f"predict --checkpoint {run}/last.ckpt --images {data}/images/val_00000.png "
        f"--out {tmp_path}/found --annotations {data}/test.json".split()
    )
    (record,) = json.loads((tmp_path / "found" / "images.json").read_text())["images"]
    assert record["id"] == content["images"][0]["id"]


def test_options_of_bench_reach_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    (tmp_path / "a.json").touch()
    main(
        [
            "bench",
            "--overwrite",
            "--only",
            "nms and not batched",
            "--brief",
            "--out",
            str(tmp_path / "a.json"),
        ]
    )
    ((_, *arguments),) = commands
    assert arguments[:3] == ["-m", "pytest", "benchmarks"]
    assert arguments[arguments.index("-k") + 1] == "nms and not batched"
    assert "--brief" in arguments
    assert arguments[arguments.index("--out") + 1] == str(tmp_path / "a.json")
