# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's own detectors, unchanged, with and without `fastdet.override_torchvision()`.

Both sides run in turn on the same model and images: inference on one image, and a training step on
two. The weights are random, so the score threshold is put where as many candidates reach the
suppression as a trained model sends there.

    python -m benchmarks.override_torchvision [--out FILE]
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import detection

import fastdet
from benchmarks import machine

ROUNDS = 5
HEIGHT, WIDTH = 800, 1216
CANDIDATES = 500  # pairs of box and class above the score threshold
GT_BOXES = 10


class Row(NamedTuple):
    """Median seconds without and with the override, and the quartiles of the ratio."""

    model: str
    work: str
    torchvision_s: float
    overridden_s: float
    ratio: float
    ratio_low: float
    ratio_high: float


def faster_rcnn_mobilenet() -> nn.Module:
    return detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)


def faster_rcnn_resnet50() -> nn.Module:
    return detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)


def retinanet_resnet50() -> nn.Module:
    return detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)


MODELS = {
    "Faster R-CNN, MobileNetV3-Large FPN": faster_rcnn_mobilenet,
    "Faster R-CNN, ResNet-50 FPN": faster_rcnn_resnet50,
    "RetinaNet, ResNet-50 FPN": retinanet_resnet50,
}


def scene(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image of coarse noise, with boxes on it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, HEIGHT // 32, WIDTH // 32, generator=generator)
    image = nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")[0]
    corner = torch.rand(GT_BOXES, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) * 0.6
    side = 32 + torch.rand(GT_BOXES, 2, generator=generator) * 250
    labels = torch.randint(1, 91, (GT_BOXES,), generator=generator)
    return image, {"boxes": torch.cat([corner, corner + side], 1), "labels": labels}


@contextlib.contextmanager
def recorded(module: nn.Module) -> Iterator[list[Any]]:
    """Collects what the module returns."""
    outputs: list[Any] = []
    hook = module.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    yield outputs
    hook.remove()


def let_candidates_pass(model: Any, image: Tensor) -> None:
    """Sets the score threshold so that CANDIDATES pairs of box and class are above it."""
    if isinstance(model, detection.RetinaNet):
        head, owner = model.head, model
    else:
        head, owner = model.roi_heads.box_predictor, model.roi_heads
    with recorded(head) as outputs:
        model([image])
    (output,) = outputs
    scores = output["cls_logits"].sigmoid() if owner is model else output[0].softmax(1)[:, 1:]
    owner.score_thresh = scores.flatten().kthvalue(scores.numel() - CANDIDATES).values.item()


def works(make: Callable[[], nn.Module]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is timed: one call each."""
    torch.manual_seed(0)
    model = make()
    images, targets = zip(*(scene(seed) for seed in range(2)), strict=True)

    @torch.no_grad()
    def infer() -> Any:
        return model(list(images[:1]))

    def train() -> None:
        model.zero_grad()
        torch.stack(list(model(list(images), list(targets)).values())).sum().backward()

    model.eval()
    with torch.no_grad():
        let_candidates_pass(model, images[0])
    yield "inference, one image", infer
    model.train()
    yield "training step, two images", train


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(model: str, work: str, run: Callable[[], Any]) -> Row:
    """Both sides in turn, after one untimed call of each."""
    theirs: list[float] = []
    ours: list[float] = []
    for _ in range(1 + ROUNDS):
        theirs.append(seconds(run))
        with fastdet.override_torchvision():
            ours.append(seconds(run))
    del theirs[0], ours[0]
    low, _, high = statistics.quantiles([a / b for a, b in zip(theirs, ours, strict=True)], n=4)
    without, with_ours = statistics.median(theirs), statistics.median(ours)
    return Row(model, work, without, with_ours, without / with_ours, low, high)


def measure_all(names: list[str]) -> Iterator[Row]:
    for name in names:
        for work, run in works(MODELS[name]):
            yield measure(name, work, run)


def show(rows: list[Row]) -> None:
    """Prints the rows as a table."""
    table = Table("model", "work", title=f"{torch.get_num_threads()} threads, medians")
    for column in ("torchvision s", "overridden s", "ratio", "quartiles"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            row.work,
            f"{row.torchvision_s:.3g}",
            f"{row.overridden_s:.3g}",
            f"{row.ratio:.2f}x",
            f"{row.ratio_low:.2f} - {row.ratio_high:.2f}",
        )
    Console().print(table)


def main() -> None:
    """Measures, prints, and writes a result file where one is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", choices=MODELS, action="append", help="all, if not given")
    options = parser.parse_args()
    rows = list(measure_all(options.model or list(MODELS)))
    show(rows)
    if options.out:
        result = {"machine": machine.describe(), "rows": [row._asdict() for row in rows]}
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
