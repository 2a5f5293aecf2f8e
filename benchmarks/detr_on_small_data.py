# SPDX-License-Identifier: BSD-3-Clause
"""DETR, RT-DETR and Faster R-CNN on a small data set, from scratch, each for the same time.

Each family has its own recipe (RECIPES), the same backbone, data, augmentation and batch size, and
as many minutes of training steps. The sides take turns, so that other load on the machine slows
all alike: the next step is that of the side that has used the least time. The learning rate
follows the used share of the time. Each is evaluated after each quarter; the result file is written
after each evaluation and keeps the runs of other seeds.

    python -m benchmarks.detr_on_small_data --data DATA --out benchmarks/results/NAME.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.cascade_beside_faster_rcnn import keep, runs_in
from benchmarks.train_beside_torchvision import ANCHOR_SIZES, batches
from fastdet.data import collate, eval_transforms, open_dataset
from fastdet.evaluation import CocoEvaluator
from fastdet.models import MODELS
from fastdet.training.schedules import warmup_cosine

QUARTERS = 4
PARTS = 1000  # of the time, for the schedule

# Options of the builder, and of the optimiser: learning rate and largest norm of the gradient.
# Nothing is pretrained, so the backbone learns at the same rate as the rest and its BatchNorms use
# the statistics of the batch. DETR is as published, except the backbone's rate and its norms.
RECIPES: dict[str, tuple[dict[str, Any], float, float]] = {
    "detr": ({"backbone_lr_factor": 1.0, "num_queries": 100}, 1e-4, 0.1),
    "rt_detr": ({"fpn_channels": 128, "num_queries": 100}, 4e-4, 0.1),
    "faster_rcnn": (
        {"fpn_channels": 64, "representation_size": 256, "box_batch_size_per_image": 128},
        1e-3,
        10.0,
    ),
}


class Side:
    """A family's model with its optimiser, batches and clock."""

    def __init__(self, family: str, options: argparse.Namespace, num_classes: int) -> None:
        torch.manual_seed(options.seed)
        numbers, lr, self.clip = RECIPES[family]
        if family == "faster_rcnn":
            sizes = [size * options.size // 640 for size in ANCHOR_SIZES]
            numbers = {**numbers, "anchor_sizes": sizes}
        self.model = MODELS[family](
            options.backbone,
            num_classes,
            min_size=options.min_size or options.size * 3 // 4,
            max_size=options.size,
            **numbers,
        ).to(options.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=1e-4)
        self.lr, self.device = lr, options.device
        self.batches = batches(options, 10**9)
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.used = 0.0

    def step(self, budget: float) -> None:
        """One training step; `budget` in seconds is the whole time."""
        images, targets = next(self.batches)
        factor = warmup_cosine(int(PARTS * min(1.0, self.used / budget)), PARTS)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        start = self._now()
        self.losses.append(self._learn(images, targets))
        self.seconds.append(self._now() - start)
        self.used += self.seconds[-1]

    def _learn(self, images: list[Tensor], targets: list[dict[str, Any]]) -> float:
        self.model.train()
        self.optimizer.zero_grad()
        loss = torch.stack(list(self.model(images, targets).values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, loader: DataLoader) -> dict[str, float]:
        """COCO's AP and AP50 on the validation split."""
        self.model.eval()
        dataset: Any = loader.dataset
        evaluator = CocoEvaluator(dataset.annotations, dataset.category_ids)
        for images, targets in loader:
            found = self.model([image.to(self.device) for image in images])
            detections = [{k: v.cpu() for k, v in one.items()} for one in found]
            evaluator.update([target["image_id"] for target in targets], detections)
        stats = evaluator.compute().stats
        return {name: stats[name] for name in ("AP", "AP50")}

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def train_all(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One seed's run of all families; yields it after each evaluation."""
    val = open_dataset(options.data, "val", eval_transforms())
    loader = DataLoader(val, batch_size=options.batch_size, collate_fn=collate)
    sides = {family: Side(family, options, len(val.classes)) for family in RECIPES}
    budget = 60 * options.minutes
    run: dict[str, Any] = {family: {"AP50_by_quarter": []} for family in sides}
    while any(side.used < budget for side in sides.values()):
        family = min(sides, key=lambda name: sides[name].used)
        side, of_family = sides[family], run[family]
        side.step(budget)
        if len(side.losses) % options.log_every == 0:
            mean = statistics.mean(side.losses[-options.log_every :])
            share = f"{side.used / budget:.0%} of the time"
            print(f"{family} step {len(side.losses)}, {share}: loss {mean:.3f}", flush=True)
        passed = min(QUARTERS, int(QUARTERS * side.used / budget))
        new = passed - len(of_family["AP50_by_quarter"])
        if new:  # more than one if a step is longer than a quarter
            found = side.evaluate(loader)
            of_family |= found | {
                "steps": len(side.losses),
                "seconds_per_step": statistics.median(side.seconds),
            }
            of_family["AP50_by_quarter"] += [found["AP50"]] * new
            print(f"  {family}: AP {found['AP']:.3f}, AP50 {found['AP50']:.3f}", flush=True)
            yield run


def main() -> None:
    """Trains all families with each seed; writes the result file after each evaluation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="a COCO-format folder")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=320, help="longer side of the images")
    parser.add_argument("--min-size", type=int, help="shorter side, else 3/4 of the longer")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=12.0, help="of training, of each family")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    left_out = ("data", "out", "seeds", "workers", "device", "log_every")
    settings = {k: v for k, v in vars(options).items() if k not in left_out}
    settings |= {"data": options.data.resolve().name, "recipes": json.loads(json.dumps(RECIPES))}
    runs_in(options.out, settings)  # before the work begins
    options.model = "rt_detr"  # all families learn from boxes alone
    for seed in options.seeds:
        options.seed = seed
        for run in train_all(options):
            keep(options.out, settings, seed, run)


if __name__ == "__main__":
    main()
