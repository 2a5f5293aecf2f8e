# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark suites run, cover every operator and report what they measured."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning
import pytest
import torch

from benchmarks import (
    analyse,
    bench_from_transformers,
    cascade_beside_faster_rcnn,
    compare,
    detector_profile,
    detr_on_small_data,
    loader,
    plots,
    quantization,
    readme_tables,
    results,
    throughput,
    train_beside_torchvision,
    training_precision,
)
from benchmarks import conftest as bench_conftest
from benchmarks.alternate import Rounds, alternate
from benchmarks.case import Case, measure, ratio
from benchmarks.ceilings import stream
from benchmarks.errors import error
from benchmarks.gpu import __main__ as gpu_main
from benchmarks.gpu import assignment as gpu_assignment
from benchmarks.gpu import masks as gpu_masks
from benchmarks.gpu import ops as gpu_ops
from benchmarks.gpu.case import GpuCase, copies, in_turn
from benchmarks.gpu.device import Device
from benchmarks.results import GpuWork, Point, Result, Row, SideResult
from benchmarks.tables import missed
from fastdet import ops
from fastdet.bench import TREE
from fastdet.data import open_dataset, write_shapes
from fastdet.report.figures import three_digits
from fastdet.training.detector_module import DetectorModule

# Operators that torchvision does not have: the first peer on a GPU, or no row there.
OTHER_PEERS = {
    "assign_atss": "torch",
    "assign_simota": "torch",
    "assign_task_aligned": "torch",
    "linear_assignment": "SciPy",
    "match_queries": "torch and SciPy",
    "ms_deform_attn": "grid_sample",
    "nmm": "torch",
    "soft_nms": "torch",
}
NOT_ON_A_GPU = {"weighted_boxes_fusion"}


def row(threads: int = 2, theirs: float = 30.0, **fields) -> Row:
    sides = {
        "fastdet": SideResult(2.0, (1.0, 1.0, 1.0), 0.0),
        "torchvision": SideResult(2 * theirs, (theirs - 1, theirs, theirs + 1), 1e-7),
    }
    return Row("nms", "9 boxes", threads, sides, 0.5, "memory", **fields)


def result(*rows: Row) -> Result:
    machine = dict.fromkeys(("date", "processor", "gpu", "torch", "torchvision"), "x")
    ceilings = dict.fromkeys(("read", "write", "write_new", "fma"), 10.0)
    return Result(machine, {"2": ceilings}, list(rows))


@pytest.mark.slow
def test_every_suite_runs_and_every_op_has_one(tmp_path: Path) -> None:
    out = tmp_path / "quick.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--quick", "--out", str(out)]
    run = subprocess.run(command, cwd=TREE, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    measured = results.read(out)
    functions = {name for name in ops.__all__ if name.islower()}
    assert {row.op for row in measured.rows} >= functions
    beside_torchvision = {row.op for row in measured.rows if row.torchvision}
    assert beside_torchvision >= functions - {*OTHER_PEERS} - NOT_ON_A_GPU
    for one in measured.rows:
        assert next(iter(one.sides)) == "fastdet"
        assert len(one.sides) > 1
        assert all(side.ms > 0 for side in one.sides.values())


@pytest.mark.slow
def test_profile_of_detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = detector_profile.made
    peak = detector_profile.training_peak_mib
    monkeypatch.setattr(detector_profile, "made", lambda name, height, width: made(name, 64, 64))
    (name, *_) = detector_profile.MODELS
    monkeypatch.setattr(detector_profile, "MODELS", {name: detector_profile.MODELS[name]})
    monkeypatch.setattr(detector_profile, "CALLS", 1)
    monkeypatch.setattr(detector_profile, "CPU_DETECTORS", tmp_path / "profile.json")
    monkeypatch.setattr(
        detector_profile,
        "training_peaks_mib",  # without new processes
        lambda name: {side: peak(name, side) for side in detector_profile.SIDES},
    )
    monkeypatch.setattr(sys, "argv", ["detector_profile"])
    detector_profile.main()
    measured = json.loads((tmp_path / "profile.json").read_text())["detectors"]
    assert list(measured) == [name]
    assert set(measured[name]) == {"fastdet", "torchvision"}
    for side in measured[name].values():
        assert 0 < side["rest_share"] < 1
        assert len(side["rest_ms"]) == detector_profile.LARGEST
        assert side["training_peak_mib"] >= 0


@pytest.mark.slow
def test_training_beside_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_shapes(tmp_path / "shapes", train=4, val=2, size=64), tmp_path / "result.json"
    options = f"--data {data} --model mask_rcnn --backbone test_resnet --size 64 --steps 2"
    options += f" --batch-size 2 --fpn-channels 16 --log-every 1 --seeds 2 --out {out}"
    monkeypatch.setattr(
        train_beside_torchvision,
        "peak_memory_mib",  # without new processes
        train_beside_torchvision.measure_memory,
    )
    monkeypatch.setattr(sys, "argv", ["train_beside_torchvision", *options.split()])
    train_beside_torchvision.main()
    assert "seed 1 step time, torchvision / fastdet" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert set(written["peak_memory_mib"]) == {"fastdet", "torchvision"}
    assert [one["seed"] for one in written["runs"]] == [0, 1]
    for one in written["runs"]:
        for side in ("fastdet", "torchvision"):
            assert 0 <= one[side]["segm_AP"] <= 1
            assert one[side]["seconds_per_step"] > 0
            assert list(one[side]["AP50_by_step"]) == ["1", "2"]


@pytest.mark.slow
def test_the_time_of_an_analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["analyse", "--quick", "--out", str(out)])
    analyse.main()
    written = json.loads(out.read_text())
    assert written["detections"] == 5000
    assert 0 < written["one"]["cpu_s"] < 60
    assert "| two files side by side |" in readme_tables.analysing_table(written)


