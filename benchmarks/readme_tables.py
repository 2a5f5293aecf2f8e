# SPDX-License-Identifier: BSD-3-Clause
"""Writes the tables of PAGES from the committed result files; `make bench` ends with it.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a function of TABLES. A
test compares the pages with what this script would write.
"""

import functools
import itertools
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import experiments, results, training_precision
from benchmarks.results import (
    ANALYSE,
    BACKBONES,
    CPU_DETECTORS,
    CPU_OPS,
    LOADER,
    PREDICT,
    QUANTIZATION,
    THROUGHPUT,
    TRAINING_PRECISION,
    Result,
    Row,
    SideResult,
)
from benchmarks.tables import ABSENT, errors, others, times
from fastdet.report.figures import three_digits

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "docs" / "analysis.md",
    ROOT / "docs" / "backbones.md",
    ROOT / "docs" / "cascade_rcnn.md",
    ROOT / "docs" / "experiments.md",
    ROOT / "docs" / "from_transformers.md",
    ROOT / "docs" / "prediction.md",
    ROOT / "docs" / "quantization.md",
    ROOT / "docs" / "rt_detr.md",
    ROOT / "docs" / "training.md",
    *(
        results.FOLDER / f"{name}.md"
        for name in ("bccd", "cpu_numpy", "cpu_ops", "gpus", "loader", "nuclei")
    ),
)
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# The rows of the front README: one of each kind of work, then whole detectors.
FRONT_ROWS = (
    ("nms", "20,000 random boxes"),
    ("batched_nms", "20,000 boxes, 80 classes"),
    ("box_iou", "100 x 200,000"),
    ("match_anchors", "182,403 RetinaNet anchors, 30 gt"),
    ("roi_align", "1,024 RoIs, 256 x 7 x 7, NCHW"),
    ("sigmoid_focal_loss", "200,000 x 80, integer labels, forward and backward"),
    ("from_torchvision", "Faster R-CNN, ResNet-50 FPN, inference, one image"),
    (
        "from_torchvision",
        "Faster R-CNN, ResNet-50 FPN, training step, two images of 512 x 512",
    ),
)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and the rest numbers."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows])


def made_by(machine: dict[str, str]) -> str:
    """Where and with what a result was measured."""
    m = machine
    return (
        f"\n{m['date']}, {m['processor']}, GPU: {m['gpu']}, torch {m['torch']}, "
        f"torchvision {m['torchvision']}.\n"
    )


def ratio(row: Row | None) -> str:
    """torchvision's time over ours."""
    return times(row.torchvision.ratio[1]) if row and row.torchvision else ABSENT


def ops_table(result: Result) -> str:
    """On all threads, without the series that only show growth."""
    by_key = {row.key: row for row in result.rows}
    rows = [
        [
            f"`{row.op}`, {row.workload}",
            three_digits(row.sides["fastdet"].ms),
            three_digits(row.torchvision.ms),
            ratio(row),
            ratio(by_key.get((row.op, row.workload, 1))),
        ]
        for row in result.rows
        if row.torchvision and not row.growth and row.threads == result.threads
    ]
    header = ["", "fastdet ms", "torchvision ms", "ratio", "on one thread"]
    return markdown(header, rows) + made_by(result.machine)


def front_table(result: Result) -> str:
    """FRONT_ROWS of `ops_table`."""
    by_key = {row.key: row for row in result.rows}
    rows = [by_key[op, workload, result.threads] for op, workload in FRONT_ROWS]
    one_thread = [by_key.get((op, workload, 1)) for op, workload in FRONT_ROWS]
    return ops_table(replace(result, rows=[*rows, *filter(None, one_thread)]))


