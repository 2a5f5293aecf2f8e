# SPDX-License-Identifier: BSD-3-Clause
"""The folder of a training says all that is needed to repeat it and to compare it with others."""

import csv
import io
from pathlib import Path

import pytest
import torch
import yaml

from fastdet.cli import main
from fastdet.data import open_dataset, write_shapes
from fastdet.models import RetinaNet
from fastdet.training.kept_metrics import kept_metrics
from fastdet.training.metrics_log import read_metrics
from fastdet.training.options import OptimizationOptions, TrainOptions
from fastdet.training.options_file import (
    as_arguments,
    flat,
    next_to,
    read_options,
    write_options,
)
from fastdet.training.run_record import describe_data, git_state, read_record
from fastdet.training.train import evaluate, train


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=6, val=3, size=64)


@pytest.fixture(scope="module")
def runs(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings, a and a-2, by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    main(
        f"train --data {shapes} --out {folder / 'a'} --model retinanet --backbone test_resnet "
        "--min-size 64 --max-size 96 --fpn-channels 8 --epochs 2 --batch-size 3 --device cpu "
        "--anchor-sizes 4 8 16 32 64 --hypothesis small_anchors".split()
    )
    main(f"train --config {folder / 'a' / 'options.yaml'} --lr 0.003 --epochs=1".split())
    return folder


def test_all_options_go_to_the_file_and_back(tmp_path: Path) -> None:
    options = TrainOptions(
        tmp_path / "data",
        tmp_path / "out",
        anchor_sizes=(4.0, 8.5),
        compile=True,
        lr=1e-7,
        seed=3,
        hypothesis="a: b # c",
        optimization=OptimizationOptions(milestones=(1.5, 2), schedule="step", clip=None),
    )
    file = tmp_path / "options.yaml"
    write_options(options, file)
    content = read_options(file)
    assert content == {name: x for name, x in flat(options).items() if name != "resume"}
    arguments = as_arguments(content, ["--lr", "0.1", "--no-compile", "--milestones", "3"])
    at = arguments.index("--anchor-sizes")
    assert arguments[at : at + 3] == ["--anchor-sizes", "4.0", "8.5"]
    assert arguments[arguments.index("--hypothesis") + 1] == "a: b # c"
    for name in ("--lr", "--compile", "--no-compile", "--milestones", "--backbone"):
        assert name not in arguments
    assert arguments[arguments.index("--clip") + 1] == "None"  # the default is a number
    assert "--no-pretrained" in arguments


def test_a_training_is_repeated_from_its_options(runs: Path) -> None:
    first, second = (read_options(runs / name / "options.yaml") for name in ("a", "a-2"))
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"lr", "epochs", "out"}
    assert (second["lr"], second["epochs"], second["out"]) == (0.003, 1, str(runs / "a-2"))
    assert first["lr"] == 5e-4  # the default is written, too
    assert first["anchor_sizes"] == [4, 8, 16, 32, 64]


@pytest.mark.slow
def test_the_same_options_give_the_same_numbers(runs: Path, tmp_path: Path) -> None:
    main(f"train --config {runs / 'a' / 'options.yaml'} --out {tmp_path / 'b'}".split())
    assert read_metrics(tmp_path / "b" / "metrics.csv") == read_metrics(runs / "a" / "metrics.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0.1\nlearning_rate: 3\n", "expected options of fastdet train, got learning_rate"),
        ("- 1\n", "expected options and their values, got [1]"),
        ("a: [", "not a YAML file"),
        ("resume: true\n", "expected options of fastdet train, got resume"),
        ("lr: much\ndata: x\nout: y\n", "much"),
    ],
)
def test_a_wrong_file_of_options(tmp_path: Path, capsys, text: str, message: str) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", str(file)])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err + printed.out


