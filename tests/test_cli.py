# SPDX-License-Identifier: BSD-3-Clause
"""The command line from end to end, and its messages where a package is missing."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

import lightning
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from fastdet.cli import COMMANDS, main
from fastdet.data import write_shapes
from fastdet.deploy.export import metadata
from fastdet.models import MODELS
from fastdet.models.necks import NECKS
from fastdet.training.options import ModelName, NeckName

if TYPE_CHECKING:
    from fastdet.training.detector_module import DetectorModule


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=8, val=4, size=64)


Refused = Callable[[list[str]], str]


def run_without(packages: list[str], command: str) -> subprocess.CompletedProcess[str]:
    blocked = ", ".join(f"{name}=None" for name in packages)
    code = (
        f"import sys; sys.modules.update({blocked}); "
        f"from fastdet.cli import main; main({command.split()!r})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.slow
def test_train_resume_evaluate_predict(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = f"--data {shapes} --out {out} --backbone test_resnet --min-size 64 --max-size 64"
    options += " --fpn-channels 16 --batch-size 4 --model retinanet"
    main(f"train {options} --epochs 1".split())
    main(f"train {options} --epochs 2 --resume".split())
    printed = capsys.readouterr().out
    assert "epoch 1/1" in printed
    assert "epoch 2/2" in printed
    assert "circle" in printed

    main(f"describe --checkpoint {out / 'best.ckpt'} --image-size 64 64".split())
    assert "RetinaNet, one image of 64 x 64" in capsys.readouterr().out

    main(f"eval --checkpoint {out / 'best.ckpt'} --data {shapes}".split())
    assert "AP, IoU 0.50" in capsys.readouterr().out

    found = tmp_path / "found"
    main(
        f"predict --checkpoint {out / 'last.ckpt'} --images {shapes / 'images'} --out {found} "
        "--score-threshold 0.01".split()
    )
    results = json.loads((found / "detections.json").read_text())
    records = json.loads((found / "images.json").read_text())
    assert len(records["images"]) == 12
    assert {c["name"] for c in records["categories"]} >= {"circle", "star"}
    assert {r["image_id"] for r in results} <= {r["id"] for r in records["images"]}
    assert Image.open(found / "val_00000.jpg").size == (384, 384)

    main(f"export --checkpoint {out / 'last.ckpt'} --out {out}/it.onnx --image-size 64 96".split())
    assert "RetinaNet of 7 classes" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out / "it.onnx")
    assert session.get_inputs()[0].shape == [1, 3, 64, 96]
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"])[1] == "circle"


def test_predict_writes_and_draws_masks(shapes: Path, tmp_path: Path) -> None:
    from fastdet.evaluation.pictures import class_colour
    from fastdet.predicting import predict
    from fastdet.training.detector_module import DetectorModule

    torch.manual_seed(0)
    numbers = {"fpn_channels": 8, "min_size": 64, "max_size": 64, "box_score_thresh": 0.0}
    module = DetectorModule("mask_rcnn", "test_resnet", ["background", "any"], [7], numbers)
    module.model.roi_heads.mask_predictor.mask_fcn_logits.bias.data.fill_(20)  # all inside
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "any.ckpt")
    picture = shapes / "images" / "val_00000.png"
    assert len(predict(tmp_path / "any.ckpt", [picture], tmp_path, 0.0).detections) > 5
    for result in json.loads((tmp_path / "detections.json").read_text()):
        x, y, width, height = result["bbox"]
        assert result["segmentation"]["size"] == [64, 64]
        if min(width, height) > 4:
            box = coco_mask.toBbox(result["segmentation"])
            assert abs(box - [x, y, width, height]).max() <= 2.5
    drawn = np.asarray(Image.open(tmp_path / "val_00000.jpg")).reshape(-1, 3).mean(0)
    before = np.asarray(Image.open(picture)).reshape(-1, 3).mean(0)
    towards = np.array(class_colour(1)) - before
    assert float((drawn - before) @ towards) > 0.2 * float(towards @ towards)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RetinaNet without training, which finds something everywhere."""
    path = tmp_path_factory.mktemp("checkpoint") / "any.ckpt"
    checkpoint_of("retinanet", path, score_thresh=0.0)
    return path


