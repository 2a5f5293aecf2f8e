# SPDX-License-Identifier: BSD-3-Clause
"""Training on a CPU in float32 and in bfloat16 (`bf16-mixed`): time, memory and the loss's curve.

`steps`: forward and backward of two images of 512 x 512, ResNet-50, beside torchvision's float32;
the sides take turns (`alternate.py`). Peak memory is that of a few steps with AdamW in a process of
its own, beyond the new model; free memory of the heap goes back to the system before them.

`curves`: a training on real images in float32, in bfloat16, and in float32 from other initial
weights and samples of another seed; all with the same batches. A curve is the moving mean of
WINDOW losses. The distance of two curves is the mean difference, relative to the float32 curve.

    python -m benchmarks.training_precision steps --out benchmarks/results/training_precision.json
    python -m benchmarks.training_precision curves --data DATA --out (the same file)
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.alternate import Rounds, alternate, keep_freed_memory
from benchmarks.bench_from_torchvision import MODELS, made, targets_for
from benchmarks.case import ratio
from fastdet.data import collate, open_dataset, train_transforms
from fastdet.files import replacing
from fastdet.models import MODELS as FAMILIES
from fastdet.models import from_torchvision

SIDES = ("fastdet", "fastdet, bfloat16", "torchvision")
STEPS_FOR_MEMORY = 3
ROUNDS, QUICK = Rounds(seconds=60, least=7, most=12), Rounds(seconds=0, least=1, most=1)
CURVES = {"float32": (0, False), "bfloat16": (0, True), "float32, another seed": (1, False)}
TRAINED = ("faster_rcnn", "retinanet")
WINDOW = 10


def gradients(model: Any, images: list[Tensor], targets: list[Any], bfloat16: bool) -> Tensor:
    """One step without an optimiser; returns the loss."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        losses = model(images, targets)
    loss = torch.stack([value.float() for value in losses.values()]).sum()
    loss.backward()
    return loss.detach()


def measured(name: str, side: int, rounds: Rounds) -> dict[str, Any]:
    """Medians of each side, and quartiles of the ratio to the first side's time."""
    network, images = made(name, side, side)
    targets = targets_for(images)
    ours = from_torchvision(network)
    runs: dict[str, Callable[[], Any]] = {
        "fastdet": lambda: gradients(ours, images, targets, False),
        "fastdet, bfloat16": lambda: gradients(ours, images, targets, True),
        "torchvision": lambda: gradients(network, images, targets, False),
    }
    for run in runs.values():
        run()
    seconds = {key: turns.per_call() for key, turns in alternate(runs, rounds).items()}
    return {
        key: {"ms": 1e3 * statistics.median(of_side), "ratio": ratio(of_side, seconds["fastdet"])}
        for key, of_side in seconds.items()
    }


def memory_mib(name: str, key: str, side: int) -> float:
    """`measure_memory` in another process."""
    command = [sys.executable, "-m", "benchmarks.training_precision", "steps", "--size", str(side)]
    command += ["--measure", name, key]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure_memory(name: str, key: str, side: int) -> float:
    """Peak of resident memory, in MiB, of some steps of one side, beyond the model's."""
    model, images = made(name, side, side)
    if key != "torchvision":
        model = from_torchvision(model)
    targets = targets_for(images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    before = machine.new_peak_memory_mib()
    for _ in range(STEPS_FOR_MEMORY):
        gradients(model, images, targets, key == "fastdet, bfloat16")
        optimizer.step()
    return max(0.0, machine.peak_memory_mib() - before)


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of each model."""
    keep_freed_memory()
    result: dict[str, Any] = {}
    for name in options.models:
        result[name] = measured(name, options.size, QUICK if options.quick else ROUNDS)
        for key, of_side in result[name].items():
            of_side["peak_mib"] = memory_mib(name, key, options.size)
        for key, row in result[name].items():
            print(f"{name}, {key}: {row['ms']:.0f} ms (x{row['ratio'][1]:.2f}),", end=" ")
            print(f"{row['peak_mib']:.0f} MiB", flush=True)
    return result


def batches(options: argparse.Namespace) -> list[Any]:
    """The same batches for all curves."""
    loader = torch.utils.data.DataLoader(
        open_dataset(options.data, "train", train_transforms()),
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(0),
    )
    torch.manual_seed(0)  # of the transforms
    whole = itertools.chain.from_iterable(itertools.repeat(loader))
    return list(itertools.islice(whole, options.steps))


def trained(family: str, chosen: list[Any], options: Any, seed: int, bfloat16: bool) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(seed)
    classes = 1 + max(int(target["labels"].max()) for _, all in chosen for target in all)
    numbers = {"min_size": options.size * 3 // 4, "max_size": options.size}
    model = FAMILIES[family](options.backbone, classes, **numbers).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    losses = []
    for images, targets in chosen:
        losses.append(float(gradients(model, images, targets, bfloat16)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return losses


def smooth(losses: list[float]) -> list[float]:
    """The moving means of WINDOW losses."""
    ends = range(WINDOW, len(losses) + 1)
    return [statistics.fmean(losses[end - WINDOW : end]) for end in ends]


def distance(losses: list[float], reference: list[float]) -> float:
    """The mean difference of two curves, relative to the second."""
    pairs = zip(smooth(losses), smooth(reference), strict=True)
    return statistics.fmean(abs(a - b) / b for a, b in pairs)


def curves(options: argparse.Namespace) -> dict[str, Any]:
    """Losses of each family and run, and their distances to float32."""
    chosen = batches(options)
    result: dict[str, Any] = {}
    for family in options.families:
        losses = {
            key: trained(family, chosen, options, seed, bfloat16)
            for key, (seed, bfloat16) in CURVES.items()
        }
        result[family] = {
            key: {"losses": of_run, "distance": distance(of_run, losses["float32"])}
            for key, of_run in losses.items()
        }
        for key, run in result[family].items():
            last = smooth(run["losses"])[-1]
            print(f"{family}, {key}: {last:.4f}, distance {run['distance']:.4f}", flush=True)
    return result


def main() -> None:
    """Measures one part and writes it to the result file, which keeps other models and parts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["steps", "curves"])
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--families", nargs="+", choices=TRAINED, default=TRAINED)
    parser.add_argument("--quick", action="store_true", help="each side once: does it run at all")
    parser.add_argument("--data", type=Path, help="for curves: a data set")
    parser.add_argument("--backbone", default="resnet18", help="for curves")
    parser.add_argument("--size", type=int, help="longer side of the images; 512, for curves 256")
    parser.add_argument("--batch-size", type=int, default=4, help="for curves")
    parser.add_argument("--steps", type=int, default=80, help="for curves")
    parser.add_argument("--lr", type=float, default=5e-4, help="for curves")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.size = options.size or (512 if options.part == "steps" else 256)
    if options.measure:
        name, key = options.measure
        print(measure_memory(name, key, options.size))
        return
    found = steps(options) if options.part == "steps" else curves(options)
    if options.out:
        kept = json.loads(options.out.read_text()) if options.out.exists() else {}
        of_curves = ("backbone", "batch_size", "steps", "lr") if options.part == "curves" else ()
        names = ("size", *of_curves)
        settings = {name: getattr(options, name) for name in names}
        models = {**kept.get(options.part, {}).get("models", {}), **found}
        part = {"machine": machine.describe(), "settings": settings, "models": models}
        with replacing(options.out) as temporary:
            temporary.write_text(json.dumps({**kept, options.part: part}, indent=2) + "\n")


if __name__ == "__main__":
    main()