def test_config_needs_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--config"], "--config: expected a file of options"),
        (["--config", str(tmp_path / "x.yaml")], "x.yaml: no such file of options"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_a_free_name_is_found(tmp_path: Path) -> None:
    for name in ("a-2", "a-3", "a-4"):
        assert next_to(tmp_path / "a") == tmp_path / name
        (tmp_path / name).mkdir()


def test_the_record(runs: Path, shapes: Path) -> None:
    record = read_record(runs / "a" / "run.yaml")
    data = open_dataset(shapes, "train")
    assert record["data"]["train"] == describe_data(data)
    assert (record["data"]["train"]["pictures"], record["data"]["val"]["pictures"]) == (6, 3)
    (session,) = record["sessions"]
    assert session["epochs"] == 2
    assert session["seconds"] > 0
    assert session["memory_mib"] > 50
    assert session["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert session["git"] == git_state(Path.cwd())
    assert isinstance(session["command"], list)


def test_a_fingerprint_is_of_the_data(shapes: Path, tmp_path: Path) -> None:
    same = write_shapes(tmp_path / "same", train=6, val=3, size=64)
    other = write_shapes(tmp_path / "other", train=6, val=3, size=64, seed=1)
    prints = [describe_data(open_dataset(x, "train"))["fingerprint"] for x in (shapes, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_git_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path / "none") is None
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def test_the_checkpoint_keeps_the_metrics_of_its_validation(runs: Path, shapes: Path) -> None:
    kept = kept_metrics(runs / "a" / "last.ckpt")
    assert kept is not None
    metrics, epoch = kept
    found = evaluate(runs / "a" / "last.ckpt", shapes)
    assert epoch == 2
    assert (metrics.stats, metrics.per_class) == (found.stats, found.per_class)
    assert metrics.pr_curves.keys() == found.pr_curves.keys()
    for name, (recall, precision) in found.pr_curves.items():
        assert (metrics.pr_curves[name][0] == recall).all()
        assert (metrics.pr_curves[name][1] == precision).all()


def test_a_report_is_written(runs: Path) -> None:
    page = (runs / "a" / "report.html").read_text()
    assert "small_anchors" in page
    assert "<svg" in page
    assert "Not measured" not in page


@pytest.mark.slow
def test_a_checkpoint_of_an_older_version_ends_without_a_report(
    runs: Path, shapes: Path, tmp_path: Path, capsys
) -> None:
    """It has neither metrics nor the options of the optimiser."""
    for name in ("last.ckpt", "best.ckpt"):
        content = torch.load(runs / "a" / name, weights_only=True)
        del content["metrics"]
        for key in ("optimization", "multi_scale"):
            del content["hyper_parameters"][key]
        torch.save(content, tmp_path / name)
    config = f"--config {runs / 'a' / 'options.yaml'} --resume --out {tmp_path}"
    main(f"train {config}".split())
    assert "of an older version, without its metrics" in capsys.readouterr().out
    main(f"eval --checkpoint {tmp_path / 'best.ckpt'} --data {shapes}".split())


@pytest.mark.slow
def test_a_report_that_cannot_be_written_costs_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").mkdir()
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / name).write_bytes((runs / "a" / name).read_bytes())
    config = f"--config {runs / 'a' / 'options.yaml'} --resume --out {tmp_path}"
    with pytest.raises(SystemExit) as stop:
        main(f"train {config}".split())
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert f"checkpoints and log: {tmp_path}\n" in printed.out
    assert "retinanet, best.ckpt, of epoch" in printed.out
    assert len(printed.err.splitlines()) == 1


def test_the_pictures_of_a_training_are_shown_from_its_options(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "pictures.html"
    main(f"show --config {runs / 'a' / 'options.yaml'} --out {page} --mosaic 1".split())
    assert page.read_text().count("<img") == 6
    assert "mosaic" in page.read_text()


# ---- the table of runs ---------------------------------------------------------------------------


def table(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, str]]:
    capsys.readouterr()
    main(["runs", *arguments, "--format", "csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_a_row_is_of_one_validation(runs: Path, capsys) -> None:
    rows = table(capsys, str(runs))
    assert [Path(row["run"]).name for row in rows] == ["a", "a-2"]
    for row in rows:
        log = read_metrics(Path(row["run"]) / "metrics.csv")
        best = max((x for x in log if "val/AP" in x), key=lambda x: x["val/AP"])
        assert int(row["best epoch"]) == best["epoch"] + 1
        for name in ("AP", "AP50", "AP75", "APs"):
            assert row[name] == f"{best[f'val/{name}']:.3f}"
        assert row["APl"] == ""  # there are no large objects
        assert row["val/loss"] == f"{best['val/loss']:.3f}"
        loss = next(x["loss"] for x in log if x["step"] == best["step"] and "loss" in x)
        assert row["loss"] == f"{loss:.3f}"
    assert [row["lr"] for row in rows] == ["0.0005", "0.003"]
    assert "min_size" not in rows[0]  # the same in both
    (session,) = read_record(Path(rows[0]["run"]) / "run.yaml")["sessions"]
    assert session["seconds"] > 0
    assert rows[0]["seconds"] == f"{session['seconds']:.0f}"


def test_sort_filter_and_base(runs: Path, capsys) -> None:
    by_epochs = table(capsys, str(runs), "--sort", "epochs")
    assert [row["lr"] for row in by_epochs] == ["0.003", "0.0005"]
    aps = [float(row["AP"]) for row in table(capsys, str(runs), "--sort", "AP")]
    assert aps == sorted(aps, reverse=True)
    (row,) = table(capsys, str(runs), "--filter", "lr=0.003")
    assert Path(row["run"]).name == "a-2"
    (row,) = table(capsys, str(runs), "--filter", "lr!=0.003", "epochs=2")
    assert Path(row["run"]).name == "a"
    rows = table(capsys, str(runs / "a"), str(runs / "a-2"), "--base", str(runs / "a"))
    assert rows[0]["AP"][0] not in "+-"
    assert rows[1]["AP"][0] in "+-"


def test_formats(runs: Path, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    main(["runs", str(runs)])
    shown = capsys.readouterr().out
    assert "│ retinanet │ test_resnet │" in shown
    assert f"{runs.as_posix()}/a: small_anchors" in shown
    main(["runs", str(runs), "--format", "markdown", "--out", str(tmp_path / "t.md")])
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[0].startswith("| run | model | backbone | epochs | lr | best epoch | AP |")
    assert lines[1].startswith("| --- | --- | --- | --- | --- | ---: |")
    page = tmp_path / "runs.html"
    main(["runs", str(runs), "--format", "html", "--out", str(page), "--plot", "val/AP50"])
    assert page.read_text().count("<svg") == 1
    main(["runs", str(runs), "--format", "html", "--out", str(page), "--overwrite"])
    assert page.read_text().count("<svg") == 2


def test_a_run_of_other_data_is_named(runs: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("metrics.csv", "run.yaml"):
        (other / name).write_text((runs / "a" / name).read_text())
    record = yaml.safe_load((other / "run.yaml").read_text())
    record["data"]["val"]["fingerprint"] = "0"
    (other / "run.yaml").write_text(yaml.safe_dump(record))
    capsys.readouterr()
    main(["runs", str(runs), str(other)])
    assert "Not all of these runs were validated on the same data." in capsys.readouterr().out


def test_a_hypothesis_may_begin_with_a_dash() -> None:
    arguments = as_arguments({"hypothesis": "--lr is too high"}, [])
    assert arguments == ["--hypothesis=--lr is too high"]


def test_a_resumed_training_keeps_how_it_started(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    first = TrainOptions(tmp_path, tmp_path, weights=Path("a.ckpt"), anchor_sizes="auto", lr=1e-3)
    write_options(first, file)
    again = TrainOptions(tmp_path, tmp_path, resume=True, lr=1e-4, weights=Path("b.ckpt"))
    write_options(again, file)
    content = read_options(file)
    assert (content["weights"], content["anchor_sizes"], content["lr"]) == ("a.ckpt", "auto", 1e-4)
    write_options(TrainOptions(tmp_path, tmp_path), file)
    assert read_options(file)["weights"] is None


def test_names_and_hypotheses_are_text_in_every_format(runs: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "a [b] | c"
    folder.mkdir()
    for name in ("metrics.csv", "options.yaml"):
        (folder / name).write_text((runs / "a" / name).read_text())
    options = {**read_options(folder / "options.yaml"), "hypothesis": "one\ntwo | [red]<b>"}
    (folder / "options.yaml").write_text(yaml.safe_dump({**options, "of_a_later_version": 3}))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "metrics.csv").write_text("epoch,step,val/AP,note\n0,1,0.3,text\n")
    capsys.readouterr()
    main(["runs", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "/a [b] | c │ retinanet" in shown
    assert "foreign" not in shown
    assert "/a [b] | c: one two | [red]<b>\n" in shown
    main(["runs", str(tmp_path), "--format", "markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert r"/a [b] \| c | retinanet |" in lines[2]
    assert lines[-1].endswith(r"one two \| [red]&lt;b>")


def test_a_table_is_as_wide_as_it_must_be(runs: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / ("long" * 40) / ("name" * 40) / ("again" * 40)
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text((runs / "a" / "metrics.csv").read_text())
    capsys.readouterr()
    main(["runs", str(folder)])
    assert "again │" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["sessions: [1]", "sessions: []\ndata: null", "[1]"])
def test_a_damaged_record_is_named(runs: Path, tmp_path: Path, capsys, content: str) -> None:
    (tmp_path / "metrics.csv").write_text((runs / "a" / "metrics.csv").read_text())
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["runs", str(tmp_path)])
    assert stop.value.code == 2
    assert "run.yaml: expected the record of a training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{tmp}", "no training (metrics.csv) in it or below it"),
        ("{runs} --filter lr", "filter: expected option=value or option!=value, got lr"),
        ("{runs} --filter x=1", "filter: expected one of"),
        ("{runs} --filter lr=7", "filter: no run meets the conditions"),
        ("{runs} --sort x", "sort: expected one of"),
        ("{runs} --format html", "out: expected a file for the page"),
        ("{runs} --format html --out {tmp}/x.html --plot val/x", "expected a metric of a valid"),
        ("{runs} --format csv --out {runs}/a/run.yaml", "exists: give --overwrite"),
    ],
)
def test_mistakes(runs: Path, tmp_path: Path, capsys, arguments: str, message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["runs", *arguments.format(runs=runs, tmp=tmp_path).split()])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# ---- too little memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("after_a_checkpoint", [False, True])
def test_batches_are_halved_when_memory_is_not_enough(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after_a_checkpoint: bool,
) -> None:
    honest, calls = RetinaNet.losses, []

    def of_small_batches(self: RetinaNet, batch) -> dict[str, torch.Tensor]:
        calls.append(len(batch.images))
        if len(batch.images) > 2 and len(calls) > 2 * after_a_checkpoint:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, batch)

    monkeypatch.setattr(RetinaNet, "losses", of_small_batches)
    options = TrainOptions(
        shapes, tmp_path / "a", "retinanet", "test_resnet", epochs=2, batch_size=3, min_size=64,
        max_size=64, fpn_channels=8, device="cpu",
    )  # fmt: skip
    train(options)
    assert "out of memory with batches of 3: goes on with batches of 1, 3 of them a step" in (
        capsys.readouterr().out
    )
    steps = [row["step"] for row in read_metrics(tmp_path / "a" / "metrics.csv") if "val/AP" in row]
    assert steps == [1, 3]  # as many steps as with batches of 3
    kept = read_options(tmp_path / "a" / "options.yaml")
    assert (kept["batch_size"], kept["accumulate"]) == (1, 3)
    with pytest.raises(torch.OutOfMemoryError):
        train(TrainOptions(**(vars(options) | {"out": tmp_path / "b", "halve_batch": False})))
