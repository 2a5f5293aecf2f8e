# SPDX-License-Identifier: BSD-3-Clause
"""What `fastdet.override_torchvision()` and `fastdet.adapters` reach: runs it and looks.

    python tools/override_reach.py

prints the table of docs/override_torchvision.md: for each way to suppress or pool boxes, which of
fastdet's operators ran. Packages that are not installed are left out. The versions of the
committed table are in its first column; install them with
`pip install sahi supervision transformers ultralytics`.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import fastdet
from fastdet import _native
from fastdet.replacement import Override


def boxes_and_scores() -> tuple[torch.Tensor, torch.Tensor]:
    """200 overlapping boxes, xyxy, and scores."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, generator=generator) * 100
    return torch.cat([corners, corners + 30], 1), torch.rand(200, generator=generator)


def torchvision_detector() -> None:
    """RPN, RoIAlign and NMS of torchvision's Faster R-CNN."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
    model([torch.rand(3, 64, 64)])


def ultralytics_predictions() -> torch.Tensor:
    """(1, 4 + classes, anchors): xywh and class scores, as a YOLO model gives them."""
    boxes, scores = boxes_and_scores()
    xywh = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    return torch.cat([xywh, scores[:, None], 1 - scores[:, None]], 1).T[None]


def ultralytics_detect() -> None:
    """The suppression of predict and val in Ultralytics."""
    from ultralytics.utils.nms import non_max_suppression

    non_max_suppression(ultralytics_predictions(), conf_thres=0.1)


def ultralytics_without_torchvision() -> None:
    """Ultralytics' own NMS, which it uses until something imports torchvision."""
    from ultralytics.utils.nms import TorchNMS

    TorchNMS.nms(*boxes_and_scores(), 0.5)


def sahi(name: str) -> Callable[[], None]:
    """One of SAHI's ways to merge the predictions of tiles."""

    def run() -> None:
        import sahi.postprocess.combine as combine
        from sahi.prediction import ObjectPrediction

        boxes, scores = boxes_and_scores()
        predictions = [
            ObjectPrediction(bbox=box, score=score, category_id=0, full_shape=[200, 200])
            for box, score in zip(boxes.int().tolist(), scores.tolist(), strict=True)
        ]
        getattr(combine, name)(match_threshold=0.5, match_metric="IOU")(predictions)

    return run


def supervision(name: str) -> Callable[[], None]:
    """A method of supervision's `Detections`."""

    def run() -> None:
        from supervision import Detections

        boxes, scores = boxes_and_scores()
        classes = np.zeros(200, int)
        detections = Detections(boxes.numpy(), confidence=scores.numpy(), class_id=classes)
        getattr(detections, name)(0.5)

    return run


def transformers_detr() -> None:
    """DETR of transformers, from a config, with its post-processing."""
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    backbone = ResNetConfig(depths=[1, 1, 1, 1], out_features=["stage4"])
    config = DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        backbone=None,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    outputs = DetrForObjectDetection(config).eval()(torch.rand(1, 3, 64, 64))
    DetrImageProcessor().post_process_object_detection(outputs, 0.0)


# Package, what of it, and how to run that.
ROWS: list[tuple[str, str, Callable[[], None]]] = [
    ("torchvision", "detectors", torchvision_detector),
    ("ultralytics", "`non_max_suppression`, in predict and val", ultralytics_detect),
    ("ultralytics", "`TorchNMS`, until something imports torchvision",
     ultralytics_without_torchvision),
    ("sahi", "`GREEDYNMM`, the default", sahi("GreedyNMMPostprocess")),
    ("sahi", "`NMM`", sahi("NMMPostprocess")),
    ("sahi", "`NMS`", sahi("NMSPostprocess")),
    ("supervision", "`Detections.with_nms`", supervision("with_nms")),
    ("supervision", "`Detections.with_nmm`", supervision("with_nmm")),
    ("transformers", "DETR and its post-processing", transformers_detr),
]  # fmt: skip


ADAPTERS: dict[str, Callable[[], Override]] = {
    "sahi": fastdet.adapters.sahi,
    "supervision": fastdet.adapters.supervision,
    "ultralytics": fastdet.adapters.ultralytics,
}


@torch.no_grad()
def operators_in(run: Callable[[], None], override: Callable[[], Override]) -> list[str]:
    """The names of fastdet's operators that `run` calls."""
    with (
        mock.patch.object(_native, "nmm", wraps=_native.nmm) as nmm,
        profile(activities=[ProfilerActivity.CPU]) as profiled,
        override(),
    ):
        run()
    names = (event.key for event in profiled.key_averages())
    found = sorted(n.removeprefix("fastdet::") for n in names if n.startswith("fastdet::"))
    return [*found, "numpy.nmm"] if nmm.called else found


def row(package: str, code: str, run: Callable[[], None]) -> str:
    """A line of the table, without the version of the package."""
    cells = [code]
    for override in (fastdet.override_torchvision, ADAPTERS.get(package)):
        names = override and operators_in(run, override)
        cells.append("" if names is None else ", ".join(f"`{name}`" for name in names) or "no")
    return f" | {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    print("| Package | Code | `override_torchvision` | its [adapter](adapters.md) |")
    print("| --- | --- | --- | --- |")
    for package, code, run in ROWS:
        if importlib.util.find_spec(package) is not None:
            version = importlib.metadata.version(package).split("+")[0]
            print(f"| {package} {version}{row(package, code, run)}")


if __name__ == "__main__":
    main()
