# SPDX-License-Identifier: BSD-3-Clause
"""Detections that are made up from the ground truth, with errors of every kind, from a seed."""

import json
from pathlib import Path

import numpy as np


def make_up(annotations: Path, results: Path, seed: int) -> Path:
    """Writes COCO results: most objects are found; some badly, as another class, twice, or not."""
    rng = np.random.default_rng(seed)
    content = json.loads(annotations.read_text())
    categories = [category["id"] for category in content["categories"]]
    rows = []
    for annotation in content["annotations"]:
        fate, score = rng.random(), float(rng.uniform(0.4, 0.99))
        if fate < 0.15:
            continue
        box = np.array(annotation["bbox"], float)
        box += rng.normal(0, 0.3 if fate < 0.25 else 0.03, 4) * np.tile(box[2:], 2)
        category = annotation["category_id"]
        if fate > 0.92:
            category = categories[(categories.index(category) + 1) % len(categories)]
        row = {
            "image_id": annotation["image_id"],
            "category_id": category,
            "bbox": [*box[:2].tolist(), *np.maximum(box[2:], 1).tolist()],
            "score": score,
        }
        rows.append(row)
        if 0.86 < fate < 0.92:
            rows.append({**row, "score": score / 2})
    for image in content["images"]:
        for _ in range(rng.poisson(0.6)):
            x, y = rng.uniform(0, 0.8, 2) * [image["width"], image["height"]]
            rows.append(
                {
                    "image_id": image["id"],
                    "category_id": int(rng.choice(categories)),
                    "bbox": [float(x), float(y), image["width"] / 8, image["height"] / 8],
                    "score": float(rng.uniform(0.05, 0.7)),
                }
            )
    results.write_text(json.dumps(rows))
    return results