@pytest.mark.slow
def test_the_loader_beside_another_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_shapes(tmp_path / "shapes", train=8, val=2, size=64), tmp_path / "result.json"
    options = f"--before {TREE} --data {data} --rounds 1 --annotations 50 --out {out}"
    monkeypatch.setattr(sys, "argv", ["loader", *options.split()])
    # Both sides are this checkout: one process for both.
    honest, runs = subprocess.run, []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        other_side = len(runs) % 2 == 1
        assert not other_side or command == runs[-1].args
        runs.append(runs[-1] if other_side else honest(command, **options))
        return runs[-1]

    monkeypatch.setattr(loader.subprocess, "run", run)
    loader.main()
    written = json.loads(out.read_text())
    assert set(written["loading"]) == {"0", "2"}
    for sides in written["loading"].values():
        assert sides["fastdet"]["images_per_second"][0] > 0
    for sides in written["opening"].values():
        assert 0 <= sides["fastdet"]["peak_mib"][0] < 100
    assert "| 2 workers, images/s |" in readme_tables.loading_table(written)
    assert "| 50 annotations, boxes, 0 MiB |" in readme_tables.opening_table(written)


@pytest.mark.slow
def test_cascade_beside_faster_rcnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = write_shapes(tmp_path / "shapes", train=2, val=2, size=64), tmp_path / "result.json"
    options = f"--data {data} --backbone test_resnet --size 64 --steps 2 --batch-size 2 --out {out}"
    options += " --fpn-channels 8 --representation-size 8 --box-samples 16"
    for further in ("--seeds 0", "--seeds 1"):
        arguments = ["cascade_beside_faster_rcnn", *options.split(), *further.split()]
        monkeypatch.setattr(sys, "argv", arguments)
        cascade_beside_faster_rcnn.main()
    written = json.loads(out.read_text())
    assert [run["seed"] for run in written["runs"]] == [0, 1]
    for run in written["runs"]:
        for family in ("cascade_rcnn", "faster_rcnn"):
            assert len(run[family]["AP_by_iou"]) == 10
            assert list(run[family]["AP_by_step"]) == ["1", "2"]
    assert "| Cascade R-CNN, seed 1 |" in readme_tables.cascade_table(written)
    monkeypatch.setattr(sys, "argv", [*arguments, "--lr", "0.5"])
    with pytest.raises(ValueError, match=r"result\.json: expected the settings .*'lr': 0\.5"):
        cascade_beside_faster_rcnn.main()