def checkpoint_of(model: str, path: Path, **numbers: Any) -> "DetectorModule":
    """A detector without training, written to a checkpoint."""
    from fastdet.training.detector_module import DetectorModule

    torch.manual_seed(0)
    options = {"fpn_channels": 8, "min_size": 64, "max_size": 64, **numbers}
    module = DetectorModule(model, "test_resnet", ["background", "any"], [7], options)
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return module.eval()


def test_quantize_writes_a_checkpoint_like_any_other(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastdet.data import open_dataset
    from fastdet.engine import is_quantized
    from fastdet.training.detector_module import DetectorModule, load_detector, load_trained

    data = open_dataset(shapes, "val")
    torch.manual_seed(0)
    options = {"fpn_channels": 8, "min_size": 64, "max_size": 64, "score_thresh": 0.0}
    module = DetectorModule("retinanet", "test_resnet", data.classes, data.category_ids, options)
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "any.ckpt")
    path = tmp_path / "int8.ckpt"
    main(f"quantize --checkpoint {tmp_path / 'any.ckpt'} --data {shapes} --out {path}".split())
    assert re.search(r"AP of 4 images of val: 0\.\d+ before and 0\.\d+ after", printed(capsys))

    small, trained = load_detector(path), load_trained(path)
    assert is_quantized(small.model)
    assert not is_quantized(trained.model)
    for name, tensor in module.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor)
    main(f"eval --checkpoint {path} --data {shapes}".split())
    assert "AP, IoU 0.50" in printed(capsys)
    main(f"analyse {path} --data {shapes} --out {tmp_path / 'analysis'} --drawn 0".split())
    assert "AP at IoU 0.5 that errors cost" in printed(capsys)
    main(f"describe --checkpoint {path}".split())
    of_quantised = printed(capsys)
    main(f"describe --checkpoint {tmp_path / 'any.ckpt'}".split())
    assert printed(capsys) == of_quantised

    out = tmp_path / "out"
    main(
        f"predict --checkpoint {path} --images {shapes}/images --out {out} "
        "--score-threshold 0".split()
    )
    records = json.loads((out / "images.json").read_text())["images"]
    name = Path(data.annotations.file_names[0]).name
    (image_id,) = (record["id"] for record in records if record["file_name"] == name)
    results = json.loads((out / "detections.json").read_text())
    found = [result["score"] for result in results if result["image_id"] == image_id][:10]
    with torch.inference_mode():
        in_integers, in_float32 = (
            each.model([data[0][0] / 255])[0]["scores"][:10].numpy() for each in (small, trained)
        )
    np.testing.assert_allclose(found, in_integers, atol=1e-5)
    assert np.abs(found - in_float32).max() > 1e-5


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


TWO_STAGES = [name for name in MODELS if name.endswith("rcnn")]


@pytest.mark.parametrize("model", TWO_STAGES)
def test_predict_draws_what_the_first_stage_proposes(model: str, tmp_path: Path) -> None:
    from fastdet.evaluation.pictures import class_colour
    from fastdet.models.batch import xyxy_ratios
    from fastdet.predicting import propose

    module = checkpoint_of(model, tmp_path / "any.ckpt", representation_size=16)
    file = write_pictures(tmp_path, "a.png") / "a.png"
    Image.new("RGB", (160, 120)).save(file)
    command = f"predict --checkpoint {tmp_path}/any.ckpt --images {file} --show proposals"
    main(f"{command} --num-proposals 3 --out {tmp_path}/three".split())
    main(f"{command} --out {tmp_path}/twenty".split())
    assert (tmp_path / "three" / "detections.json").is_file()

    image = torch.zeros(3, 120, 160, dtype=torch.uint8)
    found = propose(module, image, 3)
    batch = module.model.pad([image / 255])
    with torch.no_grad():
        outputs = module.model.outputs(batch)
    boxes = outputs.proposals[0, :3] * xyxy_ratios(batch.sizes, torch.tensor([[120, 160]]))
    torch.testing.assert_close(found["boxes"], boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["scores"], outputs.scores[0, :3])
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    assert found["labels"].tolist() == outputs.levels[0, :3].tolist()

    few, many = (np.asarray(Image.open(tmp_path / name / "a.jpg")) for name in ("three", "twenty"))
    factor = few.shape[0] // 120
    level, box = int(found["labels"][0]), found["boxes"][0] * factor
    middle = int((box[0] + box[2]) / 2), int(box[3]) - 1  # of the lower side
    seen = few[min(middle[1], few.shape[0] - 2), middle[0]].astype(int)
    assert abs(seen - class_colour(level)).max() < 60, "an outline in the colour of its level"
    assert (many > 60).any(axis=2).sum() > (few > 60).any(axis=2).sum()