def numpy_table(result: Result) -> str:
    """`fastdet.numpy` beside what people use without torch, on all threads."""
    rows = []
    for row in result.rows:
        # Where torchvision has the op, "fastdet" is the one for torch.
        ours = row.sides.get("fastdet.numpy" if row.torchvision else "fastdet")
        peers = [row.sides.get(name) for name in ("OpenCV", "NumPy")]
        if ours and any(peers) and not row.growth and row.threads == result.threads:
            others = [three_digits(peer.ms) if peer else ABSENT for peer in peers]
            rows.append([f"`{row.op}`, {row.workload}", three_digits(ours.ms), *others])
    return markdown(["", "fastdet.numpy ms", "OpenCV ms", "NumPy ms"], rows)


def every_row(result: Result) -> str:
    """A table for each operator."""
    header = ["", "threads", "fastdet ms", "torchvision ms", "ratio", "quartiles", "target"]
    header += ["error, ours / theirs", "other peers"]
    tables = []
    for op, rows in itertools.groupby(result.rows, key=lambda row: row.op):
        cells = []
        for row in rows:
            theirs = row.torchvision
            cells.append(
                [
                    row.workload,
                    str(row.threads),
                    three_digits(row.sides["fastdet"].ms),
                    three_digits(theirs.ms) if theirs else ABSENT,
                    ratio(row),
                    " to ".join(three_digits(theirs.ratio[i]) for i in (0, 2)) if theirs else "",
                    times(row.target) if row.target and row.threads == result.threads else "",
                    errors(row),
                    others(row),
                ]
            )
        tables.append(f"\n#### `{op}`\n\n" + markdown(header, cells))
    return "".join(tables) + made_by(result.machine)


def gpu_table(result: Result) -> str:
    """Both sides' times, launches and syncs on a GPU, the floor and the target."""
    rows = []
    for row in result.rows:
        ours, theirs = row.sides["fastdet"], row.torchvision
        rows.append(
            [
                f"`{row.op}`, {row.workload}",
                three_digits(ours.ms),
                three_digits(theirs.ms) if theirs else ABSENT,
                ratio(row),
                *(three_digits(x) if x else "" for x in (row.floor_ms, row.target_ms)),
                *gpu_work(ours, theirs),
                others(row),
            ]
        )
    header = ["", "fastdet ms", "torchvision ms", "ratio", "floor ms", "target ms"]
    header += ["launches", "syncs", "ms in kernels", "other peers"]
    return markdown(header, rows) + made_by(result.machine)


def gpu_work(*sides: SideResult | None) -> list[str]:
    """Launches, syncs and milliseconds in kernels, ours / theirs."""
    work = [side.gpu if side else None for side in sides]
    return [
        " / ".join(show(one) if one else ABSENT for one in work)
        for show in (
            lambda one: f"{one.launches:.3g}",
            lambda one: f"{one.syncs:.3g}",
            lambda one: three_digits(one.ms),
        )
    ]


def gpus() -> str:
    """A table for each GPU that was measured."""
    files = results.of_gpus()
    if not files:
        return "Not yet run on a GPU: there are no figures for the CUDA kernels.\n"
    return "\n".join(gpu_table(results.read(path)) for path in files)


def gpus_front() -> str:
    """Which GPUs the CUDA kernels have been measured on."""
    names = [results.read(path).machine["gpu"] for path in results.of_gpus()]
    if not names:
        return "The CUDA kernels have **not yet run on a GPU**; there are no GPU figures.\n"
    return f"The CUDA kernels were [measured](benchmarks/results/gpus.md) on: {', '.join(names)}.\n"


def floors(result: Result) -> str:
    """How far each row is from its floor, on all threads, the farthest first."""
    rows = [row for row in result.rows if row.floor_ms and row.threads == result.threads]
    cells = [
        [
            f"`{row.op}`, {row.workload}",
            three_digits(row.sides["fastdet"].ms),
            three_digits(row.floor_ms or 0),
            three_digits(row.times_floor or 0),
            row.floor_kind,
        ]
        for row in sorted(rows, key=lambda row: -(row.times_floor or 0))
    ]
    return markdown(["", "fastdet ms", "floor ms", "times the floor", "set by"], cells)