@pytest.mark.slow
def test_detr_on_small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = write_shapes(tmp_path / "shapes", train=2, val=2, size=64), tmp_path / "result.json"
    small = {"fpn_channels": 16, "num_queries": 10, "decoder_layers": 1}
    recipes = {name: ({**numbers, **small}, lr, clip) for name, (numbers, lr, clip) in
               detr_on_small_data.RECIPES.items() if name != "faster_rcnn"}  # fmt: skip
    recipes["faster_rcnn"] = ({"fpn_channels": 8, "representation_size": 8}, 1e-3, 10.0)
    monkeypatch.setattr(detr_on_small_data, "RECIPES", recipes)
    options = f"--data {data} --backbone test_resnet --size 64 --minutes 0.002 --batch-size 2"
    monkeypatch.setattr(sys, "argv", ["detr", *f"{options} --out {out}".split()])
    detr_on_small_data.main()
    written = json.loads(out.read_text())
    assert written["settings"]["recipes"]["rt_detr"][0]["num_queries"] == 10
    for family in ("detr", "rt_detr", "faster_rcnn"):
        assert len(written["runs"][0][family]["AP50_by_quarter"]) == 4
    assert "| RT-DETR, seed 0 | 0." in readme_tables.small_data_table(written)
    monkeypatch.setattr(sys, "argv", ["detr", *f"{options} --out {out} --size 96".split()])
    with pytest.raises(ValueError, match=r"result\.json: expected the settings .*'size': 96"):
        detr_on_small_data.main()


@pytest.mark.slow
def test_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "throughput.json"
    out.write_text(json.dumps({"models": {"Another": {}}}))
    monkeypatch.setattr(throughput, "THROUGHPUT", out)
    name = "RetinaNet, ResNet-50 FPN"
    options = ["--size", "64", "--batch", "2", "--rounds", "2", "--seconds", "0.01", "--models"]
    monkeypatch.setattr(sys, "argv", ["throughput", *options, name])
    throughput.main()
    written = json.loads(out.read_text())
    assert set(written["models"]) == {"Another", name}
    threads = torch.get_num_threads()
    ways = written["models"][name]["images_per_second"]
    assert len(ways) == (4 if threads > 1 else 2)
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in ways.values())
    assert written["models"][name]["multiply_adds"] > 0


@pytest.mark.slow
def test_quantization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts write one file, detector by detector, from which the tables are made."""
    out = tmp_path / "result.json"
    monkeypatch.setattr(quantization, "QUANTIZATION", out)
    data = write_shapes(tmp_path / "shapes", train=4, val=2, size=64)
    split = open_dataset(data, "val")
    options = {"fpn_channels": 8, "min_size": 64, "max_size": 64, "score_thresh": 0.0}
    module = DetectorModule("retinanet", "test_resnet", split.classes, split.category_ids, options)
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "any.ckpt")
    name = "RetinaNet, ResNet-50 FPN"
    for part in (
        ["time", "--quick", "--models", name],
        ["accuracy", "--data", str(data), "--checkpoints", str(tmp_path / "any.ckpt")],
    ):
        monkeypatch.setattr(sys, "argv", ["quantization", *part])
        quantization.main()
    written = json.loads(out.read_text())
    assert set(written["time"]["detectors"]) == {name}
    assert {"fastdet", "fastdet, bfloat16"} <= set(written["time"]["detectors"][name]["ms"])
    (measured,) = written["accuracy"]["detectors"].values()
    assert all({"float32", "fastdet"} <= set(sides) for sides in measured["AP"].values())
    assert measured["images"] == {"val": 2, "train": 4}
    assert name in readme_tables.quantised_times_table(written["time"])
    table = readme_tables.quantised_accuracy_table(written["accuracy"])
    assert "test_resnet, 64 pixels, train" in table


@pytest.mark.slow
def test_training_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts write one file, model by model, from which the tables are made."""
    out = tmp_path / "result.json"
    memory = training_precision.measure_memory  # here, not in a process of its own
    monkeypatch.setattr(training_precision, "memory_mib", memory)
    data = write_shapes(tmp_path / "shapes", train=4, val=2, size=64)
    curves = "curves --backbone test_resnet --steps 11 --batch-size 2 --size 64 --data"
    for options in (
        *(f"steps --quick --size 64 --models|{name}" for name in training_precision.MODELS),
        *(f"{curves} {data} --families|{name}" for name in training_precision.TRAINED),
    ):
        words, name = options.split("|")
        monkeypatch.setattr(sys, "argv", ["bench", *words.split(), name, "--out", str(out)])
        training_precision.main()
    written = json.loads(out.read_text())
    assert set(written["steps"]["models"]) == set(training_precision.MODELS)
    for sides in written["steps"]["models"].values():
        assert set(sides) == set(training_precision.SIDES)
        assert all(side["ms"] > 0 and side["peak_mib"] >= 0 for side in sides.values())
    for runs in written["curves"]["models"].values():
        distances = {key: run["distance"] for key, run in runs.items()}
        assert distances["float32"] == 0
        assert all(d > 0 for key, d in distances.items() if key != "float32")
    steps, trained = written["steps"], written["curves"]
    assert "| RetinaNet, ResNet-50 FPN, torchvision |" in readme_tables.steps_table(steps)
    assert "| faster_rcnn, bfloat16 |" in readme_tables.curves_table(trained)


