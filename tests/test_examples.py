# SPDX-License-Identifier: BSD-3-Clause
"""Each example runs as a person would run it, for a few steps, and learns something in them."""

import csv
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from benchmarks.experiments import sentences
from fastdet.data import eval_transforms, open_dataset, read_image, write_shapes
from fastdet.deploy.export import export_detector
from fastdet.models import retinanet
from fastdet.predicting import detect
from fastdet.training.options import TrainOptions
from fastdet.training.options_file import flat

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
    # Ten steps an epoch: each epoch evaluates and may write a checkpoint.
    data = write_shapes(tmp_path / "shapes", train=20, val=4, size=64)
    options = ["--data", str(data), "--steps", "60", "--size", "64", "--batch-size", "2"]
    printed = run("train_lightning", *options)
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

    before = signal.getsignal(signal.SIGTERM)  # Ray sets its own and leaves it
    ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, before)


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


RECORDER = """\
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(exist_ok=True)
(out / "arguments.json").write_text(json.dumps(sys.argv[2:]))
(out / ("report.html" if out.name != "mosaic" else "last.ckpt")).touch()
"""


def recorded(folder: Path, data: Path) -> dict[str, list[str]]:
    """The arguments of each training that run.sh starts, which does nothing else."""
    recorder = folder / "recorder.py"
    recorder.write_text(RECORDER)
    command = ["bash", str(EXAMPLES / "experiments" / "run.sh"), str(data), str(folder / "runs")]
    environment = os.environ | {"FASTDET": f"{sys.executable} {recorder}"}
    subprocess.run(command, env=environment, check=True, timeout=60)
    files = sorted(folder.glob("runs/*/arguments.json"))
    found = {file.parent.name: json.loads(file.read_text()) for file in files}
    for file in files:
        file.unlink()
    return found


def test_experiments_are_valid_and_change_one_thing_each(tmp_path: Path, shapes: Path) -> None:
    trainings = {
        name: tyro.cli(TrainOptions, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
        for name, arguments in recorded(tmp_path, shapes).items()
    }
    assert len(trainings) == 13
    base = flat(trainings["base"])
    for name, options in trainings.items():
        options.check()
        given = flat(options)
        differing = {key for key in base if base[key] != given[key]} - {"out", "hypothesis"}
        assert len(differing) == (name != "base"), name
    assert set(recorded(tmp_path, shapes)) == {"mosaic"}  # all others are done
    assert "--resume" in recorded(tmp_path, shapes)["mosaic"]


def test_sentences_of_experiments() -> None:
    def run(ap: str, small: str) -> dict[str, str]:
        return {"AP": ap, "APs": small, "APm": "0.4", "APl": ""}

    runs = {
        "base": run("0.40", "0.1"),
        "seed-1": run("0.42", "0.2"),
        "seed-2": run("0.41", "0.3"),
        "same": run("0.435", "0.2"),
        "better": run("0.47", "0.25"),
        "worse": run("0.30", "0.1"),
        "stopped": run("", ""),
    }
    names = ("same", "better", "worse", "stopped")
    assert sentences(runs, *names).splitlines() == [
        "- `same`: AP 0.435 beside 0.400 to 0.420 of the base: no difference beyond what "
        "seeds make.",
        "- `better`: AP 0.470 beside 0.400 to 0.420 of the base: better than all three by 0.050 or "
        "more, most for small objects (AP 0.250 beside 0.200).",
        "- `worse`: AP 0.300 beside 0.400 to 0.420 of the base: worse than all three by 0.100 or "
        "more, most for small objects (AP 0.100 beside 0.200).",
        "- `stopped`: stopped before its first validation.",
    ]