def test_what_cannot_be_shown(checkpoint: Path, tmp_path: Path, refused: Refused) -> None:
    from fastdet.predicting import predict

    images = write_pictures(tmp_path / "images", "a.png")
    command = f"predict --checkpoint {checkpoint} --images {images} --out {tmp_path / 'out'}"
    said = refused(f"{command} --show proposals".split())
    assert "expected a detector of two stages, such as faster_rcnn, got RetinaNet" in said
    said = refused(f"{command} --num-proposals 0".split())
    assert said == "fastdet: num_proposals: expected a number from 1 on, got 0"
    with pytest.raises(ValueError, match="show: expected detections or proposals, got anchors"):
        predict(checkpoint, [images], tmp_path / "out", show="anchors")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def annotation_file(path: Path, names: list[str]) -> Path:
    images = [{"id": 500 + i, "file_name": name} for i, name in enumerate(names)]
    path.write_text(json.dumps({"images": images}))
    return path


def write_pictures(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (i * 40 % 256, 99, 200)).save(folder / name)
    return folder


def ids(images: Path, annotations: Path | None) -> list[int]:
    from fastdet.predicting import match_images, picture_files, read_ids

    given = None if annotations is None else read_ids(annotations)
    return [record["id"] for record in match_images(picture_files([images]), given)]


def test_predict_takes_ids_from_annotations(shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "val.json").read_text())
    for image in content["images"]:
        image["id"] += 500
    (tmp_path / "val.json").write_text(json.dumps(content))
    file = shapes / "images" / "val_00002.png"
    assert ids(file, tmp_path / "val.json") == [503]
    assert ids(file, None) == [1]
    write_pictures(tmp_path, "nothing.png")
    with pytest.raises(ValueError, match=r"no image named nothing\.png"):
        ids(tmp_path / "nothing.png", tmp_path / "val.json")