def test_distance_of_curves() -> None:
    curve = [float(step) for step in range(1, 30)]
    assert training_precision.distance(curve, curve) == 0
    assert training_precision.distance([1.1 * x for x in curve], curve) == pytest.approx(0.1)


def test_bfloat16_changes_a_training_less_than_a_seed() -> None:
    written = json.loads(results.TRAINING_PRECISION.read_text())
    for runs in written["curves"]["models"].values():
        distances = {key: run["distance"] for key, run in runs.items()}
        assert distances["bfloat16"] < distances["float32, another seed"]


@pytest.mark.slow
def test_beside_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.models import test_transformers_d_fine, test_transformers_rt_detr

    out = tmp_path / "result.json"
    kinds = {
        "tiny RT-DETR": test_transformers_rt_detr.theirs_of,
        "tiny D-FINE": test_transformers_d_fine.theirs_of,
    }
    monkeypatch.setattr(bench_from_transformers, "MODELS", kinds)
    memory = bench_from_transformers.measure_memory  # here, not in a process of its own
    monkeypatch.setattr(bench_from_transformers, "memory_mib", memory)
    options = f"bench --quick --size 64 --out {out}"
    monkeypatch.setattr(sys, "argv", options.split())
    bench_from_transformers.main()
    written = json.loads(out.read_text())
    for name, step in itertools.product(kinds, ("inference", "training step")):
        sides = written["models"][name][step]
        assert set(sides) == {"fastdet", "transformers", "transformers, override_detr"}
        assert all(of_side["peak_mib"] >= 0 and of_side["ms"] > 0 for of_side in sides.values())
        assert all(of_side["peaks_mib"] == [of_side["peak_mib"]] for of_side in sides.values())
    assert "| tiny D-FINE, training step, fastdet |" in readme_tables.transformers_table(written)


def test_peaks_of_detrs_are_of_three_processes_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "found.json", []

    def peak(name: str, step: str, key: str, side: int) -> float:
        calls.append(key)
        return float((7, 100, 9)[calls.count(key) - 1 - 3 * (step != "inference")])

    sides = ("fastdet", "transformers", "transformers, override_detr")
    numbers = {"ms": 1.0, "ratio": [1.0, 1.0, 1.0]}
    monkeypatch.setattr(
        bench_from_transformers, "measured", lambda *_: {key: dict(numbers) for key in sides}
    )
    monkeypatch.setattr(bench_from_transformers, "memory_mib", peak)
    monkeypatch.setattr(sys, "argv", ["bench", "--models", "D-FINE-S", "--out", str(out)])
    bench_from_transformers.main()
    assert calls == [*sides] * 6
    for of_sides in json.loads(out.read_text())["models"]["D-FINE-S"].values():
        for of_side in of_sides.values():
            assert of_side["peak_mib"] == 9.0
            assert of_side["peaks_mib"] == [7.0, 100.0, 9.0]


def test_no_operator_is_less_exact_than_torchvisions() -> None:
    for one in results.read(results.CPU_OPS).rows:
        ours, theirs = one.sides["fastdet"].error, one.torchvision and one.torchvision.error
        if ours is not None and theirs is not None:
            # Of sums of 2,304 products the largest rounding depends a little on their order.
            most = 1.1 * theirs if one.op == "deform_conv2d" else theirs
            assert ours <= most, one.key


@pytest.mark.slow
def test_every_suite_of_the_gpu_runs_and_every_op_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--out", str(tmp_path)])
    gpu_main.main()  # exits where a suite fails
    measured = results.read(tmp_path / "cuda_none.json")
    without = {"distance_box_iou", "distance_box_iou_loss"}  # their siblings have rows
    functions = {name for name in ops.__all__ if name.islower()} - without - NOT_ON_A_GPU
    assert {row.op for row in measured.rows} >= functions
    for one in measured.rows:
        assert list(one.sides)[:2] == ["fastdet", OTHER_PEERS.get(one.op, "torchvision")]
        for side in one.sides.values():
            assert side.error is None or side.error < 0.05


