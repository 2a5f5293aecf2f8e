# SPDX-License-Identifier: BSD-3-Clause
"""Files without suppression: fastdet.numpy makes the model's detections of what they give."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import fastdet.numpy
from fastdet.deploy.export import export_candidates, metadata
from tests.deploy.conftest import OnnxFile
from tests.deploy.detectors import CLASSES, assert_same, detect, pixels
from tests.deploy.runtimes import RUNTIMES, Arrays
from tests.models.scenes import small_model

NOT_PORTABLE = {"NonMaxSuppression", "RoiAlign", "TopK", "NonZero", "ScatterND", "GatherND"}


def finished(found: Arrays, suppression: dict[str, float], rows: int) -> Arrays:
    """Detections in the form of a file with suppression."""
    boxes = np.zeros((len(found["boxes"]), rows, 4), np.float32)
    scores, labels = np.zeros(boxes.shape[:2], np.float32), np.zeros(boxes.shape[:2], np.int64)
    counts = np.zeros(len(boxes), np.int64)
    for i in range(len(boxes)):
        kept = fastdet.numpy.multiclass_nms(found["boxes"][i], found["scores"][i], **suppression)
        counts[i] = len(kept[0])
        for own, of_image in zip((boxes, scores, labels), kept, strict=True):
            own[i, : counts[i]] = of_image
    return {"boxes": boxes, "scores": scores, "labels": labels, "counts": counts}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_numpy_finishes_what_a_file_begins(name: str, candidates_file: OnnxFile) -> None:
    model, path = candidates_file(name)
    images, sizes = pixels((96, 128), (70, 101))
    expected = detect(model, images, sizes)
    about = metadata(path)
    assert about["classes"] == CLASSES
    assert not NOT_PORTABLE & {node.op_type for node in onnx.load(path).graph.node}
    for run in RUNTIMES.values():
        found = run(path, {"images": images.numpy(), "sizes": sizes.numpy()})
        assert list(found) == ["boxes", "scores"]
        assert_same(finished(found, about["suppression"], expected.boxes.shape[1]), expected)


def test_a_model_of_two_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one stage for an export without suppression, got Faster"):
        export_candidates(small_model("faster_rcnn"), tmp_path / "it.onnx")