def ceilings(result: Result) -> str:
    """What the machine can do."""
    rows = [
        [threads, *(three_digits(c[k]) for k in ("read", "write", "write_new", "fma"))]
        for threads, c in result.ceilings.items()
    ]
    header = ["threads", "read GB/s", "write GB/s", "write new memory GB/s", "10^9 FMA/s"]
    return markdown(header, rows)


def detectors_table(result: dict[str, Any]) -> str:
    """What is left beside convolutions, and the memory of training."""
    rows = [
        [
            f"{name}, {side}",
            f"{100 * one['rest_share']:.1f} %",
            ", ".join(f"`{key}` {three_digits(ms)}" for key, ms in one["rest_ms"].items()),
            f"{one['training_peak_mib']}",
        ]
        for name, sides in result["detectors"].items()
        for side, one in sides.items()
    ]
    header = ["", "no convolution or matrix product", "of it, ms", "training, peak MiB"]
    return markdown(header, rows) + made_by(result["machine"])


def backbones_table(result: dict[str, Any]) -> str:
    """One row for each family of timm's models, those that work first."""

    def mark(one: dict[str, Any], key: str) -> str:
        too_large = key not in one and "allocate memory" in one.get("error", "")
        return "too large" if too_large else "yes" if one.get(key) else "no"

    keys = ("runs", "trains", "freezes", "exports")
    rows = [
        [
            f"`{one['family']}`",
            f"`{name}`",
            one.get("way", "refused"),
            *(mark(one, key) for key in keys),
            f"{one['parameters'] / 1e6:.1f}" if "parameters" in one else ABSENT,
        ]
        for name, one in sorted(
            result["models"].items(),
            key=lambda item: ("way" not in item[1], item[1]["family"]),
        )
    ]
    header = ["family", "model", "built for", *keys, "million parameters"]
    return markdown(header, rows) + made_by(result["machine"])


def training_table(result: dict[str, Any]) -> str:
    """One row for each seed and side."""
    first = result["runs"][0]["fastdet"]
    masks = [key for key in ("segm_AP", "segm_AP50") if key in first]
    classes = first["AP_by_class"] if len(first["AP_by_class"]) > 1 else {}
    rows = []
    for run in result["runs"]:
        for side in ("fastdet", "torchvision"):
            one = run[side]
            rows.append(
                [
                    f"{side}, seed {run['seed']}",
                    f"{one['AP']:.3f}",
                    f"{one['AP50']:.3f}",
                    *(f"{one[key]:.3f}" for key in masks),
                    *(f"{one['AP_by_class'][name]:.3f}" for name in classes),
                    f"{one['seconds_per_step']:.3f}",
                    f"{result['peak_memory_mib'][side]:.0f}",
                ]
            )
    of_masks = [key.replace("_", " ") for key in masks]
    by_class = [f"AP {name}" for name in classes]
    header = ["", "AP", "AP50", *of_masks, *by_class, "s/step", "peak MiB"]
    s = result["settings"]
    settings = (
        f"\n{s['model']}, {s['backbone']} from scratch, {s['size']} px, FPN {s['fpn_channels']}, "
        f"batch {s['batch_size']}, {s['steps']} steps.\n"
    )
    return markdown(header, rows) + settings + made_by(result["machine"])


def cascade_table(result: dict[str, Any]) -> str:
    """AP at each IoU threshold: one row for each seed and family."""
    names = {"cascade_rcnn": "Cascade R-CNN", "faster_rcnn": "Faster R-CNN"}
    rows, thresholds = [], result["runs"][0]["cascade_rcnn"]["AP_by_iou"]
    for run in result["runs"]:
        for family, name in names.items():
            of_family = (run[family]["AP"], *run[family]["AP_by_iou"].values())
            rows.append([f"{name}, seed {run['seed']}", *(f"{ap:.3f}" for ap in of_family)])
    s = result["settings"]
    settings = (
        f"\n{s['data']}, {s['backbone']} from scratch, {s['size']} px, FPN {s['fpn_channels']}, "
        f"representation_size {s['representation_size']}, {s['box_samples']} samples of an image "
        f"and stage, batch {s['batch_size']}, {s['steps']} steps.\n"
    )
    header = ["", "AP", *(f"at {iou}" for iou in thresholds)]
    return markdown(header, rows) + settings + made_by(result["machine"])


