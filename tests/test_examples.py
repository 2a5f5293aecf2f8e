# SPDX-License-Identifier: BSD-3-Clause
"""Each example runs as a person would run it, for a few steps, and learns something in them."""

import csv
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from fastdet.data import eval_transforms, open_dataset, read_image, write_shapes
from fastdet.deploy.export import export_detector
from fastdet.models import retinanet
from fastdet.predicting import detect

from .models.scenes import spread_scores
from .test_cli import checkpoint_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=4, val=4, size=64)


@pytest.fixture
def run(
    tmp_path: Path,
    shapes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Runs an example in an empty folder; returns what it printed."""

    def run_example(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, "--data", str(shapes), *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def losses(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", printed)]


@pytest.mark.slow
def test_train_loop(run, tmp_path: Path) -> None:
    printed = run("train_loop", "--steps", "60", "--size", "64")
    assert len(losses(printed)) == 6
    assert losses(printed)[-1] < 0.9 * losses(printed)[0]
    assert re.search(r"AP -?\d\.\d{3} on 4 images", printed)
    assert (tmp_path / "detector.pt").exists()


def test_train_loop_is_short() -> None:
    assert len((EXAMPLES / "train_loop.py").read_text().splitlines()) <= 60


@pytest.mark.slow
def test_train_lightning(run, tmp_path: Path) -> None:
    printed = run("train_lightning", "--steps", "60", "--size", "64", "--batch-size", "2")
    assert "sure detections in four images" in printed
    out = tmp_path / "runs" / "lightning"
    assert list(out.glob("best*.ckpt"))
    (log,) = out.rglob("metrics.csv")
    with log.open() as file:
        found = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert len(found) == 6
    assert found[-1] < 0.9 * found[0]


@pytest.mark.slow
def test_finetune_torchvision(run, tmp_path: Path) -> None:
    weights = tmp_path / "theirs.pth"
    torch.manual_seed(0)
    theirs = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    torch.save(theirs.state_dict(), weights)
    printed = run(
        "finetune_torchvision", "--weights", str(weights), "--steps", "20", "--size", "64"
    )
    assert len(losses(printed)) == 2
    assert losses(printed)[-1] < losses(printed)[0]
    assert (tmp_path / "finetuned.pt").exists()


@pytest.mark.slow
def test_deploy_onnxruntime(shapes: Path, tmp_path: Path) -> None:
    val = open_dataset(shapes, "val", transforms=eval_transforms())
    torch.manual_seed(0)
    model = spread_scores(
        retinanet("resnet18", 7, fpn_channels=16, min_size=64, max_size=64)
    ).eval()
    export_detector(model, tmp_path / "detector.onnx", (64, 64), classes=val.classes)
    pictures = [str(val.image_path(i)) for i in range(len(val))]
    large = tmp_path / "large.png"
    Image.open(pictures[0]).resize((100, 150)).save(large)
    arguments = ["--model", str(tmp_path / "detector.onnx"), "--score", "0.1", "--images"]
    script = str(EXAMPLES / "deploy_onnxruntime.py")
    no_torch = "import runpy, sys; sys.modules['torch'] = None; "
    code = f"{no_torch}runpy.run_path({script!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, *arguments, *pictures, str(large)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    expected = []
    for path, found in zip(pictures, model([val[i][0] for i in range(len(val))]), strict=True):
        expected += [
            f"{Path(path).name}: {val.classes[label]} {score:.3f}"
            for label, score in zip(found["labels"], found["scores"], strict=True)
            if score >= 0.1
        ]
    lines = [line.partition(" at ")[0] for line in printed.splitlines()]
    assert len(expected) > 8
    ours = sorted(line.rsplit(" ", 1) for line in expected)
    printed_ones = sorted(line.rsplit(" ", 1) for line in lines if "large" not in line)
    assert [name for name, _ in printed_ones] == [name for name, _ in ours]
    scores = [float(score) for _, score in printed_ones]
    assert scores == pytest.approx([float(score) for _, score in ours], abs=2e-3)
    corners = [re.findall(r"-?\d+\.\d", line) for line in printed.splitlines() if "large" in line]
    assert max(float(y2) for *_, y2 in corners) > 64


@pytest.fixture
def two_workers() -> Iterator[None]:
    """A local Ray, small and silent."""
    import ray

    ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_predict_ray(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    two_workers: None,
) -> None:
    """A run that goes on where a killed one stopped: it has a finished file and an unfinished."""
    import pyarrow.parquet as pq

    checkpoint, out = tmp_path / "any.ckpt", tmp_path / "found"
    module = checkpoint_of("retinanet", checkpoint)
    spread_scores(module.model)
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "state_dict": module.state_dict()}, checkpoint)
    pictures = tmp_path / "pictures"
    shutil.copytree(shapes / "images", pictures / "inner")
    (pictures / "broken.jpg").write_bytes(b"no picture")
    arguments = ["predict_ray", "--checkpoint", str(checkpoint), "--images", str(pictures)]
    arguments += ["--batch-size", "3", "--rows-per-file", "3", "--score-threshold", "0.1"]
    arguments += ["--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    example = runpy.run_path(str(EXAMPLES / "predict_ray.py"))
    first, *others = sorted(map(str, (pictures / "inner").iterdir()))
    out.mkdir()
    done = example["pa"].Table.from_pylist([{"path": first}], schema=example["SCHEMA"])
    pq.write_table(done, out / "a.parquet")
    (out / "b.parquet").write_bytes((out / "a.parquet").read_bytes()[:-9])

    example["main"]()
    printed = capsys.readouterr().out
    assert f"unfinished file removed: {out}/b.parquet" in printed
    assert f"{len(others) + 2} pictures, 1 done before" in printed
    assert len(list(out.glob("*.parquet"))) > 2
    rows = {row["path"]: row for row in pq.read_table(out).to_pylist()}
    assert sorted(rows) == sorted([first, *others, str(pictures / "broken.jpg")])
    assert rows[first]["boxes"] is None  # not detected again
    assert (
        f"{pictures}/broken.jpg: cannot be decoded" in rows[str(pictures / "broken.jpg")]["error"]
    )
    for path in others:
        (expected,) = detect(module, [read_image(path)], 0.1)
        row = rows[path]
        assert (row["height"], row["width"], row["error"]) == (64, 64, None)
        assert len(row["scores"]) == len(expected["scores"]) > 0
        torch.testing.assert_close(torch.tensor(row["boxes"]), expected["boxes"])
        assert row["labels"] == expected["labels"].tolist()
        assert row["classes"] == [module.classes[label] for label in row["labels"]]

    example["main"]()
    assert "9 pictures, 9 done before" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments[:-1], "new", "--workers", "3"])
    with pytest.raises(SystemExit):
        example["main"]()
    assert "--workers: expected at most 2, got 3" in capsys.readouterr().err


def test_every_example_is_run_here() -> None:
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tests
