# SPDX-License-Identifier: BSD-3-Clause
"""Detect objects with ONNX Runtime and fastdet.numpy, without torch.

fastdet export --checkpoint runs/first/best.ckpt --out detector.onnx --image-size 128 128
python examples/deploy_onnxruntime.py --model detector.onnx --images PICTURES

A picture that is larger than the model's input is processed in overlapping tiles. If two tiles
detect the same object, NMS keeps the detection with the higher score.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

import fastdet.numpy


def starts(length: int, tile: int) -> list[int]:
    """Start positions of tiles that cover `length`; neighbours overlap by at least a quarter."""
    return [*range(0, max(length - tile, 0), tile * 3 // 4), max(length - tile, 0)]


def detect(
    session: onnxruntime.InferenceSession, size: tuple[int, int], image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (K, 4) xyxy in pixels, scores (K,) and labels (K,) of an RGB image (H, W, 3), uint8."""
    pixels = np.float32(image.transpose(2, 0, 1)) / 255
    found = []
    for top in starts(image.shape[0], size[0]):
        for left in starts(image.shape[1], size[1]):
            tile = pixels[:, top : top + size[0], left : left + size[1]]
            images = np.zeros((1, 3, *size), np.float32)
            images[0, :, : tile.shape[1], : tile.shape[2]] = tile
            inputs = {"images": images, "sizes": np.array([tile.shape[1:]], np.int64)}
            outputs = session.run(["boxes", "scores", "labels", "counts"], inputs)
            boxes, scores, labels, counts = map(np.asarray, outputs)
            boxes += [left, top, left, top]
            found.append([rows[0, : counts[0]] for rows in (boxes, scores, labels)])
    boxes, scores, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    keep = fastdet.numpy.batched_nms(boxes, scores, labels, iou_threshold=0.5)
    return boxes[keep], scores[keep], labels[keep]


def main() -> None:
    """Print the detections of each picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="what `fastdet export` wrote")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="pictures")
    parser.add_argument("--score", type=float, default=0.5, help="the least to be printed")
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    height, width = json.loads(about["image_size"])
    names = json.loads(about["classes"])
    for path in options.images:
        # Objects must have about the same size as in training: if training resized its images,
        # resize these in the same way.
        image = np.asarray(Image.open(path).convert("RGB"))
        for box, score, label in zip(*detect(session, (height, width), image), strict=True):
            if score >= options.score:
                corners = ", ".join(f"{side:.1f}" for side in box)
                print(f"{path.name}: {names[label]} {score:.3f} at ({corners})")


if __name__ == "__main__":
    main()