def test_a_failing_suite_does_not_stop_the_others(monkeypatch, capsys, tmp_path: Path) -> None:
    def broken(_: Device) -> Iterator[GpuCase]:
        yield GpuCase(op="x", workload="y", inputs=(), sides={"fastdet": lambda: lambda: 1 / 0})

    monkeypatch.setattr(gpu_main, "SUITES", (broken, gpu_ops.box_coding))
    assert gpu_main.run(Device("cpu", small=True), "", tmp_path) == 1
    assert "broken failed" in capsys.readouterr().out
    written = results.read(tmp_path / "cuda_none.json")
    assert [row.op for row in written.rows] == ["decode_boxes", "encode_boxes"]


def test_each_row_of_a_gpu_is_written_as_it_comes(monkeypatch, tmp_path: Path) -> None:
    written = []

    def watched(device: Device) -> Iterator[GpuCase]:
        for case in gpu_ops.box_coding(device):
            yield case
            written.append([row.op for row in results.read(tmp_path / "cuda_none.json").rows])

    monkeypatch.setattr(gpu_main, "SUITES", (watched,))
    assert gpu_main.run(Device("cpu", small=True), "", tmp_path) == 0
    assert written == [["decode_boxes"], ["decode_boxes", "encode_boxes"]]


def test_a_suite_beside_a_package_that_is_not_installed_is_skipped(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    suites = (gpu_masks.encode_masks, gpu_assignment.linear_assignment, gpu_ops.box_coding)
    monkeypatch.setattr(gpu_main, "SUITES", suites)
    monkeypatch.delitem(sys.modules, "scipy.optimize", raising=False)
    for name in ("pycocotools", "scipy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert gpu_main.run(Device("cpu", small=True), "", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "encode_masks skipped: pycocotools is not installed" in printed
    assert "linear_assignment skipped: scipy is not installed" in printed
    rows = results.read(tmp_path / "cuda_none.json").rows
    assert [row.op for row in rows] == ["decode_boxes", "encode_boxes"]


def test_calls_go_round_the_copies_of_the_inputs() -> None:
    numbers = torch.arange(6).reshape(2, 3).t()
    rotated = copies((numbers,), Device("cpu", small=True))
    assert len({copy[0].data_ptr() for copy in rotated}) == len(rotated) == 2
    assert all(copy[0].equal(numbers) for copy in rotated)
    assert all(copy[0].stride() == numbers.stride() for copy in rotated)
    turn = in_turn([lambda: "a", lambda: "b"])
    assert [turn() for _ in range(3)] == ["a", "b", "a"]


def test_sides_take_turns() -> None:
    calls: list[str] = []
    sides = {name: lambda n=name: calls.append(n) for name in "ab"}
    turns = alternate(sides, Rounds(seconds=0.0, least=3, most=5))
    assert [len(turn.seconds) for turn in turns.values()] == [3, 3]
    assert turns["a"].calls > 1, "a side this quick must run many times a turn"
    order = [calls[0]] + [b for a, b in itertools.pairwise(calls) if a != b]
    assert order == ["a", "b"] * 4  # the first pair finds out how quick they are


def test_ratio_is_taken_round_by_round() -> None:
    # A slow moment that hits both sides of a round is not seen.
    assert ratio([20.0, 200.0, 20.0], [1.0, 10.0, 1.0]) == (20.0, 20.0, 20.0)


def test_floor_is_the_larger_of_memory_and_arithmetic() -> None:
    case = Case(
        op="x",
        workload="y",
        sides={"fastdet": lambda: None},
        floor=stream(writes=2**20),
        operations=4e9,
    )
    rounds, unknown = Rounds(seconds=0.0, least=1, most=1), {"fastdet": None}
    measured, _ = measure(case, 1, rounds, 100.0, unknown)
    assert (measured.floor_kind, measured.floor_ms) == ("arithmetic", 40.0)
    measured, _ = measure(replace(case, operations=0), 1, rounds, 100.0, unknown)
    assert measured.floor_kind == "memory"
    assert 0 < (measured.floor_ms or 0) < 40


CORNER = torch.tensor([[[True, False], [False, False]]])


@pytest.mark.parametrize(
    ("got", "exact", "expected"),
    [
        (torch.tensor([1.0, 3.0]), torch.tensor([1.0, 4.0]).double(), 0.25),
        ((torch.tensor([2.0]), [torch.tensor([3])]), (torch.tensor([2.0]), [torch.tensor([3])]), 0),
        (torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 4, 3]), 0.5),
        (torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3, 4]), 0.25),
        (torch.tensor([7]), torch.empty(0, dtype=torch.int64), 1.0),
        (ops.encode_masks(CORNER), ops.encode_masks(CORNER), 0),
        (ops.encode_masks(CORNER), ops.encode_masks(CORNER.flip(2)), 0.5),
    ],
)
def test_error(got, exact, expected: float) -> None:
    assert error(got, exact) == expected


def test_result_file_keeps_what_is_written(tmp_path: Path) -> None:
    rows = [row(target=25.0, growth=True, point=Point("nms", "boxes", 9)), row(threads=1)]
    work = GpuWork(launches=3.0, syncs=1.0, ms=0.02)
    sides = {"fastdet": replace(row().sides["fastdet"], gpu=work)}
    written = result(*rows, replace(row(target_ms=0.5), sides=sides))
    results.write(tmp_path / "r.json", written)
    assert results.read(tmp_path / "r.json") == written


def test_target_is_for_all_threads() -> None:
    slow, single = row(theirs=24.0, target=25.0), row(threads=1, theirs=24.0, target=25.0)
    whole = result(slow, single)
    assert missed(slow, whole)
    assert not missed(single, whole)
    assert not missed(row(theirs=26.0, target=25.0), whole)


def test_compare_shows_the_ratios_of_both() -> None:
    table = compare.table(result(row(theirs=20.0)), result(row(theirs=30.0), row(threads=1)))
    assert table.row_count == 1
    assert [next(iter(column.cells)) for column in table.columns][-3:] == ["20.0x", "30.0x", "+50%"]


def test_plots_show_each_side_and_figure(tmp_path: Path) -> None:
    points = [row(theirs=x, point=Point("nms, random", "boxes", x)) for x in (10, 1000)]
    for one in points:
        one.sides["a new package"] = SideResult(7.0, (7.0, 7.0, 7.0), None)
    plots.draw(result(*points, row(threads=1)), tmp_path / "p.svg")
    svg = (tmp_path / "p.svg").read_text()
    for text in ("nms, random", "torchvision 2,000", "fastdet 2.00", "a new package 7.00", ">1k<"):
        assert text in svg


def test_readme_rows() -> None:
    rows = [row(), row(threads=1, theirs=15.0), row(growth=True)]
    table = readme_tables.ops_table(result(*rows))
    assert "| `nms`, 9 boxes | 2.00 | 60.0 | 30.0x | 15.0x |" in table
    assert table.count("`nms`") == 1
    numpy = SideResult(3.0, (1.5, 1.5, 1.5), 0.0)
    peers = {"fastdet.numpy": numpy, "OpenCV": SideResult(12.0, (6.0, 6.0, 6.0), 0.0)}
    with_peers = replace(row(), sides=row().sides | peers)
    torch_alone = replace(row(), sides=row().sides | {"OpenCV": numpy})
    table = readme_tables.numpy_table(result(row(), with_peers, torch_alone))
    assert "| `nms`, 9 boxes | 3.00 | 12.0 | \N{EN DASH} |" in table
    assert table.count("`nms`") == 1
    assert "| 2.00 | 0.500 | 4.00 | memory |" in readme_tables.floors(result(*rows))


def test_readme_rows_of_a_gpu() -> None:
    work = GpuWork(launches=3.0, syncs=0.0, ms=0.02)
    ours = replace(row().sides["fastdet"], gpu=work)
    measured = replace(row(target_ms=2.5), sides=row().sides | {"fastdet": ours})
    table = readme_tables.gpu_table(result(measured))
    dash = "\N{EN DASH}"
    cells = f"2.00 | 60.0 | 30.0x | 0.500 | 2.50 | 3 / {dash} | 0 / {dash} | 0.0200 / {dash} |"
    assert f"| `nms`, 9 boxes | {cells}" in table


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.000123, "0.000123"), (0.94, "0.940"), (1.0, "1.00"), (99.96, "100"), (1170.4, "1,170")],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_only_failures_print_a_letter_between_the_lines_of_cases() -> None:
    def letter(outcome: Literal["passed", "failed", "skipped"]) -> str | None:
        where = ("bench_nms.py", 1, "bench_scene")
        report = pytest.TestReport("bench_scene", where, {}, outcome, None, "call")
        status = bench_conftest.pytest_report_teststatus(report)
        return status and status[1]

    assert letter("passed") == letter("skipped") == ""
    assert letter("failed") is None, "pytest's own letter"