def analysing_table(content: dict[str, Any]) -> str:
    """The seconds of `fastdet analyse`, by the clock and of the processors."""
    rows = [
        [name, three_digits(content[key]["wall_s"]), three_digits(content[key]["cpu_s"])]
        for name, key in (("one file", "one"), ("two files side by side", "two"))
    ]
    size = (
        f"{content['images']:,} pictures, {content['objects']:,} objects of "
        f"{content['classes']} classes, {content['detections']:,} detections a file"
    )
    return markdown([size, "seconds", "processor seconds"], rows) + made_by(content["machine"])


def predicting_table(result: dict[str, Any]) -> str:
    """Pictures a second: medians, and the ratio of each round."""
    rows = []
    for family, of_family in result["families"].items():
        before, ours = (of_family["pictures_per_second"][side] for side in ("before", "fastdet"))
        ratios = [a / b for a, b in zip(ours, before, strict=True)]
        medians = (three_digits(statistics.median(side)) for side in (before, ours))
        rows.append([f"`{family}`", *medians, times(statistics.median(ratios))])
    return markdown(["", "one at a time", "side by side", "ratio"], rows) + made_by(
        result["machine"]
    )


def throughput_table(result: dict[str, Any]) -> str:
    """Images a second: medians, the ratio to the first way in each round, and the arithmetic."""
    rows = []
    for name, of_model in result["models"].items():
        first = next(iter(of_model["images_per_second"].values()))
        for way, measured in of_model["images_per_second"].items():
            median = statistics.median(measured)
            ratios = [a / b for a, b in zip(measured, first, strict=True)]
            share = median * of_model["multiply_adds"] / of_model["fma"]
            cells = [three_digits(median), times(statistics.median(ratios)), f"{share:.0%}"]
            rows.append([f"{name}: {way}", *cells])
    header = ["", "images a second", "ratio", "of the peak"]
    return markdown(header, rows) + made_by(result["machine"])


def small_data_table(result: dict[str, Any]) -> str:
    """DETRs beside Faster R-CNN after the same time of training: a row for each seed and family."""
    names = {"detr": "DETR", "rt_detr": "RT-DETR", "faster_rcnn": "Faster R-CNN"}
    rows = []
    for run in result["runs"]:
        for family, name in names.items():
            of_family, best = run[family], run["faster_rcnn"]["AP50"]
            rows.append(
                [
                    f"{name}, seed {run['seed']}",
                    f"{of_family['AP']:.3f}",
                    *(f"{ap50:.3f}" for ap50 in of_family["AP50_by_quarter"]),
                    f"{of_family['AP50'] / best:.2f}" if best else ABSENT,
                    str(of_family["steps"]),
                    f"{of_family['seconds_per_step']:.2f}",
                ]
            )
    s = result["settings"]
    settings = (
        f"\n{s['data']}, {s['backbone']} from scratch, {s['size']} px, batch {s['batch_size']}, "
        f"{s['minutes']:g} minutes of training each.\n"
    )
    quarters = [f"AP50 at {share}" for share in ("1/4", "1/2", "3/4", "the end")]
    header = ["", "AP", *quarters, "of Faster R-CNN's", "steps", "s/step"]
    return markdown(header, rows) + settings + made_by(result["machine"])


def transformers_table(result: dict[str, Any]) -> str:
    """DETRs of transformers: times and peak memory of each side."""
    rows = []
    for name, steps in result["models"].items():
        for step, sides in steps.items():
            for key, of_side in sides.items():
                low, median, high = (times(ratio) for ratio in of_side["ratio"])
                rows.append(
                    [
                        f"{name}, {step}, {key}",
                        three_digits(of_side["ms"]),
                        f"{median} ({low} to {high})",
                        f"{of_side['peak_mib']:.0f}",
                    ]
                )
    header = ["", "ms", "relative time", "peak MiB"]
    size = f"\nImages of {result['size']} x {result['size']}.\n"
    return markdown(header, rows) + size + made_by(result["machine"])