def test_ids_belong_to_paths_and_not_to_base_names(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", "cam1/0001.png", "cam2/0001.png", "cam2/0002.png")
    write = annotation_file
    exact = write(tmp_path / "a.json", ["cam2/0001.png", "cam1/0001.png", "cam2/0002.png"])
    assert ids(images, exact) == [501, 500, 502]
    assert ids(images / "cam2", exact) == [500, 502]
    assert ids(images / "cam2" / "0001.png", exact) == [500]
    longer = write(tmp_path / "b.json", ["x/cam1/0001.png", "x/cam2/0001.png", "x/cam2/0002.png"])
    assert ids(images, longer) == [500, 501, 502]
    short = write(tmp_path / "c.json", ["0001.png", "0002.png"])
    assert ids(images / "cam2", short) == [500, 501]
    with pytest.raises(ValueError, match=r"image id 500, 0001\.png, would be both .*cam1.*cam2"):
        ids(images, short)
    other = write(tmp_path / "d.json", ["cam3/0001.png", "cam4/0001.png", "cam2/0002.png"])
    with pytest.raises(ValueError, match=r"no image named cam1/0001\.png"):
        ids(images, other)
    twice = write(tmp_path / "e.json", ["cam1/0001.png", "cam1/0001.png"])
    with pytest.raises(ValueError, match=r"may be any of cam1/0001\.png, cam1/0001\.png"):
        ids(images / "cam1", twice)


def test_predict_takes_category_ids_by_name(
    checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    images = write_pictures(tmp_path / "images", "a.png")
    file = annotation_file(tmp_path / "a.json", ["a.png"])
    content = json.loads(file.read_text())
    command = f"predict --checkpoint {checkpoint} --images {images} --annotations {file}".split()
    command += ["--score-threshold", "0", "--out"]
    for names, expected in (([], 7), (["other", "any"], 31)):
        categories = [{"id": 30 + i, "name": name} for i, name in enumerate(names)]
        file.write_text(json.dumps({**content, "categories": categories}))
        out = tmp_path / str(expected)
        main([*command, str(out)])
        assert {c["id"] for c in json.loads((out / "images.json").read_text())["categories"]} == {
            expected
        }
        results = json.loads((out / "detections.json").read_text())
        assert {result["category_id"] for result in results} == {expected}
    file.write_text(json.dumps({**content, "categories": [{"id": 7, "name": "other"}]}))
    assert re.search(r"any is only in .*any\.ckpt", refused([*command, str(tmp_path / "no")]))


def test_predict_draws_in_the_folders_of_the_pictures(checkpoint: Path, tmp_path: Path) -> None:
    names = "a.png", "a.tif", "cam1/a.png", "cam2/a.png", "cam2/b.jpg", "._c.png"
    images = write_pictures(tmp_path / "images", *names)
    out = tmp_path / "out"
    main(f"predict --checkpoint {checkpoint} --images {images} --out {out}".split())
    drawn = {str(path.relative_to(out)) for path in out.rglob("*.jpg")}
    assert drawn == {"a.png.jpg", "a.tif.jpg", "cam1/a.jpg", "cam2/a.jpg", "cam2/b.jpg"}
    records = json.loads((out / "images.json").read_text())["images"]
    assert [record["file_name"] for record in records] == sorted(names[:-1])


def test_predict_writes_over_nothing(checkpoint: Path, tmp_path: Path, refused: Refused) -> None:
    images = write_pictures(tmp_path / "images", "a.jpg", "b.png")
    before = (images / "a.jpg").read_bytes()
    command = f"predict --checkpoint {checkpoint} --images {images} --out".split()
    for option in ([], ["--overwrite"]):
        assert "a.jpg is an input picture" in refused([*command, str(images), *option])
    assert (images / "a.jpg").read_bytes() == before
    assert len(list(images.iterdir())) == 2
    out = tmp_path / "out"
    out.mkdir()
    (out / "images.json").write_text("mine")
    assert "images.json exists: give --overwrite" in refused([*command, str(out)])
    assert (out / "images.json").read_text() == "mine"
    main([*command, str(out), "--overwrite"])
    assert json.loads((out / "images.json").read_text())["images"]


def test_predict_goes_on_after_a_picture_that_cannot_be_read(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_pictures(tmp_path / "images", "a.png", "b.png", "c.png")
    (images / "b.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    command = f"predict --checkpoint {checkpoint} --images {images} --out {out}"
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--score-threshold", "0"])
    assert stop.value.code == 1
    told = capsys.readouterr().err
    assert "b.png: cannot be decoded" in told
    assert "1 pictures could not be read" in told
    results = json.loads((out / "detections.json").read_text())
    assert {result["image_id"] for result in results} == {1, 3}
    assert not (out / "b.jpg").exists()


def test_what_predict_found_is_kept_when_it_is_stopped(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastdet.predicting import predict, recording, run

    images = write_pictures(tmp_path / "images", "a.png", "b.png", "c.png")
    take = run._Run.take

    def stopped_at_c(self: run._Run, answers: list[Any]) -> None:
        if answers[0].job.path.name == "c.png":
            # What a kill would leave: the file is written as results come.
            assert json.loads((tmp_path / "out" / "detections.json").read_text())
            raise KeyboardInterrupt
        take(self, answers)

    monkeypatch.setattr(run._Run, "take", stopped_at_c)
    monkeypatch.setattr(recording, "WRITE_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        predict(checkpoint, [images], tmp_path / "out", 0.0)
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {result["image_id"] for result in results} == {1, 2}


def test_predict_sees_pictures_as_they_are_displayed(checkpoint: Path, tmp_path: Path) -> None:
    turn = Image.Exif()
    turn[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png", exif=turn)
    command = f"predict --checkpoint {checkpoint} --images {tmp_path / 'a.png'}"
    main([*command.split(), "--out", str(tmp_path / "shown")])
    main([*command.split(), "--out", str(tmp_path / "stored"), "--exif", "ignore"])
    for folder, (width, height) in (("shown", (30, 40)), ("stored", (40, 30))):
        record = json.loads((tmp_path / folder / "images.json").read_text())["images"][0]
        assert (record["width"], record["height"]) == (width, height)
        drawn = Image.open(tmp_path / folder / "a.jpg")
        assert drawn.width * height == drawn.height * width


def test_predict_takes_the_bit_depth(checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 40), 4095, np.uint16)).save(tmp_path / "a.png")
    command = f"predict --checkpoint {checkpoint} --images {tmp_path / 'a.png'}"
    for bits, brightest in ((12, 255), (16, 15)):
        out = tmp_path / str(bits)
        main([*command.split(), "--out", str(out), "--bit-depth", str(bits)])
        assert abs(int(np.asarray(Image.open(out / "a.jpg")).max()) - brightest) <= 2


def test_the_options_of_pictures_are_those_of_read_image() -> None:
    from fastdet.data.images import Exif, read_image
    from fastdet.training import options

    assert get_args(options.Exif) == get_args(Exif)
    keywords = inspect.signature(read_image).parameters.values()
    defaults = {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}
    assert asdict(options.PictureOptions()) == defaults


def test_detections_below_the_threshold_are_left_out() -> None:
    from fastdet.predicting import detect

    found = {
        "boxes": torch.arange(12.0).view(3, 4),
        "labels": torch.tensor([1, 2, 3]),
        "scores": torch.tensor([0.9, 0.5, 0.4]),
    }
    module = SimpleNamespace(model=lambda images: [found], device="cpu")
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    (kept,) = detect(module, [image], 0.5)  # type: ignore[arg-type]
    assert kept["labels"].tolist() == [1, 2]
    assert kept["boxes"].shape == (2, 4)


def test_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    from fastdet.predicting import drawing_names, picture_files

    folder = write_pictures(tmp_path, "cam1/a.png", "cam2/a.png", "cam2/notes.txt.png")
    (folder / "b.txt").touch()
    with pytest.raises(ValueError, match=r"cam1/a\.png and .*cam2/a\.png would both be drawn as a"):
        drawing_names(picture_files([folder / "cam1", folder / "cam2"]))
    assert [str(name) for name in drawing_names(picture_files([folder / "cam1"]))] == ["a.jpg"]
    assert [p.path for p in picture_files([folder / "cam1/a.png"])] == [folder / "cam1/a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture"):
        picture_files([tmp_path / "empty"])


@pytest.mark.parametrize("model", MODELS)
def test_describe(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"--model {model} --backbone test_resnet --image-size 64 96 --fpn-channels 16"
    main(f"describe {options}".split())
    printed = capsys.readouterr().out
    assert f"{model.replace('_', '')}, one image of 64 x 96" in printed.lower()
    assert "backbone.fpn" in printed


def test_describe_a_neck(capsys: pytest.CaptureFixture[str]) -> None:
    command = "describe --model fcos --backbone test_resnet --image-size 64 64 --fpn-channels 8"
    parameters = []
    for option in ("", " --neck fpn", " --neck pafpn"):
        main(f"{command}{option}".split())
        parameters += re.findall(r"backbone\.fpn +([\d,]+)", capsys.readouterr().out)
    assert parameters[0] == parameters[1] != parameters[2]


def test_a_checkpoint_is_described_in_its_training_size(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(f"describe --checkpoint {checkpoint}".split())
    assert "one image of 64 x 64" in capsys.readouterr().out
    main(f"describe --checkpoint {checkpoint} --image-size 65 96".split())
    assert "one image of 96 x 96" in capsys.readouterr().out


def test_export_and_bench_write_over_nothing(
    checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    file = tmp_path / "mine.onnx"
    file.write_text("mine")
    for command in (f"export --checkpoint {checkpoint} --out {file}", f"bench --out {file}"):
        assert "mine.onnx exists: give --overwrite" in refused(command.split())
    assert file.read_text() == "mine"


@pytest.mark.slow
def test_a_checkpoint_is_exported_in_its_training_size(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "it.pt2").touch()
    main(f"export --checkpoint {checkpoint} --out {tmp_path / 'it.pt2'} --overwrite".split())
    assert "images of 64 x 64: " in capsys.readouterr().out
    assert metadata(tmp_path / "it.pt2")["image_size"] == [64, 64]
    main(f"export --checkpoint {checkpoint} --out {tmp_path / 'raw.pt2'} --raw".split())
    assert metadata(tmp_path / "raw.pt2")["suppression"]["multi_label"]


def test_the_choice_of_models_is_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(get_args(ModelName)) == set(MODELS)
    assert get_args(NeckName) == tuple(NECKS)
    with pytest.raises(SystemExit):
        main(["describe", "--model", "yolo"])
    assert "faster_rcnn" in capsys.readouterr().err


def foreign_checkpoint(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def of_ours(**changes: Any) -> dict[str, Any]:
    parts = {"model": "retinanet", "backbone": "test_resnet", "classes": [], "category_ids": []}
    return {"state_dict": {}, "hyper_parameters": {**parts, **changes}}


# What was typed, with PLACES in braces, and what the one line says.
MISTAKES = {
    "no data": ("train --data {tmp}/none --out {tmp}/o", "none: no such folder"),
    "unknown backbone": ("train --data {shapes} --out {tmp}/o --backbone resnet1", "similar: resn"),
    "no backbone that is a pyramid": (
        "train --data {shapes} --out {tmp}/o --backbone levit_128s",
        "expected strides (4, 8, 16, 32), got",
    ),
    "lr nan": ("train --data {shapes} --out {tmp}/o --lr nan", "lr: expected a finite number"),
    "lr negative": ("train --data {shapes} --out {tmp}/o --lr -1", "lr: expected a finite number"),
    "no epoch": ("train --data {shapes} --out {tmp}/o --epochs 0", "epochs: expected a number"),
    "no batch": ("train --data {shapes} --out {tmp}/o --batch-size 0", "batch_size: expected"),
    "no size": ("train --data {shapes} --out {tmp}/o --min-size 0", "min_size: expected"),
    "workers": ("train --data {shapes} --out {tmp}/o --workers -2", "workers: expected 0 or more"),
    "nothing to resume": ("train --data {shapes} --out {tmp}/o --resume", "no such checkpoint"),
    "resumed with another model": (
        "train --data {shapes} --out {run} --resume --model fcos --backbone test_resnet",
        "model: ",
    ),
    "resumed with another backbone": (
        "train --data {shapes} --out {run} --resume --model retinanet --backbone resnet18",
        "backbone: ",
    ),
    "a run is there": ("train --data {shapes} --out {run}", "give --resume to go on"),
    "out is a file": ("train --data {shapes} --out {tmp}/file", "file"),
    "broken JSON": ("train --data {tmp}/broken --out {tmp}/o", "train.json: not a JSON file"),
    "truncated picture": ("eval --checkpoint {ckpt} --data {tmp}/cut", "cannot be decoded"),
    "picture missing": ("eval --checkpoint {ckpt} --data {tmp}/gone", "no such image file"),
    "no split": ("eval --checkpoint {ckpt} --data {shapes} --split test", "no split 'test'"),
    "other classes": ("eval --checkpoint {ckpt} --data {shapes}", "circle"),
    "no checkpoint": ("eval --checkpoint {tmp}/none --data {shapes}", "none: no such checkpoint"),
    "a folder": ("eval --checkpoint {tmp} --data {shapes}", "no such checkpoint"),
    "not a checkpoint": ("eval --checkpoint {tmp}/file --data {shapes}", "not a checkpoint of fas"),
    "a foreign checkpoint": ("eval --checkpoint {tmp}/foreign --data {shapes}", "not a checkpoint"),
    "a list": ("describe --checkpoint {tmp}/list", "not a checkpoint of fastdet"),
    "an address": ("describe --checkpoint {tmp}/address", "plain name of a timm model, got 'hf-h"),
    "no pictures": ("predict --checkpoint {ckpt} --images {tmp}/empty --out {tmp}/o", "no picture"),
    "no picture": ("predict --checkpoint {ckpt} --images {tmp}/x.png --out {tmp}/o", "does not ex"),
    "annotations": (
        "predict --checkpoint {ckpt} --images {cut}/images --out {tmp}/o --annotations {tmp}/file",
        "file: not a JSON file",
    ),
    "export to what": (
        "export --checkpoint {ckpt} --out {tmp}/a.txt --image-size 64 64",
        "ends in .pt2 or .onnx",
    ),
    "export of which size": (
        "export --checkpoint {ckpt} --out {tmp}/a.onnx --image-size 65 64",
        "multiples of 32 (size_divisor), got (65, 64); the next ones are 96 64",
    ),
    "int8 of a package": (
        "export --checkpoint {ckpt} --out {tmp}/a.pt2 --int8 {shapes}",
        "int8: expected an output that ends in .onnx, got a.pt2",
    ),
    "int8 without pictures": (
        "export --checkpoint {ckpt} --out {tmp}/a.onnx --int8 {tmp}/none",
        "none is no folder",
    ),
    "quantize without data": (
        "quantize --checkpoint {ckpt} --data {tmp}/none --out {tmp}/q.ckpt",
        "data: {tmp}/none is no folder or file",
    ),
    "quantize without pictures": (
        "quantize --checkpoint {ckpt} --data {tmp}/empty --out {tmp}/q.ckpt",
        "no picture",
    ),
    "quantize for other classes": (
        "quantize --checkpoint {ckpt} --data {shapes} --out {tmp}/q.ckpt",
        "any.ckpt has any",
    ),
    "quantize what is no checkpoint": (
        "quantize --checkpoint {tmp}/file --data {shapes} --out {tmp}/q.ckpt",
        "not a checkpoint of fastdet",
    ),
    "quantize over another file": (
        "quantize --checkpoint {ckpt} --data {shapes} --out {tmp}/file",
        "file exists: give --overwrite",
    ),
    "quantize over the checkpoint": (
        "quantize --checkpoint {ckpt} --data {shapes} --out {ckpt} --overwrite",
        "expected another file than the checkpoint",
    ),
    "quantize again": (
        "quantize --checkpoint {int8} --data {cut}/images --out {tmp}/q.ckpt",
        "expected a checkpoint of a training, got a quantised one",
    ),
    "a quantised checkpoint resumed": (
        "train --data {shapes} --out {int8_run} --resume --model retinanet",
        "last.ckpt: a quantised checkpoint, which has no state of a training",
    ),
    "int8 of a quantised checkpoint": (
        "export --checkpoint {int8} --out {tmp}/a.onnx --int8 {shapes}",
        "is quantised already; export it without --int8",
    ),
    "a package of a quantised checkpoint": (
        "export --checkpoint {int8} --out {tmp}/a.pt2",
        "expected a name that ends in .onnx for a quantised detector, got a.pt2",
    ),
    "describe which size": (
        "describe --image-size 0 5 --backbone test_resnet",
        "image_size: expec",
    ),
    "too few classes": ("describe --num-classes 1 --backbone test_resnet", "num_classes: expected"),
}


@pytest.fixture(scope="module")
def int8(shapes: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoint` in 8-bit integers."""
    path = tmp_path_factory.mktemp("int8") / "int8.ckpt"
    main(f"quantize --checkpoint {checkpoint} --data {shapes / 'images'} --out {path}".split())
    return path


@pytest.fixture
def places(shapes: Path, checkpoint: Path, int8: Path, tmp_path: Path) -> dict[str, Path]:
    for name in ("empty", "broken", "run", "int8_run"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("no checkpoint")
    (tmp_path / "broken" / "train.json").write_text("{")
    shutil.copy(checkpoint, tmp_path / "run" / "last.ckpt")
    shutil.copy(int8, tmp_path / "int8_run" / "last.ckpt")
    foreign_checkpoint(tmp_path / "foreign", {"state_dict": {}})
    foreign_checkpoint(tmp_path / "list", [1])
    foreign_checkpoint(tmp_path / "address", of_ours(backbone="hf-hub:someone/model"))
    for name in ("cut", "gone"):
        write_pictures(tmp_path / name / "images", "a.png")
        file = annotation_file(tmp_path / name / "val.json", ["a.png"])
        content = json.loads(file.read_text())
        content["images"][0] |= {"width": 40, "height": 30}
        content |= {"annotations": [], "categories": [{"id": 7, "name": "any"}]}
        file.write_text(json.dumps(content))
    picture = tmp_path / "cut" / "images" / "a.png"
    picture.write_bytes(picture.read_bytes()[:60])
    (tmp_path / "gone" / "images" / "a.png").unlink()
    folders = {name: tmp_path / name for name in ("run", "int8_run", "cut")}
    return {"shapes": shapes, "ckpt": checkpoint, "int8": int8, "tmp": tmp_path, **folders}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_by_one_line(
    mistake: str, places: dict[str, Path], refused: Refused
) -> None:
    command, message = MISTAKES[mistake]
    assert message.format(**places) in refused(command.format(**places).split())


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data set"):
        main(f"train --data {tmp_path} --out {tmp_path / 'o'} --debug".split())


def test_what_is_no_mistake_of_the_user_has_another_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr("fastdet.models.describe", fail)
    with pytest.raises(SystemExit) as stop:
        main(["describe", "--backbone", "test_resnet"])
    assert stop.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("fastdet: KeyError: ")
    assert told.endswith("(--debug shows where)\n")
    assert told.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: fastdet" in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info"])
    printed = capsys.readouterr().out
    for text in ("fastdet", "torch", "CPU", "CUDA"):
        assert text in printed


@pytest.mark.slow
def test_an_error_of_info_is_one_line() -> None:
    run = [sys.executable, "-m", "fastdet.cli", "info"]
    environment = {**os.environ, "FASTDET_CPU_CACHE": "no"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "fastdet: FASTDET_CPU_CACHE: expected on or off, got 'no'\n"


def test_info_without_the_train_extra() -> None:
    result = run_without(["tyro", "rich", "lightning", "torchvision", "timm"], "info")
    assert result.returncode == 0, result.stderr
    assert "torch: " in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["tyro", "lightning"])
def test_other_commands_name_the_extra(missing: str) -> None:
    result = run_without([missing], "train --data d --out o")
    assert result.returncode == 2
    assert 'pip install "fastdet[train]"' in result.stderr
    assert "Traceback" not in result.stderr


MEMORY = """
from fastdet import cli

def report(arguments):
    from fastdet.memory import keep_freed_memory

    print(keep_freed_memory.cache_info().currsize)

cli._run = report
cli.main()
"""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("predict", 1),
        ("eval", 1),
        ("--debug eval", 1),
        ("predict --help", 0),
        ("train", 0),
    ],
)
def test_a_process_that_detects_keeps_the_memory_of_its_pictures(
    command: str, expected: int
) -> None:
    run = [sys.executable, "-c", MEMORY, *command.split()]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected
