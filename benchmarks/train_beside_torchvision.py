# SPDX-License-Identifier: BSD-3-Clause
"""Trains our detector and torchvision's side by side on real images and compares the outcome.

Both sides get the same backbone, data, augmentation, batches, optimiser and schedule, and take
their steps in turn, so that other load on the machine slows both alike. Prints, and writes as
JSON, each side's COCO metrics, AP by class, median seconds per step and peak memory.

    python -m benchmarks.train_beside_torchvision --data DATA --out benchmarks/results/NAME.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import machine, torchvision_detectors
from fastdet.data import collate, eval_transforms, open_dataset, train_transforms
from fastdet.evaluation import CocoEvaluator, CocoMetrics
from fastdet.models import MODELS
from fastdet.training.schedules import warmup_cosine

SIDES: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "fastdet": dict(MODELS),
    "torchvision": {
        "faster_rcnn": torchvision_detectors.faster_rcnn,
        "mask_rcnn": torchvision_detectors.mask_rcnn,
        "retinanet": torchvision_detectors.retinanet,
    },
}
# For a longer side of 640; they scale with the image.
ANCHOR_SIZES = [32, 64, 128, 256, 512]


class Side:
    """A model with its optimiser, schedule and clock."""

    def __init__(
        self,
        build: Callable[..., nn.Module],
        options: argparse.Namespace,
        num_classes: int,
        steps: int,
    ) -> None:
        torch.manual_seed(options.seed)
        self.model = build(
            options.backbone,
            num_classes,
            fpn_channels=options.fpn_channels,
            anchor_sizes=[size * options.size // 640 for size in ANCHOR_SIZES],
            min_size=options.min_size or options.size * 3 // 4,
            max_size=options.size,
        ).to(options.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.lr, weight_decay=0.05
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, steps)
        )
        self.device = options.device
        self.masks = has_masks(options)
        self.seconds: list[float] = []

    def step(self, images: list[Tensor], targets: list[dict[str, Any]]) -> float:
        """One training step, timed; returns the loss."""
        start = self._now()
        self.model.train()
        self.optimizer.zero_grad()
        loss = torch.stack(list(self.model(images, targets).values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.seconds.append(self._now() - start)
        self.schedule.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, loader: DataLoader) -> CocoMetrics:
        """COCO metrics on the validation split."""
        self.model.eval()
        dataset: Any = loader.dataset
        evaluator = CocoEvaluator(dataset.annotations, dataset.category_ids, self.masks)
        for images, targets in loader:
            found = self.model([image.to(self.device) for image in images])
            detections = [{k: v.cpu() for k, v in one.items()} for one in found]
            evaluator.update([target["image_id"] for target in targets], detections)
        return evaluator.compute()

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def has_masks(options: argparse.Namespace) -> bool:
    """Whether the model learns masks."""
    return options.model == "mask_rcnn"


def batches(options: argparse.Namespace, steps: int) -> Iterator[tuple[list[Tensor], list[dict]]]:
    """The same `steps` batches for every side and every run of a seed."""
    keys = ["boxes", "labels"] + ["masks"] * has_masks(options)
    dataset = open_dataset(options.data, "train", train_transforms(), has_masks(options))
    loader = DataLoader(
        dataset,
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collate,
        num_workers=options.workers,
        generator=torch.Generator().manual_seed(options.seed),
    )
    done = 0
    while done < steps:
        for images, targets in loader:
            if done == steps:
                return
            done += 1
            yield (
                [image.to(options.device) for image in images],
                [{key: target[key].to(options.device) for key in keys} for target in targets],
            )


def peak_memory_mib(side: str, options: argparse.Namespace) -> float:
    """Peak memory of a few training steps in a process of its own.

    On a GPU what torch allocated; on the CPU the growth of the process's resident set.
    """
    command = [sys.executable, "-m", "benchmarks.train_beside_torchvision", "--measure", side]
    for name in ("data", "model", "backbone", "size", "fpn_channels", "batch_size", "device"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += ["--min-size", str(options.min_size)] if options.min_size else []
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure_memory(side: str, options: argparse.Namespace) -> float:
    """What `peak_memory_mib` runs in the other process."""
    num_classes = len(open_dataset(options.data, "train").classes)
    torch.manual_seed(options.seed)  # of the transforms: the same objects for each side
    chosen = list(batches(options, 4))
    before = machine.new_peak_memory_mib()
    trained = Side(SIDES[side][options.model], options, num_classes, 4)
    for images, targets in chosen:
        trained.step(images, targets)
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return machine.peak_memory_mib() - before


def train_both(options: argparse.Namespace) -> dict[str, Any]:
    """One seed's run of both sides, evaluated four times on the way."""
    val = open_dataset(options.data, "val", eval_transforms(), has_masks(options))
    loader = DataLoader(val, batch_size=options.batch_size, collate_fn=collate)
    sides = {
        name: Side(build[options.model], options, len(val.classes), options.steps)
        for name, build in SIDES.items()
    }
    result: dict[str, Any] = {name: {"AP50_by_step": {}} for name in SIDES}
    for done, (images, targets) in enumerate(batches(options, options.steps), start=1):
        losses = {name: side.step(images, targets) for name, side in sides.items()}
        if done % options.log_every == 0:
            shown = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            print(f"seed {options.seed} step {done}/{options.steps}: loss {shown}", flush=True)
        if done % -(-options.steps // 4) == 0 or done == options.steps:
            for name, side in sides.items():
                metrics = side.evaluate(loader)
                print(f"  {name}: {metrics.stats}", flush=True)
                if metrics.masks is not None:
                    print(f"  {name}, masks: {metrics.masks.stats}", flush=True)
                    result[name] |= {
                        f"segm_{key}": metrics.masks.stats[key] for key in ("AP", "AP50")
                    }
                result[name]["AP50_by_step"][done] = metrics.stats["AP50"]
                result[name] |= {
                    "AP": metrics.stats["AP"],
                    "AP50": metrics.stats["AP50"],
                    "AP_by_class": {row.name: row.AP for row in metrics.per_class},
                    "AP50_by_class": {row.name: row.AP50 for row in metrics.per_class},
                    "seconds_per_step": statistics.median(side.seconds),
                }
    return result


def show(result: dict[str, Any]) -> None:
    """Prints each side's figures, by seed, and the ratio of the step times."""
    for run in result["runs"]:
        for name in SIDES:
            row = run[name]
            by_class = ", ".join(f"{k} {v:.3f}" for k, v in row["AP_by_class"].items())
            masks = f"segm AP {row['segm_AP']:.3f}  " if "segm_AP" in row else ""
            print(
                f"seed {run['seed']} {name:12s} AP {row['AP']:.3f}  AP50 {row['AP50']:.3f}  {masks}"
                f"({by_class})  {row['seconds_per_step']:.3f} s/step"
            )
        ratio = run["torchvision"]["seconds_per_step"] / run["fastdet"]["seconds_per_step"]
        print(f"seed {run['seed']} step time, torchvision / fastdet: {ratio:.2f}")
    print("peak memory, MiB:", {k: round(v) for k, v in result["peak_memory_mib"].items()})


def main() -> None:
    """Trains, compares, writes the result file after each seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="a COCO-format folder")
    parser.add_argument("--model", choices=list(SIDES["torchvision"]), default="faster_rcnn")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=640, help="longer side of the images")
    parser.add_argument("--min-size", type=int, help="shorter side, else 3/4 of the longer")
    parser.add_argument("--fpn-channels", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.seed = 0
    if options.measure:
        print(measure_memory(options.measure, options))
        return
    settings = {k: v for k, v in vars(options).items() if k not in ("measure", "out", "seed")}
    settings["data"] = options.data.name
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "settings": settings,
        "peak_memory_mib": {side: peak_memory_mib(side, options) for side in SIDES},
        "runs": [],
    }
    for seed in range(options.seeds):
        options.seed = seed
        result["runs"].append({"seed": seed, **train_both(options)})
        if options.out:
            options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


if __name__ == "__main__":
    main()