def steps_table(part: dict[str, Any]) -> str:
    """A training step in float32 and in bfloat16: time and peak memory of each side."""
    rows = []
    for name, sides in part["models"].items():
        for key, of_side in sides.items():
            low, median, high = (times(ratio) for ratio in of_side["ratio"])
            cells = [three_digits(of_side["ms"]), f"{median} ({low} to {high})"]
            rows.append([f"{name}, {key}", *cells, f"{of_side['peak_mib']:.0f}"])
    header = ["", "ms", "relative time", "peak MiB"]
    size = f"\nTwo images of {part['settings']['size']} x {part['settings']['size']}.\n"
    return markdown(header, rows) + size + made_by(part["machine"])


def curves_table(part: dict[str, Any]) -> str:
    """Trainings in float32, in bfloat16 and with another seed: how far their losses are apart."""
    rows = [
        [
            f"{family}, {key}",
            f"{training_precision.smooth(run['losses'])[-1]:.3f}",
            f"{100 * run['distance']:.1f} %",
        ]
        for family, runs in part["models"].items()
        for key, run in runs.items()
    ]
    given = part["settings"]
    settings = (
        f"\n{given['backbone']}, {given['size']} pixels, {given['steps']} steps of "
        f"{given['batch_size']} images.\n"
    )
    header = ["", "loss at the end", "distance to float32"]
    return markdown(header, rows) + settings + made_by(part["machine"])


def quantised_accuracy_table(part: dict[str, Any]) -> str:
    """AP in float32 and in 8-bit integers, in fastdet and of the exported file in the runtimes."""
    detectors = part["detectors"]
    first = next(iter(detectors.values()))
    sides = list(first["AP"]["val"])
    rows = [
        [
            f"`{name}`, {of_model['backbone']}, {of_model['min_size']} pixels, {split}",
            *(f"{found[side]:.2f}" for side in sides),
        ]
        for name, of_model in detectors.items()
        for split, found in of_model["AP"].items()
    ]
    images = " and ".join(f"{count} images of {split}" for split, count in first["images"].items())
    data = f"\n{first['data']}, {images}.\n"
    return markdown(["AP", *sides], rows) + data + made_by(part["machine"])


def quantised_times_table(part: dict[str, Any]) -> str:
    """Time of a detection in 8-bit integers, and that of other sides relative to it."""
    detectors = part["detectors"]
    first, *others = next(iter(detectors.values()))["ms"]
    rows = [
        [
            name,
            three_digits(of_model["ms"][first]),
            *(times(of_model["ratio"][side]) for side in others),
        ]
        for name, of_model in detectors.items()
    ]
    height, width = next(iter(detectors.values()))["size"]
    size = f"\nOne image of {height} x {width}.\n"
    return markdown(["", f"{first}, ms", *others], rows) + size + made_by(part["machine"])


def loading_table(result: dict[str, Any]) -> str:
    """The whole loader: medians over the rounds, and the ratio of each round."""
    rows = []
    for workers, sides in result["loading"].items():
        for key, unit in (("images_per_second", "images/s"), ("processor_ms_per_image", "ms")):
            before, ours = (sides[name][key] for name in ("before", "fastdet"))
            of_rounds = [a / b for a, b in zip(ours, before, strict=True)]
            if unit == "ms":
                of_rounds = [1 / x for x in of_rounds]
            what = {"images/s": "images/s", "ms": "processor ms an image, all but workers' start"}
            rows.append(
                [
                    f"{workers} workers, {what[unit]}",
                    *(three_digits(statistics.median(x)) for x in (before, ours)),
                    times(statistics.median(of_rounds)),
                ]
            )
    header = ["", "before", "fastdet", "ratio"]
    return markdown(header, rows) + made_by(result["machine"])


