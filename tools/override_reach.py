# SPDX-License-Identifier: BSD-3-Clause
"""Which packages `fastdet.override_torchvision()` reaches: runs their code and looks.

    python tools/override_reach.py

prints the table of docs/override_torchvision.md: for each way to suppress or pool boxes, whether
one of fastdet's operators ran. Packages that are not installed are left out. The versions of the
committed table are in its first column; install them with
`pip install sahi supervision transformers ultralytics`.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import fastdet


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


def supervision_nms() -> None:
    """`Detections.with_nms` of supervision."""
    from supervision import Detections

    boxes, scores = boxes_and_scores()
    detections = Detections(boxes.numpy(), confidence=scores.numpy(), class_id=np.zeros(200, int))
    detections.with_nms(0.5)


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
    ("supervision", "`Detections.with_nms`", supervision_nms),
    ("transformers", "DETR and its post-processing", transformers_detr),
]  # fmt: skip


@torch.no_grad()
def operators_in(run: Callable[[], None]) -> list[str]:
    """The names of fastdet's operators that `run` calls."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled, fastdet.override_torchvision():
        run()
    names = (event.key for event in profiled.key_averages())
    return sorted(name.removeprefix("fastdet::") for name in names if name.startswith("fastdet::"))


def main() -> None:
    """Prints the table."""
    print("| Package | Code | Reached | fastdet's operators that ran |")
    print("| --- | --- | --- | --- |")
    for package, code, run in ROWS:
        if importlib.util.find_spec(package) is None:
            continue
        found = operators_in(run)
        version = importlib.metadata.version(package).split("+")[0]
        names = ", ".join(f"`{name}`" for name in found)
        print(f"| {package} {version} | {code} | {'yes' if found else 'no'} | {names} |")


if __name__ == "__main__":
    main()