def opening_table(result: dict[str, Any]) -> str:
    """One row for each file."""
    rows = []
    for name, sides in result["opening"].items():
        cells = [f"{result['annotations']:,} annotations, {name}, {sides['mib']:.0f} MiB"]
        for key in ("seconds", "processor_seconds", "peak_mib"):
            cells += [
                three_digits(statistics.median(sides[side][key])) for side in ("before", "fastdet")
            ]
        rows.append(cells)
    header = ["", "s before", "s", "processor s before", "processor s"]
    header += ["peak MiB before", "peak MiB"]
    return markdown(header, rows) + made_by(result["machine"])


def experiment(*names: str) -> Callable[[], str]:
    """What the experiments with these names found."""
    return lambda: experiments.sentences(experiments.read(), *names)


def training(name: str) -> Callable[[], str]:
    """The table of a training beside torchvision."""
    return lambda: training_table(json.loads(CPU_OPS.with_name(f"{name}.json").read_text()))


@functools.cache
def cpu_ops() -> Result:
    """The committed result."""
    return results.read(CPU_OPS)


TABLES: dict[str, Callable[[], str]] = {
    "cpu_ops": lambda: ops_table(cpu_ops()),
    "cpu_ops_front": lambda: front_table(cpu_ops()),
    "cpu_numpy": lambda: numpy_table(cpu_ops()),
    "cpu_ops_every_row": lambda: every_row(cpu_ops()),
    "cpu_ops_floors": lambda: floors(cpu_ops()),
    "backbones": lambda: backbones_table(json.loads(BACKBONES.read_text())),
    "cpu_detectors": lambda: detectors_table(json.loads(CPU_DETECTORS.read_text())),
    "gpus": gpus,
    "gpus_front": gpus_front,
    "cpu_ceilings": lambda: ceilings(cpu_ops()),
    "bccd_cascade_rcnn_cpu": lambda: cascade_table(
        json.loads(CPU_OPS.with_name("bccd_cascade_rcnn_cpu.json").read_text())
    ),
    "bccd_detr_cpu": lambda: small_data_table(
        json.loads(CPU_OPS.with_name("bccd_detr_cpu.json").read_text())
    ),
    "bccd_faster_rcnn_cpu": training("bccd_faster_rcnn_cpu"),
    "bccd_retinanet_cpu": training("bccd_retinanet_cpu"),
    "nuclei_mask_rcnn_cpu": training("nuclei_mask_rcnn_cpu"),
    "analysing": lambda: analysing_table(json.loads(ANALYSE.read_text())),
    "experiments": lambda: experiments.table(experiments.read()),
    "experiment_backbone": experiment("resnet50"),
    "experiment_anchors": experiment("anchors-half", "anchors-double"),
    "experiment_mosaic": experiment("mosaic"),
    "experiment_optimizer": experiment("sgd"),
    "experiment_norms": experiment("frozen-norms"),
    "experiment_neck": experiment("pafpn"),
    "experiment_family": experiment("cascade-rcnn", "retinanet", "fcos"),
    "predicting": lambda: predicting_table(json.loads(PREDICT.read_text())),
    "throughput": lambda: throughput_table(json.loads(THROUGHPUT.read_text())),
    "from_transformers": lambda: transformers_table(
        json.loads(CPU_OPS.with_name("from_transformers.json").read_text())
    ),
    "training_steps": lambda: steps_table(json.loads(TRAINING_PRECISION.read_text())["steps"]),
    "training_curves": lambda: curves_table(json.loads(TRAINING_PRECISION.read_text())["curves"]),
    "quantised_accuracy": lambda: quantised_accuracy_table(
        json.loads(QUANTIZATION.read_text())["accuracy"]
    ),
    "quantised_times": lambda: quantised_times_table(json.loads(QUANTIZATION.read_text())["time"]),
    "loading": lambda: loading_table(json.loads(LOADER.read_text())),
    "opening": lambda: opening_table(json.loads(LOADER.read_text())),
}


def filled(text: str) -> str:
    """The text with every table made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]]()}{block[3]}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
